"""VB-LoRA: LoRA made of the vectors of one small bank (arXiv 2405.15179).

y + x A B. Every column of A and row of B consists of parts of `length` entries, and each part is a
mixture of the bank's vectors: softmax(l) over the `chosen` largest of its logits l, times those
vectors. The bank [vectors, length] is one for all places of a group; logits are a place's own. As
in HF `peft`, the bank starts uniform in +-0.02 and logits start N(0, 0.1): the model starts near
the backbone. There is no scale. Length divides both widths of every map.

Once trained, a part is its chosen vectors' numbers and logits: `settled: true` trains these alone,
and is what a saved adapter is. The paper's own count stores one weight less per part, since they
sum to one.
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps, divisors
from autopeft.methods.lane_operator import Call, LaneDropout, LaneOperator, Place, Stack
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar

BANK_BOUND, LOGITS_STD = 0.02, 0.1


class VbLoraOperator(LaneOperator):
    """Stacked logits A [k, r, d_in / b, h] and B [k, d_out / b, r, h], and the lanes' bank.

    Settled, there are as many logits as chosen vectors, whose numbers are fixed. All lanes have
    the same sizes: there is no padding.
    """

    def __init__(self, stack: Stack) -> None:
        fixed = [each for each in stack.tensors[0] if each.startswith("index")]
        self.fixed_names = tuple(fixed)
        super().__init__(stack)
        self._chosen = int(stack.groups[0]["chosen"])
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """x A B."""
        bank = self.trained("bank")
        a, b = (self._mixed(name, bank) for name in ("A", "B"))
        low = lane_product(self.dropout(x, call).flatten(1, 2), a.flatten(2).transpose(1, 2))
        high = b.transpose(2, 3).flatten(1, 2).transpose(1, 2)
        return lane_product(low, high).view(*x.shape[:3], -1)

    def _mixed(self, name: str, bank: Tensor) -> Tensor:
        logits = self.get_parameter(f"logits_{name}")
        if self.fixed_names:
            return mixed(logits, self.get_buffer(f"index_{name}"), bank)
        top = logits.topk(self._chosen, dim=-1)
        return mixed(top.values, top.indices, bank)


def mixed(logits: Tensor, index: Tensor, bank: Tensor) -> Tensor:
    """Parts [k, ..., b]: vectors of banks [k, h, b] by their numbers [k, ..., c], weighed.

    Args:
        logits: Of the chosen vectors, [k, ..., c].
        index: Their numbers.
        bank: The lanes' banks.
    """
    flat = index.flatten(1).unsqueeze(2).expand(-1, -1, bank.shape[2])
    vectors = bank.gather(1, flat).view(*index.shape, bank.shape[2])
    return (logits.softmax(-1).unsqueeze(-1) * vectors).sum(-2)


class VbLora(OnLinearMaps):
    """The method `vb_lora`."""

    operator_type = VbLoraOperator
    schema = MethodSchema(
        name="vb_lora",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("vectors", "int", default=64, minimum=2),
            ParameterSchema("length", "int", default=16, minimum=1),
            ParameterSchema("chosen", "int", default=2, minimum=1),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
            ParameterSchema("settled", "bool", default=False),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Li et al. 2024, VB-LoRA, arXiv 2405.15179; HF peft's VBLORA"
    identity = "near: vectors start in +-0.02 and are mixed from the first step, as released"
    peft_type = "LORA"

    def legal(self, name: str, place: Place) -> tuple[Scalar, ...] | None:
        """Lengths that divide both widths."""
        return divisors(place.d_in, place.d_out) if name == "length" else None

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Lengths that the widths do not allow, and more chosen vectors than there are."""
        faults = super().faults(group, anatomy)
        if int(group["chosen"]) > int(group["vectors"]):
            allowed = f"at most {group['vectors']}, the bank's vectors"
            given = str(group["chosen"])
            faults.append(Fault("configuration", "vb_lora.chosen", given, allowed))
        return faults

    def count(self, group: Group, place: Place) -> int:
        """r (d_in + d_out) / b parts of c logits each; h b for the bank at the first place."""
        return self._bank(group, place) + self._parts(group, place) * int(group["chosen"])

    def training_count(self, group: Group, place: Place) -> int:
        """Parts of h logits each, unless they are settled."""
        logits = int(group["chosen"] if group["settled"] else group["vectors"])
        return self._bank(group, place) + self._parts(group, place) * logits

    def fixed_count(self, group: Group, place: Place) -> int:
        """The numbers of chosen vectors, once they are settled."""
        return self._parts(group, place) * int(group["chosen"]) if group["settled"] else 0

    def _parts(self, group: Group, place: Place) -> int:
        return int(group["rank"]) * (place.d_in + place.d_out) // int(group["length"])

    def _bank(self, group: Group, place: Place) -> int:
        return 0 if self.owners(group, place) else int(group["vectors"]) * int(group["length"])

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x A, and x; the factors' mixtures while it runs."""
        rank = int(group["rank"])
        mixtures = rank * (place.d_in + place.d_out) * (1 + int(group["chosen"]))
        return Kept(rank, weights=mixtures)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Logits N(0, 0.1), and the bank, uniform in +-0.02, at the group's first place."""
        rank, length, vectors = (int(group[name]) for name in ("rank", "length", "vectors"))
        shapes = {"A": (rank, place.d_in // length), "B": (place.d_out // length, rank)}
        tensors: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            draw = torch.randn(*shape, vectors, generator=start.draw(f"logits_{name}"))
            logits = draw * LOGITS_STD
            if group["settled"]:
                top = logits.topk(int(group["chosen"]), dim=-1)
                logits = top.values
                tensors[f"index_{name}"] = start.saved.get(f"index_{name}", top.indices).long()
            tensors[f"logits_{name}"] = logits
        if not self.owners(group, place):
            bank = torch.empty(vectors, length)
            tensors["bank"] = bank.uniform_(-BANK_BOUND, BANK_BOUND, generator=start.draw("bank"))
        return tensors

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """A and B of mixed vectors."""
        settled = tensors if group["settled"] else self.folded_tensors(group, tensors)
        bank = tensors["bank"].unsqueeze(0)
        a, b = (
            mixed(settled[f"logits_{n}"][None], settled[f"index_{n}"][None].long(), bank)[0]
            for n in ("A", "B")
        )
        return a.flatten(1).T, b.transpose(1, 2).flatten(0, 1).T

    def folded_group(self, group: Group) -> Group:
        """The same, settled."""
        settings = {**dict(group.settings), "settled": True}
        return Group.of(group.method, group.layers, group.sites, **settings)

    def folded_tensors(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The chosen logits, and whose they are."""
        if group["settled"]:
            return dict(tensors)
        folded = {name: tensor for name, tensor in tensors.items() if name == "bank"}
        for name in ("A", "B"):
            top = tensors[f"logits_{name}"].topk(int(group["chosen"]), dim=-1)
            folded |= {f"logits_{name}": top.values, f"index_{name}": top.indices}
        return folded

    def owners(self, group: Group, place: Place) -> Mapping[str, tuple[int, str]]:
        """The bank is at the group's first place."""
        first = group.layers[0], group.sites[0]
        return {} if (place.layer, place.site) == first else {"bank": first}

    def stack_key(self, group: Group) -> Hashable:
        """One set of sizes, and one first place."""
        sizes = (group[name] for name in ("rank", "vectors", "length", "chosen", "settled"))
        return *sizes, group.layers[0], group.sites[0]


registry.register(VbLora())
