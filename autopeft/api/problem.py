"""From a study's definition and backbone to the problem that its searcher solves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias, TypedDict, TypeVar

import numpy as np

from autopeft import counting
from autopeft.api.costs import Costs
from autopeft.api.deploying import left_out, undeployable
from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import TRAINING_KEYS, TRAINING_OPTIONS, Configuration
from autopeft.errors import BackboneError, Fault, InputError
from autopeft.methods import registry
from autopeft.searchers.base import Limit, Problem
from autopeft.searchers.candidates import Candidates
from autopeft.space.library import load_space
from autopeft.space.schema import MethodSchema, RuleSchema
from autopeft.space.space import BoundSpace, Point
from autopeft.sparsity import rules
from autopeft.study.configuration_check import check_configuration
from autopeft.study.configuration_form import complete_configuration
from autopeft.study.definition import StudyDefinition
from autopeft.study.metrics import CAUSAL_LM, METRICS
from autopeft.study.records import ObjectiveFrame
from autopeft.study.search_blocks import Constraint, Objective

_T = TypeVar("_T")

TRIED = 100
"""Samples of a space among which something of each of its methods has to be buildable."""


class Registered(TypedDict):
    """Schemas of methods and rules by name, as what reads spaces and configurations takes them."""

    schemas: Mapping[str, MethodSchema]
    rules: Mapping[str, RuleSchema]


Ranges: TypeAlias = Mapping[str, tuple[float, float]]
"""The least and the largest value of metrics, by name."""

SLACK = 1.25
"""A measured cost's frame reaches this factor beyond what the space's ends were measured at:
trials a little beyond keep their places, and where all configurations take alike, the noise of a
clock does not fill the frame."""


@dataclass(frozen=True)
class Facts:
    """What a definition and its data fix for good; see `StudyRecord.facts`.

    Attributes:
        constant_quality: The quality metric's value for the constant predictor.
        best_quality: Its best value.
        head_params: Parameters of the task head.
        train_tokens: Real tokens of a full trial.
        n_validation: Validation examples.
    """

    constant_quality: float
    best_quality: float
    head_params: int
    train_tokens: int
    n_validation: int


def training_defaults(definition: StudyDefinition) -> dict[str, float]:
    """The study's values of the training keys that a space may vary."""
    keys = (*TRAINING_KEYS, *TRAINING_OPTIONS)
    return {key: float(getattr(definition.training, key)) for key in keys}


def registered() -> Registered:
    """What a space or a configuration may name: all registered methods and rules."""
    return {"schemas": registry.schemas(), "rules": rules.schemas()}


def bind_space(definition: StudyDefinition, anatomy: Anatomy) -> BoundSpace:
    """The study's space on its backbone; SpaceError with all faults."""
    shape = anatomy.shape(registry.carried_by(anatomy))
    return load_space(definition.space, **registered()).bind(shape)


def build(definition: StudyDefinition, space: BoundSpace, point: Point) -> Configuration:
    """The configuration that a point stands for, with the study's training values filled in."""
    assignment = space.assignment(point)
    training = training_defaults(definition) | dict(assignment.get("training", {}))
    return Configuration.from_dict({**assignment, "training": training})


def make_problem(
    definition: StudyDefinition,
    anatomy: Anatomy,
    space: BoundSpace,
    facts: Facts,
    *,
    measured: Ranges = MappingProxyType({}),
) -> Problem:
    """The problem of a study.

    Args:
        definition: The study.
        anatomy: Its backbone.
        space: Bound to the backbone.
        facts: What the data fix.
        measured: What probes of the space's ends found, by metric (see `probed_ends`). Without
            it, the problem lacks the frames of measured costs: enough to check and to plan.

    Raises:
        InputError: No configuration of the space keeps the caps or fits `deploy`.
    """
    costs = Costs(anatomy, head_params=facts.head_params, train_tokens=facts.train_tokens)

    def built(point: Point) -> Configuration:
        return build(definition, space, point)

    ranges = _ranges(space, built, costs)
    frames = _frames(definition, facts, ranges, measured)
    problem = Problem(
        space=space,
        anatomy=anatomy,
        frame=tuple(frames[o.metric] for o in definition.objectives if o.metric in frames),
        build=built,
        known=costs.known,
        site_params=costs.site_params,
        feasible=_feasible(definition, costs, anatomy),
        flops=costs.flops,
        n_validation=facts.n_validation,
        seed=definition.study.seed,
        initial=min(definition.search.initial, definition.budget.trials),
        portfolio=definition.search.portfolio,
        surrogate=definition.search.surrogate,
        trunk_flops=costs.trunk_flops,
        limits=_limits(definition, frames),
    )
    faults = _cap_faults(definition, ranges) or _feasibility_faults(definition, problem)
    if faults:
        raise InputError(faults)
    return problem


def cap_faults(definition: StudyDefinition, anatomy: Anatomy, space: BoundSpace) -> list[Fault]:
    """Caps that nothing meets and a `deploy` that nothing fits, told without data or weights.

    Caps on FLOPs and bytes are held against one token and no head: what is refused here nothing
    can meet; the rest is checked when data and head are known.
    """
    facts = Facts(0.0, 1.0, head_params=0, train_tokens=1, n_validation=1)
    try:
        make_problem(definition, anatomy, space, facts)
    except InputError as error:
        return list(error.faults)
    return []


TOGETHER = "methods beside each other"
"""Stands for a method where it is their combination that cannot be built."""

RULE = "the rule "
"""Stands before a rule's name, where it is the rule that refuses what can be built without it."""

TriedFaults: TypeAlias = Mapping[str, Sequence[Sequence[Fault]]]
"""By method: why its groups cannot be built, for every configuration that was tried.

Those of `TOGETHER` are of configurations each of whose methods alone can be built; those of a
rule of configurations that can be built without it.
"""


def tried_faults(definition: StudyDefinition, anatomy: Anatomy, space: BoundSpace) -> TriedFaults:
    """What cannot be built of the space's smallest configurations and of `TRIED` samples.

    What only an importance map could tell is left out where there is none.
    """
    by_method: dict[str, list[list[Fault]]] = {}
    for point in _tried_points(space):
        whole = build(definition, space, point)
        configuration, sound = whole.without_rule(), True
        for method in configuration.methods:
            groups = tuple(each for each in configuration.groups if each.method == method)
            own = counting.faults(replace(configuration, groups=groups), anatomy)
            by_method.setdefault(method, []).append(own)
            sound = sound and not own
        if sound:
            together = counting.faults(configuration, anatomy)
            by_method.setdefault(TOGETHER, []).append(together)
            unmeasured = anatomy.importance is None and rules.measured(whole)
            if whole != configuration and not together and not unmeasured:
                name = f"{RULE}{dict(whole.sparsity)['rule']}"
                by_method.setdefault(name, []).append(counting.faults(whole, anatomy))
    return by_method


def _tried_points(space: BoundSpace) -> list[Point]:
    rng = np.random.default_rng(0)
    return [*space.smallest(), *(space.sample(rng) for _ in range(TRIED))]


def not_deployed(
    definition: StudyDefinition, anatomy: Anatomy, space: BoundSpace
) -> Mapping[str, str]:
    """What `deploy` keeps out of the search, with the reason; see `deploying.left_out`."""
    if not definition.deploy:
        return {}
    tried = [build(definition, space, point) for point in _tried_points(space)]
    return left_out(tried, anatomy, causal=_is_causal(definition))


def build_faults(tried: TriedFaults) -> list[Fault]:
    """Faults of methods of the space of which nothing can be built, whatever the other values."""
    return [
        Fault("study", f"space.methods.{each.key}", each.given, each.allowed, each.hint)
        for method, found in tried.items()
        if all(found) and not method.startswith(RULE)  # there are configurations without it
        for each in found[0]
    ]


def barred_parts(tried: TriedFaults) -> list[str]:
    """What of the space is never proposed since it cannot be built: one example a method."""
    notes = []
    for method, found in tried.items():
        faulty = [each[0] for each in found if each]
        if faulty and (method.startswith(RULE) or not all(found)):
            share = max(0.01, len(faulty) / len(found))  # of a sample
            first = faulty[0]
            notes.append(
                f"about {share:.0%} of what the space has of {method} is never "
                f"proposed, such as {first.given} (allowed: {first.allowed})"
                + (f"; {first.hint}" if first.hint else "")
            )
    return notes


def enqueued(definition: StudyDefinition, anatomy: Anatomy) -> list[Configuration]:
    """The configurations of `search.enqueue`, checked against the backbone.

    Raises:
        InputError: All faults at once: of form and meaning, repeats, more than the budget.
    """
    shape = anatomy.shape(registry.carried_by(anatomy))
    known, defaults = registered(), training_defaults(definition)
    found: list[Configuration] = []
    faults: list[Fault] = []
    for index, plain in enumerate(definition.search.enqueue):
        key = f"search.enqueue.{index}"
        own = check_configuration(plain, shape=shape, where="study", key=key, **known)
        faults += own
        if own:
            continue
        configuration = complete_configuration(plain, training=defaults, **known)
        if anatomy.importance is not None or not rules.measured(configuration):
            faults += [
                Fault("study", f"{key}.{each.key}", each.given, each.allowed, each.hint)
                for each in (
                    *counting.faults(configuration, anatomy),
                    *counting.option_faults(configuration, anatomy),
                )
            ]
        if configuration in found:
            first = f"the same as configuration {found.index(configuration)}"
            faults.append(Fault("study", key, first, "every one once"))
        found.append(configuration)
    if len(found) > definition.budget.trials:
        given = f"{len(found)} configurations"
        faults.append(Fault("study", "search.enqueue", given, "at most budget.trials"))
    if faults:
        raise InputError(faults)
    return found


def barred(configurations: Sequence[Configuration], problem: Problem) -> list[Fault]:
    """Faults of enqueued configurations that break a cap or do not fit `deploy`."""
    return [
        Fault("study", f"search.enqueue.{index}", "over a cap or outside `deploy`", "within both")
        for index, configuration in enumerate(configurations)
        if not problem.feasible(configuration)
    ]


def _caps(definition: StudyDefinition) -> dict[str, float]:
    """Caps of objectives and constraints; the stricter of two."""
    caps: dict[str, float] = {}
    for entry in definition.bounded:
        if entry.cap is not None:
            caps[entry.metric] = min(float(entry.cap), caps.get(entry.metric, float("inf")))
    return caps


def _known_caps(definition: StudyDefinition) -> dict[str, float]:
    return {name: cap for name, cap in _caps(definition).items() if METRICS[name].kind == "known"}


def _limits(
    definition: StudyDefinition, frames: Mapping[str, ObjectiveFrame]
) -> tuple[Limit, ...]:
    """Bounds that nobody can check beforehand, as far as their frames are known."""
    quality = definition.objectives[0]
    known = _known_caps(definition)
    caps = {name: cap for name, cap in _caps(definition).items() if name not in known}
    floor = {} if quality.floor is None else {quality.metric: float(quality.floor)}
    bounds = floor | caps
    return tuple(Limit(frames[name], bound) for name, bound in bounds.items() if name in frames)


def _is_causal(definition: StudyDefinition) -> bool:
    return definition.model.task == CAUSAL_LM


def _feasible(
    definition: StudyDefinition, costs: Costs, anatomy: Anatomy
) -> Callable[[Configuration], bool]:
    caps, peft_only = _known_caps(definition), "peft" in definition.deploy
    causal = _is_causal(definition)

    def feasible(configuration: Configuration) -> bool:
        counted = costs.counted(configuration)
        if costs.faults(configuration):
            return False
        if peft_only and undeployable(counted, anatomy, causal=causal):
            return False
        values = costs.known(configuration)
        return all(values[metric] <= cap for metric, cap in caps.items())

    return feasible


def _ranges(space: BoundSpace, built: Callable[[Point], Configuration], costs: Costs) -> Ranges:
    """Known costs of the space's smallest and largest configurations: the frame's ends."""
    smallest = _of_each(space.smallest(), lambda point: costs.known(built(point)))
    largest = _of_each(space.largest_by_rule(), lambda point: costs.known(built(point)))
    return {
        name: (
            min(values[name] for values in smallest),
            max(values[name] for values in largest),
        )
        for name in largest[0]
    }


def _of_each(points: Sequence[Point], figure: Callable[[Point], _T]) -> list[_T]:
    """A figure of each point but those whose rule refuses them, which are never proposed.

    Raises:
        BackboneError: They are all refused.
    """
    found, refused = [], None
    for point in points:
        try:
            found.append(figure(point))
        except BackboneError as error:
            refused = error
    if refused is not None and not found:
        raise refused
    return found


def _cap_faults(definition: StudyDefinition, ranges: Ranges) -> list[Fault]:
    blocks: list[tuple[str, Sequence[Objective | Constraint]]] = [
        ("objectives", definition.objectives),
        ("constraints", definition.constraints),
    ]
    return [
        Fault(
            "study",
            f"{block}.{index}.cap",
            f"{entry.cap:,.0f}",
            f"at least {ranges[entry.metric][0]:,.0f}, the space's smallest configuration",
            "raise the cap or give the space smaller sizes",
        )
        for block, entries in blocks
        for index, entry in enumerate(entries)
        if entry.cap is not None and entry.metric in ranges and entry.cap < ranges[entry.metric][0]
    ]


def _feasibility_faults(definition: StudyDefinition, problem: Problem) -> list[Fault]:
    """A fault where all caps and `deploy` together leave nothing."""
    if Candidates(problem).sample(np.random.default_rng(0), 1, frozenset()):
        return []
    bars = [*_known_caps(definition), *(f"deploy {form}" for form in definition.deploy)]
    given = ", ".join(bars) or "its own conditions"
    hint = "raise a cap, give smaller sizes, or add methods that `deploy` can carry"
    reasons = not_deployed(definition, problem.anatomy, problem.space)
    if reasons:
        hint += "; left out: " + "; ".join(f"{what} ({why})" for what, why in reasons.items())
    lacking = f"no configuration that keeps {given}"
    return [Fault("study", "space", lacking, "a space with at least one", hint)]


def _frames(
    definition: StudyDefinition, facts: Facts, known: Ranges, measured: Ranges
) -> dict[str, ObjectiveFrame]:
    """The frames of all objectives and of measured costs that are only capped, by metric."""
    quality, caps = definition.objectives[0], _caps(definition)
    frames = {
        quality.metric: ObjectiveFrame(
            quality.metric, quality.goal, "linear", facts.constant_quality, facts.best_quality
        )
    }
    for name, (low, high) in known.items():
        frames[name] = ObjectiveFrame(name, "min", "log10", min(high, caps.get(name, high)), low)
    for name, (low, high) in measured.items():
        worst = min(high * SLACK, caps.get(name, high * SLACK))
        best = min(low / SLACK, worst / SLACK**2)
        frames[name] = ObjectiveFrame(name, "min", "log10", worst, best)
    for name in definition.reached:  # shares: their ends are known beforehand
        frames[name] = ObjectiveFrame(name, "min", "linear", min(1.0, caps.get(name, 1.0)), 0.0)
    return frames


def probed_ends(problem: Problem) -> dict[str, Configuration]:
    """The configurations whose probes span the frames of measured costs, by what they are.

    Of the space's smallest ones, that with the fewest parameters and that with the least work,
    which lies in higher layers; and the largest.
    """
    smallest = smallest_configurations(problem)

    def fewest(configuration: Configuration) -> float:
        return problem.known(configuration)["trainable_params"]

    return {
        "smallest": min(smallest, key=fewest),
        "lightest": min(smallest, key=problem.flops),
        "largest": largest_configuration(problem),
    }


def largest_configuration(problem: Problem) -> Configuration:
    """The largest configuration; of methods that exclude each other, that with the most work."""
    space = problem.space
    try:
        largest = _buildable(problem, space.largest_by_method())
    except BackboneError:  # by the rule that they share
        largest = _buildable(problem, space.largest_by_rule())
    return max(largest, key=problem.flops)


def smallest_configurations(problem: Problem) -> list[Configuration]:
    """The smallest configurations, of each of the space's methods."""
    return _buildable(problem, problem.space.smallest())


def _buildable(problem: Problem, points: Sequence[Point]) -> list[Configuration]:
    def built(point: Point) -> Configuration:
        configuration = problem.build(point)
        problem.flops(configuration)
        return configuration

    return _of_each(points, built)


def longest_warmup(definition: StudyDefinition, space: BoundSpace) -> float:
    """The largest share of warm-up steps of any configuration."""
    for dimension in space.dimensions:
        if dimension.name == "training.warmup_ratio":
            return max([float(value) for value in dimension.values] or [dimension.high])
    return definition.training.warmup_ratio


def param_range(
    space: BoundSpace, definition: StudyDefinition, anatomy: Anatomy
) -> dict[str, int]:
    """The exact range of trainable parameters over the space, caps left out."""
    costs = Costs(anatomy, head_params=0, train_tokens=1)

    def count(point: Point) -> int:
        return sum(costs.site_params(build(definition, space, point)).values())

    return {
        "min": min(_of_each(space.smallest(), count)),
        "max": max(_of_each(space.largest_by_rule(), count)),
    }
