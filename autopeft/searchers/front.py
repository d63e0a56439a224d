"""The front of a study: which trials are on it, how to choose one, how it compares.

Everything is judged in utilities (see `ObjectiveFrame`): each objective mapped to [0, 1] with a
frame that was fixed when the study was created, so that hypervolumes of one study compare. The
front is of all trials trained at the full budget, baselines among them where they keep the caps:
a search has added something only where its own trials push the front beyond the baselines'.
This module imports no torch, and NumPy only to choose a knee: commands that read a study use it.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import ge
from typing import TYPE_CHECKING

from autopeft.errors import Fault, InputError, NotFoundError
from autopeft.study.records import ObjectiveFrame, TrialRecord, TrialState

if TYPE_CHECKING:
    from autopeft.searchers.dominance import Points

__all__ = [
    "PICKS",
    "Bound",
    "best_baseline",
    "compare_with_baseline",
    "front",
    "on_scale",
    "pick_best",
    "pick_knee",
    "pick_smallest",
    "pick_within",
    "reach",
    "utilities",
    "utility",
    "utility_points",
]

Frames = Sequence[ObjectiveFrame]
Choice = tuple[TrialRecord, str]


def on_scale(frame: ObjectiveFrame, value: float) -> float:
    """A value on its frame's scale: itself, or its logarithm; a count of 0 is as one of 1."""
    if frame.scale != "log10":
        return value
    return math.log10(value) if value > 0.0 else 0.0


def reach(frame: ObjectiveFrame, value: float) -> float:
    """Where a value lies on its frame: 0 at the worst, 1 at the best, and not clipped.

    What bounds are held against: a cap or a floor may lie outside the frame.
    """
    worst, best, value = (on_scale(frame, each) for each in (frame.worst, frame.best, value))
    if worst == best:
        reached = value >= best if frame.goal == "max" else value <= best
        return 1.0 if reached else 0.0
    return (value - worst) / (best - worst)


def utility(frame: ObjectiveFrame, value: float | None) -> float:
    """The utility of one objective's value, in [0, 1]; what is not a number has none (0)."""
    if value is None or math.isnan(value):
        return 0.0
    return min(max(reach(frame, float(value)), 0.0), 1.0)


def utilities(frames: Frames, objectives: Mapping[str, float | None]) -> tuple[float, ...]:
    """The utilities of a trial's objectives, in the frames' order; a missing one is 0."""
    return tuple(utility(frame, objectives.get(frame.name)) for frame in frames)


def utility_points(trials: Sequence[TrialRecord], frames: Frames) -> "Points":
    """The utilities of several trials: `[n, m]`, as `dominance.hypervolume` takes them."""
    import numpy as np

    rows = [utilities(frames, trial.objectives) for trial in trials]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(frames))


@dataclass(frozen=True)
class Bound:
    """A constraint that a trial must keep to be on the front.

    Attributes:
        metric: An objective, `trainable_params`, `head_params`, or what the trial's solo probe or
            its last rung measured.
        cap: Largest allowed value, or None.
        floor: Smallest allowed value, or None.
    """

    metric: str
    cap: float | None = None
    floor: float | None = None

    def keeps(self, trial: TrialRecord) -> bool:
        """Whether the trial keeps the bound; one that was not measured breaks none."""
        return self.excess(trial) <= 0.0

    def excess(self, trial: TrialRecord) -> float:
        """How far the trial is beyond the bound, in the metric's unit; at most 0 if it keeps it.

        One that was not measured is taken to be at the bound.
        """
        value = _value(trial, self.metric)
        if value is None:
            return 0.0
        over = -math.inf if self.cap is None else value - self.cap
        under = -math.inf if self.floor is None else self.floor - value
        return max(over, under)


def front(
    trials: Sequence[TrialRecord], frames: Frames, bounds: Sequence[Bound] = ()
) -> list[TrialRecord]:
    """The non-dominated trials, from the cheapest to the best.

    Candidates are completed trials at the full budget that keep the bounds and are better than
    the constant predictor (a quality utility above 0): a trial that learnt nothing is no answer,
    however small. Baselines count like any other. Of equal trials the lowest number stays.

    Args:
        trials: Trials of one study, in any state.
        frames: The study's objectives, quality first.
        bounds: Caps and floors.

    Returns:
        Trials by rising quality, then by number.
    """
    candidates = [
        trial
        for trial in sorted(trials, key=lambda trial: trial.number)
        if trial.state is TrialState.COMPLETED
        and trial.rung == 1.0
        and all(bound.keeps(trial) for bound in bounds)
        and utility(frames[0], trial.objectives.get(frames[0].name)) > 0.0
    ]
    points = [utilities(frames, trial.objectives) for trial in candidates]
    kept = sorted(undominated(points), key=lambda i: (points[i][0], candidates[i].number))
    return [candidates[i] for i in kept]


def undominated(points: Sequence[tuple[float, ...]]) -> list[int]:
    """The indices of the points that no other dominates; of equal points, the lowest.

    What `dominance.non_dominated` flags, of plain tuples and without NumPy, whose import would
    take longer than to read a study and to find its front.
    """
    kept: list[int] = []
    # Best first, so that only points before it, and of those only kept ones, can dominate one;
    # the one that does is most often the last.
    for i in sorted(range(len(points)), key=lambda i: (*(-value for value in points[i]), i)):
        if not any(all(map(ge, points[other], points[i])) for other in reversed(kept)):
            kept.append(i)
    return sorted(kept)


# -- choosing one ---------------------------------------------------------------------------------


def pick_best(members: Sequence[TrialRecord], frames: Frames) -> Choice:
    """The trial of the highest quality, and why; the cheaper of equals."""
    chosen = max(_present(members), key=lambda trial: utilities(frames, trial.objectives))
    quality = _shown(chosen, frames[0].name)
    return chosen, f"trial {chosen.number} has the best {frames[0].name} on the front ({quality})"


def pick_smallest(members: Sequence[TrialRecord], frames: Frames) -> Choice:
    """The trial of the lowest first cost (trainable parameters where there is none), and why."""
    cost = _cost_name(frames)
    chosen = min(_present(members), key=lambda trial: (_cost(trial, cost), trial.number))
    return chosen, (
        f"trial {chosen.number} has the fewest {_words(cost)} on the front "
        f"({_shown(chosen, cost)}), at {frames[0].name} {_shown(chosen, frames[0].name)}"
    )


def pick_knee(members: Sequence[TrialRecord], frames: Frames) -> Choice:
    """The trial where giving up cost stops paying, and why.

    Utilities are scaled to the front's own range, so that the chord between the extremes is
    `sum(u) = 1`; the knee lies farthest beyond it. Where no trial does (one or two trials, or a
    front that is hollow), it is the one that dominates the largest volume alone.
    """
    import numpy as np

    points = utility_points(_present(members), frames)
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    beyond = (scaled.sum(axis=1) - 1.0) / math.sqrt(len(frames))
    knee = int(beyond.argmax())
    if len(members) > 2 and len(frames) > 1 and beyond[knee] > 1e-9:
        reason = "bends the front most: beyond it, quality costs more and saving loses more"
    else:
        knee = int(points.prod(axis=1).argmax())
        reason = "dominates the largest volume alone (the front has no bend)"
    chosen = members[knee]
    shown = ", ".join(f"{frame.name} {_shown(chosen, frame.name)}" for frame in frames)
    return chosen, f"trial {chosen.number} {reason} ({shown})"


PICKS: Mapping[str, Callable[[Sequence[TrialRecord], Frames], Choice]] = {
    "best": pick_best,
    "knee": pick_knee,
    "smallest": pick_smallest,
}
"""What `--pick` accepts."""


def pick_within(
    members: Sequence[TrialRecord], frames: Frames, *, within: str, prefer: str
) -> Choice:
    """The trial with the least `prefer` among those close to the best quality, and why.

    Args:
        members: The front.
        frames: The study's objectives, quality first.
        within: "0.5%" of the best quality, or "0.005" in the metric's own unit.
        prefer: An objective, `trainable_params` or `head_params`.

    Raises:
        InputError: `within` is no such number, or `prefer` no such metric.
        NotFoundError: The front is empty.
    """
    known = sorted({*(frame.name for frame in frames[1:]), "trainable_params", "head_params"})
    tolerance, relative = _tolerance(within)
    faults = []
    if tolerance is None:
        faults.append(Fault("--within", "", repr(within), 'a share "0.5%" or a number "0.005"'))
    if prefer not in known:
        near = difflib.get_close_matches(prefer, known, 1)
        hint = f"did you mean {near[0]}?" if near else ""
        faults.append(Fault("--prefer", "", repr(prefer), ", ".join(known), hint))
    if tolerance is None or faults:
        raise InputError(faults)
    quality, sign = frames[0], 1.0 if frames[0].goal == "max" else -1.0
    best = max(sign * _cost(trial, quality.name, -sign) for trial in _present(members))
    slack = tolerance * abs(best) if relative else tolerance
    close = [t for t in members if sign * _cost(t, quality.name, -sign) >= best - slack - 1e-12]
    least = -1.0 if any(f.name == prefer and f.goal == "max" for f in frames) else 1.0
    chosen = min(close, key=lambda trial: (least * _cost(trial, prefer, least), trial.number))
    return chosen, (
        f"trial {chosen.number} has the {'most' if least < 0 else 'least'} {_words(prefer)} "
        f"({_shown(chosen, prefer)}) of the {len(close)} within {within} of the best "
        f"{quality.name} ({sign * best:.4g})"
    )


# -- the comparison with the baselines ------------------------------------------------------------


def best_baseline(trials: Sequence[TrialRecord], frames: Frames) -> TrialRecord | None:
    """The finished baseline of the highest quality, or None; the cheaper of equals."""
    finished = [
        trial
        for trial in trials
        if trial.baseline is not None and trial.state is TrialState.COMPLETED and trial.rung == 1.0
    ]
    if not finished:
        return None
    return max(finished, key=lambda t: (*utilities(frames, t.objectives), -t.number))


def _unconfirmed(number: int) -> str:
    return "not confirmed yet"


def compare_with_baseline(
    members: Sequence[TrialRecord],
    baselines: Sequence[TrialRecord],
    frames: Frames,
    *,
    beyond: Callable[[int], str] = _unconfirmed,
) -> str:
    """One honest sentence: what the front gains over the best baseline, or that it does not.

    Args:
        members: The front; baselines on it are left out of account.
        baselines: The study's trials, of which only finished baselines count.
        frames: The study's objectives, quality first.
        beyond: What other seeds say of a trial (see `searchers.confirmed`); by default, nothing.
    """
    quality, cost = frames[0].name, _cost_name(frames)
    best = best_baseline(baselines, frames)
    found = [trial for trial in members if trial.baseline is None]
    if best is None:
        return "no baseline finished, so nothing shows yet what the search has gained"
    mark = f"baseline {best.baseline} ({_shown(best, quality)})"
    if not found:
        return f"no trial of the search is on the front; the best is {mark}"
    level = utility(frames[0], best.objectives.get(quality))
    reaching = [t for t in found if utility(frames[0], t.objectives.get(quality)) >= level]
    if not reaching:
        near = max(found, key=lambda t: (*utilities(frames, t.objectives), -t.number))
        return (
            f"no trial reaches the {quality} of the best {mark}; trial {near.number} comes "
            f"nearest with {_shown(near, quality)} and {_ratio(near, best, cost)}"
        )
    chosen = min(reaching, key=lambda trial: (_cost(trial, cost), trial.number))
    same = chosen.objectives.get(quality) == best.objectives.get(quality)
    verb = "reaches" if same or _cost(chosen, cost) <= _cost(best, cost) else "beats"
    gained = "" if same else f" and has {_shown(chosen, quality)}"
    return (
        f"trial {chosen.number} {verb} the {quality} of the best {mark}{gained} "
        f"with {_ratio(chosen, best, cost)}; {beyond(chosen.number)}"
    )


# -- reading a trial ------------------------------------------------------------------------------


def _present(members: Sequence[TrialRecord]) -> Sequence[TrialRecord]:
    if not members:
        raise NotFoundError(
            "the front is empty",
            hint="let the search complete a trial at the full budget first",
        )
    return members


def _value(trial: TrialRecord, metric: str) -> float | None:
    """A metric of a trial, wherever the record keeps it: its probe's, or its last rung's."""
    if metric in trial.objectives:
        return trial.objectives[metric]
    if metric in ("trainable_params", "head_params"):
        return float(getattr(trial, metric))
    value = {**trial.profile.get("probe", {}), **trial.profile.get("reached", {})}.get(metric)
    return float(value) if isinstance(value, int | float) else None


def _cost(trial: TrialRecord, metric: str, sign: float = 1.0) -> float:
    """A metric as a number to minimise after multiplying with `sign`; missing is worst."""
    value = _value(trial, metric)
    return sign * math.inf if value is None else value


def _cost_name(frames: Frames) -> str:
    return frames[1].name if len(frames) > 1 else "trainable_params"


def _words(metric: str) -> str:
    return {"trainable_params": "trainable parameters", "head_params": "head parameters"}.get(
        metric, metric
    )


def _shown(trial: TrialRecord, metric: str) -> str:
    value = _value(trial, metric)
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _ratio(trial: TrialRecord, baseline: TrialRecord, cost: str) -> str:
    ours, theirs = _value(trial, cost), _value(baseline, cost)
    if ours is None or not theirs:
        return f"{_shown(trial, cost)} {_words(cost)}"
    return f"{ours / theirs:.2g}x its {_words(cost)}"


def _tolerance(within: str) -> tuple[float | None, bool]:
    """The number in `within`, and whether it is a share; None where it is neither."""
    text = within.strip()
    relative = text.endswith("%")
    try:
        number = float(text.removesuffix("%")) / (100.0 if relative else 1.0)
    except ValueError:
        return None, relative
    return (number if 0.0 <= number < math.inf else None), relative
