"""The recorded tasks: which data, which budget, which configurations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.model_selection import train_test_split

from benchmarks.quality.errors import NotHereError

TRAIN, VALIDATION, MAX_LENGTH = 600, 500, 32
"""Examples trained on, examples measured on, and tokens of each at most."""

EPOCHS, BATCH_SIZE = 3, 8
"""225 optimizer steps: enough for a first rung at a tenth of them."""

RUNGS = (0.1, 0.2, 0.33, 1.0)

PACK = 8
"""Trials proposed and trained together; fixed, so that every machine records the same trials."""

INITIAL, TRIALS = 112, 168
"""Configurations drawn from the space (spread over its range of parameters), and all: the rest are
single mutations of the front, so that the table is dense where searchers go."""

REPEATED, SEEDS = 24, (0, 1, 2)
"""Configurations trained with every seed."""

MIXED, IMPORTANCE = "mixed", "importance"
"""Spaces of which there are tables."""


@dataclass(frozen=True)
class Task:
    """One data set, searched in one space.

    Attributes:
        name: Its folder.
        text: The column of the text.
        train: The file trained on; its rows give the validation examples too where there is no
            other file.
        validation: The file measured on, or None.
        space: What is searched.
    """

    name: str
    text: str
    train: str = "train.csv"
    validation: str | None = "validation.csv"
    space: str = MIXED

    @property
    def table(self) -> str:
        """What its table is called."""
        return self.name if self.space == MIXED else f"{self.name}-{self.space}"

    def materialise(self, data: Path, folder: Path) -> None:
        """Write the rows that are used, for all seeds, as `train.csv` and `validation.csv`.

        Args:
            data: Folder of all data sets.
            folder: Where they are written.

        Raises:
            NotHereError: The data are not there.
        """
        if not (data / self.name / self.train).is_file():
            raise NotHereError(f"{data / self.name / self.train} is not there")
        rows = pd.read_csv(data / self.name / self.train).drop_duplicates(self.text)
        if self.validation is None:
            rest, held = drawn(rows, VALIDATION)
        else:
            rest = rows
            _, held = drawn(pd.read_csv(data / self.name / self.validation), VALIDATION)
        _, train = drawn(rest[~rest[self.text].isin(held[self.text])], TRAIN)
        folder.mkdir(parents=True, exist_ok=True)
        train.to_csv(folder / "train.csv", index=False)
        held.to_csv(folder / "validation.csv", index=False)

    def study(
        self,
        folder: Path,
        *,
        seed: int,
        enqueue: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """The study that records the table (or, with `enqueue`, these configurations again).

        Args:
            folder: What `materialise` wrote.
            seed: The study's seed.
            enqueue: Plain configurations.
        """
        search: dict[str, Any] = {"rungs": list(RUNGS), "stopping": "none", "pack": PACK}
        if enqueue:
            search |= {"searcher": "random", "enqueue": list(enqueue), "baselines": []}
        else:
            search |= {"searcher": "evolution", "initial": INITIAL}
        return {
            "schema": "autopeft/v1",
            "study": {"name": f"{self.table}-seed{seed}", "seed": seed},
            "model": {"name_or_path": "builtin:minilm"},
            "data": {
                "source": str(folder),
                "text": self.text,
                "label": "label",
                "splits": {"train": "train", "validation": "validation"},
                "max_length": MAX_LENGTH,
            },
            "training": {"epochs": EPOCHS, "batch_size": BATCH_SIZE},
            "space": self.space,
            "search": search,
            "budget": {"trials": len(enqueue) or TRIALS, "wall_clock": None},
        }


_DATA_SETS = (
    Task("trec6", "text", validation=None),
    Task("sst2", "sentence"),
    Task("snips", "text"),
)

TASKS = {
    task.table: task
    for task in (*_DATA_SETS, *(replace(each, space=IMPORTANCE) for each in _DATA_SETS))
}

OF_SPACE: Mapping[str, tuple[str, ...]] = {
    space: tuple(name for name, task in TASKS.items() if task.space == space)
    for space in (MIXED, IMPORTANCE)
}
"""Tables by space: figures of two spaces are not averaged."""


def drawn(rows: pd.DataFrame, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rest and `n` rows, drawn with every label's share."""
    rest, drawn = train_test_split(rows, test_size=n, random_state=0, stratify=rows["label"])
    return rest, drawn
