"""What `peft` lacks, loaded by `peft`: `autopeft.register_with_peft()` makes it known.

`AUTOPEFT` is a type of `peft` whose adapter is a whole configuration of ours, whatever its methods
and sizes: `PeftModel.from_pretrained` then loads what `autopeft train` saved, onto transformers'
own task class. The operators are those that trained; they are wired into the model for good.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import load_peft_weights
from torch import Tensor, nn

from autopeft.backbone.heads import lm_recipe
from autopeft.backbone.loading import Backbone, backbone_of
from autopeft.configuration import NO_SPARSITY, Configuration
from autopeft.errors import BackboneError, Fault
from autopeft.export.peft_registered import PREFIX, TYPE, peft_name, saved_name
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

_TRAINING = {"learning_rate": 0.0, "weight_decay": 0.0, "warmup_ratio": 0.0}


def register_with_peft() -> None:
    """Make `PeftModel.from_pretrained` load adapters of methods that `peft` lacks.

    Call it once in a process, before loading; again, it does nothing.
    """
    mappings: Any = (
        (PEFT_TYPE_TO_CONFIG_MAPPING, AutopeftConfig),
        (PEFT_TYPE_TO_TUNER_MAPPING, AutopeftTuner),
        (PEFT_TYPE_TO_PREFIX_MAPPING, PREFIX),
    )
    for mapping, value in mappings:
        mapping[TYPE] = value


@dataclass
class AutopeftConfig(PeftConfig):  # type: ignore[misc]
    """`adapter_config.json` of the type.

    Attributes:
        configuration: The groups, as in a configuration file.
        seed: That of its training, from which frozen random parts are drawn again.
        sites: What the model block says of sites, for architectures that are not recognised.
        modules_to_save: The task head.
    """

    configuration: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    sites: dict[str, str] | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        """`peft` tells types by this field."""
        super().__post_init__()
        self.peft_type = TYPE
        self._folder: str | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> "AutopeftConfig":
        """As `peft`'s; it notes where it was, since indices have to be known to build on them."""
        read = super().from_pretrained
        config: AutopeftConfig = read(pretrained_model_name_or_path, subfolder, **kwargs)
        config._folder = str(pretrained_model_name_or_path)
        return config

    def tensors(self) -> dict[str, Tensor]:
        """What was saved beside it, by our saved names; {} where it was not loaded."""
        if self._folder is None:
            return {}
        held = load_peft_weights(self._folder, device="cpu")
        return {saved_name(name): tensor for name, tensor in held.items() if PREFIX in name}

    def groups(self) -> Configuration:
        """The configuration."""
        plain = {**self.configuration, "training": _TRAINING, "sparsity": dict(NO_SPARSITY)}
        return Configuration.from_dict(plain)


class _Switch(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """The one layer that `peft` sees, where it asks whether an adapter is on: it holds nothing.

    Args:
        adapter_name: The adapter's name.
    """

    def __init__(self, adapter_name: str) -> None:
        super().__init__()
        self._disable_adapters, self._active_adapter = False, adapter_name
        self.merged_adapters: list[str] = []

    def enable_adapters(self, enabled: bool) -> None:
        """Turn it; `peft`'s own would look for tensors."""
        self._disable_adapters = not enabled


class AutopeftTuner(BaseTuner):  # type: ignore[misc]
    """A model in which a configuration of ours runs, for `peft`.

    It holds one adapter, which cannot be merged: not all methods can.

    Args:
        model: A task model of transformers, or a base model.
        peft_config: By adapter name.
        adapter_name: The adapter's name.
    """

    prefix = PREFIX
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - as peft declares it

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Build the operators and wire them in; see `peft`."""
        if len(self.peft_config) > 1:
            given = f"{len(self.peft_config)} adapters"
            raise BackboneError(Fault("peft", TYPE, given, "one adapter of autopeft a model"))
        config: Any = self.peft_config[adapter_name]
        saved = config.tensors()
        backbone = _around(model, config.sites)
        lane, seeds = Lane(0, config.groups()), Seeds(config.seed)
        pack = Pack(backbone, lm_recipe(), [lane], seeds=seeds, saved={0: saved})
        self._hold(pack)
        self.autopeft_switch = _Switch(adapter_name)
        object.__setattr__(self, "_pack", pack)  # its head and backbone are not this model's
        pack.serve(lambda: not self.autopeft_switch.disable_adapters, lambda: self.training)

    def _hold(self, pack: Pack) -> None:
        """Register what is trained, and what is kept beside it, under names that `peft` saves."""
        self.autopeft_lane = nn.ParameterDict()
        # So that all of them go along to another device.
        self.autopeft_parts = nn.ModuleList([*pack.operators, *pack.passed_models])
        views = pack.lane_views(pack.parameters_by_name(), 0)
        names = {view.data_ptr(): name for name, view in views.items()}
        for item in pack.stacked():
            self.autopeft_lane[peft_name(names[item.parameter.data_ptr()])] = item.parameter
        for name, tensor in pack.lane_fixed(0).items():
            self.autopeft_lane[peft_name(name)] = nn.Parameter(tensor, requires_grad=False)

    # -- what peft asks -----------------------------------------------------------------------

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("operators are wired in, no module is replaced")

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        return peft_config

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        """Nothing: the backbone was frozen when the operators were built."""

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        self.autopeft_switch.enable_adapters(enabled)

    def enable_adapter_layers(self) -> None:
        """The operators act again."""
        self._enable_adapter_layers(enabled=True)

    def disable_adapter_layers(self) -> None:
        """The model is the backbone with its trained head."""
        self._enable_adapter_layers(enabled=False)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """There is one adapter."""
        self.active_adapter = adapter_name
        for parameter in self.autopeft_lane.values():
            parameter.requires_grad_(parameter.is_floating_point() and not inference_mode)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Nothing: they are float32, whatever the backbone is."""

    def _check_merge_allowed(self) -> None:
        given, hint = "merge_and_unload", "its methods need not be linear: load it unmerged"
        raise BackboneError(Fault("peft", TYPE, given, "an unmerged adapter", hint))

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state_dict.items() if PREFIX in name}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Give tensors of a lane the lane axis that operators have."""
        own = {name: tensor for name, tensor in model.state_dict().items() if PREFIX in name}
        return {
            name: tensor.reshape(own[name].shape) if name in own else tensor
            for name, tensor in state_dict.items()
        }


def _around(model: Any, sites: Mapping[str, str] | None) -> Backbone:
    """The backbone within a task model, which keeps its mode and its cache."""
    config, training = model.config, model.training
    cache = getattr(config, "use_cache", None)
    base = model.base_model
    backbone = backbone_of(base, sites=sites)
    if cache is not None:
        config.use_cache = cache
    model.train(training)
    return backbone
