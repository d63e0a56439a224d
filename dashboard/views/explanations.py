"""Why a study went as it did: which choices mattered, and how far predictions held.

What mattered takes a second to work out, once scikit-learn is imported, so it is drawn last,
though it stands first.
"""

from collections.abc import Mapping

import streamlit as st

from autopeft.searchers.explain.choices import in_words
from autopeft.searchers.explain.importances import Importances, ordered, unexplained
from autopeft.searchers.explain.predictions import NORMAL, Predictions, predictions
from dashboard import explanation_charts, live, palette, words
from dashboard.queries import StudyView
from dashboard.study_header import show_header, show_study_page

_COLORS = {"quality": palette.QUALITY, "hypervolume": palette.HYPERVOLUME}


def show(view: StudyView) -> None:
    """The page."""
    show_header(view)
    if not view.trials:
        return
    st.subheader("What mattered", anchor=False)
    mattered = st.container()
    st.subheader("Predicted against measured", anchor=False)
    found = predictions(list(view.trials.values()))
    if not found:
        st.info(
            "No trial was proposed with a prediction: only the searcher `gp` predicts, after its "
            "start.",
            icon=":material/query_stats:",
        )
    for each in found:
        _predictions(each)
    with mattered:
        _importances(live.importances(view))


# -- what mattered --------------------------------------------------------------------------------


def _importances(found: Mapping[str, Importances]) -> None:
    told = {key: each for key, each in found.items() if each.choices}
    left, right = st.columns([7, 3], gap="large")
    with left:
        if told:
            _shares(told)
        for sentence in unexplained(list(found.values())):
            st.info(words.markdown(words.sentence(sentence)), icon=":material/blur_on:")
    with right:
        _basis(told)


def _shares(told: dict[str, Importances]) -> None:
    clear, unclear = ordered(list(told.values()))
    if clear:
        bars = [(each, _COLORS[key]) for key, each in told.items()]
        st.plotly_chart(
            explanation_charts.importance_chart(bars, clear),
            key="importances",
            config={"displayModeBar": False},
        )
    else:
        st.info("No single choice can be told from noise.", icon=":material/blur_on:")
    if unclear and clear:
        st.caption(words.markdown(f"Not told from noise: {', '.join(map(in_words, unclear))}."))


def _basis(told: dict[str, Importances]) -> None:
    """What the bars mean, and how far to trust them."""
    if not told:
        return
    for each in told.values():
        name = words.markdown(words.label(each.target).capitalize())
        st.metric(
            f"{name}: held-out rank correlation",
            f"{each.rank_correlation:.2f}",
            help="How well a model of the choices orders trials that it has not seen: at 1 "
            "perfectly, at 0 not at all. The lower, the less the shares say.",
        )
    st.caption(words.markdown(_trials(next(iter(told.values())))))
    st.caption(
        "A share is the part of the variance between trials that goes with a choice, alone or "
        "together with others, so shares may sum to more than 1. Faint bars cannot be told from "
        "noise. They speak of the configurations that this search tried."
    )


def _trials(importances: Importances) -> str:
    kinds = [
        (importances.stopped, "stopped early, judged by where others went on from there"),
        (importances.failed, "diverged, counted as the constant predictor"),
    ]
    among = "; ".join(f"{count} {kind}" for count, kind in kinds if count)
    return f"From {importances.trials} trials{f': {among}' if among else ''}."


# -- predicted against measured -------------------------------------------------------------------


def _predictions(found: Predictions) -> None:
    if not found.pairs:
        (text,) = found.sentences()
        st.info(words.markdown(words.sentence(text)), icon=":material/query_stats:")
        return
    left, right = st.columns([7, 3], gap="large")
    with left:
        st.plotly_chart(
            explanation_charts.prediction_chart(found),
            key=f"predictions-{found.metric}",
            config={"displayModeBar": False},
        )
    with right:
        _tiles(found)
        st.caption(
            f"{len(found.pairs)} of the {found.proposed} trials with a prediction "
            "completed the full budget and count. A prediction is what the searcher believed when "
            "it proposed the trial. The worse trials were stopped, so points lie rather above the "
            "dotted line, where measured is predicted."
        )


def _tiles(found: Predictions) -> None:
    first, second = st.columns(2)
    for place, (sds, expected) in zip((first, second), NORMAL.items(), strict=True):
        share = found.share_within(sds)
        place.metric(
            f"Within {sds} sd",
            words.NOTHING if share is None else f"{share:.0%}",
            f"{expected:.0%} would be",
            delta_color="off",
            delta_arrow="off",
        )
    correlation = found.rank_correlation
    first.metric(
        "Rank correlation", words.NOTHING if correlation is None else f"{correlation:.2f}"
    )
    second.metric("RMSE", words.metric_value(found.metric, found.rmse))


if __name__ == "__main__":
    show_study_page(show)
