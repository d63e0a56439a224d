"""What makes the host wait for a device, seen on a CPU, and packs that may not do it."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tiny_backbones as tiny
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import autopeft
from autopeft.backbone import devices
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.loop import Trainer
from autopeft.training.settings import LoopSettings

HOME = str(Path(autopeft.__file__).parent)
PINNED = devices.__file__
WAITING = (
    "_local_scalar_dense",  # item(), int(), float(), bool()
    "nonzero",
    "masked_select",
    "unique",
    "equal.default",
    "bincount",
    "repeat_interleave.Tensor",  # as many rows as it is told by a tensor
    "lift_fresh",  # torch.tensor(...): from the host's memory, which no graph can hold
)
"""Operations whose result, or its shape, the host must read, or that it must write, by name."""

READING = tuple(getattr(torch.Tensor, name) for name in ("cpu", "numpy", "tolist", "__array__"))
"""Methods that read a tensor on the host, of which a CPU makes no operation."""


class Waits(TorchDispatchMode):
    """Notes where the project's own code makes the host wait for the device.

    Args:
        everywhere: What transformers and `peft` do is noted too.

    Attributes:
        found: `operation at file:line` of each.
    """

    def __init__(self, *, everywhere: bool = False) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._everywhere = everywhere

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if any(each in name for each in WAITING) or _is_masked(name, args):
            self.note(name)
        return func(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        """That an operation of this name runs now."""
        self.found |= {f"{name} at {place}" for place in _own_place(everywhere=self._everywhere)}


class _Reads(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in READING or (func is torch.Tensor.__setitem__ and _puts_a_number(*args)):
            self._waits.note(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def waits(*, everywhere: bool = False) -> Iterator[Waits]:
    """Notes inside, see `Waits`, and what is read without an operation."""
    noted = Waits(everywhere=everywhere)
    with noted, _Reads(noted):
        yield noted


def _is_masked(name: str, args: Sequence[Any]) -> bool:
    """Whether tensors are indexed by a mask, whose size the host must know."""
    if not name.startswith(("aten.index.", "aten.index_put")):
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


def _puts_a_number(tensor: torch.Tensor, at: Any, value: Any) -> bool:
    """Whether it is put at indices: a GPU waits for a copy of it."""
    parts = at if isinstance(at, tuple) else (at,)
    return not isinstance(value, torch.Tensor) and any(
        isinstance(each, torch.Tensor) for each in parts
    )


def _own_place(*, everywhere: bool) -> Iterator[str]:
    """The project's line that called an operation, unless transformers did so in between.

    What goes from the host through `on_device` is pinned, and nobody waits for it.
    """
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "transformers" in Path(name).parts and not everywhere:
            return
        if name == PINNED:
            return
        if name.startswith(HOME):
            yield f"{name}:{frame.f_lineno}"
            return
        frame = frame.f_back  # type: ignore[assignment]


# -- packs that may not wait ------------------------------------------------------------------

CALM = {"learning_rate": 1e-3, "weight_decay": 0.01, "warmup_ratio": 0.0}
IST = {"rule": "ist", "interval": 4, "batch": 8}
ADALORA = {"rule": "adalora", "interval": 3, "warmup": 0.1, "final": 0.3, "target": 0.4}
RULES: Mapping[str, Mapping[str, Any]] = {
    "ist": IST,
    "adalora": ADALORA,
    "id3": {"rule": "id3", "budget": 0.3, "exponent": 0.5},
    "rst": {"rule": "rst", "keep": 0.7},
    "none": {"rule": "none"},
}
STEPS, SETTLED, ROWS = 18, 8, 24
"""IST asks at steps 4, 8, 12 and 16; AdaLoRA's ranks are fixed from 13 on. The first steps may
capture: what comes from `SETTLED` on may not wait."""


def ruled_lanes() -> list[Lane]:
    """LoRA under every rule that acts while training, in one pack."""
    group = Group.of("lora", [0, 1, 2], ["query", "up", "down"], rank=4, alpha=8.0, dropout=0.1)
    return [
        Lane(number, Configuration.of([group], training=CALM, sparsity=dict(rule)))
        for number, rule in enumerate(RULES.values())
    ]


def drawing_lane() -> Lane:
    """A type of `peft` that draws, under IST."""
    group = Group.of("peft:LORA", (0, 1, 2), ("query", "up"), r=2, lora_dropout=0.5)
    return Lane(0, Configuration.of([group], training=CALM, sparsity=IST))


def one_shape(backbone: Backbone, **changes: Any) -> Trainer:
    """A trainer whose batches have one shape, where lengths are rounded up to 8; and padding."""
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    rng = np.random.default_rng(3)
    ids = tuple(rng.integers(3, tiny.VOCABULARY, 4 + n % 5).astype(np.int32) for n in range(ROWS))
    examples = Examples(ids, rng.integers(0, 3, ROWS))
    settings: dict[str, Any] = {
        "task": "sequence-classification",
        "metrics": ("accuracy", "loss"),
        "total_steps": STEPS,
        "batch_size": 4,
        "micro_batch_size": 4,
    }
    data = TaskData(examples, examples, ("a", "b", "c"), "d" * 64, ())
    return Trainer(backbone, data, LoopSettings(**settings | changes), study_seed=3)
