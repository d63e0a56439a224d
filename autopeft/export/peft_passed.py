"""Adapters of `peft`'s own types, as `peft` itself writes them.

One type with one set of parameters is one adapter. Module names are written in full: `peft` would
shorten a long list to what is unique among them. LoRA that took what it starts from out of the
weights is written as what it learnt on whole weights, of twice the rank: nothing has to be
decomposed again to load it, and other programs than `peft` can. What is yet to be trained is not.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.heads import HeadRecipe
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration
from autopeft.counting import placed_groups
from autopeft.errors import ExportError, Fault
from autopeft.export.peft_options import plain_config, shared_options
from autopeft.export.peft_prefix import CLASSIFIES_BY_CACHE
from autopeft.methods import registry
from autopeft.methods.passed.adapter import TokensAdapter, passed_adapters
from autopeft.methods.passed.build import ROOT, Target, config_of
from autopeft.methods.passed.counts import target_of
from autopeft.methods.passed.embedding import PassedEmbedding
from autopeft.methods.passed.encoder import Widths, encoder_config
from autopeft.methods.passed.family import PassedType
from autopeft.methods.passed.layers import PassedLayers
from autopeft.methods.passed.method import Passed
from autopeft.methods.passed.starts import apart_settings, takes_out
from autopeft.methods.passed.tokens import PassedTokens

ONCE_TRAINED = (
    "use --format yaml: what autopeft train makes of it loads through peft, docs/peft.md"
)
"""What to do with a configuration that is no single adapter of one type."""


def passes_on(configuration: Configuration) -> bool:
    """Whether a configuration has groups of `peft`'s own types."""
    return any(registry[name].alone for name in configuration.methods)


def passed_faults(configuration: Configuration) -> list[Fault]:
    """Why a configuration with `peft`'s own types is no single adapter of `peft`."""
    faults = [
        Fault(
            "export", name, why, "what HF peft saves whole", "use --format yaml, and autopeft.load"
        )
        for name in configuration.methods
        if (why := _unheld(name))
    ]
    if faults:
        return faults
    adapters = {(group.method, group.settings) for group in configuration.groups}
    if len(adapters) == 1:
        return []
    given = f"{len(adapters)} adapters: {', '.join(sorted(name for name, _ in adapters))}"
    return [Fault("export", "", given, "one type with one set of parameters", ONCE_TRAINED)]


def _unheld(name: str) -> str:
    method = registry[name]
    return method.unheld if isinstance(method, PassedType) else ""


def language_model_faults(configuration: Configuration) -> list[Fault]:
    """What HF peft holds of classifiers alone; [] where that is nothing.

    Embeddings of tokens: a language model's head may share them, and `peft` trains both then.
    """
    given = "tokens of a language model, whose head peft trains with them where it is tied"
    return [
        Fault("export", name, given, "a classifier's tokens", "use --format yaml")
        for name in configuration.methods
        if isinstance(registry[name], PassedEmbedding)
    ]


def passed_config(
    configuration: Configuration, anatomy: Anatomy, head: HeadRecipe, *, base_model: str
) -> dict[str, Any]:
    """Content of `adapter_config.json`; `passed_faults` has found none.

    Raises:
        ExportError: No transformers task class has such a head.
        BackboneError: `peft` refuses the parameters.
    """
    if is_prefixed(configuration):
        return _tokens_config(configuration, anatomy, head, base_model)
    places = [place for _, place in placed_groups(configuration, anatomy)]
    targets = tuple(target_of(place) for place in places)
    return _config(configuration, targets, _options(configuration, head, base_model))


def passed_tensors(
    configuration: Configuration,
    backbone: Backbone,
    head: HeadRecipe,
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Both files of an adapter without its head's tensors; `passed_faults` has found none.

    Args:
        configuration: One type with one set of parameters.
        backbone: What it was trained on.
        head: The task head.
        weights: The lane's tensors by saved name, fixed ones too.
    """
    placed = placed_groups(configuration, backbone.anatomy)
    (adapter,) = passed_adapters(placed, backbone, seed=lambda name: 0, saved=weights)
    if isinstance(adapter, TokensAdapter):
        config = _tokens_config(configuration, backbone.anatomy, head, backbone.name)
        return config, _apart(adapter.built.saved())
    options = _options(configuration, head, backbone.name)
    prefix = f"{ROOT}{backbone.model.base_model_prefix}."
    tensors = {
        prefix + name.removeprefix(ROOT) if name.startswith(ROOT) else name: tensor
        for name, tensor in adapter.built.apart().items()
    }
    config = _config(configuration, tuple(adapter.places), options, learnt=True)
    return config, _apart(tensors)


def second_head(configuration: Configuration, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head that `peft` asks for beside the task's, and has start as the same; {} for most.

    Nothing reads it where its loss is left out.

    Args:
        configuration: One type with one set of parameters.
        head: Tensors of the task's, a single map, by name; {} for a language model's.
    """
    if not isinstance(registry[configuration.groups[0].method], PassedLayers):
        return {}
    at = "base_model.shadow_head.default"
    return {f"{at}.{name.rpartition('.')[2]}": tensor.clone() for name, tensor in head.items()}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def is_prefixed(configuration: Configuration) -> bool:
    """Whether its one type puts something before every text."""
    return isinstance(registry[configuration.groups[0].method], PassedTokens)


def _options(configuration: Configuration, head: HeadRecipe, base_model: str) -> Mapping[str, Any]:
    """Those of every type.

    Raises:
        ExportError: No transformers task class has such a head; or embeddings are trained that
            a language model's head may share with them.
    """
    faults = language_model_faults(configuration) if head.pool == "all" else []
    if faults:
        raise ExportError(faults)
    return shared_options(head, base_model)


def _tokens_config(
    configuration: Configuration, anatomy: Anatomy, head: HeadRecipe, base_model: str
) -> dict[str, Any]:
    """Content of `adapter_config.json` of what stands before every text."""
    group = configuration.groups[0]
    method = registry[group.method]
    if not isinstance(method, PassedTokens):
        raise TypeError(f"{group.method} puts nothing before a text")
    options = shared_options(head, base_model)
    if method.kind.where == "prefix" and head.pool != "all":
        options["task_type"] = CLASSIFIES_BY_CACHE
    widths = Widths.of(method.kind, anatomy)
    return plain_config(encoder_config(method.kind, dict(group.settings), widths, **options))


def _config(
    configuration: Configuration,
    targets: tuple[Target, ...],
    options: Mapping[str, Any],
    *,
    learnt: bool = False,
) -> dict[str, Any]:
    """Of modules: to be trained, or of what was `learnt` on whole weights."""
    group = configuration.groups[0]
    method = registry[group.method]
    if not isinstance(method, Passed):
        raise TypeError(f"{group.method} is no type of peft")
    settings = dict(group.settings)
    if learnt and takes_out(method.kind, settings):
        settings = apart_settings(method.complete(group))
    plain = plain_config(config_of(method.kind, settings, targets, **options))
    if method.kind.where == "attention":
        return plain  # which names them by their number
    if method.kind.ends:
        return plain | {"layers_to_transform": list(group.layers)}
    return plain | {"target_modules": sorted(target.name for target in targets)}
