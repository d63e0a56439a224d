"""The blocks of a study file that steer the search: objectives, searcher, budget, execution."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_serializer, field_validator

from autopeft.study.blocks import Block, read_with
from autopeft.study.configuration_form import form_findings
from autopeft.study.faults import LATER, refusal, refusals
from autopeft.study.findings import Finding
from autopeft.study.metrics import METRICS, Goal, metrics_of
from autopeft.study.names import NAME_PATTERN
from autopeft.study.readers import (
    auto_or,
    bound,
    collected,
    device_list,
    duration_s,
    each,
    flag,
    json_value,
    nullable,
    number,
    one_of,
    size_bytes,
    string,
    whole,
)

COSTS = (*metrics_of("known"), *metrics_of("measured"), *metrics_of("reached"))
"""What may be minimised or capped beside the quality."""

WITH_GAINS = ("gp",)
"""Searchers that tell what each proposal is expected to gain, which `budget.min_gain` needs."""


class Objective(Block):
    """One thing to optimise: a quality, or a cost, known or measured before or after training.

    Attributes:
        metric: A name of `METRICS`.
        goal: The metric's own direction, always filled in.
        cap: What a minimised metric may not exceed, in the metric's unit.
        floor: What a maximised metric may not fall below.
    """

    metric: Annotated[
        str,
        read_with(one_of(*metrics_of("quality"), *COSTS)),
    ] = Field(description="quality first, then one or two costs")
    goal: Goal = Field(
        default=None, validate_default=True, description="the metric's own direction"
    )
    cap: float | int | None = Field(default=None, description="not above, where smaller is better")
    floor: float | int | None = Field(
        default=None, description="not below, where greater is better"
    )

    @field_validator("goal", mode="before")
    @classmethod
    def _goal(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.data.get("metric")
        if name is None:
            return "max"  # never seen: the metric's own fault is told
        own = METRICS[name].goal
        if value not in (None, own):
            raise refusal(value, own, f"`{name}` is best at its {own}imum; leave `goal` out")
        return own

    @field_validator("cap", "floor", mode="before")
    @classmethod
    def _bound(cls, value: Any, info: ValidationInfo) -> float | int | None:
        name = info.data.get("metric")
        if value is None or name is None:
            return None
        metric = METRICS[name]
        fitting = "floor" if metric.goal == "max" else "cap"
        if info.field_name != fitting:
            better = "greater" if metric.goal == "max" else "smaller"
            hint = f"of `{name}` {better} is better: write `{fitting}`"
            raise refusal(value, f"no {info.field_name}", hint)
        return bound(value, in_bytes=metric.in_bytes)


class Constraint(Block):
    """A cost that is capped and not optimised."""

    metric: Annotated[str, read_with(one_of(*COSTS))] = Field(description="a cost")
    cap: float | int = Field(description="a number such as 2M, or bytes such as 20MiB")

    @field_validator("cap", mode="before")
    @classmethod
    def _cap(cls, value: Any, info: ValidationInfo) -> float | int:
        name = info.data.get("metric")
        return bound(value, in_bytes=METRICS[name].in_bytes) if name else 0


_study_name = string("a study's name", pattern=NAME_PATTERN)


def _baseline(value: Any) -> str | dict[str, Any]:
    """A name, or a configuration that is written out."""
    if isinstance(value, Mapping):
        return _configuration(value)
    name: str = string("a baseline's name, or a configuration")(value)
    return name


def _configuration(value: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json_value(value)
    if findings := form_findings(plain):
        raise refusals(findings)
    return plain


class SearchBlock(Block):
    """How the space is searched."""

    searcher: Annotated[
        Literal["gp", "evolution", "random", "tpe", "nsga2", "nsga3", "gpsampler", "reference"],
        read_with(
            one_of("gp", "evolution", "random", "tpe", "nsga2", "nsga3", "gpsampler", "reference")
        ),
    ] = Field(default="gp", description="gp; evolution, random, tpe ... are there to compare with")
    initial: Annotated[int, read_with(whole(1))] = Field(
        default=8, description="trials of the start, before the searcher proposes"
    )
    portfolio: Annotated[bool, read_with(flag)] = Field(
        default=True, description="begin with what publications found good; gp alone does"
    )
    surrogate: Annotated[Literal["map", "saas-nuts"], read_with(one_of("map", "saas-nuts"))] = (
        Field(
            default="map",
            description="map, or saas-nuts: fully Bayesian and slow",
        )
    )
    warm_start: Annotated[
        tuple[str, ...],
        read_with(each(_study_name, allowed="a list of stored studies' names")),
    ] = Field(default=(), description="stored studies whose best configurations are tried first")
    warm_start_trials: Annotated[
        int | Literal["auto"], read_with(auto_or(whole(1, hint="or auto")))
    ] = Field(default="auto", description="how many of them: auto, a third of `initial`; a number")
    pack: Annotated[int | Literal["auto"], read_with(auto_or(whole(1, hint="or auto")))] = Field(
        default="auto", description="trials trained together: auto, or a number; 1 = one by one"
    )
    proposals: Annotated[int | Literal["auto"], read_with(auto_or(whole(1, hint="or auto")))] = (
        Field(
            default="auto",
            description="trials proposed at once: auto, or a number",
        )
    )
    rungs: tuple[float, ...] = Field(
        default=(0.2, 1.0),
        description="shares of the budget at which some trials stop, and 1.0",
    )
    stopping: Annotated[Literal["pareto", "none"], read_with(one_of("pareto", "none"))] = Field(
        default="pareto",
        description="pareto: rungs stop the surely beaten; none: they measure",
    )
    baselines: Annotated[
        tuple[str | dict[str, Any], ...],
        read_with(each(_baseline, allowed="a list of baselines")),
    ] = Field(
        default=("lora-r8",),
        description="run first, outside the budget; [] = none; plan: sources",
    )
    enqueue: tuple[dict[str, Any], ...] = Field(
        default=(), description="configurations to try first"
    )
    importance: Annotated[bool, read_with(flag)] = Field(
        default=False, description="measure the sites' importance, even if the space needs none"
    )
    importance_keep: Annotated[
        float | None, read_with(nullable(number(above=0.0, maximum=1.0)))
    ] = Field(
        default=None, description="share of a matrix's weights that are ranked; null: a tenth"
    )
    importance_block: Annotated[int, read_with(whole(1))] = Field(
        default=32, description="side of the blocks whose scores are summed"
    )

    @field_validator("rungs", mode="before")
    @classmethod
    def _rungs(cls, value: Any) -> tuple[float, ...]:
        allowed = "ascending shares that end at 1.0, such as [0.1, 0.33, 1.0]"
        if not isinstance(value, (list, tuple)) or not value:
            raise refusal(value, allowed)
        share = number(above=0.0)
        rungs = tuple(collected((index, item, share) for index, item in enumerate(value)))
        if rungs[-1] != 1.0 or list(rungs) != sorted(set(rungs)):
            raise refusal(value, allowed)
        return rungs

    @field_validator("enqueue", mode="before")
    @classmethod
    def _enqueue(cls, value: Any) -> tuple[dict[str, Any], ...]:
        if not isinstance(value, (list, tuple)):
            raise refusal(value, "a list of configurations")
        return tuple(collected((index, item, _configuration) for index, item in enumerate(value)))


class BudgetBlock(Block):
    """What the whole study may spend; whatever runs out first ends it."""

    trials: Annotated[int, read_with(whole(1))] = Field(
        default=100, description="configurations tried, baselines not counted"
    )
    gpu_hours: Annotated[float | None, read_with(nullable(number(above=0.0)))] = Field(
        default=None, description="hours times devices"
    )
    optimizer_steps: Annotated[int | None, read_with(nullable(whole(1)))] = Field(
        default=None, description="of all trials together"
    )
    wall_clock: Annotated[float | None, read_with(nullable(duration_s))] = Field(
        default=86400.0, description="45m, 24h, 1d; in Python: seconds"
    )

    min_gain: Annotated[float | None, read_with(nullable(number(above=0.0, below=1.0)))] = Field(
        default=None, description="ends once a full trial promises less; null = never"
    )

    @field_serializer("wall_clock", when_used="json")
    def _written(self, seconds: float | None) -> str | None:
        return None if seconds is None else _duration(seconds)


def _duration(seconds: float) -> str:
    """Seconds as a study file says them."""
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{int(seconds) // size}{unit}"
    written = f"{Decimal(repr(seconds)):f}"  # exact, and never with an exponent
    return f"{written.removesuffix('.0')}s"


def _address(value: Any) -> str:
    """Where a Ray cluster's head is."""
    if isinstance(value, str) and "://" in value:
        hint = "autopeft runs on a node of the cluster: name the head as `ray start` does"
        raise refusal(value, "auto, local, or host:port", hint)
    text: str = string("auto, local, or host:port", pattern=r"auto|local|[^\s/]+:\d+")(value)
    return text


class RayBlock(Block):
    """The cluster of `executor: ray`, and what each runner takes of it."""

    address: Annotated[str | None, read_with(nullable(_address))] = Field(
        default=None, description="host:port, auto, local; null = RAY_ADDRESS or this machine"
    )
    workers: Annotated[int | Literal["auto"], read_with(auto_or(whole(1)))] = Field(
        default="auto", description="runners; auto = as many as the cluster has room for"
    )
    gpus: Annotated[float | Literal["auto"], read_with(auto_or(number(minimum=0.0)))] = Field(
        default="auto", description="of each runner: 1, or a share such as 0.5; auto: 1 if any"
    )
    cpus: Annotated[float | Literal["auto"], read_with(auto_or(number(above=0.0)))] = Field(
        default="auto", description="of each runner; auto = 1 beside a GPU, else a whole node's"
    )
    memory: Annotated[int | None, read_with(nullable(size_bytes))] = Field(
        default=None, description="of each runner: 16GiB; null = not counted"
    )

    @field_validator("gpus", mode="after")
    @classmethod
    def _one_device(cls, value: float | str) -> float | str:
        if isinstance(value, float) and value > 1.0:
            hint = "a runner trains on one GPU: more runners use more of them"
            raise refusal(value, "0, 1 or a share of one", hint)
        return value


class ExecutionBlock(Block):
    """Where packs run."""

    executor: Annotated[
        Literal["local", "in-process", "ray"],
        read_with(one_of("local", "in-process", "ray", later=("slurm",))),
    ] = Field(
        default="local",
        description="local = a process per device, ray = a cluster, in-process",
    )
    ray: RayBlock = RayBlock()
    devices: Annotated[str, read_with(device_list)] = Field(
        default="auto", description="auto (cuda, then mps, then cpu), cpu, cuda:0,cuda:1, mps"
    )
    pack_limit: Annotated[float | Literal["auto"], read_with(auto_or(duration_s))] = Field(
        default="auto", description="a pack that takes longer to its rung is ended: auto, 2h"
    )
    cache_memory: Annotated[int | Literal["auto"], read_with(auto_or(size_bytes))] = Field(
        default="auto", description="kept frozen activations: auto, 2GiB, 0 = none"
    )
    cache_disk: Annotated[int | Literal["auto"], read_with(auto_or(size_bytes))] = Field(
        default="auto", description="in files, once memory is full: auto, 20GiB, 0"
    )

    @field_serializer("pack_limit", when_used="json")
    def _written(self, limit: float | str) -> str:
        return limit if isinstance(limit, str) else _duration(limit)


def read_deploy(value: Any) -> tuple[str, ...]:
    """The formats that every proposed configuration must fit; only peft so far."""
    formats = one_of("peft", later=("gguf", "vllm", "onnx", "mlx", "axolotl"))
    names: tuple[str, ...] = each(formats, allowed="[] or [peft]")(value)
    return names


def read_space(value: Any) -> str | dict[str, Any]:
    """A space's name, its file, or the block itself, which `autopeft.space.parser` judges."""
    allowed = "a space's name (quick, lora, mixed, ...), a file, or a block with `methods`"
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, dict) or not value:
        raise refusal(value, allowed)
    block: dict[str, Any] = json_value(value)
    return block


def objective_findings(
    objectives: tuple[Objective, ...], task: str | None, *, without_choices: bool = False
) -> list[Finding]:
    """The faults of a list of objectives, each of which is sound by itself.

    Args:
        objectives: In the order of the file.
        task: The study's, or None where it is at fault.
        without_choices: Whether the data are known to give no candidate answers.
    """
    if not 2 <= len(objectives) <= 3:
        allowed = "a quality and one or two costs"
        return [Finding((), f"{len(objectives)} objectives", allowed)]
    findings = []
    for index, objective in enumerate(objectives):
        metric = METRICS[objective.metric]
        if (metric.kind == "quality") != (index == 0):
            allowed = ", ".join(COSTS if index else metrics_of("quality"))
            hint = "costs follow the quality" if index == 0 else f"a second quality is {LATER}"
            findings.append(Finding((index, "metric"), metric.name, allowed, hint))
        elif task is not None and not metric.fits(task):
            fitting = ", ".join(n for n in metrics_of("quality") if METRICS[n].fits(task))
            hint = f"it does not fit the task {task}"
            findings.append(Finding((index, "metric"), metric.name, fitting, hint))
        elif metric.needs_choices and without_choices:
            allowed = "a metric that compares no candidates"
            hint = "name the candidate answers in data.choices"
            findings.append(Finding((index, "metric"), metric.name, allowed, hint))
        if objective.metric in [other.metric for other in objectives[:index]]:
            findings.append(Finding((index, "metric"), metric.name, "every metric once"))
    return findings


def budget_findings(budget: BudgetBlock, search: SearchBlock) -> list[Finding]:
    """The faults of a budget beside the searcher that is to spend it."""
    if budget.min_gain is None or search.searcher in WITH_GAINS:
        return []
    hint = f"{search.searcher} expects nothing of its proposals: take {' or '.join(WITH_GAINS)}"
    return [Finding(("min_gain",), f"{budget.min_gain:g}", "null", hint)]
