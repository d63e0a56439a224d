"""Optuna's samplers on real spaces, once they learn: conditions, restarts, what they are told."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from autopeft.configuration import Configuration
from autopeft.searchers import optuna_bridge
from autopeft.searchers.base import Observation, Problem, Proposal
from autopeft.searchers.optuna_bridge import RECIPES, OptunaSearcher
from autopeft.searchers.optuna_trials import Parameters, distribution, suggested
from autopeft.space.dimension import Dimension
from autopeft.study.records import Origin

TOLD = {"tpe": 12, "nsga2": 53, "nsga3": 53, "gpsampler": 11}
"""More than a sampler draws at random before it learns."""


@pytest.fixture(params=sorted(RECIPES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def observed(number: int, given: Problem, configuration: Configuration) -> Observation:
    places = given.site_params(configuration)
    reach = sum(np.log1p(n) * (1 + layer) for (layer, _), n in places.items())
    rate = np.log10(configuration.training_value("learning_rate") / 1e-3)
    quality = 0.2 + 0.7 * (1 - np.exp(-reach / 200)) * np.exp(-(rate**2))
    objectives = {"accuracy": float(quality), **given.known(configuration)}
    return Observation(number, configuration, objectives, 1.0)


def learnt(
    searcher: OptunaSearcher, given: Problem, n: int
) -> tuple[list[Proposal], list[Observation]]:
    """`n` proposals, asked for and told in batches."""
    proposals: list[Proposal] = []
    told: list[Observation] = []
    while len(proposals) < n:
        batch = searcher.ask(min(8, n - len(proposals)))
        new = [
            observed(len(proposals) + index, given, each.configuration)
            for index, each in enumerate(batch)
        ]
        searcher.tell(new)
        proposals += batch
        told += new
    return proposals, told


def hashes(proposals: Sequence[Proposal]) -> list[str]:
    return [each.configuration.hash for each in proposals]


# -- a learning sampler, after a restart ----------------------------------------------------------


def test_a_restart_changes_nothing_once_a_sampler_learns(
    make_bound_problem: Callable[..., Problem], name: str
) -> None:
    given = make_bound_problem("mixed")
    searcher = OptunaSearcher(given, name)
    proposals, told = learnt(searcher, given, TOLD[name])
    assert {each.origin for each in proposals} >= {Origin.INITIAL}
    waiting = searcher.ask(2)
    pending = [each.configuration for each in waiting]
    after = searcher.ask(2, pending=pending)
    assert {each.origin for each in after} == {Origin.SEARCHER}

    fresh = OptunaSearcher(given, name)
    fresh.tell(told[::-1])
    replayed = fresh.ask(2, pending=pending[::-1])
    assert hashes(replayed) == hashes(after)
    every = [*proposals, *waiting, *after]
    assert len(set(hashes(every))) == len(every)
    assert all(given.feasible(each.configuration) for each in every)


SEQUENCE = """
import sys
sys.path[:0] = {path!r}
import test_optuna_bridge as tests
from bound_problems import bound_problem
given = bound_problem("mixed")
searcher = tests.OptunaSearcher(given, "tpe")
proposals, _ = tests.learnt(searcher, given, 14)
print(tests.hashes([*proposals, *searcher.ask(2)]))
"""


def test_the_sequence_does_not_depend_on_pythons_hashes() -> None:
    """Optuna keeps groups of parameters in sets of names."""
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]
    code = SEQUENCE.format(path=path)
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


# -- what a sampler is told -----------------------------------------------------------------------


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[optuna.Study]:
    """The studies that searchers make."""
    made: list[optuna.Study] = []
    create = optuna.create_study

    def noted(**given: Any) -> optuna.Study:
        made.append(create(**given))
        return made[-1]

    monkeypatch.setattr(optuna_bridge.optuna, "create_study", noted)
    return made


def test_parameters_are_there_only_where_they_mean_something(
    make_bound_problem: Callable[..., Problem], studies: list[optuna.Study]
) -> None:
    given = make_bound_problem("mixed")
    searcher = OptunaSearcher(given, "tpe")
    proposals, _ = learnt(searcher, given, 12)
    pending = searcher.ask(1)
    searcher.ask(1)
    trials = studies[-1].get_trials()
    assert [each.state.name for each in trials[:13]] == 12 * ["COMPLETE"] + ["RUNNING"]
    for trial, proposal in zip(trials[:13], [*proposals, *pending], strict=True):
        on = {group.method for group in proposal.configuration.groups}
        for method in ("lora", "serial_adapter", "parallel_adapter", "prefix"):
            names = {each for each in trial.params if each.startswith(f"{method}.")}
            size = next(each for each in names if each.split(".")[1] in ("rank", "size", "length"))
            assert (trial.params[size] > 0) == (method in on)
            assert (len(names) > 1) == (method in on)
    spaces = {tuple(sorted(each.params)) for each in trials}
    assert len(spaces) > 2


def test_values_are_utilities_of_the_highest_rung(
    make_bound_problem: Callable[..., Problem], studies: list[optuna.Study]
) -> None:
    given = make_bound_problem("lora")
    searcher = OptunaSearcher(given, "tpe")
    first, second, third = (each.configuration for each in searcher.ask(3))
    params = given.known(first)["trainable_params"]
    searcher.tell([Observation(0, first, {"accuracy": 0.3, "trainable_params": params}, 0.1)])
    searcher.tell([Observation(0, first, {"accuracy": 0.6, "trainable_params": params}, 0.33)])
    searcher.tell([Observation(1, second, {"accuracy": 0.2}, 1.0, failed=True)])
    searcher.tell([Observation(2, third, {"accuracy": float("nan")}, 1.0)])
    searcher.ask(1)
    stopped, failed, undefined = studies[-1].get_trials()[:3]
    span = np.log10(2e6) - np.log10(768)
    assert stopped.values == pytest.approx([0.5, (np.log10(2e6) - np.log10(params)) / span])
    assert failed.values[0] == undefined.values[0] == 0.0
    assert failed.values[1] > 0.0
    assert {each.name for each in studies[-1].directions} == {"MAXIMIZE"}


def test_what_lies_outside_the_space_is_not_told(
    make_bound_problem: Callable[..., Problem], studies: list[optuna.Study]
) -> None:
    given = make_bound_problem("lora")
    searcher = OptunaSearcher(given, "tpe")
    (inside,) = searcher.ask(1)
    group = inside.configuration.groups[0]
    settings = tuple((k, 128 if k == "rank" else v) for k, v in group.settings)
    outside = replace(inside.configuration, groups=(replace(group, settings=settings),))
    searcher.tell([replace(observed(0, given, outside), baseline=True)])
    searcher.ask(1)
    assert [each.state.name for each in studies[-1].get_trials()] == ["RUNNING", "RUNNING"]
    searcher.tell([observed(1, given, inside.configuration)])
    searcher.ask(1)
    assert studies[-1].get_trials()[0].state.name == "COMPLETE"


# -- generations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_children_come_from_the_parents(
    make_bound_problem: Callable[..., Problem], studies: list[optuna.Study], name: str
) -> None:
    """Parameters that all trials have are inherited: one rank that the start never leaves."""
    given = make_bound_problem("lora")
    searcher = OptunaSearcher(given, name)
    rng, told = np.random.default_rng(0), []
    while len(told) < 50:
        point = dict(given.space.sample(rng)) | {"lora.rank": 2, "lora.dropout": 0.1}
        configuration = given.build(given.space.canonical(point))
        if configuration not in [each.configuration for each in told]:
            told.append(observed(len(told), given, configuration))
    searcher.tell(told[:49])
    drawn = [each.configuration.groups[0]["rank"] for each in searcher.ask(8)]
    assert len(set(drawn)) > 2
    searcher.tell(told)
    children = [each.configuration.groups[0]["rank"] for each in searcher.ask(16)]
    assert sum(rank == 2 for rank in children) >= 11
    generation = f"{RECIPES[name].sampler}:generation"
    marks = [each.system_attrs[generation] for each in studies[-1].get_trials() if each.values]
    assert marks == 50 * [0]


# -- proposals that may not be --------------------------------------------------------------------


def test_an_unseen_neighbour_takes_the_place_of_a_repeat(
    make_bound_problem: Callable[..., Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that says the same for ever."""
    given = make_bound_problem("lora")
    wanted = given.space.answers(given.space.sample(np.random.default_rng(1)))

    class Stubborn(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, _: Any) -> Any:
            dimension = next(d for d in given.space.dimensions if d.name == param_name)
            return Parameters.of({param_name: wanted[param_name]}, {param_name: dimension}).params[
                param_name
            ]

    recipe = replace(RECIPES["tpe"], make=lambda seed: Stubborn(), attempts=3)
    monkeypatch.setattr(optuna_bridge, "RECIPES", {"tpe": recipe})
    proposals = OptunaSearcher(given, "tpe").ask(4)
    assert len(set(hashes(proposals))) == 4
    said = given.build(given.space.canonical(wanted))
    assert proposals[0].configuration == said
    assert {each.details["reason"] for each in proposals[1:]} == {
        "a neighbour of what Optuna's TPESampler suggested"
    }


def test_caps_are_kept_where_hardly_anything_fits(
    make_bound_problem: Callable[..., Problem], name: str
) -> None:
    given = make_bound_problem("mixed")
    tight = replace(given, feasible=lambda c: given.known(c)["trainable_params"] <= 3000)
    proposals = OptunaSearcher(tight, name).ask(4)
    assert len(set(hashes(proposals))) == 4
    assert all(tight.feasible(each.configuration) for each in proposals)
    assert all(each.configuration.groups for each in proposals)


# -- degenerate measurements, once a sampler learns -----------------------------------------------

CASES: dict[str, Callable[[Observation], Observation]] = {
    "all equal": lambda o: replace(o, objectives={"accuracy": 0.5, "trainable_params": 9e3}),
    "all failed": lambda o: replace(o, objectives={**o.objectives, "accuracy": 0.2}, failed=True),
    "constant quality": lambda o: replace(o, objectives={**o.objectives, "accuracy": 0.7}),
    "not a number": lambda o: replace(o, objectives={"accuracy": float("nan")}),
    "low rungs": lambda o: replace(o, rung=0.1),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_degenerate_measurements(
    make_bound_problem: Callable[..., Problem], name: str, case: str
) -> None:
    given = make_bound_problem("quick")
    searcher = OptunaSearcher(given, name)
    rng = np.random.default_rng(2)
    told = [
        CASES[case](observed(n, given, given.build(given.space.sample(rng))))
        for n in range(TOLD[name])
    ]
    searcher.tell(told)
    assert len(set(hashes(searcher.ask(2)))) == 2


@pytest.mark.parametrize("n_objectives", [1, 3])
def test_one_and_three_objectives(
    make_bound_problem: Callable[..., Problem], name: str, n_objectives: int
) -> None:
    given = make_bound_problem("quick")
    third = replace(given.frame[1], name="adapter_bytes", worst=8e6, best=3000)
    frame = given.frame[:1] if n_objectives == 1 else (*given.frame, third)
    given = replace(
        given,
        frame=frame,
        known=lambda c, of=given: {
            **of.known(c),
            "adapter_bytes": 4 * of.known(c)["trainable_params"] + 7,
        },
    )
    searcher = OptunaSearcher(given, name)
    learnt(searcher, given, TOLD[name])
    assert len(set(hashes(searcher.ask(2)))) == 2


# -- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dimension", "value", "internal"),
    [
        (Dimension("a", "ordered", (0, 4, 16)), 16, 2),
        (Dimension("a", "integer", range(2, 9), log=True), 8, 8),
        (Dimension("a", "real", low=1e-4, high=1e-2, log=True), 0.001, 0.001),
        (Dimension("a", "category", ("relu", "gelu")), "gelu", "gelu"),
        (Dimension.flag("a"), True, True),
    ],
)
def test_a_dimension_is_told_as_it_is_suggested(
    dimension: Dimension, value: Any, internal: Any
) -> None:
    parameters = Parameters.of({"a": value}, {"a": dimension})
    assert parameters.params == {"a": internal}
    fixed = optuna.trial.FixedTrial({"a": internal})
    assert suggested(fixed, dimension) == value  # type: ignore[arg-type]
    assert fixed.distributions == {"a": distribution(dimension)}


def test_optunas_settings_are_left_alone(make_bound_problem: Callable[..., Problem]) -> None:
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.DEBUG)
        OptunaSearcher(make_bound_problem("quick"), "tpe").ask(1)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)
