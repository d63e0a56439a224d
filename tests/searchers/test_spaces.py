"""The searchers on the spaces that come with autopeft, as they are."""

import numpy as np
import pytest

from autopeft.backbone.anatomy import Anatomy, Layer, Site
from autopeft.configuration import Configuration
from autopeft.methods import registry
from autopeft.methods.counting import site_params, trainable_params
from autopeft.searchers.base import Observation, Problem
from autopeft.searchers.candidates import Candidates
from autopeft.searchers.features import Features
from autopeft.searchers.initial import InitialDesign
from autopeft.searchers.locate import Locator
from autopeft.searchers.reference import located
from autopeft.searchers.registry import make_searcher
from autopeft.space.library import load_space
from autopeft.study.records import ObjectiveFrame

HIDDEN, INNER, LAYERS = 384, 1536, 6
WIDTHS = {
    "query": (HIDDEN, HIDDEN),
    "key": (HIDDEN, HIDDEN),
    "value": (HIDDEN, HIDDEN),
    "output": (HIDDEN, HIDDEN),
    "up": (HIDDEN, INNER),
    "down": (INNER, HIDDEN),
}


def anatomy() -> Anatomy:
    layers = tuple(
        Layer(i, f"{i}", {r: Site(i, r, f"{i}.{r}", *w) for r, w in WIDTHS.items()}, f"{i}.self")
        for i in range(LAYERS)
    )
    return Anatomy("bert", layers, HIDDEN, INNER, 12, 12, 32, 22_700_000)


def problem(name: str, **changes) -> Problem:
    body = anatomy()
    schemas = registry.schemas()
    space = load_space(name, schemas=schemas).bind(body.shape(frozenset(schemas)))
    params = ObjectiveFrame("trainable_params", "min", "log10", worst=2e6, best=768)

    def build(point) -> Configuration:
        plain = space.assignment(point)
        defaults = {"learning_rate": 2e-4, "weight_decay": 0.0, "warmup_ratio": 0.06}
        return Configuration.from_dict({**plain, "training": defaults | plain["training"]})

    fields = {
        "space": space,
        "anatomy": body,
        "frame": (ObjectiveFrame("accuracy", "max", "linear", 0.2, 1.0), params),
        "build": build,
        "known": lambda c: {"trainable_params": float(trainable_params(c, body))},
        "site_params": lambda c: site_params(c, body),
        "feasible": lambda c: trainable_params(c, body) <= 2e6,
        "flops": lambda c: float(trainable_params(c, body)),
        "n_validation": 500,
        "seed": 0,
        "initial": 8,
    }
    return Problem(**(fields | changes))


def observed(number: int, given: Problem, configuration: Configuration) -> Observation:
    known = given.known(configuration)
    places = given.site_params(configuration)
    reach = sum(np.log1p(n) * (1 + layer) for (layer, _), n in places.items())
    quality = 0.2 + 0.7 * (1 - np.exp(-reach / 200))
    return Observation(number, configuration, {"accuracy": float(quality), **known}, 1.0)


@pytest.mark.parametrize("name", ["autopeft", "lora", "mixed", "quick"])
@pytest.mark.parametrize("searcher", ["random", "evolution", "gp"])
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
    """Exactly, but for a real such as the learning rate, which comes out near."""
    given = problem(name)
    locator, rng = Locator(given), np.random.default_rng(0)
    found = 0
    for _ in range(10):
        configuration = given.build(given.space.sample(rng))
        located = given.build(locator.point(configuration))
        rates = [c.training_value("learning_rate") for c in (configuration, located)]
        found += located.groups == configuration.groups and abs(np.log(rates[0] / rates[1])) < 0.2
    assert found >= 8


@pytest.mark.parametrize("name", ["autopeft", "mixed"])
def test_the_reference_gets_a_configurations_vector_back(name: str) -> None:
    """Where it were told another vector, it would repeat the released code's defect."""
    given = problem(name)
    locator, rng = Locator(given), np.random.default_rng(1)
    for _ in range(3):
        point = given.space.sample(rng)
        found = located(given, locator, given.build(point))
        assert given.space.encode(found) == pytest.approx(given.space.encode(point), abs=1e-5)
