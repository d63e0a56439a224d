"""One adapter of a configuration: what `peft` built, with its tensors under our saved names.

Groups of a configuration that differ in their places alone are one adapter.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Group
from autopeft.errors import BackboneError, Fault
from autopeft.methods.base import registry
from autopeft.methods.lane_operator import Place
from autopeft.methods.passed.build import ROOT, BuiltAdapter, Target, build
from autopeft.methods.passed.counts import target_of
from autopeft.methods.passed.encoder import Widths, build_encoder
from autopeft.methods.passed.expert_files import expert_files
from autopeft.methods.passed.experts import PassedExperts
from autopeft.methods.passed.method import Passed
from autopeft.methods.passed.router import BuiltExperts, build_experts, experts_of
from autopeft.methods.passed.starts import FirstFactors, takes_out
from autopeft.methods.passed.tokens import PassedTokens
from autopeft.space.schema import Scalar


@dataclass(frozen=True)
class AdapterRequest:
    """What an adapter is built of: one type with one set of parameters.

    Attributes:
        method: `peft:<TYPE>`.
        settings: Its parameters.
        places: Where: one per module, or per layer.
        backbone: What it sits on, or stands before.
        seed: Gives the seed of what `peft` draws, by name.
        saved: Tensors by saved name, perhaps among others, that it starts from.
        dtype: Of the trained tensors.
    """

    method: str
    settings: Mapping[str, Scalar]
    places: Sequence[Place]
    backbone: Backbone
    seed: Callable[[str], int]
    saved: Mapping[str, Tensor]
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """`method.layer.site` of its first place."""
        return f"{self.method}.{self.places[0].layer}.{self.places[0].site}"


class PassedAdapter:
    """An adapter on a backbone, of which nothing is written.

    Args:
        request: What it is built of.

    Attributes:
        name: `method.layer.site` of its first place.
        method: `peft:<TYPE>`.
        settings: Its parameters.
        kind: Its type.
        places: By what sits there.
        modules: The backbone's own modules that are adapted.
        built: What `peft` made.

    Raises:
        BackboneError: `peft` cannot build it there.
    """

    def __init__(self, request: AdapterRequest) -> None:
        passed = registry[request.method]
        if not isinstance(passed, Passed):
            raise TypeError(f"{request.method} sits on no modules")
        self.name, self.method, self.settings = request.name, request.method, request.settings
        self.kind = passed.kind
        self.places: dict[Target, Place] = {target_of(place): place for place in request.places}
        self.modules = {t: request.backbone.model.get_submodule(t.name) for t in self.places}
        self._refuse_quantised()
        own = {name: tensor for name, tensor in request.saved.items() if self._is_own(name)}
        self.built = self._build(own, request.backbone.model, request.seed(self.name))
        self.built.hold_in(request.dtype)
        held = {self._peft_name(n): t for n, t in own.items() if n not in self._first_names()}
        if held:
            self.built.load(held)
        self._saved_as = self._saved_names()

    def _build(self, saved: Mapping[str, Tensor], model: nn.Module, seed: int) -> BuiltAdapter:
        return build(
            self.kind, self.settings, self.modules, seed=seed, first=self._first(saved),
            within=model,
        )  # fmt: skip

    def _refuse_quantised(self) -> None:
        for target, module in self.modules.items():
            weight: Tensor = next(module.parameters())
            if not weight.is_floating_point():
                given, allowed = f"{target.name}, which is quantised", "model.quantization: none"
                raise BackboneError(Fault("configuration", self.method, given, allowed))

    # -- names --------------------------------------------------------------------------------

    def _is_own(self, name: str) -> bool:
        """Whether a saved name is of this adapter, and not of another one of its type."""
        if not name.startswith(f"{self.method}."):
            return False
        layer, site, _ = name.removeprefix(f"{self.method}.").split(".", 2)
        return any((str(p.layer), p.site) == (layer, site) for p in self.places.values())

    def _first_names(self) -> set[str]:
        return {name for target in self.places for name in self._first_saved(target).values()}

    def _first_saved(self, target: Target) -> dict[str, str]:
        """Saved names of what is taken out of a weight, by those that `FirstFactors` gives."""
        place = self.places[target]
        at = f"{self.method}.{place.layer}.{place.site}"
        return {name: f"{at}.{name}" for name in FirstFactors.NAMES}

    def _first(self, saved: Mapping[str, Tensor]) -> dict[Target, FirstFactors]:
        """What was taken out of the weights, where it is saved; {} where it is to be found."""
        if not (takes_out(self.kind, self.settings) and self._first_names() <= set(saved)):
            return {}
        return {
            target: FirstFactors(*(saved[name] for name in self._first_saved(target).values()))
            for target in self.places
        }

    def _saved_names(self) -> dict[str, str]:
        """Full names of trained tensors -> our saved names."""
        by_memory = {_memory(t): name for name, t in reversed(self.built.saved().items())}
        names = {}
        for name, parameter in self.built.trained().items():
            if _memory(parameter) not in by_memory:
                raise RuntimeError(f"peft does not save {name} of {self.method}")
            names[name] = self._own_name(by_memory[_memory(parameter)])
        return names

    def _own_name(self, peft_name: str) -> str:
        """`method.layer.site.tensor`, the place being its owner's."""
        target = self.built.owner(peft_name)
        place = self.places[target]
        rest = peft_name.removeprefix(f"{ROOT}{target.name}.")
        return f"{self.method}.{place.layer}.{place.site}.{rest}"

    def _peft_name(self, own_name: str) -> str:
        """The inverse."""
        layer, site, rest = own_name.removeprefix(f"{self.method}.").split(".", 2)
        if rest.startswith("base_model."):
            return rest
        (target,) = (t for t, p in self.places.items() if (str(p.layer), p.site) == (layer, site))
        return f"{ROOT}{target.name}.{rest}"

    def place_of(self, name: str) -> Place:
        """Where a trained tensor sits, by its full name; the first place for those of all."""
        return self.places[self.built.owner(name)]

    # -- tensors ------------------------------------------------------------------------------

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, each once, by its full name in `peft`'s model."""
        return self.built.trained()

    def saved_as(self, name: str) -> str:
        """A trained tensor's saved name."""
        return self._saved_as[name]

    def fixed(self) -> dict[str, Tensor]:
        """What `peft` saves beside what it trains, by saved name."""
        trained = {_memory(parameter) for parameter in self.built.trained().values()}
        fixed = {
            self._own_name(name): tensor
            for name, tensor in self.built.saved().items()
            if _memory(tensor) not in trained
        }
        for target, first in self.built.first.items():
            names = self._first_saved(target)
            fixed |= {names[name]: tensor for name, tensor in first.tensors().items()}
        return fixed


class ExpertsAdapter(PassedAdapter):
    """A router over adapters, which are read from their files, or from what was saved."""

    built: BuiltExperts

    def _build(self, saved: Mapping[str, Tensor], model: nn.Module, seed: int) -> BuiltExperts:
        held = {self._peft_name(name): tensor for name, tensor in saved.items()}
        experts = experts_of(held) if held else [
            file.load() for file in expert_files(str(self.settings["adapters"]))
        ]  # fmt: skip
        return build_experts(
            self.kind, self.settings, tuple(self.places), experts, model, seed=seed
        )


class TokensAdapter:
    """An adapter that stands before every text of a backbone.

    Args:
        request: What it is built of.

    Attributes:
        name: `method.layer.site` of its first place.
        method: `peft:<TYPE>`.
        settings: Its parameters.
        kind: Its type.
        length: Tokens, or keys and values, before every text.
        built: What `peft` made.

    Raises:
        BackboneError: `peft` cannot build it there.
    """

    def __init__(self, request: AdapterRequest) -> None:
        passed = registry[request.method]
        if not isinstance(passed, PassedTokens):
            raise TypeError(f"{request.method} puts nothing before a text")
        self.name, self.method, self.settings = request.name, request.method, request.settings
        self.kind = passed.kind
        self.length = int(self.settings["num_virtual_tokens"])
        self._place = request.places[0]
        backbone, seed = request.backbone, request.seed(self.name)
        widths = Widths.of(self.kind, backbone.anatomy)
        self.built = build_encoder(self.kind, self.settings, widths, backbone.model, seed=seed)
        self.built.encoder.to(request.dtype)
        at = f"{self.name}."
        held = {n.removeprefix(at): t for n, t in request.saved.items() if n.startswith(at)}
        self.built.load(held)

    def place_of(self, name: str) -> Place:
        """Its first place, for all that it trains."""
        return self._place

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in `peft`'s encoder."""
        return self.built.trained()

    def saved_as(self, name: str) -> str:
        """A trained tensor's saved name."""
        return f"{self.name}.{name}"

    def fixed(self) -> dict[str, Tensor]:
        """What is kept beside it, by saved name."""
        return {self.saved_as(name): tensor for name, tensor in self.built.fixed().items()}


AnyAdapter: TypeAlias = PassedAdapter | TokensAdapter


def _memory(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def passed_adapters(
    placed: Iterable[tuple[Group, Place]],
    backbone: Backbone,
    *,
    seed: Callable[[str], int],
    saved: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
) -> list[AnyAdapter]:
    """The adapters of a configuration's groups that are `peft`'s own types; [] without any.

    Args:
        placed: Groups and places of a configuration, see `counting.placed_groups`.
        backbone: What they sit on, or stand before.
        seed: Gives the seed of what `peft` draws, by name.
        saved: Tensors by saved name that they start from.
        dtype: Of the trained tensors.
    """
    by_adapter: dict[tuple[str, tuple[tuple[str, Scalar], ...]], list[Place]] = {}
    for group, place in placed:
        if registry[group.method].alone:
            by_adapter.setdefault((group.method, group.settings), []).append(place)
    made: list[AnyAdapter] = []
    for (method, settings), places in by_adapter.items():
        request = AdapterRequest(method, dict(settings), places, backbone, seed, saved, dtype)
        stands_before = isinstance(registry[method], PassedTokens)
        mixes = isinstance(registry[method], PassedExperts)
        own = ExpertsAdapter if mixes else PassedAdapter
        made.append(TokensAdapter(request) if stands_before else own(request))
    return made
