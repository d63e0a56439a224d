"""A pack: lanes trained together over one frozen backbone."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.handed_on import HandedOn
from autopeft.backbone.heads import HeadRecipe, pool_rows
from autopeft.backbone.loading import Backbone
from autopeft.backbone.products import padded_model
from autopeft.configuration import Configuration, Group
from autopeft.counting import (
    consistency,
    first_layer,
    placed_groups,
)
from autopeft.errors import BackboneError, Fault
from autopeft.methods import registry
from autopeft.methods.base import Start
from autopeft.methods.lane_operator import SILENT, Call, Place, Shared, Stack
from autopeft.training.batches import Batch
from autopeft.training.lanes import attention
from autopeft.training.lanes.dropout import BackboneDropout
from autopeft.training.lanes.ends import hook_ends, layer_ends
from autopeft.training.lanes.ffn import LaneFfn
from autopeft.training.lanes.gates import Gates, Route, TrunkEnd
from autopeft.training.lanes.heads import LaneHead, reads_first_token
from autopeft.training.lanes.members import Members
from autopeft.training.lanes.optimizer import Stacked
from autopeft.training.lanes.passed import is_passed, longer, passed_lanes
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.lanes.serving import Serving
from autopeft.training.lanes.slots import Slots
from autopeft.training.lanes.stream import Stream
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


def in_stream_order(lanes: Sequence[Lane], anatomy: Anatomy) -> list[Lane]:
    """By branch point, then by number."""
    return sorted(lanes, key=lambda lane: (first_layer(lane.configuration, anatomy), lane.number))


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
        checkpointing: Recompute the lanes' layers in the backward pass.
        backbone_dropout: Run the backbone's own dropout in training.
        saved: Tensors of lanes that are continued or loaded, by lane number and saved name: their
            fixed ones are used in place of new ones.

    Raises:
        BackboneError: Several lanes on a backbone that cannot share a pass, or among which some
            have no lane axis.
    """

    def __init__(
        self,
        backbone: Backbone,
        recipe: HeadRecipe,
        lanes: Sequence[Lane],
        *,
        seeds: Seeds,
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
        backbone_dropout: bool = False,
        saved: Mapping[int, Mapping[str, Tensor]] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        anatomy = backbone.anatomy
        if len(lanes) > 1 and not anatomy.packable:
            raise BackboneError(
                Fault("pack", "", f"{len(lanes)} lanes", "1 lane", anatomy.why_not)
            )
        if len(lanes) > 1 and any(is_passed(lane.configuration) for lane in lanes):
            given = f"{len(lanes)} lanes, some of them types of peft"
            raise BackboneError(Fault("pack", "", given, "1 lane where peft trains"))
        self._backbone, self._recipe = backbone, recipe
        frozen = next(backbone.model.parameters())
        self.device, self._dtype = frozen.device, frozen.dtype
        self.lanes = in_stream_order(lanes, anatomy)
        self.branch_points = [first_layer(lane.configuration, anatomy) for lane in self.lanes]
        self.consistency = [consistency(lane.configuration, anatomy) for lane in self.lanes]
        self.n_layers = len(anatomy.layers)
        self._stream = Stream()
        self._is_running = False
        self._dropout = BackboneDropout(backbone, self._stream) if backbone_dropout else None
        self._placed = self._built(seeds, saved)
        configurations = [lane.configuration for lane in self.lanes]
        self._ffn = LaneFfn(configurations, self.branch_points, anatomy, self._stream)
        self._passed = [
            group
            for lane in self.lanes
            for group in passed_lanes(
                lane.configuration, backbone, seeds, saved.get(lane.number, {}), dtype
            )
        ]
        whole = any(registry[m].reads_batch for each in configurations for m in each.methods)
        self._cut = not whole and reads_first_token(
            anatomy, recipe, attention=str(backbone.config._attn_implementation)
        )
        self._slots = Slots(
            self._placed, lanes=len(lanes), layers=self.n_layers, device=self.device
        )
        self._ends = layer_ends(self._placed, self._slots, self._stream)
        self._attention = self._layer_attention()
        self._gates = self._make_gates(checkpointing) if anatomy.packable else None
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

    def _built(self, seeds: Seeds, saved: Mapping[int, Mapping[str, Tensor]]) -> list[Placed]:
        """All operators; those that share tensors are told who holds them."""
        stacks = self._uses()
        built = {key: self._build(key, uses, seeds, saved) for key, uses in stacks}
        for (layer, site, name, stack), uses in stacks:
            _, group, place = uses[0]
            operator = built[layer, site, name, stack].operator
            for tensor, at in registry[name].owners(group, place).items():
                owner = built[*at, name, stack].operator
                index = [owner.members.index(member) for member in operator.members]
                among = torch.tensor(index, device=self.device)
                operator.shared[tensor] = Shared(owner, tensor, among)
        return list(built.values())

    def _uses(self) -> list[tuple[tuple[Any, ...], list[tuple[int, Group, Place]]]]:
        """Who stacks with whom: uses by (layer, site, method, stack key), in a fixed order."""
        uses = defaultdict(list)
        for position, lane in enumerate(self.lanes):
            for group, place in placed_groups(lane.configuration, self._backbone.anatomy):
                if registry[group.method].alone:
                    continue
                stack = registry[group.method].stack_key(group)
                uses[place.layer, place.site, group.method, stack].append((position, group, place))
        return sorted(uses.items(), key=lambda item: (*item[0][:3], str(item[0][3])))

    def _build(
        self,
        key: tuple[Any, ...],
        uses: list[tuple[int, Group, Place]],
        seeds: Seeds,
        saved: Mapping[int, Mapping[str, Tensor]],
    ) -> Placed:
        layer, site, method_name, _ = key
        method = registry[method_name]
        name = f"{method_name}.{layer}.{site}"

        def draw(tensor: str) -> torch.Generator:
            return seeds.generator("init", f"{name}.{tensor}")

        def start(position: int) -> Start:
            kept, at = saved.get(self.lanes[position].number, {}), f"{name}."
            own = {n.removeprefix(at): t for n, t in kept.items() if n.startswith(at)}
            backbone = self._backbone
            scores = backbone.anatomy.importance
            return Start(draw, backbone.weight, scores, own, backbone.frozen_map, backbone.tokens)

        positions = [position for position, _, _ in uses]
        groups = [group for _, group, _ in uses]
        place = uses[0][2]
        tensors = [method.initial(group, place, start(position)) for position, group, _ in uses]
        operator = method.operator(Stack(name, place, positions, groups, tensors))
        if operator.hook == "linear":
            operator.frozen = self._backbone.frozen_map(layer, site)
        operator.frozen_maps = {
            role: self._backbone.frozen_map(layer, role) for role in operator.frozen_roles
        }
        if operator.hook == "norm":
            operator.norm = self._backbone.frozen_norm(layer, site)
        return Placed(operator, place, Members.of(positions, self.device))

    @property
    def passed_models(self) -> list[nn.Module]:
        """`peft`'s models of the copies that its adapters sit on."""
        return [lane.model for lane in self._passed]

    @property
    def handed_on(self) -> HandedOn:
        """What the backbone's layers hand on; first read while no pack runs."""
        return self._backbone.handed_on

    @property
    def drops(self) -> bool:
        """Whether the backbone's own dropout runs in training."""
        return self._dropout is not None

    @property
    def passes_on(self) -> bool:
        """Whether its lane is (also) one of `peft`'s own types."""
        return bool(self._passed)

    # -- running ------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Gates, hooks and attention are in place inside, and gone after; may be nested."""
        if self._is_running:
            yield
            return
        self._is_running = True
        try:
            with self._wired():
                yield
        finally:
            self._is_running = False

    def serve(self, acts: Callable[[], bool], trains: Callable[[], bool]) -> None:
        """Wire a pack of one into its backbone for good: whoever calls the model runs the lane.

        There are no gates: transformers' own forward runs the lane through every layer, with a
        cache of keys and values where it keeps one. Rows are padded behind their tokens. A lane
        with prompts keeps no cache, in which the text would stand before them, and takes none.

        Args:
            acts: Whether the lane acts in the call that begins.
            trains: Whether dropout is on in it.

        Raises:
            BackboneError: Several lanes, or one of `peft`'s own types that reads or makes the
                model's arguments: these are the caller's.
        """
        model: Any = self._backbone.model
        if len(self.lanes) != 1:
            raise BackboneError(Fault("pack", "", f"{len(self.lanes)} lanes", "1 lane to serve"))
        if any(lane.reads_inputs for lane in self._passed):
            given = "a type of peft that has the whole model to itself"
            raise BackboneError(Fault("pack", "", given, "a lane without, to serve"))
        self._served = ExitStack()
        self._served.enter_context(self._wired(gated=False))
        Serving(self._stream, self._slots, acts, trains).install(model, self._backbone.anatomy)

    @contextmanager
    def _wired(self, *, gated: bool = True) -> Iterator[None]:
        model: Any = self._backbone.model
        anatomy = self._backbone.anatomy
        handed_on = self.handed_on if gated else HandedOn()
        handles = wire(model, anatomy, self._placed, self._stream)
        implementation = str(model.config._attn_implementation)
        own = frozenset(name for item in self._placed for name in _modules(item, anatomy))
        patches = [patch for group in self._passed for patch in group.install(self._stream, own)]
        bound = self._bind_attention(unasked=gated and not attention.looks_at_masks(self.device))
        gates = self._gates if gated else None
        if gates is not None:
            gates.install(handed_on)
        else:
            handles += hook_ends(model, anatomy, self._ends)
        if self._dropout is not None:
            handles += self._dropout.install()
        handles += self._ffn.install(model)
        few = padded_model(model) if gates is not None else nullcontext()
        try:
            with few:
                yield
        finally:
            if gates is not None:
                gates.remove()
            for patch in reversed(patches):
                patch.remove()
            for handle in handles:
                handle.remove()
            for module in bound:
                attention.unbind(module)
            if str(model.config._attn_implementation) != implementation:
                model.set_attn_implementation(implementation)

    def _make_gates(self, checkpointing: bool) -> Gates:
        anatomy = self._backbone.anatomy
        layers = [self._backbone.model.get_submodule(layer.module) for layer in anatomy.layers]
        last = self._attention[len(layers) - 1] if self._cut else None
        return Gates(
            layers,
            self._stream,
            checkpointing=checkpointing,
            last_attention=last,
            ends=self._ends,
            slots=self._slots,
        )

    def _bind_attention(self, *, unasked: bool) -> list[nn.Module]:
        """Give attention modules what lanes add to them; the modules that got any.

        Args:
            unasked: Masks are to be made without a look at them (`attention.lane_mask`), also
                where nothing is added.
        """
        model: Any = self._backbone.model
        plain = model.config._attn_implementation == "sdpa"
        if self._attention or (unasked and plain and self._backbone.anatomy.carries_prefix):
            model.set_attn_implementation(attention.ATTENTION)
        modules = []
        for layer, own in self._attention.items():
            module = model.get_submodule(self._backbone.anatomy.layers[layer].attention)
            attention.bind(module, own)
            modules.append(module)
        return modules

    def _layer_attention(self) -> dict[int, attention.LayerAttention]:
        """What lanes add to attention, by layer: prefixes, dropout, the last layer's shortcut."""
        anatomy = self._backbone.anatomy
        by_layer = defaultdict(list)
        for item in self._placed:
            if item.operator.hook == "attention":
                by_layer[item.place.layer].append((item.operator, item.members))
        rate = 0.0 if self._dropout is None else self._dropout.attention_rate
        everywhere = set(range(len(anatomy.layers))) if rate or self._slots.count else set()
        touched = set(by_layer) | everywhere
        if self._cut:
            touched.add(len(anatomy.layers) - 1)
        return {
            layer: attention.LayerAttention(
                f"backbone.{layer}.attention",
                by_layer[layer],
                self._stream,
                layer=layer,
                dropout=rate,
                slots=self._slots.at(layer),
            )
            for layer in sorted(touched)
        }

    def forward(
        self, batch: Batch, call: Call, known: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """What the head makes of every lane's rows, lanes in stream order.

        Call it inside `running()`.

        Args:
            batch: B rows of T tokens.
            call: The pass it runs in.
            known: Trunk inputs [B, T, d] of some layers, computed before, and what layers hand
                on, under the keys of `HandedOn`.

        Returns:
            Logits (or values) [K, B, n_outputs]; hidden states [K, B, T, d] where the head's
            recipe pools "all".
        """
        lanes = len(self.lanes)
        out = self._run(batch, call, self.branch_points, known or {})
        if self._recipe.pool == "pooler":
            pooled = out.pooler_output
        elif self._recipe.pool == "all":
            hidden: Tensor = out.last_hidden_state
            return hidden.view(lanes, len(batch), *hidden.shape[1:])
        else:
            mask = self._longer(batch.mask).repeat(lanes, 1)
            pooled = pool_rows(out.last_hidden_state, mask, self._recipe.pool)
        logits: Tensor = self.head(pooled.view(lanes, len(batch), -1))
        return logits

    @torch.no_grad()
    def trunk(
        self,
        batch: Batch,
        wanted: Collection[int],
        known: Mapping[int, Tensor],
        call: Call = SILENT,
    ) -> dict[int, Tensor]:
        """The frozen backbone's hidden states at the input of layers, without any lane.

        Args:
            batch: B rows of T tokens.
            wanted: Layer indices; the number of layers stands for the last one's output.
            known: Those of lower layers that are known, see `forward`.
            call: Whether the backbone's own dropout runs, and its draws.

        Returns:
            By layer, [B, T, d], with what layers hand on.

        Raises:
            BackboneError: The backbone cannot share a pass.
        """
        anatomy = self._backbone.anatomy
        if self._gates is None:
            raise BackboneError(Fault("trunk", "", "no gates", "a packable backbone"))
        try:
            self._run(batch, call, [], known, wanted=wanted)
        except TrunkEnd as end:
            taken: dict[int, Tensor] = end.args[0]
            return taken
        raise RuntimeError(f"layers {sorted(wanted)} of {len(anatomy.layers)} were not reached")

    def _run(
        self,
        batch: Batch,
        call: Call,
        branch_points: Sequence[int],
        known: Mapping[int, Tensor],
        *,
        wanted: Collection[int] = (),
    ) -> Any:
        """transformers' own forward over the backbone, gates and operators taking part."""
        gates, stream = self._gates, self._stream
        if gates is not None:
            n_layers = len(self._backbone.anatomy.layers)
            gates.prepare(Route.of(n_layers, branch_points, known=known, wanted=wanted), known)
        uniform = self._slots.uniform(call.uniform, batch.mask.shape[1])
        stream.rows, stream.below = len(batch), bool(branch_points)
        mask = self._longer(batch.mask) if stream.below else batch.mask
        stream.call = replace(call, uniform=uniform, mask=mask)
        stream.lanes = 1 if gates is None else 0
        try:
            with self._as_held():
                return self._backbone.model(**self._given(batch.inputs))
        finally:
            stream.call, stream.lanes, stream.below = None, 0, False
            stream.inputs.clear()
            if gates is not None:
                gates.finish()

    def _longer(self, mask: Tensor) -> Tensor:
        """The mask of rows before whose text `peft` puts tokens."""
        return longer(mask, sum(lane.tokens for lane in self._passed))

    def _given(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """The base model's arguments: the texts', or what the lane makes of them."""
        given: dict[str, Any] = dict(inputs)
        for lane in self._passed if self._stream.below else ():
            given = lane.given(given, self._stream.running_call())
        return given

    def _as_held(self) -> AbstractContextManager[None]:
        """Inside autocast to the type that the backbone is held in, operators alone are cast.

        Autocast would run its norms, and with them the residual stream, in float32.
        """
        kind, dtype = self.device.type, self._dtype
        held = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == dtype
        self._stream.autocast = dtype if held else None
        context: AbstractContextManager[None] = torch.autocast(kind, enabled=False)
        return context if held else nullcontext()

    def auxiliary_loss(self) -> Tensor | None:
        """What operators add to the lanes' losses by their tensors alone, all together."""
        each = [item.operator.auxiliary_loss() for item in self._placed]
        each += [group.auxiliary_loss() for group in self._passed]
        given = [loss.sum() for loss in each if loss is not None]
        return torch.stack(given).sum() if given else None

    @property
    def stream(self) -> Stream:
        """Which lanes are in the running layer call, for hooks that look on."""
        return self._stream

    def modules_of(self, role: str) -> list[nn.Module]:
        """Every layer's map of a role, bottom up; KeyError where one has none."""
        anatomy = self._backbone.anatomy
        names = [anatomy.site(layer.index, role).module for layer in anatomy.layers]
        return [self._backbone.model.get_submodule(name) for name in names]

    # -- tensors ------------------------------------------------------------------------------

    def stacked(self) -> list[Stacked]:
        """Every trainable tensor with its lanes, in a fixed order."""
        items = []
        for index, placed in enumerate(self._placed):
            operator = placed.operator
            for name in operator.stacked_names:
                parameter = operator.get_parameter(name)
                items.append(
                    Stacked(
                        f"{index}.{name}",
                        parameter,
                        operator.members,
                        decays=operator.decays(name),
                        layer=placed.place.layer,
                        rates=operator.rates(name),
                    )
                )
        items += [item for group in self._passed for item in group.stacked()]
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
        for group in self._passed:
            views |= group.views(tensor_of)
        for name, _ in self.head.named_parameters():
            views[f"head.{name}"] = tensor_of[f"head.{name}"][position]
        return views

    def lane_fixed(self, position: int) -> dict[str, Tensor]:
        """One lane's fixed tensors, unpadded views by saved name."""
        views = {}
        for placed in self._placed:
            operator = placed.operator
            if position in operator.members:
                member = operator.members.index(position)
                for name in operator.fixed_names:
                    views[f"{operator.name}.{name}"] = operator.lane_tensor(
                        operator.get_buffer(name), name, member
                    )
        for group in self._passed:
            views |= group.fixed()
        return views

    def parameters_by_name(self) -> dict[str, Tensor]:
        """All stacked parameters by `Stacked.name`, detached."""
        return {item.name: item.parameter.detach() for item in self.stacked()}


def _modules(item: Placed, anatomy: Anatomy) -> list[str]:
    """Modules whose output an operator takes over."""
    layer, site = item.place.layer, item.place.site
    if item.operator.hook == "linear":
        return [anatomy.site(layer, site).module]
    if item.operator.hook == "norm":
        return [anatomy.layers[layer].norms[site].module]
    return []
