import math

import numpy as np
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.model_selection import KFold

from autopeft.searchers.dominance import hypervolume
from autopeft.searchers.explain import importances as module
from autopeft.searchers.explain.choices import Choices
from autopeft.searchers.explain.importances import (
    Importance,
    Importances,
    importances,
    ordered,
    rank_correlation,
    unexplained,
)
from autopeft.searchers.explain.outcomes import Outcomes


def _outcomes(configurations, *utilities) -> Outcomes:
    return Outcomes(tuple(configurations), np.column_stack(utilities), stopped=0, failed=0)


def _rate(configuration) -> float:
    """Decades from 1e-3, uniform in [-1, 1]."""
    return math.log10(configuration.training_value("learning_rate") / 1e-3)


def _rank(configuration) -> int:
    return next((int(g["rank"]) for g in configuration.groups if g.method == "lora"), 0)


def _quality(configuration) -> float:
    """The learning rate has an optimum and LoRA's rank helps; nothing else matters."""
    return 0.3 + 0.3 * math.exp(-2 * _rate(configuration) ** 2) + 0.05 * math.log2(
        1 + _rank(configuration)
    )  # fmt: skip


@pytest.fixture
def known(draw, thrift) -> Outcomes:
    rng = np.random.default_rng(0)
    chosen = draw(rng, 60)
    quality = [_quality(each) + rng.normal(0.0, 0.01) for each in chosen]
    return _outcomes(chosen, quality, [thrift(each) for each in chosen])


def test_what_matters_comes_first_and_nothing_else_is_clear(known: Outcomes) -> None:
    found = importances(known, "accuracy")["quality"]
    assert found.rank_correlation > 0.7
    clear = [each.choice for each in found.choices if each.clear]
    assert set(clear) == {"lora.present", "lora.rank", "training.learning_rate"}
    assert set(clear) == {each.choice for each in found.choices[:3]}
    assert all(each.share < 0.05 for each in found.choices[3:])
    assert found.message == ""


def test_hypervolume_is_decided_by_cost_as_well(known: Outcomes) -> None:
    found = importances(known, "accuracy")
    shares = {each.choice: each for each in found["hypervolume"].choices}
    assert shares["training.learning_rate"].clear
    assert shares["serial_adapter.present"].clear  # it adds nothing but parameters
    assert not {e.choice: e for e in found["quality"].choices}["serial_adapter.present"].clear


def test_the_same_trials_give_the_same_importances(known: Outcomes) -> None:
    few = _outcomes(known.configurations[:16], *known.utilities[:16].T)
    assert importances(few, "accuracy") == importances(few, "accuracy")


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_gets_a_message_and_no_importances(draw, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = importances(_outcomes(draw(rng, 60), rng.normal(0.5, 0.1, 60)), "accuracy")
    assert list(found) == ["quality"]
    assert found["quality"].choices == ()
    assert "would mean nothing" in found["quality"].message


def test_too_few_trials_get_a_message(draw) -> None:
    rng = np.random.default_rng(0)
    found = importances(_outcomes(draw(rng, 15), rng.random(15)), "accuracy")["quality"]
    assert (found.choices, found.rank_correlation) == ((), None)
    assert "it takes 16 trials" in found.message


def test_what_does_not_differ_explains_nothing_and_says_so(draw, configure) -> None:
    rng = np.random.default_rng(0)
    same = importances(_outcomes([configure(rank=4)] * 20, rng.random(20)), "accuracy")
    assert "same choices" in same["quality"].message
    flat = importances(_outcomes(draw(rng, 20), np.full(20, 0.5)), "accuracy")["quality"]
    assert (flat.choices, flat.message) == ((), "all trials reached the same accuracy")


def test_no_trials_at_all(draw) -> None:
    found = importances(Outcomes((), np.empty((0, 2)), 0, 0), "accuracy")
    assert [each.choices for each in found.values()] == [(), ()]


# -- against closed forms and scikit-learn --------------------------------------------------------


def _exact(names, function):
    """In place of the forest: the truth, as a function of named columns."""

    def fitted(_X, _u, _rng):
        return lambda rows: function(
            {name: rows[:, index] for index, name in enumerate(names)}
        ).reshape(-1, 1)

    return fitted


def test_with_a_perfect_model_shares_are_total_sobol_indices(draw, monkeypatch) -> None:
    """y = z + 2 z w of independent z (rate) and w (presence, +-1 at p and 1 - p).

    In closed form, with E[z] = 0: Var y = E z^2 (1 + 4 E w + 4), of which the rate has everything,
    and presence has E z^2 4 Var w.
    """
    rng = np.random.default_rng(3)
    chosen = draw(rng, 400)
    choices = Choices.of(chosen)

    def truth(column):
        w = 2.0 * column["serial_adapter.present"] - 1.0
        z = column["training.learning_rate"] + 3.0
        return z + 2.0 * z * w

    y = truth({name: choices.X[:, index] for index, name in enumerate(choices.names)})
    monkeypatch.setattr(module, "_fitted", _exact(choices.names, truth))
    found = importances(_outcomes(chosen, y), "accuracy")["quality"]
    shares = {each.choice: each.share for each in found.choices}
    w = np.array([2.0 * (len(c.methods) > 1 or "lora" not in c.methods) - 1.0 for c in chosen])
    # A row whose only method is the adapter cannot lose it: those exchanges change nothing.
    p, only = (w > 0).mean(), np.mean([c.methods == ("serial_adapter",) for c in chosen])
    swaps = (1.0 - p) * p + (p - only) * (1.0 - p)  # of 2 p (1 - p) where all could
    expected = 16.0 * swaps / 2.0 / (1.0 + 4.0 * w.mean() + 4.0)
    assert shares["training.learning_rate"] == pytest.approx(1.0, abs=0.06)
    assert shares["serial_adapter.present"] == pytest.approx(expected, abs=0.04)
    rest = [share for name, share in shares.items() if name.split(".")[0] == "lora"]
    assert rest == pytest.approx([0.0] * len(rest))


class _OfOneColumn(RegressorMixin, BaseEstimator):
    """A fitted model whose other columns stay as they are: the others need no exchanges."""

    def __init__(self, model, rows, column) -> None:
        self.model, self.rows, self.column = model, rows, column

    def fit(self, *_) -> None:
        raise NotImplementedError

    def predict(self, values):
        rows = self.rows.copy()
        rows[:, [self.column]] = values
        return self.model.predict(rows)


def test_the_share_of_a_choice_is_scikit_learns_permutation_importance(known: Outcomes) -> None:
    choices = Choices.of(known.configurations)
    X, y = choices.inputs(choices.X), known.utilities[:, 0]
    column = choices.names.index("training.learning_rate")
    grown = []
    for seed in range(3):
        for train, test in KFold(5, shuffle=True, random_state=seed).split(X):
            forest = RandomForestRegressor(
                50, min_samples_leaf=2, max_features=0.6, random_state=seed
            ).fit(X[train], y[train])
            result = permutation_importance(
                _OfOneColumn(forest, X[test], column), X[test][:, [column]], y[test],
                scoring="neg_mean_squared_error", n_repeats=20, random_state=seed,
            )  # fmt: skip
            grown.append(result.importances_mean[0])
    # Within a fold of 12, a row keeps its own value in one of 12 permutations.
    reference = np.mean(grown) / (2.0 * y.var()) * 12 / 11
    found = {e.choice: e for e in importances(known, "accuracy")["quality"].choices}
    assert found["training.learning_rate"].share == pytest.approx(reference, rel=0.2)


def _of_scikit_learn(X, u, rng):
    """In place of the forest: scikit-learn's, with four times as many trees."""
    forest = RandomForestRegressor(
        4 * module.TREES,
        min_samples_leaf=2,
        max_features=0.6,
        random_state=int(rng.integers(2**31)),
    ).fit(X, u[:, 0])
    return lambda rows: forest.predict(rows)[:, None]


def test_few_trees_say_what_many_of_scikit_learns_say(known: Outcomes, monkeypatch) -> None:
    alone = _outcomes(known.configurations, known.utilities[:, 0])
    ours = importances(alone, "accuracy")["quality"]
    monkeypatch.setattr(module, "_fitted", _of_scikit_learn)
    theirs = importances(alone, "accuracy")["quality"]
    assert ours.rank_correlation == pytest.approx(theirs.rank_correlation, abs=0.03)
    reference = {each.choice: each for each in theirs.choices}
    for each in ours.choices:
        other = reference[each.choice]
        assert abs(each.share - other.share) < max(0.01, math.hypot(each.error, other.error))
        assert each.clear == other.clear


@pytest.mark.parametrize(
    ("m", "constant", "within"), [(2, math.pi / 4, 0.01), (3, math.pi / 6, 0.1)]
)
def test_directions_add_up_to_the_hypervolume(m: int, constant: float, within: float) -> None:
    """Area = 1/2 int r^2 over the quarter circle; volume = 1/3 int r^3 over the eighth sphere."""
    points = np.random.default_rng(0).random((12, m))
    weights = [weight for weight, _ in module._scalarisations(points)]
    assert constant * np.mean(weights) == pytest.approx(hypervolume(points), rel=within)


def test_rank_correlation_of_ties_and_constants() -> None:
    assert rank_correlation([1.0, 2.0, 3.0], [10.0, 40.0, 90.0]) == pytest.approx(1.0)
    assert rank_correlation([1.0, 2.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0]) == pytest.approx(
        -0.9487, abs=1e-4
    )
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0], [1.0]) is None


def test_targets_without_importances_share_a_sentence() -> None:
    few = [Importances(name, 3, 1, 0, None, (), "too few") for name in ("loss", "hypervolume")]
    assert unexplained(few) == ["loss and hypervolume: 3 trials (1 stopped early); too few"]
    told = Importances("loss", 30, 0, 0, 0.8, (Importance("a", 0.1, 0.1),))
    assert unexplained([told]) == []


def test_choices_are_ordered_over_both_targets() -> None:
    def told(**shares: tuple[float, float]) -> Importances:
        rows = tuple(Importance(name, *pair) for name, pair in shares.items())
        return Importances("x", 20, 0, 0, 0.8, rows)

    clear, unclear = ordered(
        [told(a=(0.1, 0.1), b=(0.3, 0.1)), told(a=(0.5, 0.1), b=(0.1, 0.1), c=(0.1, 0.2))]
    )
    assert (clear, unclear) == (["a", "b"], ["c"])
