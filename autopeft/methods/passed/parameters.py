"""What may be set of a type: the scalar fields of its configuration class in `peft`.

Fields that say where an adapter sits, what is saved beside it or who made it are not left to a
space: sites, layers and groups say so, or autopeft does.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import Enum
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from autopeft.backbone.anatomy import LINEAR_ROLES, NORMS
from autopeft.methods.passed.types import PeftType
from autopeft.space.method_names import PREFIX
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar

_PLACES = "`sites` and `layers` say where it sits, by full module names"
_PATTERN = (
    "a group has one size: give other sites or layers a group of their own (peft's patterns match "
    "by the first key, and HiRA ignores its rank_pattern)"
)
_BUDGET = "peft would have to be told of every step: use `sparsity: {rule: adalora}` with lora"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
         "target_parameters", "feedforward_modules", "adapter_layers"),
        _PLACES,
    ),
    **dict.fromkeys(
        ("rank_pattern", "alpha_pattern", "n_frequency_pattern", "block_size_pattern",
         "lambda_pattern", "target_svd_config"),
        _PATTERN,
    ),
    **dict.fromkeys(
        ("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "total_step", "use_asa",
         "asa_target_subspaces", "init_warmup", "final_warmup", "mask_interval",
         "asa_importance_beta", "asa_uncertainty_beta", "asa_schedule_exponent"),
        _BUDGET,
    ),
    **dict.fromkeys(("n_tasks", "num_tasks", "task_ids"), "a study has one task"),
    **dict.fromkeys(
        ("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
         "prompt_tuning_init_state_dict_path", "prompt_tuning_init_task"),
        "peft would read other files while it is built: prompts start from what is here",
    ),
    **dict.fromkeys(
        ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules",
         "hidden_size"),
        "the backbone says it",
    ),
    "adapter_names": "peft drops it in silence for all but a few types: a trial is one adapter",
    "bias": "it trains every bias of the model, not those of the sites: use bitfit or peft:BEFT",
    "modules_to_save": "the task head is always trained, and saved with the adapter",
    "fan_in_fan_out": "the backbone says how its weights are stored",
    "save_projection": "it is always saved: a seed gives other numbers on other machines",
    "save_only_topk_weights": "it is for inference alone",
    "save_indices": "they are always saved",
    "task_type": "the study's `model.task` says it",
    "layer_replication": "the backbone's layers stay as they are",
    "boft_n_butterfly_factor": "peft drops all factors but one, and says nothing, where its CUDA "
    "extension is not built: write `boft`, whose factors need none",
    "trainable_token_indices": "the embeddings stay frozen",
    "auxiliary_loss_weight": "peft adds the loss of a second head, on the labels: a trial trains "
    "by the task's loss, and that head is left out",
    "shadow_model": "peft would read another model from disk: the network is drawn anew",
    "shadow_num_attention_heads": "peft leaves the number of keys' heads as it is, and the "
    "network fails where they do not go with it",
}  # fmt: skip
"""Field or argument of `peft` -> why it is no parameter here."""

_NUMBER = "[number"
"""In a text that `peft` lists: a whole number takes the place of it and of what follows."""

_OURS = frozenset(
    {
        "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "use_bdlora", "megatron_core", "ensure_weight_tying", "progressbar",
        "runtime_offload_base_weight", "use_effective_conv2d", "poly_type", "mask_type",
    }
)  # fmt: skip
"""Fields that mean nothing here: they are not parameters, and nobody is told why."""


@lru_cache
def config_class(name: str) -> Any:
    """The configuration class of a type."""
    from peft import PeftType as Known
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[Known(name)]


def schema_of(kind: PeftType) -> MethodSchema:
    """How a type may be written in a space or a configuration."""
    own = config_class(kind.name)
    hints = get_type_hints(own)
    parameters = {
        each.name: parameter
        for each in fields(own)
        if each.init and each.name not in REFUSED and each.name not in _OURS
        and each.name not in kind.fixed
        and (parameter := _parameter(each.name, hints[each.name], default_of(each), kind))
    }  # fmt: skip
    size = [parameters.pop(kind.size)] if kind.size else []
    norm = kind.where == "norm"
    implied = kind.where not in ("linear", "norm")
    return MethodSchema(
        name=PREFIX + kind.name,
        size=kind.size,
        parameters=(*size, *parameters.values()),
        sites=() if implied else NORMS if norm else LINEAR_ROLES,
        default_sites=_default_sites(kind),
        refused=REFUSED,
    )


def _default_sites(kind: PeftType) -> tuple[str, ...]:
    if kind.where == "norm":
        return ("attention_norm", "ffn_norm")
    return ("query", "value") if kind.where == "linear" else ()


def default_of(field: Any) -> Any:
    """A configuration class's field at its default, enumerations as their values."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default.value if isinstance(field.default, Enum) else field.default


def _parameter(name: str, hint: Any, default: Any, kind: PeftType) -> ParameterSchema | None:
    """One field as a parameter; None where its values are no single scalars."""
    if name in (*kind.numbers, *kind.folders):
        return ParameterSchema(name, "str")
    members = _members(hint)
    is_size = name == kind.size
    optional = default is None and not is_size
    if isinstance(default, bool | str) or (default is None and _are_texts(members)):
        return _named(name, members, default, kind, optional=optional)
    if float in members:
        return ParameterSchema(name, "float", default, tacit=not is_size, optional=optional)
    if int in members:
        low = 1 if is_size else None
        return ParameterSchema(
            name, "int", default, minimum=low, tacit=not is_size, optional=optional
        )
    return None


def _are_texts(members: list[Any]) -> bool:
    return bool in members or str in members or bool(_texts(members))


def _named(
    name: str, members: list[Any], default: Scalar | None, kind: PeftType, *, optional: bool
) -> ParameterSchema:
    """A parameter that is no number: true or false, one of some texts, any text, or both."""
    texts, refused = kind.choices.get(name, _texts(members)), kind.refused.get(name, {})
    choices = tuple(t for t in texts if _NUMBER not in t and t not in refused)
    starts = (text.partition(_NUMBER)[0] for text in texts if _NUMBER in text)
    numbered = tuple(start for start in starts if f"{start}N" not in refused)
    of: Literal["bool", "str", "bool|str"] = "bool|str" if choices or numbered else "bool"
    return ParameterSchema(
        name, of if bool in members else "str", default, choices=choices, numbered=numbered,
        refused=refused, tacit=True, optional=optional,
    )  # fmt: skip


def _texts(members: list[Any]) -> tuple[str, ...]:
    """What `peft` lists of a field's legal texts."""
    listed = [v for each in members if get_origin(each) is Literal for v in get_args(each)]
    enums = [each for each in members if isinstance(each, type) and issubclass(each, Enum)]
    return tuple(str(text) for text in (*listed, *(m.value for each in enums for m in each)))


def _members(hint: Any) -> list[Any]:
    """The members of a union, unions within it spread out, without None."""
    if get_origin(hint) in (Union, UnionType):
        return [each for inner in get_args(hint) for each in _members(inner)]
    return [] if hint is NoneType else [hint]


def arguments(kind: PeftType, settings: Mapping[str, Scalar]) -> dict[str, Any]:
    """Settings of a group as arguments of the configuration class."""
    whole = {
        each.name
        for each in fields(config_class(kind.name))
        if isinstance(default_of(each), float)
    }
    given: dict[str, Any] = {n: float(v) if n in whole else v for n, v in settings.items()}
    given |= {name: numbers_of(str(given[name])) for name in kind.numbers if name in given}
    for name in kind.folders:  # of which peft wants the places in their order for names
        given[name] = {str(n): each for n, each in enumerate(folders_of(str(given[name])))}
    return given | dict(kind.fixed)


def numbers_of(text: str) -> list[int]:
    """The whole numbers of a text such as `101 102, 1000-1099`, ascending, each once.

    Raises:
        ValueError: It is none of these.
    """
    found: set[int] = set()
    for part in text.replace(",", " ").split():
        first, dash, last = part.partition("-")
        found |= set(range(int(first), int(last) + 1)) if dash else {int(first)}
    if not found:
        raise ValueError(f"no numbers in {text!r}")
    return sorted(found)


def folders_of(text: str) -> list[str]:
    """The folders of a text such as `/adapters/law, /adapters/code`, in its order."""
    return [folder for part in text.split(",") if (folder := part.strip())]
