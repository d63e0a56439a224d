"""ADAPTION_PROMPT as a method: prompts beside a layer's attention (arXiv 2303.16199).

A layer's attention module gets a wrapper of `peft`'s: the text's queries attend to P trained
prompts, apart from the text, and a gate that starts at 0 says how much of it is added. Prompts go
through the layer's frozen maps: what else sits at these maps neither changes them nor reads them.
`peft` counts the layers from the last one down.
"""

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import Kept, Reached
from autopeft.methods.lane_operator import Place
from autopeft.methods.passed.build import Target
from autopeft.methods.passed.counts import ModuleShape
from autopeft.methods.passed.method import Passed

KNOWN = ("llama", "mistral", "gpt2")
"""Architectures whose queries `peft` 0.21 can compute once more."""


class PassedAttention(Passed):
    """The type that wraps attention modules."""

    modalities: tuple[str, ...] = ("text",)
    identity = "exact"
    reached: Reached = "norms"

    def carried_by(self, anatomy: Anatomy) -> str:
        """`peft` has a list of architectures, and takes heads for an even share of the width."""
        if anatomy.architecture not in KNOWN:
            return f"peft knows the attention of {', '.join(KNOWN)} alone: write `aligner`"
        if anatomy.n_heads * anatomy.head_dim != anatomy.hidden_size:
            return "peft's type needs heads that are as wide together as hidden states"
        if not anatomy.carries_prefix:
            return "its attention modules were not recognised in every layer"
        return ""

    def _modules(self, group: Group, layer: int, anatomy: Anatomy) -> list[ModuleShape]:
        """The attention; of its widths, that of hidden states and that of all keys."""
        target = Target(anatomy.layers[layer].attention, self.name)
        keys = anatomy.n_kv_heads * anatomy.head_dim
        return [ModuleShape(target, anatomy.hidden_size, keys, bias=False, form="attention")]

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Layers that are not the last ones."""
        n_layers = len(anatomy.layers)
        last = tuple(range(n_layers - len(group.layers), n_layers))
        if group.layers == last:
            return []
        given, hint = ", ".join(map(str, group.layers)), "write `layers: {mode: last}`"
        hint += ", or `aligner`, which sits in any layers"
        allowed = f"the last ones: for {len(last)} of them, {', '.join(map(str, last))}"
        return [Fault("configuration", f"{self.name}.layers", given, allowed, hint)]

    def count(self, group: Group, place: Place) -> int:
        """P d + 1: the prompts, and their gate."""
        return int(group["adapter_len"]) * place.d_in + 1

    def fixed_count(self, group: Group, place: Place) -> int:
        """Nothing."""
        return 0

    def frozen_work(self, group: Group, place: Place) -> int:
        """Queries, values and the output map once more, as `peft` computes them, and 2 P d."""
        once_more = place.d_in * (2 * place.d_in + place.d_out)
        return once_more + 2 * int(group["adapter_len"]) * place.d_in

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """Queries, before and behind their rotation, every head's weights, and what they give."""
        heads = place.d_in // place.head_dim
        return Kept(4 * place.d_in + 2 * heads * int(group["adapter_len"]))
