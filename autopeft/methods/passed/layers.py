"""SHADOW as a method: a small decoder beside the model (ShadowPEFT, arXiv 2604.19254).

The network reads the text first and gives a state s. What a layer reads becomes
h + a W_up W_down (h - s) (equations 2-4), and what it gives moves the state on by a gate (5-7).
`peft` builds the network like the model, of one layer unless it is told more. The loss that it
adds on a second head (8-9) is left out; so are gates behind the last layer, which nothing reads.
"""

from dataclasses import dataclass
from typing import Final

from autopeft.backbone.anatomy import Anatomy, Site
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import Kept, Reached
from autopeft.methods.lane_operator import Place
from autopeft.methods.passed.counts import PassedPlace, layer_shapes
from autopeft.methods.passed.method import Passed

KNOWN: Final = ("llama", "mistral", "qwen2", "qwen3", "gemma")
"""Decoders of which all that a network like them has is read when it runs as `peft` runs it."""

_COUNTED = (
    "shadow_num_hidden_layers", "shadow_hidden_size", "shadow_intermediate_size",
    "update_hidden_size",
)  # fmt: skip
"""Whole numbers of which there is at least one."""


@dataclass(frozen=True)
class ShadowPlace(PassedPlace):
    """A layer.

    Attributes:
        network: Scalars of the network, at the first layer; 0 at the others.
        inner: Scalars of a token that the network keeps, likewise.
    """

    network: int = 0
    inner: int = 0


class PassedLayers(Passed):
    """The type that wraps whole layers."""

    whole = "its state runs along through the whole model"
    modalities: tuple[str, ...] = ("text",)
    identity = "exact"
    reached: Reached = "attention"

    def carried_by(self, anatomy: Anatomy) -> str:
        """`peft` leaves what some decoders have beside their layers in the network, untrained."""
        if anatomy.architecture in KNOWN and anatomy.embeddings is not None:
            return ""
        return f"peft's network is whole where it is like {', '.join(KNOWN)} alone"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer."""
        width = anatomy.hidden_size
        shapes = layer_shapes(self.name, group.layers, anatomy)
        network = _Network(group, anatomy)
        return [
            ShadowPlace(
                layer, self.name, width, width, anatomy.head_dim, modules=shapes, index=index,
                network=0 if index else network.count(), inner=0 if index else network.inner(),
            )
            for index, layer in enumerate(group.layers)
        ]  # fmt: skip

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Layers with others between them, sizes of 0, and heads that a width does not hold."""
        faults = []
        if group.layers != tuple(range(group.layers[0], group.layers[-1] + 1)):
            given = ", ".join(map(str, group.layers))
            allowed = "layers one behind the other: the state is not passed on by others"
            faults.append(Fault("configuration", f"{self.name}.layers", given, allowed))
        for name, value in group.settings:
            if name in _COUNTED and int(value) < 1:
                key = f"{self.name}.{name}"
                faults.append(Fault("configuration", key, str(value), "1 and above"))
        width, heads = _Network(group, anatomy).width, 2 * anatomy.n_heads
        if _follows(anatomy) and width > 0 and width % heads:
            key = f"{self.name}.shadow_hidden_size"
            allowed = f"multiples of {heads}: heads of an even width"
            faults.append(Fault("configuration", key, str(width), allowed))
        return faults

    def count(self, group: Group, place: Place) -> int:
        """2 r d, 4 u d + 2 u + 2 d but for the last layer, u = r unless told; once the network."""
        own = 2 * int(group["r"]) * place.d_in
        own += 0 if _is_last(place) else _gates(group, place)
        return own + (place.network if isinstance(place, ShadowPlace) else 0)

    def fixed_count(self, group: Group, place: Place) -> int:
        """The gates behind the last layer."""
        return _gates(group, place) if _is_last(place) else 0

    def frozen_work(self, group: Group, place: Place) -> int:
        """None."""
        return 0

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """Of a layer the state, what it is corrected by and what moves it on; of the network."""
        hidden = int(group.get("update_hidden_size") or group["r"])
        network = place.inner if isinstance(place, ShadowPlace) else 0
        inner = 4 * place.d_in + int(group["r"]) + 4 * hidden + network
        return Kept(inner, exact=2 * place.d_in + network // 3)


def _is_last(place: Place) -> bool:
    return isinstance(place, ShadowPlace) and place.index == len(place.modules) - 1


def _gates(group: Group, place: Place) -> int:
    """Two maps of two layers each, of a layer: a candidate for the state, and its gate."""
    hidden = int(group.get("update_hidden_size") or group["r"])
    return 2 * (2 * place.d_in * hidden + hidden + place.d_in)


def _follows(anatomy: Anatomy) -> bool:
    """Whether heads have a share of whatever width the network has, and no width of their own."""
    return anatomy.architecture == "qwen2"


class _Network:
    """The network that `peft` makes like a model.

    Args:
        group: Says what differs.
        anatomy: The model's.

    Attributes:
        width: Of its hidden states.
    """

    def __init__(self, group: Group, anatomy: Anatomy) -> None:
        self.width = int(group.get("shadow_hidden_size") or anatomy.hidden_size)
        self._inner = int(group.get("shadow_intermediate_size") or anatomy.intermediate_size)
        self._layers = int(group.get("shadow_num_hidden_layers") or 1)
        self._shares = bool(group.get("share_embeddings", True))
        self._anatomy = anatomy

    def count(self) -> int:
        """Its layers, the norm behind them, and what differs from the model in width."""
        anatomy, layer = self._anatomy, self._anatomy.layers[0]
        each = sum(self._map(site) for site in layer.sites.values())
        each += sum(self.width * (2 if norm.bias else 1) for norm in layer.norms.values())
        each += 2 * self._head_dim if anatomy.memory.head_norms else 0
        narrower = self.width != anatomy.hidden_size
        tokens = 0 if anatomy.embeddings is None else anatomy.embeddings.tokens
        table = tokens * self.width if narrower or not self._shares else 0
        onto = self.width * anatomy.hidden_size if narrower else 0
        return self._layers * each + self.width + table + onto

    def inner(self) -> int:
        """Scalars of a token that its layers keep, a third more of them in float32."""
        sites = self._anatomy.layers[0].sites.values()
        return self._layers * sum(sum(self._widths(site)) for site in sites) * 3 // 4

    @property
    def _head_dim(self) -> int:
        heads = self._anatomy.n_heads
        return self.width // heads if _follows(self._anatomy) else self._anatomy.head_dim

    def _widths(self, site: Site) -> tuple[int, int]:
        """Of a map's input and output."""
        heads = self._anatomy.n_heads * self._head_dim
        keys = self._anatomy.n_kv_heads * self._head_dim
        return {
            "query": (self.width, heads),
            "key": (self.width, keys),
            "value": (self.width, keys),
            "output": (heads, self.width),
            "down": (self._inner, self.width),
        }.get(site.role, (self.width, self._inner))

    def _map(self, site: Site) -> int:
        d_in, d_out = self._widths(site)
        return d_in * d_out + (d_out if site.bias else 0)
