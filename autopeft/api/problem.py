"""From a study's definition and backbone to the problem that its searcher solves."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import TRAINING_KEYS, Configuration
from autopeft.errors import Fault, InputError
from autopeft.methods import counting, registry
from autopeft.searchers.base import Problem
from autopeft.space.library import load_space
from autopeft.space.space import BoundSpace, Point
from autopeft.study.configuration_check import check_configuration
from autopeft.study.configuration_form import complete_configuration
from autopeft.study.definition import StudyDefinition
from autopeft.study.records import ObjectiveFrame
from autopeft.study.search_blocks import Constraint, Objective

CACHED = 100_000


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
    return {key: float(getattr(definition.training, key)) for key in TRAINING_KEYS}


def bind_space(definition: StudyDefinition, anatomy: Anatomy) -> BoundSpace:
    """The study's space on its backbone; SpaceError with all faults."""
    shape = anatomy.shape(registry.carried_by(anatomy))
    space = definition.space
    return load_space(space, schemas=registry.schemas()).bind(shape)


def build(definition: StudyDefinition, space: BoundSpace, point: Point) -> Configuration:
    """The configuration that a point stands for, with the study's training values filled in."""
    assignment = space.assignment(point)
    training = training_defaults(definition) | dict(assignment.get("training", {}))
    return Configuration.from_dict({**assignment, "training": training})


def enqueued(definition: StudyDefinition, anatomy: Anatomy) -> list[Configuration]:
    """The configurations of `search.enqueue`, checked against the backbone; faults at once."""
    shape = anatomy.shape(registry.carried_by(anatomy))
    schemas, faults, found = registry.schemas(), [], []
    for index, plain in enumerate(definition.search.enqueue):
        where = f"search.enqueue[{index}]"
        own = check_configuration(plain, schemas, shape, where)
        faults += own
        if not own:
            found.append(complete_configuration(plain, schemas, training_defaults(definition)))
    if faults:
        raise InputError(faults)
    return found


def make_problem(
    definition: StudyDefinition, anatomy: Anatomy, space: BoundSpace, facts: Facts
) -> Problem:
    """The problem of a study.

    Raises:
        InputError: No configuration of the space keeps the caps.
    """

    @lru_cache(CACHED)
    def known(configuration: Configuration) -> Mapping[str, float]:
        return {
            "trainable_params": float(counting.trainable_params(configuration, anatomy)),
            "adapter_bytes": float(
                counting.adapter_bytes(configuration, anatomy, facts.head_params)
            ),
            "flops": flops(configuration),
        }

    @lru_cache(CACHED)
    def flops(configuration: Configuration) -> float:
        return counting.training_flops(configuration, anatomy, facts.train_tokens)

    @lru_cache(CACHED)
    def site_params(configuration: Configuration) -> Mapping[tuple[int, str], int]:
        return counting.site_params(configuration, anatomy)

    capped: list[Objective | Constraint] = [*definition.objectives[1:], *definition.constraints]
    caps = {entry.metric: float(entry.cap) for entry in capped if entry.cap is not None}
    peft_only = "peft" in definition.deploy

    def feasible(configuration: Configuration) -> bool:
        if peft_only and not all(registry[m].peft_type for m in configuration.methods):
            return False
        values = known(configuration)
        return all(values[metric] <= cap for metric, cap in caps.items())

    def built(point: Point) -> Configuration:
        return build(definition, space, point)

    ranges = _ranges(space, built, known)
    _check_caps(caps, ranges)
    return Problem(
        space=space,
        anatomy=anatomy,
        frame=_frame(definition, facts, caps, ranges),
        build=built,
        known=known,
        site_params=site_params,
        feasible=feasible,
        flops=flops,
        n_validation=facts.n_validation,
        seed=definition.study.seed,
        initial=min(definition.search.initial, definition.budget.trials),
    )


def _ranges(space: BoundSpace, built: Any, known: Any) -> dict[str, tuple[float, float]]:
    """The exact range of every known objective over the space."""
    smallest = [known(built(point)) for point in space.smallest()]
    largest = known(built(space.largest()))
    return {name: (min(values[name] for values in smallest), largest[name]) for name in largest}


def _check_caps(caps: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> None:
    faults = [
        Fault(
            "study",
            f"cap of {metric}",
            f"{cap:,.0f}",
            f"at least {ranges[metric][0]:,.0f}, the space's smallest configuration",
            "raise the cap or give the space smaller sizes",
        )
        for metric, cap in caps.items()
        if cap < ranges[metric][0]
    ]
    if faults:
        raise InputError(faults)


def _frame(
    definition: StudyDefinition,
    facts: Facts,
    caps: Mapping[str, float],
    ranges: Mapping[str, tuple[float, float]],
) -> tuple[ObjectiveFrame, ...]:
    quality, *costs = definition.objectives
    frames = [
        ObjectiveFrame(
            quality.metric, quality.goal, "linear", facts.constant_quality, facts.best_quality
        )
    ]
    for cost in costs:
        low, high = ranges[cost.metric]
        worst = min(high, caps.get(cost.metric, high))
        frames.append(ObjectiveFrame(cost.metric, "min", "log10", worst, low))
    return tuple(frames)


def param_range(
    space: BoundSpace, definition: StudyDefinition, anatomy: Anatomy
) -> dict[str, int]:
    """The exact range of trainable parameters over the space, caps left out."""

    def count(point: Point) -> int:
        return counting.trainable_params(build(definition, space, point), anatomy)

    return {
        "min": min(count(point) for point in space.smallest()),
        "max": count(space.largest()),
    }
