"""The ask/tell contract that every searcher fulfils."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration
from autopeft.searchers.front import reach
from autopeft.space.space import BoundSpace, Point
from autopeft.study.records import ObjectiveFrame, Origin


@dataclass(frozen=True)
class Limit:
    """A bound that nobody can check beforehand: a cap on a measured cost, a floor on quality.

    Searchers weigh a candidate by the probability that it keeps every limit. All is in the
    frame's terms, so that a model of `front.reach` answers: a value keeps the limit where its
    reach is at least `least`.

    Attributes:
        frame: Of the metric; that of an objective, or one of its own where it is only bounded.
        bound: The cap, where smaller is better, or the floor, where greater is; in its unit.
    """

    frame: ObjectiveFrame
    bound: float

    @property
    def metric(self) -> str:
        """The metric's name, as in `Observation.objectives`."""
        return self.frame.name

    @property
    def least(self) -> float:
        """The reach of the bound: not clipped, as it may lie outside the frame."""
        return reach(self.frame, self.bound)

    def keeps(self, value: float) -> bool:
        """Whether a measured value keeps it."""
        return value <= self.bound if self.frame.goal == "min" else value >= self.bound


@dataclass(frozen=True)
class Problem:
    """What a searcher may know of a study.

    Attributes:
        space: The search space, bound to the backbone.
        anatomy: The backbone's layers and sites.
        frame: The objectives, quality first; utilities are maximised, reference point all 0.
            Costs that `known` does not give are measured: a trial's probe tells them before it is
            trained, at no rung.
        build: A point of the space -> the configuration it stands for.
        known: A configuration -> its known objectives by name (exact, closed form).
        site_params: A configuration -> trainable parameters per (layer, site) it occupies,
            exact; sites of a method that implies its place are keyed by the method's name.
        feasible: Whether a configuration keeps every cap on known costs.
        flops: A configuration -> training FLOPs of a full trial, closed form: the cost model.
        n_validation: Validation examples (the binomial noise floor of an accuracy).
        seed: The study's seed.
        initial: How many trials start the search, space-filling ones and those of the portfolio.
        portfolio: Whether `gp` may begin with what publications found good
            (`autopeft.searchers.portfolio`); no other searcher does.
        surrogate: How `gp` finds hyper-parameters: `map` (their mode) or `saas-nuts` (draws under
            SAAS's priors).
        trunk_flops: A configuration -> those of `flops` that a pack shares: the frozen layers
            below its branch point.
        limits: Caps on measured costs and floors on quality.
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
    surrogate: str = "map"
    trunk_flops: Callable[[Configuration], float] = lambda configuration: 0.0
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True)
class Observation:
    """What a trial taught: told once per rung it reached.

    A trial whose probe breaks a cap is never trained. It is told all the same, with what was
    measured, so that models of costs learn from it: `failed` and `infeasible`. As of any failed
    trial its quality is the constant predictor's, which keeps searchers away that know of nothing
    else; a model of quality leaves it out, as nothing was learnt of that. The same goes for a
    trial that the machine failed (out of memory, time, a crash): it is over, no longer pending.

    Attributes:
        number: The trial's number.
        configuration: What was trained; baselines lie outside the space.
        objectives: Value per objective name, in the metric's unit; measured costs that are only
            capped are among them.
        rung: Share of the full budget at which quality was measured.
        failed: Whether it diverged, erred or is infeasible; quality is then the constant
            predictor's.
        baseline: Whether it is a baseline.
        infeasible: Whether its probe broke a cap, or the machine failed it: nothing is known of
            its quality.
    """

    number: int
    configuration: Configuration
    objectives: Mapping[str, float]
    rung: float
    failed: bool = False
    baseline: bool = False
    infeasible: bool = False


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
