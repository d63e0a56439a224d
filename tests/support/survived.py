"""What a kill loop went through, as a row of the table in docs/reliability.md.

Where the variable AUTOPEFT_SURVIVED names a file, every row is appended to it.
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = "AUTOPEFT_SURVIVED"
COORDINATOR, RUNNER, BOTH = "coordinator", "runner", "both"
STARTING, WRITING, TRAINING, BETWEEN = "starting", "writing", "training", "between"
COLUMNS = {
    (COORDINATOR, STARTING): "coordinator, without a runner yet",
    (COORDINATOR, WRITING): "within a transaction",
    (COORDINATOR, TRAINING): "while trials train",
    (COORDINATOR, BETWEEN): "between packs",
    (RUNNER, TRAINING): "runner, while it trains",
    (RUNNER, BETWEEN): "loading or waiting",
    (BOTH, TRAINING): "both at once, while trials train",
    (BOTH, BETWEEN): "otherwise",
}
"""Who was killed at what moment, and how the table calls it."""


@dataclass
class Survived:
    """One loop.

    Attributes:
        database: Its name.
        seed: Of the loop.
        kills: By who was killed, and at what moment.
        checks: How often all that was stored was compared with what had been there before.
        attempts: By cause, None for those that came to their end.
        completed: Trials, all of which completed.
        seconds: Of the loop.
    """

    database: str
    seed: int
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    checks: int = 0
    attempts: Counter[str | None] = field(default_factory=Counter)
    completed: int = 0
    seconds: float = 0.0

    def row(self) -> str:
        """Of the table."""
        cells = [
            f"{self.database}, {self.seed}",
            str(self.kills.total()),
            *(str(self.kills[key]) for key in COLUMNS),
            f"{self.attempts['lost']} of {self.attempts.total()}",
            str(self.completed),
            str(self.checks),
            f"{self.seconds:.0f}",
        ]
        return f"| {' | '.join(cells)} |"

    def tell(self) -> None:
        """Print the row, and append it to the file that is asked for."""
        sys.stdout.write(f"{head()}\n{self.row()}\n")
        named = os.environ.get(VARIABLE)
        if named is None:
            return
        path = Path(named)
        with path.open("a") as file:
            if file.tell() == 0:
                file.write(f"{head()}\n")
            file.write(f"{self.row()}\n")


def head() -> str:
    """Of the table."""
    names = [
        "database, seed", "kills", *COLUMNS.values(), "attempts lost", "trials completed",
        "checks", "seconds",
    ]  # fmt: skip
    return f"| {' | '.join(names)} |\n| {' | '.join('---' for _ in names)} |"
