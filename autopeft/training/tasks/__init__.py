"""Tasks: what lanes are trained for, and how their predictions are measured.

`sequence` has one label per row (classes or numbers); `causal` has answers in token rows.
"""

from autopeft.training.tasks.base import Task
from autopeft.training.tasks.causal import CausalTask
from autopeft.training.tasks.sequence import SequenceTask

__all__ = ["CausalTask", "SequenceTask", "Task"]
