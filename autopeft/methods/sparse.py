"""Sparse fine-tuning: some weights of a linear map are trained, the others stay as they are.

y + x D, D zero but at the chosen units: single weights, input channels (rows of W), output
channels (columns), blocks, or attention heads. Which ones is decided once, before training, by a
score: of the importance map, of the weights themselves, or by chance. D starts at zero, so the
configured model is the backbone. What is stored are D's trained values and where they belong.

With `noise` > 0, the rows that are not chosen get noise of the size of a quantisation step while
they train (GIFT-SW).
"""

import math
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.backbone.importance import ImportanceMap
from autopeft.configuration import Group
from autopeft.errors import BackboneError, Fault
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import Unfolded, linear_places
from autopeft.methods.lane_operator import LaneOperator, Place, Stack
from autopeft.methods.single_weights import SPARSE_ROWS_MOST, SingleWeights
from autopeft.methods.sparse_operators import (
    Blocks,
    InputRows,
    NoisyInputRows,
    OutputColumns,
    quantisation_step,
)
from autopeft.methods.units import (
    GRANULARITIES,
    MEASURED,
    SCORES,
    choice_faults,
    chosen,
    chosen_by_map,
    fault_at,
    fixed_index,
    units,
    weights_of,
)
from autopeft.space.schema import MethodSchema, ParameterSchema

DEFAULT_BLOCK = 32


class Sparse(Unfolded):
    """The method `sparse`."""

    schema = MethodSchema(
        name="sparse",
        size="density",
        parameters=(
            ParameterSchema("density", "float", minimum=0.0, maximum=1.0),
            ParameterSchema("granularity", "str", default="weight", choices=GRANULARITIES),
            ParameterSchema("score", "str", default="gradient", choices=SCORES, measured=MEASURED),
            ParameterSchema("smallest", "bool", default=False),
            ParameterSchema(
                "block", "int", default=DEFAULT_BLOCK, minimum=1, when=("granularity", "block")
            ),
            ParameterSchema(
                "noise", "int", default=0, minimum=0, maximum=16, when=("granularity", "input")
            ),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = (
        "single weights: SPEFT, arXiv 2412.13488, and SHiRA, arXiv 2406.13175; channels and "
        "heads: S2FT, arXiv 2412.06289; blocks: SMT, arXiv 2405.15525, and DiaBlo, arXiv "
        "2506.03230; noise: GIFT-SW, arXiv 2408.15300"
    )
    identity = "exact"
    peft_type = "SHIRA"

    def carried_by(self, anatomy: Anatomy) -> str:
        """Any backbone with linear sites carries it."""
        return "" if anatomy.roles else "it has no linear sites"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer and role.

        Raises:
            BackboneError: Some site has no such units; all faults at once.
        """
        places = linear_places(group, anatomy)
        granularity, block = str(group["granularity"]), int(group.get("block") or 0)
        found = [fault_at(granularity, place, block=block) for place in places]
        faults = [fault for fault in found if fault is not None]
        if faults:
            raise BackboneError(faults)
        return places

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Units that sites lack, and scores that say nothing of them; see `choice_faults`."""
        return choice_faults(group, linear_places(group, anatomy), anatomy)

    def count(self, group: Group, place: Place) -> int:
        """Chosen units times weights of a unit."""
        own = units(group, place)
        return own.number(float(group["density"])) * own.size

    training_count = count

    def fixed_count(self, group: Group, place: Place) -> int:
        """An index per unit (per channel of a head), and the noise's steps."""
        own = units(group, place)
        steps = place.d_out if group.get("noise") else 0
        return own.number(float(group["density"])) * own.lines + steps

    def scored_index(self, group: Group, place: Place, importance: ImportanceMap) -> Tensor | None:
        """The units of a measured score."""
        if str(group["score"]) not in MEASURED:
            return None
        numbers = chosen_by_map(group, place, importance)
        return torch.from_numpy(fixed_index(units(group, place), numbers))

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """The chosen inputs; what the blocks read, and what they make of it; else all of x."""
        own = units(group, place)
        number = own.number(float(group["density"]))
        if own.side:
            width = number * own.side
            return Kept(width, reads=False, running=width + place.d_out)
        if own.axis == "input":
            weights = place.d_in * place.d_out if group.get("noise") else 0
            return Kept(number * own.lines, reads=False, weights=weights)
        return Kept(
            weights=0 if own.axis else place.d_in * place.d_out, reads_exactly=not own.axis
        )

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Values zero, indices by score (or as they were saved), steps of the frozen weights."""
        own = units(group, place)
        index = start.saved.get("index")
        if index is None:
            index = torch.from_numpy(fixed_index(own, chosen(group, place, start)))
        index, n = index.long(), len(index)
        shapes = {"input": (n, place.d_out), "output": (place.d_in, n)}
        shape = (n, own.side, own.side) if own.side else shapes.get(own.axis, (n,))
        tensors = {"values": torch.zeros(shape), "index": index}
        if bits := int(group.get("noise") or 0):
            step = start.saved.get("step")
            if step is None:
                step = quantisation_step(start.weight(place.layer, place.site), bits, index)
            tensors["step"] = step
        return tensors

    def folded_group(self, group: Group) -> Group:
        """The same weights without noise."""
        if not group.get("noise"):
            return group
        settings = {**dict(group.settings), "noise": 0}
        return Group.of(group.method, group.layers, group.sites, **settings)

    def folded_tensors(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values and indices."""
        return {name: tensor for name, tensor in tensors.items() if name != "step"}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W + D; noise is not there once it is trained."""
        change = dense_change(group, place, tensors).to(frozen.weight.dtype)
        return DenseMap(frozen.weight + change, frozen.bias)

    def stack_key(self, group: Group) -> Hashable:
        """Densities of one size class with units alike stack."""
        return (
            str(group["granularity"]),
            density_class(float(group["density"])),
            int(group.get("block") or 0),
            bool(group.get("noise")),
        )

    def operator(self, stack: Stack) -> LaneOperator:
        """The stacked operator of these units."""
        own = units(stack.groups[0], stack.place)
        if own.side:
            return Blocks(stack)
        if own.axis == "output":
            return OutputColumns(stack)
        if own.axis == "input":
            kind = NoisyInputRows if stack.groups[0].get("noise") else InputRows
            return kind(stack)
        largest = 2.0 ** density_class(float(stack.groups[0]["density"]))
        compress = largest <= SPARSE_ROWS_MOST
        return SingleWeights(stack, compress=compress)


def density_class(density: float) -> int:
    """c of the smallest power of two 2^c that is at least the density."""
    return math.ceil(math.log2(density))


def dense_change(group: Group, place: Place, tensors: Mapping[str, Tensor]) -> Tensor:
    """What a lane's tensors at a place add to W, [d_in, d_out]."""
    values, own = tensors["values"], units(group, place)
    change = values.new_zeros(place.d_in * place.d_out)
    change[weights_of(own, place, tensors["index"].long())] = values.ravel()
    return change.view(place.d_in, place.d_out)


registry.register(Sparse())
