"""Learning curves of many trials, as rules for stopping are replayed on them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from autopeft.searchers.dominance import Points
from autopeft.searchers.evidence import Vector
from autopeft.searchers.front import utilities, utility
from autopeft.study.records import ObjectiveFrame

COUNTED = ("accuracy",)
"""Qualities of recorded tables that are shares of the validation examples."""


@dataclass(frozen=True)
class RungTable:
    """Trials that were measured at many rungs and all trained to the end.

    Attributes:
        name: Of the data.
        shares: Rungs at which all trials were measured, ascending, the last 1.0.
        quality: `[n, rungs]`, higher is better.
        loss: `[n, rungs]`.
        costs: `[n, m - 1]` utilities.
        final: `[n]` utility of quality at the full budget.
        baselines: Places of the trials that no rule may stop; they are trained first.
        n_examples: Validation examples, of which quality is a share.
        noise: Standard deviation of a final utility when the same trial is trained again.
    """

    name: str
    shares: tuple[float, ...]
    quality: Points
    loss: Points
    costs: Points
    final: Vector
    baselines: frozenset[int]
    n_examples: int
    noise: float

    @property
    def points(self) -> Points:
        """`[n, m]` utilities at the full budget."""
        return np.column_stack([self.final, self.costs])

    def place(self, share: float) -> int:
        """The column of a rung."""
        return self.shares.index(share)


def recorded(path: Path) -> RungTable:
    """A table that `tables.write_table` wrote: its trials of the first seed that were not lost.

    The noise is that of the configurations that were trained with several seeds, or the binomial
    one while there are none.
    """
    rows = pd.read_parquet(path)
    frame = [ObjectiveFrame(*entry) for entry in rows.attrs["frame"]]
    quality = frame[0].name
    curves = rows[rows["rung"].notna() & rows[quality].notna()]
    first = curves[curves["seed"] == curves["seed"].min()]
    shares = tuple(sorted(float(share) for share in first["rung"].unique()))
    wide = first.pivot(index="hash", columns="rung", values=[quality, "loss"]).dropna()
    about = first.drop_duplicates("hash").set_index("hash").loc[wide.index]
    measured = wide[quality][list(shares)].to_numpy(dtype=np.float64)
    n_examples = int(rows.attrs["facts"]["n_validation"])
    if quality not in COUNTED:
        raise ValueError(f"{path}: quality is {quality}, expected one of {', '.join(COUNTED)}")
    return RungTable(
        name=str(rows.attrs["task"]),
        shares=shares,
        quality=measured,
        loss=wide["loss"][list(shares)].to_numpy(dtype=np.float64),
        costs=_costs(about, frame[1:]),
        final=np.array([utility(frame[0], value) for value in measured[:, -1]]),
        baselines=frozenset(int(place) for place in np.flatnonzero(about["baseline"] != "")),
        n_examples=n_examples,
        noise=_noise(curves, frame[0], n_examples),
    )


def _costs(about: pd.DataFrame, frames: Sequence[ObjectiveFrame]) -> Points:
    if missing := [frame.name for frame in frames if frame.name not in about]:
        raise ValueError(f"the table has no column {', '.join(missing)}")
    rows = [utilities(frames, row) for row in about.to_dict("records")]
    return np.array(rows, dtype=np.float64).reshape(len(about), len(frames))


def _noise(curves: pd.DataFrame, frame: ObjectiveFrame, n_examples: int) -> float:
    """In utility: pooled over the configurations with several seeds."""
    full = curves[curves["rung"] == 1.0]
    groups = [group for _, group in full.groupby("hash")[frame.name] if len(group) > 1]
    if groups:
        freedom = sum(len(group) - 1 for group in groups)
        deviation = math.sqrt(sum(float(g.var()) * (len(g) - 1) for g in groups) / freedom)
    else:
        middle = float(full[frame.name].median())
        deviation = math.sqrt(middle * (1.0 - middle) / n_examples)
    return deviation / abs(frame.best - frame.worst)


def rung_noise(path: Path) -> dict[float, float]:
    """How much quality differs between seeds at every rung, in the metric's unit."""
    rows = pd.read_parquet(path)
    quality = json.loads(json.dumps(rows.attrs["frame"]))[0][0]
    curves = rows[rows["rung"].notna() & rows[quality].notna()]
    found = {}
    for share, at in curves.groupby("rung"):
        groups = [group for _, group in at.groupby("hash")[quality] if len(group) > 1]
        freedom = sum(len(group) - 1 for group in groups)
        if freedom:
            pooled = sum(float(group.var()) * (len(group) - 1) for group in groups) / freedom
            found[float(share)] = math.sqrt(pooled)
    return found
