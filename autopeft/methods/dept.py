"""DePT: a short prompt, and a low-rank update of the text by position (arXiv 2309.05173).

At the input of a layer, `length` tokens stand before the text as in `prompt`, and the text's t-th
token changes by (alpha / sqrt(r)) A_t B, A [positions, r], B [r, d]; those from `positions` on
stay as they are. The paper's place is `layers: [0]`. A starts kaiming-uniform(a = sqrt 5) and B at
zero. A prompt of m0 tokens has as many parameters as m of them with (m0 - m) d / (positions + d)
as the rank.

The prompt learns `prompt_rate` times as fast as A and B, which have the trial's own learning rate:
60 to 600 times in the paper (0.3 or 0.4, and 5e-4 or 5e-3).
"""

import math
from collections.abc import Hashable

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import Kept, Reached, Start, registry
from autopeft.methods.inherited import Unfolded, layer_places
from autopeft.methods.lane_operator import Call, Place, Stack, size_class
from autopeft.methods.lora import kaiming
from autopeft.methods.prompt import (
    INITIAL,
    PromptOperator,
    carries_prompts,
    initial_tokens,
    prompt_faults,
)
from autopeft.space.schema import MethodSchema, ParameterSchema


class DeptOperator(PromptOperator):
    """A prompt with stacked A [k, s, r] and B [k, r, d].

    Padded ranks stay zero, as in LoRA; padded positions too: theirs is a step of B times zero, so
    A's gradient is masked there.
    """

    changes_text = True
    A: Tensor
    B: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        scales = [_scale(group) for group in stack.groups]
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        self._rates = tuple(stack.floats("prompt_rate"))
        positions = torch.tensor(stack.ints("positions"))
        self.register_buffer("own", torch.arange(int(positions.max())) < positions[:, None])

    def rates(self, tensor_name: str) -> tuple[float, ...]:
        """The prompt's own."""
        return self._rates if tensor_name == "tokens" else ()

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """What is added to the text, by position; nothing to what stands behind it."""
        if call.mask is None:
            raise RuntimeError(f"{self.name} was called without the rows' lengths")
        known = min(call.mask.shape[1], self.A.shape[1])
        a = self.A[:, :known] * self.get_buffer("own")[:, :known, None]
        scale = self.get_buffer("scale").to(a.dtype).view(-1, 1, 1)
        change = functional.pad(lane_product(a, self.B) * scale, (0, 0, 0, x.shape[2] - known))
        return change.unsqueeze(1).expand(-1, x.shape[1], -1, -1)


def _scale(group: Group) -> float:
    return float(group["alpha"]) / math.sqrt(int(group["rank"]))


class Dept(Unfolded):
    """The method `dept`."""

    operator_type = DeptOperator
    schema = MethodSchema(
        name="dept",
        size="length",
        parameters=(
            ParameterSchema("length", "int", minimum=1),
            ParameterSchema("rank", "int", default=8, minimum=1),
            ParameterSchema("positions", "int", default=256, minimum=1),
            ParameterSchema("alpha", "float", default=8.0, minimum=0.0),
            ParameterSchema("prompt_rate", "float", default=100.0, minimum=0.0),
            ParameterSchema("initial", "str", default="random", choices=INITIAL),
        ),
    )
    source = "Shi and Lipani 2023, DePT, arXiv 2309.05173; ZhengxiangShi/DePT"
    reached: Reached = "attention"
    stands_for: tuple[str, ...] = ("key", "value")
    identity = "no: every token attends to the prompt from the first step"

    def carried_by(self, anatomy: Anatomy) -> str:
        """Lanes share a pass, and attention takes a mask."""
        return carries_prompts(anatomy)

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """The input of every layer."""
        return layer_places(group, anatomy)

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Images have no vocabulary."""
        return prompt_faults(group, anatomy)

    def count(self, group: Group, place: Place) -> int:
        """m d + (s + d) r."""
        length, rank = int(group["length"]), int(group["rank"])
        return length * place.d_in + (int(group["positions"]) + place.d_in) * rank

    training_count = count

    def tokens(self, group: Group) -> int:
        """The prompt."""
        return int(group["length"])

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """Nothing of the text; the change of a row exists once for all of a lane's rows."""
        return Kept(reads=False, weights=int(group["positions"]) * place.d_in)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """The prompt as `prompt` has it, A uniform in +-1/sqrt(r), B zero."""
        rank, positions = int(group["rank"]), int(group["positions"])
        return {
            "tokens": initial_tokens(group, place, start),
            "A": kaiming(rank, (positions, rank), start.draw("A")),
            "B": torch.zeros(rank, place.d_out),
        }

    def stack_key(self, group: Group) -> Hashable:
        """Lengths and ranks of one size class each."""
        return size_class(int(group["length"])), size_class(int(group["rank"]))


registry.register(Dept())
