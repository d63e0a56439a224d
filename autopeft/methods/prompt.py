"""Prompt tuning: trainable tokens before the text, from a layer on (arXiv 2104.08691, 2203.12119).

At the input of every layer of the group, `length` tokens stand before the text. `layers: [0]` is
prompt tuning; a deeper one alone is late prompt tuning (2210.11292); several are deep prompts, as
VPT has them for images: each layer's tokens take the place of those that come from below.

The tokens run through all layers from there on like any other: they are attended to, and in an
encoder they attend to the text; a decoder's see earlier ones alone. They are hidden states of a
layer, not word embeddings: where embeddings are all that a layer gets (Llama), there is no
difference; where positions are added and norms applied before (BERT), a token comes after both.
The text keeps its positions, and what is read of the last layer is the text's: the first token is
the text's own. Where positions are distances (rotary), the prompt's are those before the text, as
if the whole had been shifted; in T5 its tokens have no bias, as prefixes have none. A window of
local attention does not hide them.

Row j of `tokens` is the (j + 1)-th token before the text. They start uniform in +-0.5, or as
random tokens of the vocabulary at that layer's input (`initial`), both as in Lester et al.
"""

from collections.abc import Hashable

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import Kept, Reached, Start, registry
from autopeft.methods.inherited import Unfolded, layer_places
from autopeft.methods.lane_operator import LaneOperator, Place, Stack, size_class
from autopeft.space.schema import MethodSchema, ParameterSchema

INITIAL = ("random", "vocabulary")
BOUND = 0.5


class PromptOperator(LaneOperator):
    """Stacked tokens [k, P, d], which a pack puts behind the text (see `autopeft.training.lanes`).

    Padded tokens are seen by no other, and nothing reads them: their gradients are exactly zero.

    Attributes:
        lengths: Tokens of each member.
    """

    hook = "prompt"
    tokens: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self.lengths = tuple(stack.ints("length"))


def carries_prompts(anatomy: Anatomy) -> str:
    """Why a backbone's rows cannot be lengthened, or ""."""
    if not anatomy.packable:
        return anatomy.why_not
    if not anatomy.carries_prefix:
        return "its attention is more than scaled dot products, so that no mask can be put in"
    return ""


def prompt_faults(group: Group, anatomy: Anatomy) -> list[Fault]:
    """What a prompt cannot start from."""
    if group["initial"] == "vocabulary" and anatomy.modality != "text":
        given = f"vocabulary, for a model of {anatomy.modality}s"
        return [Fault("configuration", f"{group.method}.initial", given, "random")]
    return []


def initial_tokens(group: Group, place: Place, start: Start) -> Tensor:
    """Tokens [P, d]: uniform in +-0.5, or those of the vocabulary."""
    length, draw = int(group["length"]), start.draw("tokens")
    if group["initial"] == "vocabulary":
        return start.tokens(length, place.layer, draw)
    return torch.empty(length, place.d_in).uniform_(-BOUND, BOUND, generator=draw)


class Prompt(Unfolded):
    """The method `prompt`."""

    operator_type = PromptOperator
    schema = MethodSchema(
        name="prompt",
        size="length",
        parameters=(
            ParameterSchema("length", "int", minimum=1),
            ParameterSchema("initial", "str", default="random", choices=INITIAL),
        ),
    )
    source = (
        "Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning, arXiv "
        "2104.08691; layers: Jia et al. 2022, Visual Prompt Tuning, arXiv 2203.12119, and Liu et "
        "al. 2022, Late Prompt Tuning, arXiv 2210.11292"
    )
    reached: Reached = "attention"
    stands_for: tuple[str, ...] = ("key", "value")
    identity = "no: every token attends to the prompt from the first step"
    peft_type = "PROMPT_TUNING"

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
        """P d."""
        return int(group["length"]) * place.d_in

    training_count = count

    def tokens(self, group: Group) -> int:
        """The prompt."""
        return int(group["length"])

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """Nothing of the text; the memory model counts the tokens that rows are longer by."""
        return Kept(reads=False)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """See `initial_tokens`."""
        return {"tokens": initial_tokens(group, place, start)}

    def stack_key(self, group: Group) -> Hashable:
        """Lengths of one size class."""
        return size_class(int(group["length"]))


registry.register(Prompt())
