import pytest

from autopeft.searchers.explain.importances import Importance, Importances
from autopeft.searchers.explain.predictions import Prediction, Predictions
from dashboard import explanation_charts, palette

QUALITY = Importances(
    "accuracy",
    40,
    3,
    1,
    0.8,
    (Importance("training.learning_rate", 0.4, 0.05), Importance("<b>.rank", 0.01, 0.02)),
)
VOLUME = Importances(
    "hypervolume",
    40,
    3,
    1,
    0.9,
    (Importance("<b>.rank", 0.3, 0.1), Importance("training.learning_rate", -0.01, 0.1)),
)


def test_a_group_of_bars_per_choice_with_errors() -> None:
    told = [(QUALITY, palette.QUALITY), (VOLUME, palette.HYPERVOLUME)]
    figure = explanation_charts.importance_chart(told, ["training.learning_rate", "<b>.rank"])
    accuracy, volume = figure.data
    assert (accuracy.name, volume.name) == ("accuracy", "hypervolume")
    assert list(accuracy.y) == ["learning rate", "&lt;b&gt; rank"]
    assert list(accuracy.x) == [0.4, 0.01]
    assert list(volume.x) == [0.0, 0.3]  # below 0 is noise, and said so where the mouse points
    assert volume.customdata[0][0] == -0.01
    assert list(accuracy.error_x.array) == [0.05, 0.02]
    assert accuracy.marker.color != volume.marker.color
    assert list(accuracy.marker.opacity) == [1.0, explanation_charts.FAINT]


def test_predictions_are_set_against_the_diagonal() -> None:
    pairs = (Prediction(3, 0.6, 0.05, 0.7), Prediction(4, 0.8, None, 0.5))
    figure = explanation_charts.prediction_chart(Predictions("accuracy", 5, pairs))
    diagonal, points = figure.data
    assert list(diagonal.x) == list(diagonal.y)
    assert diagonal.x[0] < 0.5
    assert diagonal.x[1] > 0.8
    assert (list(points.x), list(points.y)) == ([0.6, 0.8], [0.7, 0.5])
    assert list(points.error_x.array) == [0.05, 0.0]
    assert points.to_plotly_json()["customdata"] == [[3], [4]]
    assert "predicted: 0.6000 ± 0.05" in points.hovertext[0]
    assert "±" not in points.hovertext[1]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_single_prediction_has_room(value: float) -> None:
    pairs = (Prediction(1, value, 0.1, value),)
    figure = explanation_charts.prediction_chart(Predictions("accuracy", 1, pairs))
    assert figure.data[0].x[0] < value < figure.data[0].x[1]
