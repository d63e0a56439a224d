"""The searchers on the spaces that come with autopeft, as they are."""

import numpy as np
import pytest
from bound_problems import anatomy
from bound_problems import bound_problem as problem
from importance_maps import with_importance

from autopeft import counting
from autopeft.configuration import Configuration
from autopeft.methods import registry
from autopeft.searchers.base import Observation, Problem
from autopeft.searchers.candidates import Candidates
from autopeft.searchers.features import Features
from autopeft.searchers.initial import InitialDesign
from autopeft.searchers.registry import SEARCHERS, make_searcher
from autopeft.space.library import load_space
from autopeft.sparsity import rules

SCORED = ("fisher", "sensitivity", "gradient", "activation")


def observed(number: int, given: Problem, configuration: Configuration) -> Observation:
    known = given.known(configuration)
    places = given.site_params(configuration)
    reach = sum(np.log1p(n) * (1 + layer) for (layer, _), n in places.items())
    quality = 0.2 + 0.7 * (1 - np.exp(-reach / 200))
    return Observation(number, configuration, {"accuracy": float(quality), **known}, 1.0)


@pytest.mark.parametrize("name", ["autopeft", "lora", "mixed", "quick"])
@pytest.mark.parametrize("searcher", sorted(SEARCHERS))
def test_every_space_can_be_searched(name: str, searcher: str) -> None:
    given = problem(name)
    chosen = make_searcher(searcher, given)
    first = chosen.ask(8)
    chosen.tell([observed(i, given, p.configuration) for i, p in enumerate(first)])
    second = chosen.ask(3)
    assert len({p.configuration.hash for p in [*first, *second]}) == 11
    assert all(given.feasible(p.configuration) for p in [*first, *second])


@pytest.mark.parametrize("name", ["autopeft", "lora", "mixed", "quick"])
def test_the_start_covers_the_budget(name: str) -> None:
    given = problem(name)
    candidates = Candidates(given)
    design = InitialDesign(given, candidates, Features(given)).design
    sizes = [np.log10(given.known(each.configuration)["trainable_params"]) for each in design]
    pool = candidates.sample(np.random.default_rng(1), 256, frozenset())
    drawn = [np.log10(given.known(each.configuration)["trainable_params"]) for each in pool]
    spread = np.ptp(drawn)
    assert np.diff(np.sort(sizes)).max() < 0.45 * spread
    assert np.ptp(sizes) > 0.75 * spread
    assert np.ptp(sizes[:4]) > 0.35 * spread


@pytest.mark.parametrize("name", ["autopeft", "lora", "mixed", "quick"])
def test_points_are_found_from_configurations(name: str) -> None:
    given = problem(name)
    rng = np.random.default_rng(0)
    for _ in range(10):
        configuration = given.build(given.space.sample(rng))
        point = given.space.nearest(configuration.to_dict())
        assert point is not None
        assert given.build(point) == configuration


@pytest.mark.parametrize("name", ["autopeft", "mixed"])
def test_the_reference_gets_a_configurations_vector_back(name: str) -> None:
    """Where it were told another vector, it would repeat the released code's defect."""
    given = problem(name)
    rng = np.random.default_rng(1)
    for _ in range(3):
        point = given.space.sample(rng)
        found = given.space.nearest(given.build(point).to_dict())
        assert found is not None
        assert given.space.encode(found) == pytest.approx(given.space.encode(point), abs=1e-5)


# -- spaces that hold all methods -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["methods", "everything"])
def test_no_method_is_missing(name: str) -> None:
    """A new method is one more block of both spaces."""
    blocks = load_space(name, schemas=registry.schemas(), rules=rules.schemas()).block
    missing = set(registry.names()) - set(blocks["methods"])
    assert not missing, f"add {sorted(missing)} to search_spaces/{name}.yaml"


def test_methods_are_compared_one_at_a_time_at_their_own_rates() -> None:
    given = problem("methods", with_importance(anatomy(48), scores=SCORED))
    space, rng = given.space, np.random.default_rng(0)
    largest = {given.build(point).methods: point for point in space.largest_by_method()}
    assert set(largest) == {(name,) for name in registry.names()}
    ranges = {each.name: each for each in space.dimensions if "learning_rate" in each.name}
    for _ in range(60):
        configuration = given.build(space.sample(rng))
        (method,) = configuration.methods
        own = ranges[f"{method}.training.learning_rate"]
        assert own.low <= configuration.training_value("learning_rate") <= own.high
        assert space.nearest(configuration.to_dict()) is not None


def test_the_sizes_of_methods_lie_in_one_range() -> None:
    """On MiniLM's widths, in all layers: all within LoRA's ranks 1 to 32, or as near as can be."""
    given = problem("methods")
    low, high = 9_216, 294_912
    for point in given.space.largest_by_method():
        configuration = given.build(point)
        assert not counting.faults(configuration, given.anatomy)
        assert low <= given.known(configuration)["trainable_params"] <= 3 * high
    for point in given.space.smallest():
        assert 200 <= given.known(given.build(point))["trainable_params"] <= high


@pytest.mark.parametrize(("name", "searcher"), [("methods", "gp"), ("everything", "random")])
def test_spaces_of_all_methods_can_be_searched(name: str, searcher: str) -> None:
    body = with_importance(anatomy(48), scores=SCORED, ranking=(3, 1, 5, 4, 0, 2))
    feasible = {"feasible": lambda c: not counting.faults(c.without_rule(), body)}
    given = problem(name, body, initial=4, **feasible)
    chosen = make_searcher(searcher, given)
    first = chosen.ask(4)
    chosen.tell([observed(i, given, p.configuration) for i, p in enumerate(first)])
    assert len({p.configuration.hash for p in [*first, *chosen.ask(2)]}) == 6


def test_every_point_by_importance_comes_to_something() -> None:
    body = with_importance(anatomy(48), scores=SCORED, ranking=(3, 1, 5, 4, 0, 2))
    given = problem("importance", body)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        configuration = given.build(given.space.sample(rng))
        seen.add(dict(configuration.sparsity)["rule"])
        assert given.known(configuration)["trainable_params"] >= 0
    assert seen == {"none", "ist", "spt"}
