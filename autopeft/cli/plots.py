"""Small plots for the terminal: the front, and a learning curve.

Markers are ASCII letters, so that a plot says the same without colours; its frame becomes ASCII
where the terminal's encoding has no lines to draw with.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autopeft.cli.canvas import Axis, Series, drawn
from autopeft.cli.streams import ascii_only, draw
from autopeft.cli.wording import compact
from autopeft.study.records import Measurement, ObjectiveFrame, TrialRecord, TrialState

if TYPE_CHECKING:
    from rich.console import Console

_GREY, _GREEN, _YELLOW = "bright_black", "bright_green", "bright_yellow"
_WIDEST = 100
_FEWEST_TICKS = 3


def print_front_plot(
    console: "Console",
    trials: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    frames: Sequence[ObjectiveFrame],
) -> None:
    """Draw quality over the first cost of all trials trained in full; nothing where none is.

    Args:
        console: Where to draw.
        trials: The study's trials.
        front: Those on the front.
        frames: The objectives, quality first.
    """
    quality, cost = frames[0], frames[1]
    members = {trial.number for trial in front}
    kinds: dict[str, list[tuple[float, float]]] = {"dominated": [], "front": [], "baseline": []}
    for trial in trials:
        point = _point(trial, cost, quality)
        if point is not None:
            beaten = "dominated" if trial.baseline is None else "baseline"
            kinds["front" if trial.number in members else beaten].append(point)
    looks = {"dominated": (".", _GREY), "front": ("o", _GREEN), "baseline": ("x", _YELLOW)}
    series = [
        Series(name, looks[name][0], tuple(points), looks[name][1])
        for name, points in kinds.items()
        if points
    ]
    if not series:
        return
    scale = "log10 " if cost.scale == "log10" else ""
    _print(
        console,
        series,
        f"{quality.name} over {scale}{cost.name}",
        logarithmic=bool(scale),
        rows=16,
    )


def print_curve_plot(
    console: "Console", curve: Sequence[Measurement], metric: str, *, split: str = "validation"
) -> bool:
    """Draw one metric's learning curve; False where it has fewer than two points."""
    points = [
        (float(each.step), each.value)
        for each in curve
        if each.metric == metric and each.split == split and each.value is not None
    ]
    if len(points) < 2:
        return False
    series = [Series(split, "*", tuple(points), _GREEN, joined=True)]
    _print(console, series, f"{metric} ({split}) over optimizer steps", logarithmic=False, rows=10)
    return True


def _point(
    trial: TrialRecord, cost: ObjectiveFrame, quality: ObjectiveFrame
) -> tuple[float, float] | None:
    from autopeft.searchers.front import on_scale

    x, y = trial.objectives.get(cost.name), trial.objectives.get(quality.name)
    if trial.state is not TrialState.COMPLETED or trial.rung != 1.0 or x is None or y is None:
        return None
    return on_scale(cost, x), y


def _print(
    console: "Console", series: Sequence[Series], title: str, *, logarithmic: bool, rows: int
) -> None:
    x, y = zip(*(point for each in series for point in each.points), strict=True)
    drawing = drawn(
        series,
        _axis(x, logarithmic=logarithmic),
        _axis(y),
        width=min(console.width, _WIDEST),
        rows=rows,
        ascii_only=ascii_only(console),
    )
    legend = "   ".join(f"{each.marker} {each.name}" for each in reversed(series))
    console.print(f"{title}   [{legend}]" if len(series) > 1 else title)
    draw(console, drawing)


def _axis(values: Sequence[float], *, logarithmic: bool = False) -> Axis:
    """An axis around the values; of logarithms, labelled with what they are of."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = low - margin, high + margin
    ticks = _decades(low, high) if logarithmic else _round(low, high)
    return Axis(low, high, {tick: _label(10**tick if logarithmic else tick) for tick in ticks})


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten within the limits; where fewer than two lie there, round numbers."""
    whole = [float(power) for power in range(math.ceil(low), math.floor(high) + 1)]
    return whole if len(whole) > 1 else [math.log10(v) for v in _round(10**low, 10**high) if v]


def _round(low: float, high: float) -> list[float]:
    """Four to eight round numbers within the limits: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / _FEWEST_TICKS))
    step = next(s * power for s in (5, 2, 1) if (high - low) / (s * power) >= _FEWEST_TICKS)
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _label(value: float) -> str:
    return compact(value) if abs(value) >= 1000 else f"{value:.3g}"
