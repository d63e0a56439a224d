"""The record that unlocks a test split, as a store would give it."""

from datetime import UTC, datetime

from autopeft.study.confirmation import Opening

OPENING = Opening(0, datetime(2026, 1, 1, tzinfo=UTC), "ann@host", (0,), (1,), again=False)
