"""What lanes that run through the backbone together keep of each layer for the backward pass.

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

from autopeft.backbone.anatomy import Anatomy, Layer
from autopeft.configuration import Configuration, Group
from autopeft.counting import first_layer, placed_groups, prompt_tokens
from autopeft.methods import registry
from autopeft.methods.base import Kept
from autopeft.methods.lane_operator import Place
from autopeft.training.step_shape import BFLOAT16, FLOAT32, StepShape, Weights

ATTENTION = ("query", "key", "value")
ENTRANCE = ("up", "gate", "ffn")
"""Sites whose input is the FFN's; what reads the sub-layer's output instead says so."""
EXIT = ("down", "ffn")
"""Sites of operators that run when the FFN's last map has."""
_BEHIND_ATTENTION = ("output", "attention")
"""Where nothing of the layer's attention itself trains, but its norms see gradients."""
_BEFORE_FFN = ("up", "gate", "attention_post_norm")
"""What trains there changes what the FFN's activation function reads."""
MADE = ("output", "down")
"""Maps that read what other maps make, in its type; the others read the residual stream's."""
_TAKEN = ("key", "value")
"""Where a layer that is cut to one token runs on all of them."""
FIRST_NORM, LAST_NORM = "attention_norm", "ffn_norm"
"""Of these the first stands before attention and the other before the FFN, or both behind."""

Key = tuple[int, str, str, str]
"""Layer, site, method and stack of an operator."""
Use = tuple[int, Group, Place]
"""A lane of it, by position, with its group."""


class KeptMemory:
    """Lanes of one pass, with what they have where, and what each layer keeps of them.

    Attributes:
        lanes: In stream order.
        anatomy: The backbone.
        shape: Of a step.
        weights: How the backbone lies in memory.
        branches: Every lane's first layer.
        slots: Tokens that prompts add to a row.
        uses: Who has an operator, by layer, site, method and stack.
        stream: Bytes of a scalar of the residual stream.
        activation: Of what frozen maps make.
        operator: Of what meets the lanes' maps in a product.
    """

    def __init__(
        self,
        lanes: Sequence[Configuration],
        anatomy: Anatomy,
        shape: StepShape,
        weights: Weights,
    ) -> None:
        self.anatomy, self.shape, self.weights = anatomy, shape, weights
        self.lanes = lanes
        self.branches = [first_layer(lane, anatomy) for lane in lanes]
        self.slots = max(prompt_tokens(lane, anatomy) for lane in lanes)
        self.uses: dict[Key, list[Use]] = defaultdict(list)
        for position, lane in enumerate(lanes):
            for group, place in placed_groups(lane, anatomy):
                stack = str(registry[group.method].stack_key(group))
                key = (place.layer, place.site, group.method, stack)
                self.uses[key].append((position, group, place))
        autocast = shape.compute == "bf16"
        self.stream = weights.bytes_each
        self.activation = BFLOAT16 if autocast else weights.bytes_each
        self.operator = BFLOAT16 if autocast else FLOAT32

    @property
    def tokens(self) -> int:
        """Of a lane's rows, those of prompts among them."""
        return self.shape.rows * (self.shape.tokens + self.slots)

    def joined(self, layer: int) -> int:
        """Lanes that have branched off by a layer."""
        return sum(branch <= layer for branch in self.branches)

    def trained_params(self) -> int:
        """Scalars of all stacked tensors, padded to the largest member of each stack."""
        return sum(map(self.trained_in, range(len(self.anatomy.layers))))

    def trained_in(self, index: int) -> int:
        """The same of one layer."""
        return sum(
            len(uses) * max(registry[key[2]].training_count(g, place) for _, g, place in uses)
            for key, uses in self.uses.items()
            if key[0] == index
        )

    def fixed_params(self) -> int:
        """Scalars of all stacked tensors that are not trained, padded likewise."""
        return sum(
            len(uses) * max(registry[key[2]].fixed_count(g, place) for _, g, place in uses)
            for key, uses in self.uses.items()
        )

    def shared_params(self) -> dict[tuple[int, str], int]:
        """Scalars that exist once for all lanes at a place, by layer and site."""
        shared: dict[tuple[int, str], int] = {}
        for (layer, site, method, _), uses in self.uses.items():
            own = max(
                registry[method].kept_widths(group, place).shared for _, group, place in uses
            )
            shared[layer, site] = max(own, shared.get((layer, site), 0))
        return shared

    def given_to(self, index: int) -> int:
        """What a checkpoint holds of a layer: its input, and its mask where lanes repeat it."""
        anatomy, joined = self.anatomy, self.joined(index)
        width = anatomy.hidden_size * self.stream
        if joined > 1:
            width += self.shape.tokens + self.slots  # a byte each; heads' own are made within
        return joined * self.tokens * width

    def kept_in(self, index: int) -> float:
        """What a layer's backward pass reads."""
        return self._activations_in(index) + self._cast_weights(index)

    def _activations_in(self, index: int) -> float:
        layer, rows = self.anatomy.layers[index], self.joined(index) * self.tokens
        if self.trains_at_the_end(index):
            seen = self.shape.tokens + self.slots if self.is_cut(index) else 1
            return self.operators_in(index) / seen
        whole = self.attention_trains(index)
        norms = self._norms_in(index) * self.anatomy.hidden_size * FLOAT32
        attention = self.attention(layer) if whole else 0
        ffn = self._ffn(layer) if self.ffn_trains(index) else 0
        kept = rows * (norms + attention + ffn) + self.operators_in(index)
        kept += self.tokens * self._options_in(index)
        if not self.is_cut(index):
            return kept
        others = self.of_other_tokens(index) if whole else 0.0
        return (
            rows * others
            + self.operators_in(index, only=self._sites(_TAKEN, before=FIRST_NORM))
            + kept / (self.shape.tokens + self.slots)
        )

    def _norms_in(self, index: int) -> int:
        """Norms that keep what they read, but for a first one that reads what a checkpoint holds.

        Where no gradient comes through the attention's output, the norm before the FFN has none.
        """
        memory = self.anatomy.memory
        norms = memory.norms
        if not self.attention_output_trains(index):
            norms = max(1, norms // 2) if memory.norms_behind else max(0, norms // 2 - 1)
        first_is_given = (
            self.shape.checkpointing
            and not memory.norms_behind
            and self.attention_trains(index)
            and self.stream == FLOAT32  # else it reads a copy
            and not self.changes_input(index)
        )
        return norms - first_is_given

    def keeps_last_norm(self, index: int) -> bool:
        """Whether a norm stands behind a layer's FFN and keeps what it reads."""
        return self.anatomy.memory.norms_behind and not self.trains_at_the_end(index)

    def attention_output_trains(self, index: int) -> bool:
        """Whether gradients flow through what a layer's attention gives."""
        return self.attention_trains(index) or any(
            site in _BEHIND_ATTENTION or registry[method].reached == "norms"
            for layer, site, method, _ in self.uses
            if layer == index
        )

    def ffn_trains(self, index: int) -> bool:
        """Whether gradients flow through a layer's FFN; what adds to its output asks for none."""
        own = self._sites(_BEFORE_FFN, before=LAST_NORM, behind=FIRST_NORM)
        return self.attention_output_trains(index) or any(
            layer == index and site in own for layer, site, _, _ in self.uses
        )

    def changes_input(self, index: int) -> bool:
        """Whether some lane changes the hidden states that enter a layer: all get a copy."""
        return any(
            layer == index
            and registry[method].reached == "attention"
            and not registry[method].keys(uses[0][1])
            for (layer, _, method, _), uses in self.uses.items()
        )

    def of_other_tokens(self, index: int) -> float:
        """Per token of a layer that is cut to one: keys, values and what made them, its input.

        An operator that keeps a view of the first token keeps the input alive, unless a checkpoint
        has it already.
        """
        layer = self.anatomy.layers[index]
        keys_values = 2 * self.anatomy.n_kv_heads * self.anatomy.head_dim * self.longer(layer)
        others = keys_values * self.activation + self.rotated_slices()
        if self.viewing(index, ATTENTION) and not self.shape.checkpointing:
            others += self.anatomy.hidden_size * self.stream
        return others

    def is_cut(self, index: int) -> bool:
        """Whether a layer runs on one token, all but its keys and values."""
        if any(registry[method].reads_batch for lane in self.lanes for method in lane.methods):
            return False
        return self.shape.first_token and index == len(self.anatomy.layers) - 1

    def attention_trains(self, index: int) -> bool:
        """Whether gradients flow through a layer's attention: some lane trains in or below it."""
        if index > self.branches[0]:
            return True
        own = self._sites(ATTENTION, before=FIRST_NORM)
        return any(
            site in own or registry[method].reached == "attention"
            for layer, site, method, _ in self.uses
            if layer == index
        )

    def trains_at_the_end(self, index: int) -> bool:
        """Whether all that trains in or below a layer stands behind it."""
        if index > self.branches[0]:
            return False
        own = self._sites((), behind=LAST_NORM)
        return all(
            site in own or registry[method].reached == "nothing"
            for layer, site, method, _ in self.uses
            if layer == index
        )

    def _sites(
        self, sites: Sequence[str], *, before: str = "", behind: str = ""
    ) -> tuple[str, ...]:
        """Sites, and a norm that counts among them where norms stand before, or behind."""
        return (*sites, behind if self.anatomy.memory.norms_behind else before)

    def attention(self, layer: Layer) -> int:
        """Queries, keys and values of all heads, output, log-sum-exp, mask; per token."""
        anatomy, size = self.anatomy, self.activation
        heads, longer = anatomy.n_heads * anatomy.head_dim, self.longer(layer)
        seen = longer * (self.shape.tokens + self.slots)
        kept = heads * size * (2 + 2 * longer) + self.rotated_slices() + self._head_norms()
        if not layer.attention:  # its own, written out: probabilities, and no mask
            return round(kept + anatomy.n_heads * seen * size)
        scores = 0 if self.shape.fused_attention else 2 * anatomy.n_heads * seen * size
        repeated = 0 if self.shape.checkpointing else 1  # a checkpoint has it
        each = anatomy.n_heads * size if anatomy.memory.head_masks else size + repeated
        mask = seen * each
        return round(kept + anatomy.n_heads * FLOAT32 + mask + scores)

    def longer(self, layer: Layer) -> float:
        """Keys that attention sees over tokens of a row: prefixes, and room for prompts.

        Where keys come in vectors, lanes without a prefix are computed apart.
        """
        prefixes = self.prefixes(layer.index)
        prefix = float(self.shape.whole_vectors(max(prefixes.values(), default=0)))
        if self.shape.key_vectors > 1:
            prefix *= len(prefixes) / self.joined(layer.index)
        before = prefix + self.shape.whole_vectors(self.slots)
        return (self.shape.tokens + before) / (self.shape.tokens + self.slots)

    def prefixes(self, index: int) -> dict[int, int]:
        """Keys of prefixes in a layer, by lane, of lanes that have any."""
        return {
            position: registry[method].keys(group)
            for (layer, _, method, _), uses in self.uses.items()
            for position, group, _ in uses
            if layer == index and registry[method].keys(group)
        }

    @property
    def _queries_keys(self) -> int:
        """Bytes of a token's queries and keys."""
        anatomy = self.anatomy
        return (anatomy.n_heads + anatomy.n_kv_heads) * anatomy.head_dim * self.activation

    def rotated_slices(self) -> int:
        """Queries and keys before they are rotated, where a fused map's output holds them."""
        return self._queries_keys if self.anatomy.memory.rotates_slices else 0

    def _head_norms(self) -> int:
        return self._queries_keys if self.anatomy.memory.head_norms else 0

    def _ffn(self, layer: Layer) -> int:
        """What the activation function keeps; of a gated FFN, both factors too; per token."""
        inner = self.anatomy.intermediate_size * self.activation
        factors = 2 if "gate" in layer.sites else 0
        return (self.anatomy.memory.activation + factors) * inner

    def _options_in(self, index: int) -> int:
        """What training options keep of a token at the FFN, of all lanes that have branched off.

        Which neurons were masked, a byte each; of the density loss, the neurons and one tensor
        more of their size.
        """
        inner = self.anatomy.intermediate_size
        joined = self.lanes[: self.joined(index)]
        masked = sum(lane.training_value("ffn_masking") > 0.0 for lane in joined)
        penalised = sum(lane.training_value("density_weight") > 0.0 for lane in joined)
        return inner * (masked + 2 * FLOAT32 * penalised)

    def operators_in(
        self, index: int, *, only: Sequence[str] = (), given: Sequence[str] = ()
    ) -> float:
        """What the operators of a layer keep: their inputs, and their narrow sides.

        Args:
            index: The layer.
            only: Of these sites; of all where there are none.
            given: Sites whose inputs are there anyway.
        """
        kept = 0.0
        shared = set(given)
        if self.attention_trains(index):  # it keeps what the output map reads
            shared.add("output")
        for (layer, site, method, _), uses in self.uses.items():
            if layer != index:
                continue
            if only and site not in only:
                continue
            views = self._views(site, uses)
            for position, group, place in uses:
                own = registry[method].kept_widths(group, place)
                kept += self.tokens * (self.operator * own.inner + FLOAT32 * own.exact)
                kept += FLOAT32 * own.lasting
                if own.compared is not None:
                    kept += FLOAT32 * self.shape.rows * own.compared.kept(self.shape.tokens)
                if _drops(group):
                    kept += self.tokens * place.d_in  # which entries were kept, a byte each
                if not own.reads:
                    continue
                source = f"output of {site}" if own.of_output else _source(site)
                seen = 1
                if position in views:
                    if source in shared:
                        continue  # a view of what another operator keeps
                    shared.add(source)
                    seen = self.joined(index)  # a view of some lanes keeps all lanes'
                size = FLOAT32 if own.reads_exactly else self.operator
                kept += seen * self.tokens * size * place.d_in
        return kept

    def read_type(self, site: str, own: Kept) -> int:
        """Bytes of a scalar of what an operator is given as its input."""
        return self.activation if own.of_output or site in MADE else self.stream

    def viewing(self, index: int, sites: Sequence[str]) -> bool:
        """Whether operators keep these sites' input as it is, not as a copy."""
        return any(
            layer == index and site in sites and self._views(site, uses, of_input=True)
            for (layer, site, _, _), uses in self.uses.items()
        )

    def _views(self, site: str, uses: Sequence[Use], *, of_input: bool = False) -> set[int]:
        """Lanes of these whose operator keeps what it reads as it is.

        Args:
            site: Of the operator.
            uses: Those of one operator.
            of_input: Whether only the site's input counts, not its output.
        """
        positions = [position for position, _, _ in uses]
        if positions[-1] - positions[0] + 1 != len(positions):
            return set()
        found = set()
        for position, group, place in uses:
            own = registry[group.method].kept_widths(group, place)
            size = FLOAT32 if own.reads_exactly else self.operator
            as_it_is = own.reads and not _drops(group) and size == self.read_type(site, own)
            if as_it_is and not (of_input and own.of_output):
                found.add(position)
        return found

    def _cast_weights(self, index: int) -> int:
        """Autocast's copies of a layer's maps: of frozen ones that gradients pass, of lanes'."""
        if self.shape.compute != "bf16":
            return 0
        held = self.weights.bytes_each == BFLOAT16
        frozen = 0 if held else _linear_weights(self.anatomy.layers[index])
        return (frozen + self.trained_in(index)) * BFLOAT16


def _drops(group: Group) -> bool:
    return float(group.get("dropout") or 0.0) > 0.0


def _linear_weights(layer: Layer) -> int:
    return sum(site.in_features * site.out_features for site in layer.sites.values())


def _source(site: str) -> str:
    """Which of a layer's tensors an operator reads: sites with the same name share it."""
    return {"key": "query", "value": "query", "attention": "query", "gate": "up", "ffn": "up"}.get(
        site, site
    )
