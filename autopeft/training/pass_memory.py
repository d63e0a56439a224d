"""What one pass of lanes keeps for its backward pass, and what comes and goes beside it.

What is counted is what autograd keeps of a step. The backbone is frozen, and a frozen linear map
keeps no input (its gradient needs the weight alone), so a layer keeps its queries, keys, values
and attention output, what its activation function and its norms read, and what the lanes'
operators read. Below a lane's branch point nothing of it exists but the trunk's running layer.

Under autocast what maps make is bfloat16, and so are copies of maps and of what meets them in a
product; the residual stream, a sum with what the embeddings give, stays as wide as the weights.

Notation: `n` lanes that have branched off at a layer, `B` rows (examples) per lane at once, `T`
tokens, `d` the residual width, `I` the FFN's. Sizes are in bytes.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from operator import add

from autopeft.backbone.anatomy import Anatomy, Layer
from autopeft.configuration import Configuration, Group
from autopeft.counting import first_layer, passes, placed_groups, prompt_tokens
from autopeft.methods import registry
from autopeft.methods.lane_operator import Place
from autopeft.training.step_shape import BFLOAT16, FLOAT32, StepShape, Weights

_ATTENTION = ("query", "key", "value")
_BEHIND_ATTENTION = ("output", "attention")
"""Where nothing of the layer's attention itself trains, but its norms see gradients."""
_FFN = ("up", "gate", "down", "ffn")
_MADE = ("output", "down")
"""Maps that read what other maps make, in its type; the others read the residual stream's."""
_TAKEN = ("key", "value")
"""Where a layer that is cut to one token runs on all of them."""
_FIRST_NORM, _LAST_NORM = "attention_norm", "ffn_norm"
"""Of these the first stands before attention and the other before the FFN, or both behind."""


class PassMemory:
    """Lanes that run through the backbone together, with what they have where.

    Attributes:
        lanes: In stream order.
    """

    def __init__(
        self,
        lanes: Sequence[Configuration],
        anatomy: Anatomy,
        shape: StepShape,
        weights: Weights,
    ) -> None:
        self._anatomy, self._shape, self._weights = anatomy, shape, weights
        self.lanes = lanes
        self._branches = [first_layer(lane, anatomy) for lane in lanes]
        self._slots = max(prompt_tokens(lane, anatomy) for lane in lanes)
        self._uses: dict[tuple[int, str, str, str], list[tuple[int, Group, Place]]]
        self._uses = defaultdict(list)
        for position, lane in enumerate(lanes):
            for group, place in placed_groups(lane, anatomy):
                stack = str(registry[group.method].stack_key(group))
                key = (place.layer, place.site, group.method, stack)
                self._uses[key].append((position, group, place))
        autocast = shape.compute == "bf16"
        self._stream = weights.bytes_each
        self._activation = BFLOAT16 if autocast else weights.bytes_each
        self._operator = BFLOAT16 if autocast else FLOAT32

    @property
    def _tokens(self) -> int:
        return self._shape.rows * (self._shape.tokens + self._slots)

    def _joined(self, layer: int) -> int:
        """Lanes that have branched off by a layer."""
        return sum(branch <= layer for branch in self._branches)

    def trained_params(self) -> int:
        """Scalars of all stacked tensors, padded to the largest member of each stack."""
        return sum(map(self._trained_in, range(len(self._anatomy.layers))))

    def _trained_in(self, index: int) -> int:
        return sum(
            len(uses) * max(registry[key[2]].training_count(g, place) for _, g, place in uses)
            for key, uses in self._uses.items()
            if key[0] == index
        )

    def fixed_params(self) -> int:
        """Scalars of all stacked tensors that are not trained, padded likewise."""
        return sum(
            len(uses) * max(registry[key[2]].fixed_count(g, place) for _, g, place in uses)
            for key, uses in self._uses.items()
        )

    def shared_params(self) -> dict[tuple[int, str], int]:
        """Scalars that exist once for all lanes at a place, by layer and site."""
        shared: dict[tuple[int, str], int] = {}
        for (layer, site, method, _), uses in self._uses.items():
            own = max(
                registry[method].kept_widths(group, place).shared for _, group, place in uses
            )
            shared[layer, site] = max(own, shared.get((layer, site), 0))
        return shared

    # -- kept for the backward pass -----------------------------------------------------------

    def kept(self) -> int:
        """Bytes that the forward pass leaves for the backward pass, and a recomputed layer's."""
        return round(max(self._held, default=0.0) + self._beside)

    def peak(self) -> int:
        """What is kept and what runs beside it, at the moment when both together are most."""
        lanes = max(map(add, self._held, map(self._running_in, self._layers)), default=0.0)
        running = self._dequantised() + self._weights_at_once()
        return round(max(self._beside + lanes, self._trunk()) + running)

    @property
    def _beside(self) -> float:
        """What other passes have left that are there at once."""
        return (self._compared - 1) * max(self._left, default=0.0)

    @property
    def _layers(self) -> range:
        """Those that lanes run through."""
        return range(self._branches[0], len(self._anatomy.layers))

    @property
    def _compared(self) -> int:
        """Passes that are there at once: two where a lane compares them."""
        return max(passes(lane, self._anatomy) for lane in self.lanes)

    @cached_property
    def _held(self) -> list[float]:
        """What a pass holds when its backward pass comes to a layer, for every layer."""
        if not self._shape.checkpointing:
            return self._left
        return list(map(add, self._left, map(self._kept_in, self._layers)))

    @cached_property
    def _left(self) -> list[float]:
        """What the forward pass leaves of all layers up to each."""
        own = self._given_to if self._shape.checkpointing else self._kept_in
        return list(accumulate(map(own, self._layers)))

    def _given_to(self, index: int) -> int:
        """What a checkpoint holds of a layer: its input, and its mask where lanes repeat it."""
        anatomy, joined = self._anatomy, self._joined(index)
        width = anatomy.hidden_size * self._stream
        if joined > 1:
            each = anatomy.n_heads * FLOAT32 if anatomy.memory.head_masks else 1
            width += each * (self._shape.tokens + self._slots)
        return joined * self._tokens * width

    def _kept_in(self, index: int) -> float:
        """What a layer's backward pass reads."""
        return self._activations_in(index) + self._cast_weights(index)

    def _activations_in(self, index: int) -> float:
        layer, rows = self._anatomy.layers[index], self._joined(index) * self._tokens
        if self._trains_at_the_end(index):
            seen = self._shape.tokens + self._slots if self._is_cut(index) else 1
            return self._operators_in(index) / seen
        whole = self._attention_trains(index)
        norms = self._anatomy.memory.norms
        behind = any(
            site in _BEHIND_ATTENTION or registry[method].reached == "norms"
            for layer, site, method, _ in self._uses
            if layer == index
        )
        norms = norms if whole or behind else max(1, norms // 2)
        # One that comes first reads what the checkpoint holds; one that comes last is gone when
        # the FFN's gradients come. Under autocast copies that are not counted take its place.
        first_or_last = whole or self._anatomy.memory.norms_behind
        if first_or_last and self._shape.checkpointing and self._shape.compute == "fp32":
            norms -= 1
        norms *= self._anatomy.hidden_size * FLOAT32
        attention = self._attention(layer) if whole else 0
        kept = rows * (norms + attention + self._ffn(layer)) + self._operators_in(index)
        kept += self._tokens * self._options_in(index)
        if not self._is_cut(index):
            return kept
        others = self._of_other_tokens(layer) if whole else 0.0
        return (
            rows * others
            + self._operators_in(index, only=self._sites(_TAKEN, before=_FIRST_NORM))
            + kept / (self._shape.tokens + self._slots)
        )

    def _of_other_tokens(self, layer: Layer) -> float:
        """Per token of a layer that is cut to one: keys, values and what made them, its input.

        The first token's view keeps the input alive, unless all that read it are copies in another
        type, or a checkpoint has it already.
        """
        keys_values = 2 * self._anatomy.n_kv_heads * self._anatomy.head_dim * self._longer(layer)
        others = keys_values * self._activation + self._rotated_slices()
        if self._operator == self._stream and not self._shape.checkpointing:
            others += self._anatomy.hidden_size * self._stream
        return others

    def _is_cut(self, index: int) -> bool:
        """Whether a layer runs on one token, all but its keys and values."""
        if any(registry[method].reads_batch for lane in self.lanes for method in lane.methods):
            return False
        return self._shape.first_token and index == len(self._anatomy.layers) - 1

    def _attention_trains(self, index: int) -> bool:
        """Whether gradients flow through a layer's attention: some lane trains in or below it."""
        if index > self._branches[0]:
            return True
        own = self._sites(_ATTENTION, before=_FIRST_NORM)
        return any(
            site in own or registry[method].reached == "attention"
            for layer, site, method, _ in self._uses
            if layer == index
        )

    def _trains_at_the_end(self, index: int) -> bool:
        """Whether all that trains in or below a layer stands behind it."""
        if index > self._branches[0]:
            return False
        own = self._sites((), behind=_LAST_NORM)
        return all(
            site in own or registry[method].reached == "nothing"
            for layer, site, method, _ in self._uses
            if layer == index
        )

    def _sites(
        self, sites: Sequence[str], *, before: str = "", behind: str = ""
    ) -> tuple[str, ...]:
        """Sites, and a norm that counts among them where norms stand before, or behind."""
        return (*sites, behind if self._anatomy.memory.norms_behind else before)

    def _attention(self, layer: Layer) -> int:
        """Queries, keys and values of all heads, output, log-sum-exp, mask; per token."""
        anatomy, size = self._anatomy, self._activation
        heads, longer = anatomy.n_heads * anatomy.head_dim, self._longer(layer)
        seen = longer * (self._shape.tokens + self._slots)
        kept = heads * size * (2 + 2 * longer) + self._rotated_slices() + self._head_norms()
        if not layer.attention:  # its own, written out: probabilities, and no mask
            return round(kept + anatomy.n_heads * seen * size)
        scores = 0 if self._shape.fused_attention else 2 * anatomy.n_heads * seen * size
        mask = seen * (anatomy.n_heads * size if anatomy.memory.head_masks else size + 1)
        return round(kept + anatomy.n_heads * FLOAT32 + mask + scores)

    def _longer(self, layer: Layer) -> float:
        """Keys that attention sees over tokens of a row: prefixes, and room for prompts.

        Where keys come in vectors, lanes without a prefix are computed apart.
        """
        prefixes = {
            position: registry[method].keys(group)
            for (index, _, method, _), uses in self._uses.items()
            for position, group, _ in uses
            if index == layer.index and registry[method].keys(group)
        }
        prefix = float(self._shape.whole_vectors(max(prefixes.values(), default=0)))
        if self._shape.key_vectors > 1:
            prefix *= len(prefixes) / self._joined(layer.index)
        before = prefix + self._shape.whole_vectors(self._slots)
        return (self._shape.tokens + before) / (self._shape.tokens + self._slots)

    @property
    def _queries_keys(self) -> int:
        """Bytes of a token's queries and keys."""
        anatomy = self._anatomy
        return (anatomy.n_heads + anatomy.n_kv_heads) * anatomy.head_dim * self._activation

    def _rotated_slices(self) -> int:
        """Queries and keys before they are rotated, where a fused map's output holds them."""
        return self._queries_keys if self._anatomy.memory.rotates_slices else 0

    def _head_norms(self) -> int:
        return self._queries_keys if self._anatomy.memory.head_norms else 0

    def _ffn(self, layer: Layer) -> int:
        """What the activation function keeps; of a gated FFN, both factors too; per token."""
        inner = self._anatomy.intermediate_size * self._activation
        factors = 2 if "gate" in layer.sites else 0
        return (self._anatomy.memory.activation + factors) * inner

    def _options_in(self, index: int) -> int:
        """What training options keep of a token at the FFN, of all lanes that have branched off.

        Which neurons were masked, a byte each; of the density loss, the neurons and one tensor
        more of their size.
        """
        inner = self._anatomy.intermediate_size
        joined = self.lanes[: self._joined(index)]
        masked = sum(lane.training_value("ffn_masking") > 0.0 for lane in joined)
        penalised = sum(lane.training_value("density_weight") > 0.0 for lane in joined)
        return inner * (masked + 2 * FLOAT32 * penalised)

    def _operators_in(
        self, index: int, *, only: Sequence[str] = (), given: Sequence[str] = ()
    ) -> float:
        """What the operators of a layer keep: their inputs, and their narrow sides.

        Args:
            index: The layer.
            only: Of these sites; of all where there are none.
            given: Sites whose inputs are there anyway.
        """
        kept = 0.0
        shared = {(position, site) for site in given for position in range(len(self.lanes))}
        if self._attention_trains(index):  # it keeps what the output map reads
            shared |= {(position, "output") for position in range(len(self.lanes))}
        for (layer, site, method, _), uses in self._uses.items():
            if layer != index:
                continue
            if only and site not in only:
                continue
            positions = [position for position, _, _ in uses]
            together = positions[-1] - positions[0] + 1 == len(positions)
            for position, group, place in uses:
                own = registry[method].kept_widths(group, place)
                kept += self._tokens * (self._operator * own.inner + FLOAT32 * own.exact)
                kept += FLOAT32 * own.lasting
                if own.compared is not None:
                    kept += FLOAT32 * self._shape.rows * own.compared.kept(self._shape.tokens)
                dropout = float(group.get("dropout") or 0.0) > 0.0
                if dropout:
                    kept += self._tokens * place.d_in  # which entries were kept, a byte each
                if not own.reads:
                    continue
                size = FLOAT32 if own.reads_exactly else self._operator
                read = self._activation if own.of_output or site in _MADE else self._stream
                source = (position, f"output of {site}" if own.of_output else _source(site))
                if not dropout and together and size == read:
                    if source in shared:
                        continue  # a view of what another operator keeps
                    shared.add(source)
                kept += self._tokens * size * place.d_in
        return kept

    def _cast_weights(self, index: int) -> int:
        """Autocast's copies of a layer's maps: of frozen ones that gradients pass, of lanes'."""
        if self._shape.compute != "bf16":
            return 0
        held = self._weights.bytes_each == BFLOAT16
        frozen = 0 if held else _linear_weights(self._anatomy.layers[index])
        return (frozen + self._trained_in(index)) * BFLOAT16

    # -- comes and goes -----------------------------------------------------------------------

    def _running_in(self, index: int) -> float:
        """The lanes' running layer, with its gradients."""
        joined, hidden = self._joined(index) * self._tokens, self._anatomy.hidden_size
        width = max(self._layer_width(gradients=True), self._copied_in(index))
        if not self._is_cut(index):
            passing = self._passing_in(index)
            return joined * (
                width + passing if self._ends_with_norm(index) else max(width, passing)
            )
        # Most is there when its keys and values are taken: queries too, with what their operators
        # would keep, the layer's input and what it is cast to; and of all lanes together the
        # trunk's output and the embeddings.
        every: float = self._anatomy.n_heads * self._anatomy.head_dim * self._activation
        if self._operator != self._stream:
            every += hidden * (self._activation + self._operator)
            every += 0 if self._shape.checkpointing else hidden * self._stream
        every += self._passing_in(index, only=("query", "key", "value"))
        if not self._attention_trains(index):
            every += self._of_other_tokens(self._anatomy.layers[index])
        below = hidden * self._stream * (2 if self._branches[-1] else 1)
        below *= not self._shape.checkpointing
        queries = self._operators_in(index, only=("query",), given=("query",))
        per_token = every + width / (self._shape.tokens + self._slots)
        return joined * per_token + self._tokens * below + queries

    def _ends_with_norm(self, index: int) -> bool:
        """Whether a layer ends with a norm that trains, while the FFN's tensors are still there.

        One that is recomputed stops before its end.
        """
        trained = any(key[:2] == (index, _LAST_NORM) for key in self._uses)
        return trained and self._anatomy.memory.norms_behind and not self._shape.checkpointing

    def _passing_in(self, index: int, *, only: Sequence[str] = ()) -> float:
        """Per token: what comes and goes while the most demanding operator of a layer runs."""
        most, tokens = 0.0, self._shape.tokens + self._slots
        for (layer, site, method, _), uses in self._uses.items():
            if layer != index or (only and site not in only):
                continue
            for _, group, place in uses:
                own = registry[method].kept_widths(group, place)
                pairs = own.compared.passing(self._shape.tokens) if own.compared else 0.0
                moved = place.d_in + place.d_out if own.running else 0
                most = max(most, own.running + moved + pairs / tokens)
        return FLOAT32 * most

    def _copied_in(self, index: int) -> int:
        """Per token: the FFN's running tensors while an operator there holds copies in float32."""
        if self._activation == FLOAT32:
            return 0
        anatomy = self._anatomy
        autocast = self._shape.compute == "bf16"
        copied = [
            place.d_out + (place.d_in if site in _MADE or self._stream < FLOAT32 else 0)
            for (layer, site, method, _), uses in self._uses.items()
            for _, group, place in uses[:1]
            if layer == index and site in _FFN
            if not (autocast and registry[method].kept_widths(group, place).products_only)
        ]
        held = self._activation * anatomy.intermediate_size
        held += 2 * self._stream * anatomy.hidden_size
        return held + FLOAT32 * max(copied) if copied else 0

    def _trunk(self) -> float:
        """The trunk's last running layer, beside what lanes that have left it keep by then."""
        last = self._branches[-1] - 1
        if last < 0:
            return 0.0
        left = self._left[: max(0, last - self._branches[0])]
        return self._tokens * self._layer_width(gradients=False) + max(left, default=0.0)

    def evaluating(self) -> int:
        """An evaluation batch: no layer's tensors outlive it."""
        lanes, longest = len(self.lanes), self._shape.tokens + self._slots
        tokens = max(lanes * longest, self._shape.evaluation_tokens)
        if self._shape.evaluated:
            tokens = min(tokens, lanes * self._shape.evaluated * longest)
        return round(tokens * self._layer_width(gradients=False) + self._dequantised())

    def logits(self) -> int:
        """A language model's logits of a chunk, their probabilities and gradients."""
        return 3 * FLOAT32 * self._shape.logits

    def _layer_width(self, *, gradients: bool) -> int:
        """Bytes per token of a running layer at its widest, the FFN."""
        anatomy = self._anatomy
        wide = 3 if "gate" in anatomy.layers[-1].sites else 2
        streams = self._stream if gradients else 2 * self._stream
        return (
            self._activation * wide * anatomy.intermediate_size
            + (self._activation + streams) * anatomy.hidden_size
        )

    def _weights_at_once(self) -> int:
        """Weights that a running operator makes and drops again."""
        return FLOAT32 * max(
            (
                sum(registry[method].kept_widths(g, place).weights for _, g, place in uses)
                for (_, _, method, _), uses in self._uses.items()
            ),
            default=0,
        )

    def _dequantised(self) -> int:
        """A quantised map is spread out while it is used."""
        if self._weights.quantization == "none":
            return 0
        largest = max(
            site.in_features * site.out_features
            for layer in self._anatomy.layers
            for site in layer.sites.values()
        )
        return largest * self._weights.bytes_each


def _linear_weights(layer: Layer) -> int:
    return sum(site.in_features * site.out_features for site in layer.sites.values())


def _source(site: str) -> str:
    """Which of a layer's tensors an operator reads: sites with the same name share it."""
    return {"key": "query", "value": "query", "attention": "query", "gate": "up", "ffn": "up"}.get(
        site, site
    )
