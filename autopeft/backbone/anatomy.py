"""The anatomy of a backbone: its layers, and in each layer its sites.

Plain data, found once per model by `autopeft.backbone.discovery` and then trusted. Role names are
the field's own (`query`, `key`, `value`, `output`, `up`, `gate`, `down`), whatever a transformers
class calls them; fused maps (GPT-2's `c_attn`, ModernBERT's `Wqkv`) give several sites on one
module, each with its slice of the output.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autopeft.backbone.importance import ImportanceMap, not_measured
from autopeft.space.schema import Ranking, Shape

LINEAR_ROLES = ("query", "key", "value", "output", "up", "gate", "down")
SUBLAYERS = ("attention", "ffn")
ENTRANCE = {"attention": "query", "ffn": "up"}
"""The linear map that reads a sub-layer's input first."""
EXIT = {"attention": "output", "ffn": "down"}
"""The one that gives its output."""
NORMS = ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm")
"""Norms over the residual width; where a sub-layer has one alone, it is the first of its two."""


@dataclass(frozen=True)
class Site:
    """One linear map in which something trainable can sit.

    Attributes:
        layer: The layer's index, from 0.
        role: One of `LINEAR_ROLES`.
        module: The module's name within the base model (`encoder.layer.0.attention.self.query`).
        in_features: Width of its input.
        out_features: Width of this site's output (of the slice, where the map is fused).
        start: First output row of the slice; 0 where the map is not fused.
        fused: Whether the module's output holds other sites too.
        transposed: Whether the weight is stored as [in, out] (transformers' `Conv1D`).
        bias: Whether the map has a bias.
    """

    layer: int
    role: str
    module: str
    in_features: int
    out_features: int
    start: int = 0
    fused: bool = False
    transposed: bool = False
    bias: bool = True


@dataclass(frozen=True)
class Norm:
    """One norm over the residual width in which something trainable can sit.

    Attributes:
        layer: The layer's index, from 0.
        role: One of `NORMS`.
        module: The module's name within the base model.
        width: Of its input and output.
        centred: Whether it takes the mean off (LayerNorm), or not (RMSNorm).
        bias: Whether it has a shift.
    """

    layer: int
    role: str
    module: str
    width: int
    centred: bool
    bias: bool = True


@dataclass(frozen=True)
class Layer:
    """One layer of the backbone.

    Attributes:
        index: From 0.
        module: The layer's name within the base model.
        sites: Linear sites by role.
        attention: Name of the module that calls transformers' attention interface, or "" where
            there is none (then the backbone cannot carry `prefix`).
        norms: Norms by role.
    """

    index: int
    module: str
    sites: Mapping[str, Site]
    attention: str = ""
    norms: Mapping[str, Norm] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerMemory:
    """What a layer keeps of every token; the defaults are those of a BERT layer.

    Attributes:
        norms: Norms over the residual stream, each of which keeps its input.
        norms_behind: Whether they stand behind attention and FFN, and not before them.
        head_norms: Whether queries and keys are normalised, which keeps them once more.
        activation: Tensors of the FFN's inner width that the activation function keeps: one where
            it is a single operation, four where GELU's tanh form is written out (GPT-2).
        rotates: Whether queries and keys are rotated, in float32 under autocast too.
        rotates_slices: Whether queries and keys are rotated copies of slices of a fused map, whose
            whole output stays for the values' sake.
        head_masks: Whether every head adds a bias of its own to the attention's scores (T5's
            relative positions), which attention keeps as its mask.
    """

    norms: int = 2
    norms_behind: bool = True
    head_norms: bool = False
    activation: int = 1
    rotates: bool = False
    rotates_slices: bool = False
    head_masks: bool = False


@dataclass(frozen=True)
class Embeddings:
    """The table of a text model's input tokens.

    Attributes:
        module: Its name within the base model.
        tokens: Rows: the vocabulary's size.
        width: Of a row; some models widen it to the residual stream's afterwards.
        positions: Tokens that a row may have, where their positions are rows of a table too; None
            where there is no such limit.
    """

    module: str
    tokens: int
    width: int
    positions: int | None = None


@dataclass(frozen=True)
class Anatomy:
    """What autopeft knows of a backbone.

    Attributes:
        architecture: transformers' `model_type`.
        layers: All layers, bottom up.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the FFN.
        n_heads: Attention heads.
        n_kv_heads: Key/value heads (fewer than heads with grouped-query attention).
        head_dim: Width of one head.
        n_params: Parameters of the base model.
        modality: "text" or "image".
        causal: Whether attention is causal (then the last token is pooled).
        packable: Whether lanes can share one pass; where False, `why_not` says why, and the
            backbone runs packs of one.
        why_not: The reason, or "".
        memory: What its layers keep for the backward pass beyond what their sites tell.
        importance: How much each site matters for a study's data; None where it is not measured.
        embeddings: The table of input tokens; None for images, or where it was not recognised.
        takes_cache: Whether the base model reads keys and values of earlier tokens from a cache.
        run_twice: Roles whose maps run a second time in a pass, on what is no token.
    """

    architecture: str
    layers: tuple[Layer, ...]
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_params: int
    modality: str = "text"
    causal: bool = False
    packable: bool = True
    why_not: str = ""
    memory: LayerMemory = field(default=LayerMemory(), compare=False, repr=False)
    importance: ImportanceMap | None = field(default=None, compare=False, repr=False)
    embeddings: Embeddings | None = field(default=None, compare=False, repr=False)
    takes_cache: bool = field(default=False, compare=False, repr=False)
    run_twice: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def roles(self) -> tuple[str, ...]:
        """Linear roles that every layer has, in `LINEAR_ROLES`' order."""
        return tuple(
            role for role in LINEAR_ROLES if all(role in layer.sites for layer in self.layers)
        )

    @property
    def carries_prefix(self) -> bool:
        """Whether every layer's attention is scaled dot products, by transformers' interface."""
        return all(layer.attention for layer in self.layers)

    @property
    def sublayers(self) -> tuple[str, ...]:
        """Sub-layers whose input and output sites every layer has."""
        has = set(self.roles)
        return tuple(
            name
            for name, needs in (("attention", {"query", "output"}), ("ffn", {"up", "down"}))
            if needs <= has
        )

    @property
    def norms(self) -> tuple[str, ...]:
        """Norms that every layer has, in `NORMS`' order."""
        return tuple(role for role in NORMS if all(role in layer.norms for layer in self.layers))

    def shapes(self) -> dict[tuple[int, str], tuple[int, int]]:
        """(d_in, d_out) of every linear site by (layer, role), bottom up."""
        return {
            (layer.index, role): (site.in_features, site.out_features)
            for layer in self.layers
            for role, site in layer.sites.items()
        }

    def site(self, layer: int, role: str) -> Site:
        """The site of a role in a layer; KeyError where there is none."""
        return self.layers[layer].sites[role]

    def measured(self) -> ImportanceMap:
        """The importance map; BackboneError where nobody has measured it."""
        if self.importance is None:
            raise not_measured()
        return self.importance

    def shape(self, methods: frozenset[str]) -> Shape:
        """The backbone as a space sees it; `methods` are those it can carry."""
        return Shape(
            n_layers=len(self.layers),
            dimensions={
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "head_dim": self.head_dim,
            },
            roles=frozenset((*self.roles, *self.sublayers, *self.norms)),
            methods=methods,
            rankings=self._rankings(),
        )

    def _rankings(self) -> dict[str, Ranking]:
        """By every measured score; a sub-layer ranks as its last map does."""
        if self.importance is None:
            return {}
        exits = {role: name for name, role in EXIT.items() if name in self.sublayers}
        rankings = {}
        for score in self.importance.scores:
            sites: list[tuple[int, str]] = []
            for layer, role in self.importance.site_ranking(score, self.roles):
                sites.append((layer, role))
                sites += [(layer, exits[role])] if role in exits else []
            rankings[score] = Ranking(self.importance.layer_ranking(score), tuple(sites))
        return rankings
