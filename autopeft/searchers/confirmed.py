"""What several seeds say of chosen trials: means, intervals, differences from the best baseline.

Notation: n seeds; a trial's value with seed r is x_r, the baseline's b_r, d_r = x_r - b_r. Trials
of one seed share data order, initial draws and dropout masks, so differences are paired by seed,
which leaves out what a seed does to all alike.

- Mean and difference: Student's t with n - 1 degrees of freedom, two-sided, at `LEVEL`.
- Over the members compared, p-values are adjusted by Holm's step-down rule (1979), so that the
  chance of calling any one of them better or worse by luck stays below 1 - `LEVEL`. Intervals are
  each for themselves, as is usual; the mark follows the adjusted p-value.
- A seed that diverged counts as the constant predictor: leaving it out would flatter the trial.
- Differences that do not vary at all have no t statistic; they are not tested, nor marked.

All of it speaks of seeds on the rows at hand, not of other rows. This module imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from autopeft.searchers import front as fronts
from autopeft.searchers.dominance import non_dominated
from autopeft.study.confirmation import (
    LEVEL,
    Confirmation,
    ConfirmationRun,
    Confirmed,
    Difference,
    Mark,
    Mean,
    Opening,
    Seen,
)
from autopeft.study.records import ObjectiveFrame, TrialRecord, TrialState

FEW_SEEDS = 5
"""Below this, intervals are so wide that few differences can be shown."""


def confirmation(
    runs: Sequence[ConfirmationRun],
    openings: Sequence[Opening],
    trials: Sequence[TrialRecord],
    frames: Sequence[ObjectiveFrame],
) -> Confirmation:
    """All that a study's runs show.

    Args:
        runs: Of the study, in any state.
        openings: Of its test split.
        trials: The study's trials, among which the best baseline is found.
        frames: Its objectives, quality first.
    """
    quality, numbers = frames[0], sorted({run.trial for run in runs})
    best = fronts.best_baseline(trials, frames)
    reference = best.number if best is not None and best.number in numbers else None
    values = {n: _values(runs, n, quality) for n in numbers}
    tested = {n: _values(runs, n, quality, test=True) for n in numbers}
    validation = _seen(values, reference, quality)
    test = _seen({n: own for n, own in tested.items() if own}, reference, quality)
    found = {
        number: Confirmed(
            number,
            number == reference,
            tuple(sorted(values[number])),
            sum(run.trial == number and run.diverged for run in runs),
            {
                run.replicate: _why(run)
                for run in runs
                if run.trial == number and run.replicate not in values[number]
            },
            validation.get(number),
            test.get(number),
        )
        for number in numbers
    }
    return Confirmation(quality, reference, found, tuple(openings))


def _values(
    runs: Sequence[ConfirmationRun], trial: int, quality: ObjectiveFrame, *, test: bool = False
) -> dict[int, float]:
    """Quality by seed; the constant predictor's where a run diverged."""
    found: dict[int, float] = {}
    own = [run for run in runs if run.trial == trial and run.ended]
    if test and all(run.test is None for run in own):
        return found
    for run in own:
        measured = run.test if test else run.values
        if measured is None and not run.diverged:
            continue
        value = None if run.diverged or measured is None else measured.get(quality.name)
        found[run.replicate] = quality.worst if value is None else float(value)
    return found


def _why(run: ConfirmationRun) -> str:
    if run.state is TrialState.FAILED:
        return ": ".join(filter(None, (run.cause, run.message)))
    return run.state.value


def _seen(
    values: Mapping[int, Mapping[int, float]], reference: int | None, quality: ObjectiveFrame
) -> dict[int, Seen]:
    """Means, and differences with their marks, adjusted over all members of a split."""
    theirs = values.get(reference, {}) if reference is not None else {}
    seen = {n: Seen(own, mean_of(list(own.values()))) for n, own in values.items() if own}
    compared: dict[int, tuple[Mean, float | None]] = {}
    for number in seen:
        paired = [x - theirs[seed] for seed, x in values[number].items() if seed in theirs]
        if number != reference and paired:
            compared[number] = mean_of(paired), paired_p(paired)
    testable = {n: p for n, (_, p) in compared.items() if p is not None}
    adjusted = dict(zip(testable, holm(list(testable.values())), strict=True))
    for number, (over, p) in compared.items():
        mark = _mark(over, adjusted.get(number), quality)
        difference = Difference(over, p, adjusted.get(number), mark)
        seen[number] = replace(seen[number], difference=difference)
    return seen


def _mark(over: Mean, adjusted: float | None, quality: ObjectiveFrame) -> Mark:
    if adjusted is None:
        return Mark.UNTESTED
    if adjusted >= 1.0 - LEVEL:
        return Mark.UNSHOWN
    return Mark.BETTER if (over.mean > 0.0) == (quality.goal == "max") else Mark.WORSE


# -- the arithmetic -------------------------------------------------------------------------------


def mean_of(values: Sequence[float]) -> Mean:
    """Mean, sample deviation and Student's interval of one or more values."""
    from scipy.special import stdtrit

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Mean(mean, None, None, None, n)
    sd = float(np.std(values, ddof=1))
    reach = float(stdtrit(n - 1, 0.5 + LEVEL / 2.0)) * sd / math.sqrt(n)
    return Mean(mean, sd, mean - reach, mean + reach, n)


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of the paired t test; None where the differences do not vary."""
    from scipy.special import stdtr

    n = len(differences)
    sd = float(np.std(differences, ddof=1)) if n > 1 else 0.0
    # What rounding leaves of equal differences is no variation.
    if sd <= 1e-12 * max(1.0, float(np.max(np.abs(differences)))):
        return None
    t = float(np.mean(differences)) / (sd / math.sqrt(n))
    return float(2.0 * stdtr(n - 1, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for passed, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - passed) * p_values[index]))
        adjusted[index] = largest
    return adjusted


# -- which trials ---------------------------------------------------------------------------------


def spread(
    members: Sequence[TrialRecord], frames: Sequence[ObjectiveFrame], count: int
) -> list[TrialRecord]:
    """Some members of a front: its best, its knee, its smallest, then the farthest from those.

    Distances are of utilities, scaled to the front's own range. Baselines are left out: the best
    one is what the others are held against.

    Returns:
        At most `count`, by quality.
    """
    open_ = [trial for trial in members if trial.baseline is None]
    if not open_ or count < 1:
        return []
    picked = [fronts.PICKS[how](open_, frames)[0] for how in ("best", "knee", "smallest")]
    chosen = list(dict.fromkeys(open_.index(trial) for trial in picked))[:count]
    points = fronts.utility_points(open_, frames)
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    while len(chosen) < min(count, len(open_)):
        apart = np.linalg.norm(scaled[:, None] - scaled[None, chosen], axis=2).min(axis=1)
        apart[chosen] = -1.0
        chosen.append(int(apart.argmax()))
    return [open_[index] for index in sorted(chosen)]


def redrawn(
    found: Confirmation, trials: Sequence[TrialRecord], frames: Sequence[ObjectiveFrame]
) -> list[int]:
    """The trials that no other confirmed one beats, by their means; from the cheapest."""
    seen = {
        trial.number: {**trial.objectives, frames[0].name: own.validation.over.mean}
        for trial in trials
        if (own := found.trials.get(trial.number)) is not None and own.validation is not None
    }
    points = np.array(
        [fronts.utilities(frames, objectives) for objectives in seen.values()], dtype=np.float64
    ).reshape(len(seen), len(frames))
    kept = [n for n, flag in zip(seen, non_dominated(points), strict=True) if flag]
    return sorted(kept, key=lambda n: fronts.utilities(frames, seen[n])[0])


# -- in words -------------------------------------------------------------------------------------


def verdict(found: Confirmation, trial: int) -> str:
    """What the seeds say of one trial, to stand behind the sentence on the search's own result.

    Test figures, where there are any, are told in place of validation's.
    """
    own = found.trials.get(trial)
    if own is None or own.validation is None:
        return "not confirmed yet"
    split, seen = ("test", own.test) if own.test else ("validation", own.validation)
    head = f"over {seen.over.n} seed{'s' if seen.over.n > 1 else ''} on {split}"
    if seen.difference is None:
        return f"{head}: {found.frame.name} {seen.over.shown()}"
    told = {
        Mark.BETTER: "better than that baseline",
        Mark.WORSE: "worse than that baseline",
        Mark.UNSHOWN: "no significant difference from that baseline",
        Mark.UNTESTED: "a difference from that baseline that cannot be tested",
    }[seen.difference.mark]
    return f"{head}: {told}, {seen.difference.over.shown(signed=True)}"


def notes(found: Confirmation) -> list[str]:
    """What a reader of the table should know, one sentence each."""
    compared = sum(each.validation is not None for each in found.members)
    told = [
        "Intervals are 95 %, Student's t over the seeds: they tell how results vary with the "
        "seed on these rows, not with other rows.",
        "The search's own seed chose these trials, so it is not among the seeds here. Their "
        "validation rows chose them too: what validation shows stays optimistic, a test split "
        "does not.",
    ]
    if found.reference is None:
        told.append("No baseline was trained again, so nothing is compared.")
    else:
        told.append(
            f"Differences from trial {found.reference}, the best baseline, are paired by seed; "
            f"marks follow p-values with Holm's correction over {compared} compared. Not "
            "significant does not mean equal: see how far the interval reaches."
        )
    if any(0 < len(each.seeds) < FEW_SEEDS for each in found.trials.values()):
        told.append(f"Fewer than {FEW_SEEDS} seeds show little.")
    if diverged := [each for each in found.trials.values() if each.diverged]:
        which = ", ".join(f"{each.diverged} of trial {each.trial}" for each in diverged)
        told.append(f"Seeds that diverged count as the constant predictor: {which}.")
    alike: dict[str, list[int]] = {}
    for each in found.trials.values():
        if each.missing:
            alike.setdefault(_listed(each.missing), []).append(each.trial)
    for seeds, trials in alike.items():
        one = len(trials) == 1
        named = ", ".join(str(number) for number in trials)
        told.append(f"Trial{'' if one else 's'} {named} lack{'s' if one else ''} seeds {seeds}.")
    return told


def _listed(missing: Mapping[int, str]) -> str:
    return "; ".join(f"{seed} ({why})" for seed, why in sorted(missing.items()))
