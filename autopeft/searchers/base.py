"""The ask/tell contract that every searcher fulfils."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration
from autopeft.space.space import BoundSpace, Point
from autopeft.study.records import ObjectiveFrame, Origin


@dataclass(frozen=True)
class Problem:
    """What a searcher may know of a study.

    Attributes:
        space: The search space, bound to the backbone.
        anatomy: The backbone's layers and sites.
        frame: The objectives, quality first; utilities are maximised, reference point all 0.
        build: A point of the space -> the configuration it stands for.
        known: A configuration -> its known objectives by name (exact, closed form).
        site_params: A configuration -> trainable parameters per (layer, site) it occupies,
            exact; sites of a method that implies its place are keyed by the method's name.
        feasible: Whether a configuration keeps every cap on known objectives.
        flops: A configuration -> training FLOPs of a full trial, closed form: the cost model.
        n_validation: Validation examples (the binomial noise floor of an accuracy).
        seed: The study's seed.
        initial: How many trials start the search, space-filling ones and those of the portfolio.
        portfolio: Whether `gp` may begin with what publications found good
            (`autopeft.searchers.portfolio`); no other searcher does.
        trunk_flops: A configuration -> those of `flops` that a pack shares: the frozen layers
            below its branch point.
    """

    space: BoundSpace
    anatomy: Anatomy
    frame: tuple[ObjectiveFrame, ...]
    build: Callable[[Point], Configuration]
    known: Callable[[Configuration], Mapping[str, float]]
    site_params: Callable[[Configuration], Mapping[tuple[int, str], int]]
    feasible: Callable[[Configuration], bool]
    flops: Callable[[Configuration], float]
    n_validation: int
    seed: int
    initial: int
    portfolio: bool = False
    trunk_flops: Callable[[Configuration], float] = lambda configuration: 0.0


@dataclass(frozen=True)
class Observation:
    """What a trial taught: told once per rung it reached.

    Attributes:
        number: The trial's number.
        configuration: What was trained; baselines lie outside the space.
        objectives: Value per objective name, in the metric's unit.
        rung: Share of the full budget at which quality was measured.
        failed: Whether it diverged or erred; quality is then the constant predictor's.
        baseline: Whether it is a baseline.
    """

    number: int
    configuration: Configuration
    objectives: Mapping[str, float]
    rung: float
    failed: bool = False
    baseline: bool = False


@dataclass(frozen=True)
class Proposal:
    """A configuration to try.

    Attributes:
        configuration: What to train; feasible, and never proposed or told before.
        origin: `INITIAL` or `SEARCHER`; `ENQUEUED` or `WARM_START` where no searcher proposed it.
        details: Why (expected gain, predicted quality and its uncertainty, parent, ...), JSON.
    """

    configuration: Configuration
    origin: Origin
    details: Mapping[str, Any] = field(default_factory=dict)


class Searcher(Protocol):
    """Proposes configurations and learns from measurements.

    Contract: what `ask` returns is a function of the problem, the seed, and the sequence of tells
    and asks so far, where the asked configurations may be replayed with `pending` (after a
    restart, the tuner tells all observations in order and names what is still pending). No
    configuration is proposed twice, nor one that was told or is pending. Where the space has no
    unproposed feasible configuration left, fewer than `q` come back, in the end none.
    """

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn; a trial is told once for each rung that it reached, in any order."""

    def ask(self, q: int, *, pending: Sequence[Configuration] = ()) -> list[Proposal]:
        """At most `q` proposals; `pending` are configurations proposed and not yet told."""
