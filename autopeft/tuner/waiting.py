"""Since when trials wait for their pack: what a profile tells as waiting."""

import time
from collections.abc import Sequence


class Waiting:
    """The moments from which the trials of one sitting wait; may be shared by threads."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def expect(self, numbers: Sequence[int]) -> None:
        """From now on these trials wait for their packs."""
        self._since.update(dict.fromkeys(numbers, time.monotonic()))

    def seconds(self, numbers: Sequence[int]) -> dict[int, float]:
        """How long each has waited; 0 where nobody said since when."""
        now = time.monotonic()
        return {number: now - self._since.get(number, now) for number in numbers}
