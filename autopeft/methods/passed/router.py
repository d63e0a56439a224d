"""A router over LoRA adapters as `peft` builds it, beside a model and around its tensors.

`peft` reads adapters from folders alone, so they are handed to it in one that is gone when it has
read them. Its model is the backbone once more, module by module around the same tensors, with the
adapters in it: the first run of a text, and the router, are `peft`'s there.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor, nn

from autopeft.errors import BackboneError, Fault
from autopeft.methods.passed.build import (
    ROOT,
    BuiltAdapter,
    Target,
    apart,
    as_faults,
    config_of,
    told_quietly,
)
from autopeft.methods.passed.expert_files import LORA, Expert, Scaling
from autopeft.methods.passed.types import NAME, PeftType
from autopeft.space.method_names import PREFIX
from autopeft.space.schema import Scalar

_ROUTER: Final = "internal_xlora_classifier"
_OF_EXPERT: Final = re.compile(
    rf"(?P<map>.*)\.{LORA}(?P<letter>_[AB])?\.(?P<number>\d+)(?P<end>\.(?:weight|bias))?"
)
"""A saved name: `map.lora_A.0.weight`, or `map.lora.0`."""

_AROUND: Final = "base_model.lora_model.model.model."
"""In front of a map's name in `peft`'s model."""


class BuiltExperts(BuiltAdapter):
    """A router and its adapters.

    Args:
        model: `peft`'s model of the copies.
        kind: Its type.
        targets: All layers.
        experts: What was handed to `peft`.
    """

    def __init__(
        self, model: Any, kind: PeftType, targets: tuple[Target, ...], experts: Sequence[Expert]
    ) -> None:
        super().__init__(model, kind, targets)
        self._scalings = {
            f"{ROOT}{name}.{LORA}.{number}": scaling.tensor()
            for number, expert in enumerate(experts)
            for name, scaling in expert.scalings.items()
        }

    @property
    def router(self) -> nn.Module:
        """From what the last layer gives to weights of adapters, [B, T, maps, experts]."""
        router: nn.Module = self.model.base_model.internal_xlora_classifier
        return router

    def maps(self) -> dict[str, Any]:
        """`peft`'s layers by the names of the maps in whose place they stand."""
        from peft.tuners.lora.layer import LoraLayer

        return {
            name.removeprefix(_AROUND): module
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLayer)
        }

    def scales(self, inputs: Mapping[str, Any]) -> Tensor:
        """What the router gives for a text, after a run without gradients; as `peft` has it.

        Args:
            inputs: The base model's arguments, `input_ids` [B, T] among them.

        Returns:
            Weights [B, T, maps, experts].
        """
        router: Any = self.router
        alike = router.make_dummy_scalings(input_ids=inputs["input_ids"])
        with torch.no_grad(), self._scaled(alike):
            out = self.model.base_model.lora_model.model(**inputs)
        last = out.hidden_states[-1].to(next(router.parameters()).dtype)
        scales: Tensor = router(SimpleNamespace(hidden_states=(last,)), inputs["input_ids"])
        return scales

    @contextmanager
    def _scaled(self, scales: Tensor) -> Iterator[None]:
        """Every map's adapters are scaled inside."""

        def given(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, kwargs | {"scalings": scales}

        handles = [
            layer.register_forward_pre_hook(given, with_kwargs=True)
            for layer in self.maps().values()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # -- tensors ------------------------------------------------------------------------------

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Of router and adapters, by saved name."""
        return {
            name.replace(_AROUND, ROOT): parameter
            for name, parameter in self.model.named_parameters()
            if _ROUTER in name or ".lora_" in name.removeprefix(_AROUND)
        }

    def hold_in(self, dtype: torch.dtype) -> None:
        """Hold adapters that stay as they are in it, too."""
        for parameter in self._parameters().values():
            parameter.data = parameter.data.to(dtype)
        self.router.dtype = dtype  # type: ignore[assignment]

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, each once, by its saved name."""
        return {n: p for n, p in self._parameters().items() if p.requires_grad}

    def saved(self) -> dict[str, Tensor]:
        """All of it, where `peft` saves nothing; with what the adapters are multiplied by."""
        return {n: p.data for n, p in self._parameters().items()} | self._scalings

    def fixed_names(self) -> set[str]:
        """Names of what is not trained."""
        return set(self.saved()) - set(self.trained())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `saved` gave, or part of it."""
        own = self._parameters()
        with torch.no_grad():
            for name in set(state) & set(own):
                own[name].copy_(state[name])


def experts_of(saved: Mapping[str, Tensor]) -> list[Expert]:
    """The adapters among what `BuiltExperts.saved` gave, in their order."""
    scalings: dict[int, dict[str, Scaling]] = defaultdict(dict)
    tensors: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in saved.items():
        found = _OF_EXPERT.fullmatch(name.removeprefix(ROOT))
        if found is None:
            continue
        at, number, end = found["map"], int(found["number"]), found["end"]
        if end:
            tensors[number][f"{at}.{LORA}{found['letter']}{end}"] = tensor
        else:
            scalings[number][at] = Scaling.of(tensor)
    return [Expert(tensors[number], scalings[number]) for number in sorted(scalings)]


def build_experts(
    kind: PeftType,
    settings: Mapping[str, Scalar],
    targets: tuple[Target, ...],
    experts: Sequence[Expert],
    model: nn.Module,
    *,
    seed: int,
) -> BuiltExperts:
    """A router over adapters beside a model, of which nothing is written.

    Args:
        kind: Its type.
        settings: Its parameters.
        targets: The model's layers.
        experts: The adapters.
        model: The base model.
        seed: Of the router as it is drawn.

    Raises:
        BackboneError: `peft` refuses the settings, or finds other maps than an adapter's.
    """
    from peft import PeftModel

    around = _Around(model)
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with TemporaryDirectory() as folder, told_quietly(), as_faults(kind):
        folders = {str(number): Path(folder) / str(number) for number in range(len(experts))}
        for expert, own in zip(experts, folders.values(), strict=True):
            own.mkdir()
            expert.save(own)
        config = config_of(
            kind, settings, targets, hidden_size=around.config.hidden_size,
            adapters={name: str(own) for name, own in folders.items()},
        )  # fmt: skip
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            built = BuiltExperts(PeftModel(around, config, NAME), kind, targets, experts)
    for number, expert in enumerate(experts):
        found = {n for n, layer in built.maps().items() if str(number) in layer.lora_A}
        if missed := found ^ set(expert.scalings):
            given, allowed = ", ".join(sorted(missed)), "maps that peft adapts"
            raise BackboneError(Fault("configuration", PREFIX + kind.name, given, allowed))
    built.model.requires_grad_(False)
    for name, parameter in built._parameters().items():
        parameter.requires_grad = _ROUTER in name or bool(settings.get("use_trainable_adapters"))
    return built


class _Around(nn.Module):
    """A model that has the base model for its `model`, where `peft` looks for layers.

    Its attention is transformers' own, whatever a pack does with the backbone's.
    """

    is_gradient_checkpointing = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = apart(model), copy.deepcopy(model.config)
        for module in self.model.modules():
            # transformers puts hooks on layers once, and the copies have none of the backbone's.
            module.__dict__.pop("_output_capturing_hooks_installed", None)
            if getattr(module, "config", None) is model.config:
                module.config = self.config

    def forward(self, **inputs: Any) -> Any:
        """With what every layer gives."""
        return self.model(**inputs, output_hidden_states=True, return_dict=True)
