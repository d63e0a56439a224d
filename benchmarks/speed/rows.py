"""Data: questions from csv files, or random tokens of stated lengths.

Read with the csv module, split by one seeded permutation, tokenised once.
"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.training.data.examples import Examples, TaskData

VARIABLE = "AUTOPEFT_BENCH_DATA"
SYNTHETIC = "synthetic"
TRAIN_ROWS = 1000
VALIDATION_SHARE = 0.1
MAX_LENGTH = 32
SPECIAL_TOKENS = 4
"""Token ids below this are left to padding and the like in random rows."""


@dataclass(frozen=True)
class Lengths:
    """A length distribution of random rows: normal, rounded, clipped.

    Attributes:
        mean: Of the normal, in tokens.
        sd: Its standard deviation; 0 for rows of equal length.
        low: Shortest.
        high: Longest.
    """

    mean: float
    sd: float
    low: int
    high: int

    def __str__(self) -> str:
        if not self.sd:
            return f"{self.high} tokens each"
        return f"normal({self.mean:g}, {self.sd:g}) tokens in {self.low}..{self.high}"

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n lengths, int64."""
        drawn = np.rint(rng.normal(self.mean, self.sd, n))
        return np.clip(drawn, self.low, self.high).astype(np.int64)


TREC_LIKE = Lengths(12.4, 4.3, 5, MAX_LENGTH)
"""As MiniLM's tokenizer cuts TREC-6's questions."""


def data_folder(given: str | None) -> Path | None:
    """The folder of csv data: the argument, the environment's, or the one beside the project."""
    if given == SYNTHETIC:
        return None
    if given or os.environ.get(VARIABLE):
        return Path(given or os.environ[VARIABLE])
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return beside if beside.is_dir() else None


def trec6(folder: Path, tokenizer: Any) -> TaskData:
    """1,000 training questions of TREC-6, and a tenth of its train file to validate on.

    Args:
        folder: Holds `trec6/train.csv` with columns text and label, or is that folder itself.
        tokenizer: The backbone's.
    """
    path = folder / "trec6" / "train.csv"
    path = path if path.is_file() else folder / "train.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    order = np.random.default_rng(0).permutation(len(rows))
    held = round(VALIDATION_SHARE * len(rows))
    classes = sorted({row["label"] for row in rows})

    def examples(numbers: np.ndarray) -> Examples:
        texts = [rows[number]["text"] for number in numbers]
        ids = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        labels = np.array([classes.index(rows[number]["label"]) for number in numbers])
        return Examples(tuple(np.array(row, dtype=np.int32) for row in ids), labels)

    train, validation = examples(order[held : held + TRAIN_ROWS]), examples(order[:held])
    return TaskData(train, validation, tuple(classes), "", ())


def random_rows(
    lengths: Lengths, *, n_train: int, n_validation: int, n_classes: int, vocabulary: int
) -> TaskData:
    """Rows of random tokens; the same for the same arguments.

    With random labels, or, where there are no classes, with the second half as the answer.
    """
    rng = np.random.default_rng(0)

    def examples(n: int) -> Examples:
        ids = tuple(
            rng.integers(SPECIAL_TOKENS, vocabulary, size).astype(np.int32)
            for size in lengths.draw(rng, n)
        )
        if n_classes:
            return Examples(ids, rng.integers(0, n_classes, n))
        answers = tuple(np.arange(len(row)) >= len(row) // 2 for row in ids)
        return Examples(ids, np.zeros(n, dtype=np.int64), targets=answers)

    names = tuple(str(number) for number in range(n_classes))
    return TaskData(examples(n_train), examples(n_validation), names, "", ())
