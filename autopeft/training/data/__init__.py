"""Text with labels or answers, from wherever it lies to token ids: what a study trains on.

`load_text_data` reads, checks and splits; `load_task_data` tokenises on top of it. Neither opens
the test split: only `load_test` does. `guess` tells what a data set's columns seem to be.
"""

from autopeft.training.data.examples import (
    Choices,
    Examples,
    TaskData,
    load_task_data,
    load_test,
)
from autopeft.training.data.guess import Guess, guess
from autopeft.training.data.instructions import Instructions
from autopeft.training.data.request import DataRequest, Limits, Splits
from autopeft.training.data.text import LabelledTexts, TextData, load_text_data

__all__ = [
    "Choices",
    "DataRequest",
    "Examples",
    "Guess",
    "Instructions",
    "LabelledTexts",
    "Limits",
    "Splits",
    "TaskData",
    "TextData",
    "guess",
    "load_task_data",
    "load_test",
    "load_text_data",
]
