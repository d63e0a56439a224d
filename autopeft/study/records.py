"""The records of a study: what the store keeps and everything above it speaks in.

All are frozen values with plain contents; none knows how or where it is stored. Times are aware
UTC datetimes. Metric values are in the metric's own unit; nan never occurs (None does).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from autopeft.configuration import Configuration


class TrialState(StrEnum):
    """Where a trial is in its life; the last three are final."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether the trial will change no more."""
        return self in (TrialState.COMPLETED, TrialState.STOPPED, TrialState.FAILED)


class StudyState(StrEnum):
    """Where a study is in its life."""

    CREATED = "created"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"


class Origin(StrEnum):
    """Who proposed a trial."""

    BASELINE = "baseline"
    INITIAL = "initial"
    SEARCHER = "searcher"
    ENQUEUED = "enqueued"
    WARM_START = "warm-start"


@dataclass(frozen=True)
class NewTrial:
    """A trial to be added; the store gives it its number.

    Attributes:
        configuration: What to train.
        origin: Who proposed it.
        baseline: A baseline's name, or None.
        trainable_params: Exact count, closed form.
        head_params: Parameters of the task head.
        known: Known objectives by name, computed in closed form.
        pack: Number of the cohort that it is proposed in; at every rung, the cohort's trials are
            grouped into packs (`autopeft.tuner.packing`), a pure function of what is stored.
        details: Why it was proposed (expected gain, uncertainty, ...), plain JSON.
    """

    configuration: Configuration
    origin: Origin
    trainable_params: int
    head_params: int
    pack: int
    baseline: str | None = None
    known: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialRecord:
    """One trial as stored.

    Attributes:
        study: The study's name.
        number: 0, 1, 2, ... within the study, in the order of proposal; baselines first.
        state: Where it is.
        origin: Who proposed it.
        baseline: A baseline's name, or None.
        configuration: What it trains.
        hash: `configuration.hash`.
        objectives: Value of every objective at the highest rung reached; before the first rung,
            those that its probe measured, or {}.
        trainable_params: Exact count of what a deployed adapter stores, without head.
        head_params: Parameters of the task head.
        rung: Highest rung measured, as a share of the full budget (1.0 = full), or None.
        optimizer_steps: Steps taken so far.
        seed: The study's seed.
        replicate: 0 in a search.
        pack: Number of its cohort: the trials that were proposed together.
        attempts: How often its training was started.
        cause: Why it failed, or None: "diverged" and "error" count against the configuration;
            "lost" (its runner died), "out-of-memory", "timeout" and "infeasible" (its probe broke
            a cap, so that it was not trained) do not.
        message: One line about the failure, or None.
        profile: Seconds, samples, tokens, peak memory of its training, plain JSON; see
            `autopeft.execution.profile`. Under "probe", what its solo probe measured before it
            was trained, where the study asks for that.
        details: Why it was proposed, plain JSON.
        created_at: When it was proposed.
        started_at: When its last attempt started, or None.
        finished_at: When it reached a final state, or None.
    """

    study: str
    number: int
    state: TrialState
    origin: Origin
    baseline: str | None
    configuration: Configuration
    hash: str
    objectives: Mapping[str, float | None]
    trainable_params: int
    head_params: int
    rung: float | None
    optimizer_steps: int
    seed: int
    replicate: int
    pack: int
    attempts: int
    cause: str | None
    message: str | None
    profile: Mapping[str, Any]
    details: Mapping[str, Any]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    def to_dict(self) -> dict[str, Any]:
        """The binding JSON shape of `front` and `trials`."""
        return {
            "trial": self.number,
            "state": self.state.value,
            "origin": self.origin.value,
            "baseline": self.baseline is not None,
            "baseline_name": self.baseline,
            "objectives": dict(self.objectives),
            "trainable_params": self.trainable_params,
            "head_params": self.head_params,
            "rung": self.rung,
            "seed": self.seed,
            "optimizer_steps": self.optimizer_steps,
            "hash": self.hash,
            "cause": self.cause,
            "configuration": self.configuration.to_dict(),
        }


@dataclass(frozen=True)
class Measurement:
    """One value of one metric of one trial: a point of its learning curve.

    Attributes:
        step: Optimizer steps taken when it was measured.
        metric: `accuracy`, `loss`, ...
        split: `train` or `validation`.
        value: In the metric's unit, or None where it was not a number.
        rung: The rung it was measured at, or None between rungs.
    """

    step: int
    metric: str
    split: str
    value: float | None
    rung: float | None = None


@dataclass(frozen=True)
class TrialUpdate:
    """What is to be stored of one trial: points of its curve, what it reached, how it ends.

    Attributes:
        number: The trial's number.
        measurements: Points of its curve; those of the same (step, metric, split) are replaced.
        objectives: Value of every objective at `rung`; {} keeps what is stored.
        rung: The rung that it reached, or None between rungs.
        optimizer_steps: Steps taken so far, or None where it was not trained since.
        profile: What its training took so far, or None to keep what is stored.
        state: The final state that it ends in, or None while it goes on.
        cause: Why it failed, or None.
        message: One line about the failure, or None.
        log: The last lines of the runner that it failed on, or None.
    """

    number: int
    measurements: tuple[Measurement, ...] = ()
    objectives: Mapping[str, float | None] = field(default_factory=dict)
    rung: float | None = None
    optimizer_steps: int | None = None
    profile: Mapping[str, Any] | None = None
    state: TrialState | None = None
    cause: str | None = None
    message: str | None = None
    log: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """The front after a tell.

    Attributes:
        index: 0, 1, 2, ... within the study.
        trials: How many trials were final by then.
        front: Numbers of the non-dominated trials, by cost.
        hypervolume: Against the study's reference point, in [0, 1].
        at: When.
    """

    index: int
    trials: int
    front: tuple[int, ...]
    hypervolume: float
    at: datetime


@dataclass(frozen=True)
class ObjectiveFrame:
    """How one objective's values map to a utility in [0, 1], fixed when the study is created.

    Quality (`scale` "linear"): u = (value - worst) / (best - worst). Costs (`scale` "log10"):
    c = (log10 worst - log10 max(value, 1)) / (log10 worst - log10 max(best, 1)). Both clipped.
    The 1 is for counts, which may be 0; seconds are above 0, and may be below 1.

    Attributes:
        name: The objective's metric.
        goal: "max" or "min".
        scale: "linear" or "log10".
        worst: The value of utility 0 (the constant predictor; the cap or the space's largest;
            of a measured cost, what its probes found).
        best: The value of utility 1.
    """

    name: str
    goal: str
    scale: str
    worst: float
    best: float


@dataclass(frozen=True)
class StudyRecord:
    """One study as stored.

    Attributes:
        name: Unique within a database.
        state: Where it is.
        definition: The resolved study file, plain JSON (see `autopeft.study.definition`).
        space_hash: Hash of the bound search space.
        frame: One `ObjectiveFrame` per objective, quality first; the reference point is all 0.
        fingerprints: `{"data": ..., "backbone": ...}`.
        versions: Package versions at creation.
        facts: What the study found out and must not change (label names, step counts, parameter
            range of the space, constant-predictor values, ...), plain JSON.
        spent: `{"train_seconds", "evaluation_seconds", "suggest_seconds", "wall_seconds",
            "preparation_seconds", "optimizer_steps"}` so far, floats; work that was lost counts,
            absent keys are 0.
        stop_requested: Whether `autopeft stop` was called.
        created_at: When.
        updated_at: When something last changed.
    """

    name: str
    state: StudyState
    definition: Mapping[str, Any]
    space_hash: str
    frame: tuple[ObjectiveFrame, ...]
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    facts: Mapping[str, Any]
    spent: Mapping[str, float]
    stop_requested: bool
    created_at: datetime
    updated_at: datetime

    @property
    def device_seconds(self) -> float:
        """Seconds that devices have worked for it, of all devices together.

        Training, evaluation, and what they did before the first trial: importance, calibration,
        probes of the space's ends.
        """
        kinds = ("train_seconds", "evaluation_seconds", "preparation_seconds")
        return sum(float(self.spent.get(kind, 0.0)) for kind in kinds)


@dataclass(frozen=True)
class NewStudy:
    """A study to be created; see `StudyRecord` for the meaning of the fields."""

    name: str
    definition: Mapping[str, Any]
    space_hash: str
    frame: tuple[ObjectiveFrame, ...]
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    facts: Mapping[str, Any]


KEPT_SHARE = "kept_share"
"""The fact of an importance map that says which share of its weights somebody asked for."""

BLOCK_SIDE = "block"
"""The fact that says the side of its blocks, where somebody asked for one."""


def asked_of(facts: Mapping[str, str]) -> str:
    """What somebody asked of an importance map beyond the usual, after a comma; "" if nothing."""
    share, side = facts.get(KEPT_SHARE), facts.get(BLOCK_SIDE)
    ranked = f", {float(share):.3g} of each matrix's weights ranked" if share else ""
    return ranked + (f", blocks of {side}" if side else "")


@dataclass(frozen=True)
class ImportanceRecord:
    """A measured importance map: it belongs to a backbone and its data, not to one study.

    Attributes:
        key: Digest of all that the scores depend on.
        backbone: Fingerprint of the backbone.
        data: Fingerprint of the data.
        settings: What was measured (`examples`, `head`, `keep`, `block`, `batch_size`).
        facts: What it was measured on and how long it took, for people.
        units: Scores of channels, compressed arrays (see `autopeft.importance.stored`).
        fine: Scores of blocks and single weights, likewise; None where maps are listed, and of one
            that an earlier release found too large to keep them.
        created_at: When it was stored; None before.
    """

    key: str
    backbone: str
    data: str
    settings: Mapping[str, Any]
    facts: Mapping[str, str]
    units: bytes
    fine: bytes | None = None
    created_at: datetime | None = None


@dataclass(frozen=True)
class Holder:
    """Who holds a study's lease.

    Attributes:
        host: Host name.
        pid: Process id on that host.
        boot: What tells this process from a later one with the same id (its start time).
    """

    host: str
    pid: int
    boot: str
