"""What one pass of lanes holds at the moment when it holds most.

A layer is followed through the step. On the way forward its code's own variables live beside what
autograd keeps: what the FFN reads, the product that its last map reads, what this map gives. An
operator makes tensors of its own, and under autocast is given copies in float32 unless matrix
products are all that it does. On the way back gradients pass the FFN. A layer that is recomputed
runs forward while the gradient from above waits, and stops once all that its backward pass reads
is there again; then the gradients pass it.

What stays for the backward pass, and the notation, are in `kept_memory`.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

from autopeft.counting import passes
from autopeft.methods import registry
from autopeft.training.kept_memory import (
    ATTENTION,
    ENTRANCE,
    EXIT,
    FIRST_NORM,
    LAST_NORM,
    KeptMemory,
    Key,
    Use,
)
from autopeft.training.step_shape import FLOAT32

_PASSED_NORM = {True: 3, False: 6}
"""Tensors of a norm behind the last layer when the gradient passes it, by whether it takes the
mean off: its input, and gradients; of an RMSNorm, no kernel of its own, those of all its steps."""


class PassMemory:
    """Lanes that run through the backbone together.

    Attributes:
        own: What they have where, and what each layer keeps.
    """

    def __init__(self, own: KeptMemory) -> None:
        self.own = own
        self._anatomy, self._shape, self._weights = own.anatomy, own.shape, own.weights
        self._inner = own.anatomy.intermediate_size * own.activation
        self._made = own.anatomy.hidden_size * own.activation
        self._hidden = own.anatomy.hidden_size * own.stream

    # -- kept for the backward pass -----------------------------------------------------------

    def kept(self) -> int:
        """Bytes that the forward pass leaves for the backward pass, and a recomputed layer's."""
        held = [self._below(index) + self.own.kept_in(index) for index in self._layers]
        return round(max(held, default=0.0) + self._beside)

    @property
    def _beside(self) -> float:
        """What other passes have left that are there at once."""
        return (self._compared - 1) * max(self._left.values(), default=0.0)

    @property
    def _layers(self) -> range:
        """Those that lanes run through."""
        return range(self.own.branches[0], len(self._anatomy.layers))

    @property
    def _compared(self) -> int:
        """Passes that are there at once: two where a lane compares them."""
        return max(passes(lane, self._anatomy) for lane in self.own.lanes)

    @cached_property
    def _left(self) -> dict[int, float]:
        """What the forward pass leaves of all layers up to each."""
        left = self.own.given_to if self._shape.checkpointing else self.own.kept_in
        return dict(zip(self._layers, accumulate(map(left, self._layers)), strict=True))

    def _below(self, index: int) -> float:
        """What is there beside what a layer keeps: of a checkpoint, the layer's input too."""
        return self._left.get(index if self._shape.checkpointing else index - 1, 0.0)

    # -- the most that is there ---------------------------------------------------------------

    def peak(self) -> int:
        """What is kept and what runs beside it, at the moment when both together are most."""
        moments = [max(self._forward_in(i), self._backward_in(i)) for i in self._layers]
        lanes = max([*moments, self._behind()])
        running = self._dequantised() + self._weights_at_once()
        return round(max(self._beside + lanes, self.trunk()) + running)

    def _forward_in(self, index: int) -> float:
        """The end of a layer on the way forward, where a checkpoint keeps nothing of it."""
        own, keeps = self.own, not self._shape.checkpointing
        given, kept = self._below(index), keeps * own.kept_in(index)
        seen = self._shape.tokens + own.slots
        masked = seen * (own.joined(index) > 1)  # a byte each, repeated for the lanes
        if own.is_cut(index):
            taken = 0 if keeps else self._rows(index) * self._queries_keys_values
            return given + kept + taken + self._of_all_lanes(index) + own.tokens * masked
        width = self._living_at_the_end(index, kept=keeps) + self._in_last_norm(index, kept=keeps)
        if keeps and not own.attention_trains(index):
            width += self._hidden + masked
        running = kept + self._rows(index) * width
        # It may hold more while its attention runs, or an FFN of which nothing is kept.
        wide = self._attending() if own.ffn_trains(index) else self._layer_width(gradients=False)
        running = max(running, self._rows(index) * wide)
        return given + running + self._of_all_lanes(index) + own.tokens * masked

    def _backward_in(self, index: int) -> float:
        """A layer on the way back, or when its last operator runs on the way forward."""
        own, kept = self.own, self.own.kept_in(index)
        if own.is_cut(index):
            return self._below(index) + kept + self._running_in_cut(index)
        moments = [kept]  # and, of each, what runs beside it or beside a part of it
        if not own.trains_at_the_end(index):
            gradients = self._rows(index) * self._layer_width(gradients=True)
            moments.append(self._kept_before_exit(index) + gradients)
        if self._shape.checkpointing:
            waiting = self._rows(index) * self._gradient_above()
            end = self._rows(index) * self._living_at_the_end(index, kept=True)
            moments += [kept + waiting + end, waiting + self._rows(index) * self._attending()]
        else:
            waiting = self._of_all_lanes(index)
        for key, uses in own.uses.items():
            if key[0] == index:
                moments.append(waiting + self._at_operator(key, uses))
        if longer := self._at_longer_keys(index):
            before = own.operators_in(index, only=ATTENTION)
            attention = self._rows(index) * own.attention(self._anatomy.layers[index])
            moments.append(waiting + before + attention + longer)
        return self._below(index) + max(moments)

    def _rows(self, index: int) -> int:
        """Tokens of all lanes that have branched off at a layer."""
        return self.own.joined(index) * self.own.tokens

    def _of_all_lanes(self, index: int) -> int:
        """What the embeddings gave, and the trunk's output unless it is a lone lane's input."""
        branches = self.own.branches
        apart = self.own.joined(index) > 1 or index > branches[0]
        return self.own.tokens * self._hidden * (1 + (branches[-1] > 0 and apart))

    def _gradient_above(self) -> int:
        """Per token: the gradient that a recomputed layer waits with.

        Where norms come first, it has passed the residual sum by then, and is cast for the map.
        """
        cast = not self._anatomy.memory.norms_behind and self.own.activation != self.own.stream
        return self._hidden + cast * self._made

    def _kept_before_exit(self, index: int) -> float:
        """What a layer keeps without what operators behind the FFN's last map and a norm do."""
        last_norm = self._anatomy.hidden_size * FLOAT32 * self.own.keeps_last_norm(index)
        behind = self.own.operators_in(index, only=EXIT)
        return self.own.kept_in(index) - behind - self._rows(index) * last_norm

    def _living_in_ffn(self, index: int, *, kept: bool) -> int:
        """Per token: what the FFN reads, and what its last map does, unless an operator keeps it.

        Args:
            index: The layer.
            kept: Whether what is kept is counted elsewhere.
        """
        read = not (kept and self.own.viewing(index, ENTRANCE))
        product = not (kept and self.own.viewing(index, ("down",)))
        width = read * self._hidden + product * self._inner
        held = kept and self.own.ffn_trains(index)
        return width if held else width + self._factors_of_one_map * self._inner

    def _living_at_the_end(self, index: int, *, kept: bool) -> float:
        """Per token: variables of a layer's code at its end, see `_living_in_ffn`.

        A layer that is recomputed ends where nothing behind is kept: where norms come first, when
        its last map is about to run.
        """
        own, width = self.own, self._living_in_ffn(index, kept=kept)
        if own.anatomy.memory.norms_behind:
            width += self._made + self._hidden  # the map's, the norm's output
            width += self._hidden * own.changes_input(index)
            return width + self._hidden * (not (kept and own.keeps_last_norm(index)))
        saves = any(key[0] == index and self._saves_at_exit(key, u) for key, u in own.uses.items())
        width += self._made * (saves or not kept)
        return width + self._hidden * (not (kept and own.attention_output_trains(index)))

    def _saves_at_exit(self, key: Key, uses: Sequence[Use]) -> bool:
        """Whether an operator behind the FFN's last map keeps anything."""
        _, site, method, _ = key
        kept = [registry[method].kept_widths(group, place) for _, group, place in uses]
        return site in EXIT and any(k.reads or k.inner or k.exact or k.lasting for k in kept)

    def _in_last_norm(self, index: int, *, kept: bool) -> float:
        """Per token: what an operator at a norm that ends the layer makes."""
        if not self._anatomy.memory.norms_behind:
            return 0.0
        most = 0.0
        for key, uses in self.own.uses.items():
            if key[:2] == (index, LAST_NORM):
                _, group, place = uses[0]
                exact = FLOAT32 * registry[key[2]].kept_widths(group, place).exact
                most = max(most, self._made_by(key, uses[0]) + (0 if kept else exact))
        return most

    def _at_operator(self, key: Key, uses: Sequence[Use]) -> float:
        """While an operator runs: what its layer keeps by then, what lives, what it makes."""
        own, (index, site) = self.own, key[:2]
        rows, layer = self._rows(index), self._anatomy.layers[index]
        made = sum(own.tokens * self._made_by(key, use) for use in uses)
        if site in EXIT:
            behind = self._anatomy.memory.norms_behind
            if self._shape.checkpointing and not behind and not self._saves_at_exit(key, uses):
                return 0.0  # a recomputed layer has ended before
            last_norm = self._anatomy.hidden_size * FLOAT32 * own.keeps_last_norm(index)
            living = self._living_in_ffn(index, kept=True) + self._made - last_norm
            if not own.attention_output_trains(index):
                enters, before_ffn, own_sum = not self._shape.checkpointing, not behind, True
                living += (enters + before_ffn + own_sum) * self._hidden
            return own.kept_in(index) + made + rows * living
        if site in ENTRANCE:
            read = not own.viewing(index, ENTRANCE)
            later = 0 if "gate" in layer.sites else self._anatomy.memory.activation - 1
            living = self._hidden * read - later * self._inner
            return self._kept_before_exit(index) + made + rows * living
        if site in ("output", "attention"):
            before = own.operators_in(index, only=(*ATTENTION, "output", "attention"))
            attention = own.attention(layer) * own.attention_trains(index)
            return before + made + rows * (attention + self._made)
        if site in ATTENTION:
            before = own.operators_in(index, only=ATTENTION)
            normed = self._hidden * (not self._anatomy.memory.norms_behind)
            return before + made + rows * (self._queries_keys_values + normed)
        return made

    @property
    def _queries_keys_values(self) -> int:
        """Per token: as their maps make them."""
        heads = self._anatomy.n_heads + 2 * self._anatomy.n_kv_heads
        return heads * self._anatomy.head_dim * self.own.activation

    def _running_of(self, key: Key, use: Use) -> float:
        """Per token of a lane: what an operator makes and drops."""
        _, group, place = use
        kept = registry[key[2]].kept_widths(group, place)
        pairs = kept.compared.passing(self._shape.tokens) if kept.compared else 0.0
        return FLOAT32 * (kept.running + pairs / (self._shape.tokens + self.own.slots))

    def _made_by(self, key: Key, use: Use) -> float:
        """Per token of a lane: all that an operator makes, its output and copies among it."""
        (_, site, method, _), (_, group, place) = key, use
        kept, made = registry[method].kept_widths(group, place), self._running_of(key, use)
        if kept.products_only:
            return made + self.own.operator * place.d_out
        at_norm = site in (FIRST_NORM, LAST_NORM)
        reads = self.own.stream if at_norm else self.own.read_type(site, kept)
        given = self.own.stream if at_norm else self.own.activation
        copied = place.d_in * (reads < FLOAT32 and not kept.reads_exactly)
        copied += place.d_out * (given < FLOAT32)
        return made + FLOAT32 * (copied + place.d_out)

    def _at_longer_keys(self, index: int) -> float:
        """What attention makes on the way to keys and values with others before the rows' own.

        Those of a prefix are repeated for the rows of all lanes, then taken by those that have
        one, beside what they take of their own. Where heads share keys both together are repeated
        for them, and those that were rotated are cast under autocast: this is what is kept.
        """
        own, anatomy = self.own, self._anatomy
        longer = own.longer(anatomy.layers[index])
        if longer == 1:
            return 0.0
        size = own.activation
        both = 2 * anatomy.n_kv_heads * anatomy.head_dim
        rows = self._rows(index)
        living = float(both * size * rows)
        if not anatomy.memory.norms_behind:
            living += self._hidden * rows
        prefixes = own.prefixes(index)
        if prefixes:
            longest = self._shape.whole_vectors(max(prefixes.values()))
            apart = self._shape.key_vectors > 1 and len(prefixes) < own.joined(index)
            repeated = own.joined(index) + apart * len(prefixes)
            living += repeated * self._shape.rows * longest * both * size
            living += apart * len(prefixes) * own.tokens * both * size
        shared = anatomy.n_kv_heads < anatomy.n_heads
        copied = size < FLOAT32 and anatomy.memory.rotates
        made = FLOAT32 if copied else size
        if copied or shared:
            living += rows * made * both * longer
        if copied and shared:
            living += rows * made * 2 * anatomy.n_heads * anatomy.head_dim * longer
        return living

    def _running_in_cut(self, index: int) -> float:
        """A layer of which one token is read, when its keys and values are taken of all.

        Queries are there too, with what their operators would keep, the layer's input, what a norm
        before attention made of it and what either is cast to, or what rotates them; and of all
        lanes together the trunk's output and the embeddings.
        """
        own, anatomy = self.own, self._anatomy
        every = float(anatomy.n_heads * anatomy.head_dim * own.activation)
        if not (self._shape.checkpointing or own.viewing(index, ATTENTION)):
            every += self._hidden
        if not anatomy.memory.norms_behind:
            every += self._hidden
        cast = self._made + anatomy.hidden_size * own.operator
        mapped = cast * (own.operator != own.stream) + max(
            (
                self._running_of(key, use)
                for key, uses in own.uses.items()
                for use in uses
                if key[0] == index and key[1] in ATTENTION
            ),
            default=0.0,
        )
        every += max(mapped, self._rotating())
        if not own.attention_trains(index):
            every += own.of_other_tokens(index)
        below = 0 if self._shape.checkpointing else self._of_all_lanes(index)
        queries = own.operators_in(index, only=("query",), given=("query",))
        width = self._layer_width(gradients=True) / (self._shape.tokens + own.slots)
        taken = self._rows(index) * (every + width) + queries
        return below + max(taken, self._at_longer_keys(index))

    def _rotating(self) -> float:
        """Per token: what the rotation of slices makes, but for rotated queries and keys.

        All in float32: rotated queries; of keys, those times cosines, the halves that were swapped
        and those times sines. Other types are cast first, and the cast is there, with the negated
        half, when halves are swapped.
        """
        own, anatomy = self.own, self._anatomy
        if not anatomy.memory.rotates_slices:
            return 0.0
        of_keys = 3.0 if own.activation == FLOAT32 else 3.5
        width = anatomy.head_dim * FLOAT32 * (anatomy.n_heads + of_keys * anatomy.n_kv_heads)
        return width - own.rotated_slices()

    def _behind(self) -> float:
        """When the gradient passes a norm behind the last layer: all of every layer is there."""
        last = len(self._anatomy.layers) - 1
        if last not in self._left or self._anatomy.memory.norms_behind or self.own.is_cut(last):
            return 0.0
        norms = self._anatomy.layers[last].norms.values()
        tensors = _PASSED_NORM[all(norm.centred for norm in norms)]
        return self._left[last] + self._rows(last) * tensors * self._anatomy.hidden_size * FLOAT32

    def trunk(self) -> float:
        """The trunk's last running layer, beside what lanes that have left it keep by then."""
        last = self.own.branches[-1] - 1
        if last < 0:
            return 0.0
        width = self._layer_width(gradients=False)
        return self.own.tokens * width + self._left.get(last - 1, 0.0)

    def evaluating(self) -> int:
        """An evaluation batch: no layer's tensors outlive it."""
        lanes, longest = len(self.own.lanes), self._shape.tokens + self.own.slots
        tokens = max(lanes * longest, self._shape.evaluation_tokens)
        if self._shape.evaluated:
            tokens = min(tokens, lanes * self._shape.evaluated * longest)
        return round(tokens * self._layer_width(gradients=False) + self._dequantised())

    def logits(self) -> int:
        """A language model's logits of a chunk, their probabilities and gradients."""
        return 3 * FLOAT32 * self._shape.logits

    @property
    def _factors_of_one_map(self) -> int:
        """Factors of a gated FFN that live until it ends, as slices of what one map makes."""
        gate = self._anatomy.layers[-1].sites.get("gate")
        return 2 if gate is not None and gate.fused else 0

    def _layer_width(self, *, gradients: bool) -> float:
        """Bytes per token of a running layer at its widest, its FFN or its attention."""
        wide = 3 if "gate" in self._anatomy.layers[-1].sites else 2
        if gradients:  # of one type, the residual sum hands on the one that it gets
            made = self._made * (self.own.activation != self.own.stream)
            return wide * self._inner + made + self._hidden
        wide = max(wide, self._anatomy.memory.activation, 2 + self._factors_of_one_map)
        return max(wide * self._inner + self._made + 2 * self._hidden, self._attending())

    def _attending(self) -> float:
        """Per token: what enters a layer and its first norm makes of it, queries, keys, values.

        And what rotates them or every head's own mask, of which there is a copy without padding,
        as attention's kernel wants it.
        """
        own, anatomy = self.own, self._anatomy
        seen = self._shape.tokens + own.slots
        masks = 2.0 * anatomy.n_heads * seen * own.stream * anatomy.memory.head_masks
        made = max(masks, self._rotating() + own.rotated_slices())
        return 2 * self._hidden + self._queries_keys_values + made

    def _weights_at_once(self) -> int:
        """Weights that a running operator makes and drops again."""
        return FLOAT32 * max(
            (
                sum(registry[method].kept_widths(g, place).weights for _, g, place in uses)
                for (_, _, method, _), uses in self.own.uses.items()
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
