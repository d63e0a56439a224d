"""A ground on which the whole benchmark takes seconds: made-up sentences, a few steps.

Nothing can be learnt of methods there: it shows that every one trains, and that what was recorded
is reported.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.importance_runs.grounds import Ground, ground_of
from benchmarks.importance_runs.probing import ROUNDS
from benchmarks.quality.tasks import Task
from benchmarks.sparsity_cost import ROUND

NAME = "tiny"

BATCH, STEPS, TIMED = 2, 12, (ROUNDS + 1) * ROUND
"""Rows of a step, steps of a training, and as many as timing a method takes."""

HELD = 16
"""Rows that are measured on."""

_WORDS = {
    "weather": ("rain", "wind", "cloud", "storm", "frost"),
    "kitchen": ("bread", "pan", "salt", "stove", "spoon"),
}


class TinyGround(Ground):
    """Its trainings end early."""

    @property
    def steps(self) -> int:
        """Of a trial."""
        return STEPS


def load_tiny(name: str, work: Path) -> Ground:
    """MiniLM on made-up rows, with its importance map; the name is the ground's own."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", BATCH * TIMED), ("validation", HELD)):
        labels = [list(_WORDS)[index % 2] for index in range(n)]
        texts = [
            " ".join(rng.choice(_WORDS[label], 4)) + f" {i}" for i, label in enumerate(labels)
        ]
        rows = pd.DataFrame({"text": texts, "label": labels})
        rows.to_csv(folder / f"{part}.csv", index=False)
    study = Task(name, "text").study(folder, seed=0)
    study["training"] = {"epochs": 1, "batch_size": BATCH}
    study["search"] |= {"initial": 1}
    study["budget"] = {"trials": 1, "wall_clock": None}
    whole = ground_of(name, study, work)
    return TinyGround(name, whole.trainer, whole.constant, whole.digest)
