"""Types of `peft` that put tokens, or keys and values, before every text, as methods.

`peft` has them for a whole model: tokens stand among the input embeddings, keys and values in all
layers, and nothing else of a configuration stands beside them. Positions count from the first of
them; what reads a row's first token reads the first of the tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Group
from autopeft.errors import BackboneError, Fault
from autopeft.methods.base import Kept, Reached
from autopeft.methods.lane_operator import Place
from autopeft.methods.passed.embedding import first_layer_faults
from autopeft.methods.passed.encoder import FOLDED, Widths, bare_encoder, folded
from autopeft.methods.passed.family import PassedType

_IDLE = {
    "encoder_num_layers": "encoder_reparameterization_type: LSTM",
    "encoder_dropout": "encoder_reparameterization_type: LSTM",
    "encoder_hidden_size": "prefix_projection: true",
}
"""Parameters that `peft` ignores without another one."""

_COUNTED = ("encoder_hidden_size", "encoder_num_layers", "num_ranks")
"""Whole numbers of which there is at least one."""


class PassedTokens(PassedType, ABC):
    """A type that puts something before every text."""

    whole = "peft puts it before every text, for the whole model"
    modalities: tuple[str, ...] = ("text",)
    identity = "no: every token attends to them from the first step"
    reached: Reached = "attention"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer; widths are those of a token, or of all heads of keys."""
        width = Widths.of(self.kind, anatomy).token
        return [Place(layer, self.name, width, width) for layer in group.layers]

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Other layers than its own, parameters that mean nothing, and all that `peft` refuses."""
        faults = [*self.layer_faults(group, anatomy), *self._number_faults(group)]
        if not faults:
            try:
                with torch.device("meta"):
                    bare_encoder(self.kind, dict(group.settings), Widths.of(self.kind, anatomy))
            except BackboneError as error:
                faults += error.faults
        return faults

    @abstractmethod
    def layer_faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Layers that are not its own."""

    def _number_faults(self, group: Group) -> list[Fault]:
        faults = []
        for name, value in group.settings:
            key, needs = f"{self.name}.{name}", _IDLE.get(name, "")
            if needs and self.is_idle(name, group):
                allowed = f"nothing, or {needs}"
                faults.append(Fault("configuration", key, f"{value}, which peft ignores", allowed))
            elif name in _COUNTED and int(value) < 1:
                faults.append(Fault("configuration", key, str(value), "1 and above"))
        return faults

    def is_idle(self, name: str, group: Group) -> bool:
        """Whether `peft` ignores a parameter beside the others of a group."""
        return False

    # -- folding ------------------------------------------------------------------------------

    def has_encoder(self, group: Group) -> bool:
        """Whether what trains is more than what it makes."""
        return False

    def folded_group(self, group: Group) -> Group:
        """The same without its encoder."""
        if not self.has_encoder(group):
            return group
        return replace(group, settings=tuple(sorted((*group.settings, *FOLDED.items()))))

    def folded_tensors(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the encoder makes, in the place of a table."""
        if not (tensors and self.has_encoder(group)):
            return dict(tensors)
        return {"embedding.weight": folded(self.kind, dict(group.settings), tensors)}

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """Nothing of the text; the memory model counts that rows, or keys, are longer."""
        return Kept(reads=False)


class PassedPrompt(PassedTokens):
    """PROMPT_TUNING, P_TUNING and MULTITASK_PROMPT_TUNING: tokens among the input embeddings."""

    def carried_by(self, anatomy: Anatomy) -> str:
        """An encoder: a decoder's classifier is to read a row's last token."""
        if anatomy.embeddings is None:
            return "its table of tokens was not recognised"
        if anatomy.causal:
            return (
                "peft hands rows over as embeddings, of which transformers' classifiers for "
                "decoders read the last position, padding or not: write `prompt`"
            )
        return ""

    def layer_faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Other layers than the first."""
        return first_layer_faults(group)

    def is_idle(self, name: str, group: Group) -> bool:
        """An LSTM has layers and dropout, an MLP has not."""
        of_lstm = name in ("encoder_num_layers", "encoder_dropout")
        return of_lstm and group.get("encoder_reparameterization_type", "MLP") != "LSTM"

    def has_encoder(self, group: Group) -> bool:
        """P-tuning's."""
        return self.kind.name == "P_TUNING" and not group.get("inference_mode")

    def tokens(self, group: Group) -> int:
        """The prompt."""
        return int(group["num_virtual_tokens"])

    def count(self, group: Group, place: Place) -> int:
        """P d, and of several tasks' type (P + d) r beside it."""
        ranks = int(group.get("num_ranks", 1) or 0)
        own = self.tokens(group) * place.d_in
        if self.kind.name != "MULTITASK_PROMPT_TUNING":
            return own
        return own + (self.tokens(group) + place.d_in) * ranks

    def training_count(self, group: Group, place: Place) -> int:
        """The same, and the encoder where there is one: three linear maps, or an LSTM and two."""
        count, width = self.count(group, place), place.d_in
        if not self.has_encoder(group):
            return count
        hidden = int(group.get("encoder_hidden_size") or width)
        if group.get("encoder_reparameterization_type", "MLP") == "MLP":
            return count + (width + 1) * hidden + (hidden + 1) * (hidden + width)
        layers = int(group.get("encoder_num_layers", 2) or 0)
        inputs = [width, *[2 * hidden] * (layers - 1)]
        lstm = sum(8 * hidden * (each + hidden + 2) for each in inputs)  # 4 gates, 2 directions
        return count + lstm + (2 * hidden + 1) * (2 * hidden + width)


class PassedPrefix(PassedTokens):
    """PREFIX_TUNING and CARTRIDGE: keys and values before those of all layers."""

    def carried_by(self, anatomy: Anatomy) -> str:
        """`peft` hands them over as a cache."""
        if not anatomy.takes_cache:
            return "its base model takes no cache of keys and values: write `prefix`"
        if not anatomy.carries_prefix:
            return "its layers' keys and values are not all alike, or more than dot products"
        return ""

    def layer_faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Some layers alone."""
        if group.layers == tuple(range(len(anatomy.layers))):
            return []
        given, hint = ", ".join(map(str, group.layers)), "write `layers: {mode: all}`, or `prefix`"
        return [Fault("configuration", f"{self.name}.layers", given, "all layers", hint)]

    def is_idle(self, name: str, group: Group) -> bool:
        """Without a projection, there is nothing hidden."""
        return name == "encoder_hidden_size" and not group.get("prefix_projection")

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Besides, cartridges of which nothing trains."""
        frozen, length = self._frozen(group), self.keys(group)
        if frozen < length:
            return super().faults(group, anatomy)
        given, key = f"{frozen} of {length} tokens", f"{self.name}.num_frozen_tokens"
        hint = "peft freezes one where it is not told otherwise"
        return [Fault("configuration", key, given, "fewer than num_virtual_tokens", hint)]

    def has_encoder(self, group: Group) -> bool:
        """A projection."""
        return bool(group.get("prefix_projection")) and not group.get("inference_mode")

    def keys(self, group: Group) -> int:
        """The prefix."""
        return int(group["num_virtual_tokens"])

    def _frozen(self, group: Group) -> int:
        is_cartridge = self.kind.name == "CARTRIDGE"
        return int(group.get("num_frozen_tokens", 1) or 0) if is_cartridge else 0

    def count(self, group: Group, place: Place) -> int:
        """2 P n_kv_heads head_dim in a layer, P without those that are frozen."""
        return 2 * (self.keys(group) - self._frozen(group)) * place.d_in

    def training_count(self, group: Group, place: Place) -> int:
        """The same, or P d + (d + 1) h once and (h + 1) 2 d in a layer while projected."""
        if not self.has_encoder(group):
            return self.count(group, place)
        width = place.d_in
        hidden = int(group.get("encoder_hidden_size") or width)
        once = self.keys(group) * width + (width + 1) * hidden if place.layer == 0 else 0
        return once + (hidden + 1) * 2 * width

    def fixed_count(self, group: Group, place: Place) -> int:
        """Keys and values that stay what they were."""
        return 2 * self._frozen(group) * place.d_in
