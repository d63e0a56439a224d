"""A pack: lanes trained together over one frozen backbone."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbone.heads import HeadRecipe, pool_rows
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError, Fault
from autopeft.methods import registry
from autopeft.methods.base import Call, Place
from autopeft.methods.counting import first_layer, placed_groups
from autopeft.methods.prefix import PrefixOperator
from autopeft.training.batches import Batch
from autopeft.training.lanes import attention
from autopeft.training.lanes.gates import Gates
from autopeft.training.lanes.heads import LaneHead
from autopeft.training.lanes.optimizer import Stacked
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.lanes.stream import Members, Stream
from autopeft.training.lanes.wiring import Placed, wire


@dataclass(frozen=True)
class Lane:
    """A trial's place in a pack.

    Attributes:
        number: The trial's number.
        configuration: What it trains.
    """

    number: int
    configuration: Configuration


class Pack(nn.Module):
    """Operators and heads of several lanes, wired into a backbone while `running`.

    Lanes are kept in stream order: by branch point, then by number. The backbone is shared and
    never written; only one pack may run on it at a time.

    Args:
        backbone: The frozen backbone.
        recipe: The task head.
        lanes: At least one; more than one needs a packable backbone.
        seeds: Source of initial tensors.
        dtype: Of the trainable tensors.

    Raises:
        BackboneError: Several lanes on a backbone that cannot share a pass.
    """

    def __init__(
        self,
        backbone: Backbone,
        recipe: HeadRecipe,
        lanes: Sequence[Lane],
        *,
        seeds: Seeds,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        anatomy = backbone.anatomy
        if len(lanes) > 1 and not anatomy.packable:
            raise BackboneError(
                Fault("pack", "", f"{len(lanes)} lanes", "1 lane", anatomy.why_not)
            )
        self._backbone, self._recipe = backbone, recipe
        self.device = next(backbone.model.parameters()).device
        self.lanes = sorted(
            lanes, key=lambda lane: (first_layer(lane.configuration, anatomy), lane.number)
        )
        self._stream = Stream()
        self._placed = [self._build(key, uses, seeds) for key, uses in self._uses()]
        self.operators = nn.ModuleList(item.operator for item in self._placed)
        self.head = LaneHead(
            recipe, len(lanes), seeds, std=getattr(backbone.config, "initializer_range", 0.02)
        )
        self._set_dtype(dtype)
        self.to(device=self.device)

    def _set_dtype(self, dtype: torch.dtype) -> None:
        """Parameters and floating buffers: some devices know no float64, in which scales come."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)

    def _uses(self) -> list[tuple[tuple[Any, ...], list[tuple[int, Group, Place]]]]:
        """Who stacks with whom: uses by (layer, site, method, stack key), in a fixed order."""
        uses = defaultdict(list)
        for position, lane in enumerate(self.lanes):
            for group, place in placed_groups(lane.configuration, self._backbone.anatomy):
                stack = registry[group.method].stack_key(group)
                uses[place.layer, place.site, group.method, stack].append((position, group, place))
        return sorted(uses.items(), key=lambda item: (*item[0][:3], str(item[0][3])))

    def _build(
        self, key: tuple[Any, ...], uses: list[tuple[int, Group, Place]], seeds: Seeds
    ) -> Placed:
        layer, site, method_name, _ = key
        method = registry[method_name]
        name = f"{method_name}.{layer}.{site}"

        def draw(tensor: str) -> torch.Generator:
            return seeds.generator("init", f"{name}.{tensor}")

        positions = [position for position, _, _ in uses]
        groups = [group for _, group, _ in uses]
        place = uses[0][2]
        tensors = [method.initial(group, place, draw) for group in groups]
        operator = method.operator(name, place, positions, groups, tensors)
        return Placed(operator, place, Members.of(positions, self.device))

    # -- running ------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Gates, hooks and attention are in place inside, and gone after."""
        model, anatomy = self._backbone.model, self._backbone.anatomy
        handles = wire(model, anatomy, self._placed, self._stream)
        bound = self._bind_prefixes()
        gates = self._gates()
        if gates is not None:
            gates.install()
        try:
            yield
        finally:
            if gates is not None:
                gates.remove()
            for handle in handles:
                handle.remove()
            self._unbind_prefixes(bound)

    def _gates(self) -> Gates | None:
        anatomy = self._backbone.anatomy
        if not anatomy.packable:
            return None
        layers = [self._backbone.model.get_submodule(layer.module) for layer in anatomy.layers]
        branches = [first_layer(lane.configuration, anatomy) for lane in self.lanes]
        return Gates(layers, branches, self._stream)

    def _bind_prefixes(self) -> tuple[str, list[nn.Module]]:
        model: Any = self._backbone.model
        anatomy = self._backbone.anatomy
        by_layer = defaultdict(list)
        for item in self._placed:
            if isinstance(item.operator, PrefixOperator):
                by_layer[item.place.layer].append((item.operator, item.members))
        implementation = str(model.config._attn_implementation)
        if not by_layer:
            return implementation, []
        model.set_attn_implementation(attention.ATTENTION)
        modules = []
        for layer, operators in by_layer.items():
            module = model.get_submodule(anatomy.layers[layer].attention)
            attention.bind(module, attention.LayerPrefixes(operators, self._stream))
            modules.append(module)
        return implementation, modules

    def _unbind_prefixes(self, bound: tuple[str, list[nn.Module]]) -> None:
        implementation, modules = bound
        for module in modules:
            attention.unbind(module)
        if modules:
            model: Any = self._backbone.model
            model.set_attn_implementation(implementation)

    def forward(self, batch: Batch, call: Call) -> Tensor:
        """Logits (or values) of every lane, [K, B, n_outputs], lanes in stream order.

        Call it inside `running()`.
        """
        stream, lanes = self._stream, len(self.lanes)
        stream.rows, stream.call = len(batch), call
        if not self._backbone.anatomy.packable:
            stream.lanes = 1
        try:
            out = self._backbone.model(**batch.inputs)
        finally:
            stream.call, stream.lanes = None, 0
            stream.sublayer_inputs.clear()
        if self._recipe.pool == "pooler":
            pooled = out.pooler_output
        else:
            mask = batch.mask.repeat(lanes, 1)
            pooled = pool_rows(out.last_hidden_state, mask, self._recipe.pool)
        logits: Tensor = self.head(pooled.view(lanes, len(batch), -1))
        return logits

    # -- tensors ------------------------------------------------------------------------------

    def stacked(self) -> list[Stacked]:
        """Every trainable tensor with its lanes, in a fixed order."""
        items = []
        for index, placed in enumerate(self._placed):
            operator = placed.operator
            for name in operator.stacked_names:
                parameter = operator.get_parameter(name)
                own_dim = len(operator.own_shapes[name][0])
                items.append(Stacked(f"{index}.{name}", parameter, operator.members, own_dim > 1))
        everyone = tuple(range(len(self.lanes)))
        for name, parameter in self.head.named_parameters():
            items.append(Stacked(f"head.{name}", parameter, everyone, parameter.dim() > 2))
        return items

    def lane_views(self, tensor_of: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
        """One lane's unpadded parts of stacked tensors, by saved name.

        Args:
            tensor_of: Tensors shaped like the stacked ones, by `Stacked.name`.
            position: The lane's position.

        Returns:
            Views by `method.layer.site.tensor` and `head.step.tensor`.
        """
        views = {}
        for index, placed in enumerate(self._placed):
            operator = placed.operator
            if position in operator.members:
                member = operator.members.index(position)
                for name in operator.stacked_names:
                    views[f"{operator.name}.{name}"] = operator.lane_tensor(
                        tensor_of[f"{index}.{name}"], name, member
                    )
        for name, _ in self.head.named_parameters():
            views[f"head.{name}"] = tensor_of[f"head.{name}"][position]
        return views

    def parameters_by_name(self) -> dict[str, Tensor]:
        """All stacked parameters by `Stacked.name`, detached."""
        return {item.name: item.parameter.detach() for item in self.stacked()}
