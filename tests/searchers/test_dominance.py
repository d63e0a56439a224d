import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.searchers.bo import is_non_dominated
from autopeft.searchers.dominance import hypervolume, non_dominated, non_dominated_ranks
from autopeft.searchers.front import undominated


def points(n_objectives: int) -> st.SearchStrategy[np.ndarray]:
    grid = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
    row = st.lists(grid, min_size=n_objectives, max_size=n_objectives)
    return st.lists(row, max_size=12).map(lambda rows: np.array(rows).reshape(-1, n_objectives))


def test_hypervolume_by_hand() -> None:
    assert hypervolume(np.zeros((0, 2))) == 0.0
    assert hypervolume(np.array([[0.3], [0.7]])) == 0.7
    assert hypervolume(np.array([[0.5, 1.0], [1.0, 0.5]])) == pytest.approx(0.75)
    assert hypervolume(np.array([[1.0, 0.0]])) == 0.0
    assert hypervolume(np.array([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5]])) == pytest.approx(0.375)


@pytest.mark.parametrize("n_objectives", [2, 3])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_hypervolume_is_botorchs(n_objectives: int, data: st.DataObject) -> None:
    from botorch.utils.multi_objective.hypervolume import Hypervolume

    Y = data.draw(points(n_objectives))
    front = torch.from_numpy(Y[non_dominated(Y)])
    reference = Hypervolume(ref_point=torch.zeros(n_objectives, dtype=torch.float64))
    expected = reference.compute(front) if len(Y) else 0.0
    assert hypervolume(Y) == pytest.approx(expected, abs=1e-12)


@given(Y=points(3))
def test_non_dominated_is_botorchs(Y: np.ndarray) -> None:
    expected = is_non_dominated(torch.from_numpy(Y), deduplicate=True).numpy()
    assert (non_dominated(Y) == expected).all()
    assert undominated(list(map(tuple, Y))) == np.flatnonzero(expected).tolist()


def test_of_equal_points_the_lowest_index_stays() -> None:
    Y = np.array([[0.1, 0.1], [0.5, 0.5], [0.5, 0.5], [0.2, 0.9]])
    assert non_dominated(Y).tolist() == [False, True, False, True]
    assert non_dominated_ranks(Y).tolist() == [2, 0, 1, 0]


@given(Y=points(2))
def test_dominated_points_add_no_volume(Y: np.ndarray) -> None:
    assert hypervolume(Y) == pytest.approx(hypervolume(Y[non_dominated_ranks(Y) == 0]))
