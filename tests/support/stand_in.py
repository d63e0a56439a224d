"""A study that is prepared in no time, for tests of real processes: what both sides know.

Quality is a function of the configuration's hash, the replicate and the step, so that whatever
happens on the way, the same trial ends with the same value.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

from autopeft.configuration import Configuration, Group

STEPS = 60
RUNGS = {0.25: 15, 0.5: 30, 1.0: STEPS}
PACK = 4
MICRO_BATCH = 8


def configurations() -> Iterator[Configuration]:
    """Distinct ones without end."""
    number = 0
    while True:
        rank, layer = 1 << number % 4, number // 4 % 4
        group = Group.of("lora", range(layer, 4), ["query", "value"], rank=rank, alpha=2.0 * rank)
        rest = {"learning_rate": 1e-4 * (1 + number), "weight_decay": 0.0, "warmup_ratio": 0.1}
        yield Configuration.of([group], training=rest)
        number += 1


def quality(configuration: Configuration, step: int, replicate: int = 0) -> float:
    """Rises towards a value that only the hash knows, and the replicate's number."""
    named = configuration.hash + (f"/{replicate}" if replicate else "")
    digest = hashlib.sha256(named.encode()).digest()
    best = int.from_bytes(digest[:4], "big") / 2**32
    return 0.2 + 0.7 * best * (1 - math.exp(-4 * step / STEPS))


def params(configuration: Configuration) -> int:
    """What a LoRA of width 16 stores."""
    return sum(
        int(group["rank"]) * 32 * len(group.layers) * len(group.sites)
        for group in configuration.groups
    )


def marker(folder: Path, name: str) -> Path:
    """A file by which a runner remembers across its deaths."""
    return folder / f"marker-{name}"
