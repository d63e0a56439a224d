"""Warm start: what earlier studies found good, carried over into a new study's space.

Only what the space holds exactly is carried over. A configuration moved to the nearest point is
another configuration, and nothing is known of it; so what does not fit is named with what differs,
never mended. Of the configurations that fit, a few are taken that span the sizes. Their measured
values stay behind: they are of other data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.configuration import Configuration, Group
from autopeft.searchers.base import Problem, Proposal
from autopeft.space.space import Point
from autopeft.study.records import Origin, TrialRecord


@dataclass(frozen=True)
class Carried:
    """A configuration of an earlier study, as the new study trains it.

    Attributes:
        study: The earlier study.
        trial: Its trial's number.
        hash: Its trial's hash: another one where the studies fix other training values.
        configuration: A feasible point of the new study's space.
    """

    study: str
    trial: int
    hash: str
    configuration: Configuration

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, kept with the new study: it needs the earlier one no more."""
        return {
            "study": self.study,
            "trial": self.trial,
            "hash": self.hash,
            "configuration": self.configuration.to_dict(),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Carried":
        """The inverse of `to_dict`."""
        configuration = Configuration.from_dict(plain["configuration"])
        return cls(plain["study"], int(plain["trial"]), plain["hash"], configuration)

    @property
    def proposal(self) -> Proposal:
        """What is tried, and why."""
        details = {
            "reason": f"on the front of study {self.study}",
            "source": f"study {self.study}, trial {self.trial}",
        }
        return Proposal(self.configuration, Origin.WARM_START, details)


@dataclass(frozen=True)
class Misfit:
    """A configuration that cannot be carried over.

    Attributes:
        trial: The earlier trial's number.
        differences: What keeps it out, each in a few words.
    """

    trial: int
    differences: tuple[str, ...]


def carried(
    trials: Sequence[TrialRecord], problem: Problem, fixed: Mapping[str, float]
) -> tuple[list[Carried], list[Misfit]]:
    """The trials that the problem's space holds exactly, and those that it does not.

    Args:
        trials: Of one earlier study.
        problem: Of the new study.
        fixed: The earlier study's values of the training keys that its space did not vary. Such
            a value gives way to the new study's own where that is not varied either.
    """
    found: list[Carried] = []
    misfits: list[Misfit] = []
    for trial in trials:
        here, differences = _carry(trial.configuration, problem, fixed)
        if here is not None and not differences:
            found.append(Carried(trial.study, trial.number, trial.hash, here))
        else:
            misfits.append(Misfit(trial.number, differences))
    return found, misfits


def chosen(
    fronts: Sequence[Sequence[Carried]], most: int, problem: Problem, taken: frozenset[str]
) -> list[Carried]:
    """At most `most` of what was carried over, distinct: the studies by turns.

    Of each study first its best configuration, then each time the one whose size (the logarithm
    of its trainable parameters) lies farthest from those before.

    Args:
        fronts: Per study, its front by rising quality.
        most: How many.
        problem: Of the new study.
        taken: Hashes of configurations that are tried anyway.
    """
    queues = [_spread(front, problem) for front in fronts]
    seen = set(taken)
    found: list[Carried] = []
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and queue[turn].configuration.hash not in seen:
                seen.add(queue[turn].configuration.hash)
                found.append(queue[turn])
    return found[:most]


def _spread(front: Sequence[Carried], problem: Problem) -> list[Carried]:
    """All of a front, in the order in which any first few span its sizes."""
    size = {each.trial: _size(each.configuration, problem) for each in front}
    left = list(reversed(front))
    ordered: list[Carried] = []
    while left:
        farthest = max(
            left,
            key=lambda each: min(
                (abs(size[each.trial] - size[other.trial]) for other in ordered), default=0.0
            ),
        )
        ordered.append(farthest)
        left.remove(farthest)
    return ordered


def _size(configuration: Configuration, problem: Problem) -> float:
    return math.log1p(sum(problem.site_params(configuration).values()))


# -- what differs ---------------------------------------------------------------------------------


def _carry(
    configuration: Configuration, problem: Problem, fixed: Mapping[str, float]
) -> tuple[Configuration | None, tuple[str, ...]]:
    """The nearest configuration of the space, and what differs in it."""
    point = problem.space.nearest(configuration.to_dict())
    if point is None:
        return None, ("none of its methods and sites is in the space",)
    here = problem.build(point)
    differences = [
        *_group_differences(configuration, here),
        *_training_differences(configuration, here, point, fixed),
    ]
    if configuration.sparsity != here.sparsity:
        differences.append("its sparsity is not in the space")
    if not differences and not problem.feasible(here):
        differences.append("over a cap or outside `deploy`")
    return here, tuple(differences)


def _training_differences(
    there: Configuration, here: Configuration, point: Point, fixed: Mapping[str, float]
) -> list[str]:
    differences = []
    for key in dict.fromkeys(name for name, _ in (*there.training, *here.training)):
        value, own = there.training_value(key), here.training_value(key)
        gives_way = f"training.{key}" not in point and fixed.get(key) == value
        if own != value and not gives_way:
            differences.append(f"{key} {value:g}, here {own:g}")
    return differences


def _group_differences(there: Configuration, here: Configuration) -> list[str]:
    differences = []
    for method in sorted({*there.methods, *here.methods}):
        theirs, ours = _groups(there, method), _groups(here, method)
        if theirs == ours:
            continue
        if not ours:
            differences.append(f"{method} is not in the space")
        elif not theirs:
            differences.append(f"the space cannot leave {method} out")
        elif len(theirs) > 1 or len(ours) > 1:
            differences.append(f"{method} in {_counted(theirs)}, here in {_counted(ours)}")
        else:
            differences += _within(theirs[0], ours[0])
    return differences


def _counted(groups: Sequence[Group]) -> str:
    return "one" if len(groups) == 1 else f"{len(groups)} groups"


def _within(theirs: Group, ours: Group) -> list[str]:
    """What differs between two groups of one method."""
    pairs: dict[str, tuple[object, object]] = {
        "layers": (theirs.layers, ours.layers),
        "sites": (theirs.sites, ours.sites),
    }
    names = sorted({name for name, _ in (*theirs.settings, *ours.settings)})
    pairs |= {name: (theirs.get(name), ours.get(name)) for name in names}
    return [
        f"{theirs.method} {name} {_shown(there)}, here {_shown(here)}"
        for name, (there, here) in pairs.items()
        if there != here
    ]


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "nothing" if value is None else str(value)


def _groups(configuration: Configuration, method: str) -> list[Group]:
    return [group for group in configuration.groups if group.method == method]
