"""Exact counts and costs of a configuration, in closed form: nothing is built or measured.

`trainable_params` counts what a deployed adapter must store, after folding re-parametrisations,
without head and padding; `training_params` counts what the optimiser updates. FLOPs count the
linear maps (2 per multiply-add); attention scores, norms and the head are left out, being nearly
the same for all configurations of a study.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from autopeft.backbone.anatomy import EXIT, Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError, Fault
from autopeft.methods import registry
from autopeft.methods.lane_operator import Place
from autopeft.methods.passed.family import PassedType, whole_model
from autopeft.methods.passed.tokens import PassedTokens
from autopeft.sparsity import rules

BYTES_PER_SCALAR = 4


def resolved(configuration: Configuration, anatomy: Anatomy) -> Configuration:
    """The configuration whose groups are built, see `autopeft.sparsity`."""
    return rules.of(configuration).resolved(configuration, anatomy)


def faults(configuration: Configuration, anatomy: Anatomy) -> list[Fault]:
    """Why a configuration cannot be built on a backbone; [] where it can."""
    try:
        groups = resolved(configuration, anatomy).groups
    except BackboneError as error:
        return list(error.faults)
    own = [fault for group in groups for fault in registry[group.method].faults(group, anatomy)]
    if own:
        return own
    by_itself = _by_itself_faults(groups, configuration)
    return [*_passed_faults(groups, anatomy), *(by_itself or _prompt_faults(groups))]


def _passed_faults(groups: Sequence[Group], anatomy: Anatomy) -> list[Fault]:
    """What groups of `peft`'s types cannot have beside each other."""
    taken: dict[tuple[int, str], str] = {}
    alone = [group for group in groups if registry[group.method].alone]
    faults = []
    for group in alone:
        for place in registry[group.method].places(group, anatomy):
            first = taken.setdefault((place.layer, place.site), group.method)
            if first != group.method:  # their layers would not know of each other
                given = f"beside {first} at layer {place.layer}, {place.site}"
                allowed = "one of peft's types at a place"
                faults.append(Fault("configuration", group.method, given, allowed))
    seen = Counter((group.method, group.settings) for group in alone)
    for (name, _), number in seen.items():
        method = registry[name]
        if number > 1 and isinstance(method, PassedType) and method.kind.shared:
            given = "different sites in different layers"
            allowed = "the same sites in all its layers, which share tensors"
            faults.append(Fault("configuration", f"{name}.sites", given, allowed))
    return faults


def _by_itself_faults(groups: Sequence[Group], configuration: Configuration) -> list[Fault]:
    """What stands beside a type of `peft` that has the whole model to itself."""
    wholes = [(g, whole_model(registry[g.method])) for g in groups]
    first, why = next(((g, why) for g, why in wholes if why), (None, ""))
    if first is None:
        return []
    faults = []
    others = sorted({group.method for group in groups} - {first.method})
    if others:
        given, allowed = f"beside {', '.join(others)}", f"nothing beside it: {why}"
        hint = ""
        if isinstance(registry[first.method], PassedTokens):
            ours = "prefix" if registry[first.method].keys(first) else "prompt"
            hint = f"`{ours}` stands beside other methods"
        faults.append(Fault("configuration", first.method, given, allowed, hint))
    elif len(groups) > 1:
        given, allowed = f"{len(groups)} groups", f"one group: {why}"
        faults.append(Fault("configuration", first.method, given, allowed))
    rule = str(dict(configuration.sparsity)["rule"])
    if rule != "none":
        faults.append(Fault("configuration", "sparsity.rule", rule, f"none: {why}"))
    return faults


def _prompt_faults(groups: Sequence[Group]) -> list[Fault]:
    """Tokens that two methods would put before the text of one layer."""
    taken: dict[int, str] = {}
    faults = []
    for group in (group for group in groups if registry[group.method].tokens(group)):
        firsts = {layer: taken.setdefault(layer, group.method) for layer in group.layers}
        twice = [layer for layer, first in firsts.items() if first != group.method]
        if twice:
            layers = ", ".join(map(str, twice))
            given = (
                f"layers {layers}, where {firsts[twice[0]]} puts tokens before the text as well"
            )
            allowed = "one of the two at a layer"
            faults.append(Fault("configuration", f"{group.method}.layers", given, allowed))
    return faults


def option_faults(configuration: Configuration, anatomy: Anatomy) -> list[Fault]:
    """Training options that are on, where not every layer's FFN can be reached."""
    if EXIT["ffn"] in anatomy.roles:
        return []
    hint = "not every layer of this backbone has a known `down` map: declare it in model.sites"
    return [
        Fault("configuration", f"training.{name}", f"{value:g}", "0", hint)
        for name in ("ffn_masking", "ffn_dropping", "density_weight")
        if (value := configuration.training_value(name))
    ]


def placed_groups(configuration: Configuration, anatomy: Anatomy) -> Iterator[tuple[Group, Place]]:
    """Every (group, place) of what a configuration comes to under its sparsity rule."""
    for group in resolved(configuration, anatomy).groups:
        for place in registry[group.method].places(group, anatomy):
            yield group, place


def site_params(configuration: Configuration, anatomy: Anatomy) -> dict[tuple[int, str], int]:
    """Trainable parameters per (layer, site); `prefix` is keyed by its name."""
    counts: Counter[tuple[int, str]] = Counter()
    for group, place in placed_groups(configuration, anatomy):
        counts[place.layer, place.site] += registry[group.method].count(group, place)
    return rules.of(configuration).kept(counts, configuration, anatomy)


def trainable_params(configuration: Configuration, anatomy: Anatomy) -> int:
    """Trainable scalars that a deployed adapter stores."""
    return sum(site_params(configuration, anatomy).values())


def training_params(configuration: Configuration, anatomy: Anatomy) -> int:
    """Scalars that the optimiser updates, without the head."""
    return sum(
        registry[group.method].training_count(group, place)
        for group, place in placed_groups(configuration, anatomy)
    )


def adapter_bytes(configuration: Configuration, anatomy: Anatomy, head_params: int) -> int:
    """Bytes of the saved tensors, head and indices included: float32 and int32."""
    fixed = sum(
        registry[group.method].fixed_count(registry[group.method].folded_group(group), place)
        for group, place in placed_groups(configuration, anatomy)
    )
    return BYTES_PER_SCALAR * (trainable_params(configuration, anatomy) + head_params + fixed)


def first_layer(configuration: Configuration, anatomy: Anatomy) -> int:
    """The branch point: the lowest layer with something trainable."""
    return min(resolved(configuration, anatomy).layers, default=len(anatomy.layers))


def consistency(configuration: Configuration, anatomy: Anatomy) -> float:
    """The largest `consistency` of any method in use: where it is not 0, a step has two passes."""
    groups = resolved(configuration, anatomy).groups
    return max((registry[group.method].consistency(group) for group in groups), default=0.0)


def passes(configuration: Configuration, anatomy: Anatomy) -> int:
    """Forward and backward passes of a training step."""
    return 2 if consistency(configuration, anatomy) else 1


def prompt_tokens(configuration: Configuration, anatomy: Anatomy) -> int:
    """Tokens by which a pass's rows are longer than their text."""
    groups = resolved(configuration, anatomy).groups
    return max((registry[group.method].tokens(group) for group in groups), default=0)


def pass_kind(configuration: Configuration, anatomy: Anatomy) -> tuple[int, int]:
    """What lanes of one pass have in common: how often they run, and by how much rows are longer.

    In longer rows a lane would pay for tokens that it has not got, and its sums over all tokens
    would be taken in another order.
    """
    return passes(configuration, anatomy), prompt_tokens(configuration, anatomy)


def training_flops(configuration: Configuration, anatomy: Anatomy, tokens: int) -> float:
    """FLOPs of training on `tokens` tokens (padding not counted).

    Forward through all layers; backward (gradients of activations only, the weights are frozen)
    down to the branch point; forward, activation and weight gradients of the trained parameters;
    forward and activation gradients of frozen weights that operators meet besides. What tokens of
    prompts cost is not among them: it depends on the number of rows.
    """
    per_layer = _layer_sizes(anatomy)
    branch = first_layer(configuration, anatomy)
    forward, backward = sum(per_layer), sum(per_layer[branch:])
    trained = training_params(configuration, anatomy)
    frozen = sum(
        registry[group.method].frozen_work(group, place)
        for group, place in placed_groups(configuration, anatomy)
    )
    one = 2.0 * (forward + backward) + 6.0 * trained + 4.0 * frozen
    return float(tokens) * passes(configuration, anatomy) * one


def trunk_flops(configuration: Configuration, anatomy: Anatomy, tokens: int) -> float:
    """Those of `training_flops` spent below the branch point, which lanes of a pack share."""
    branch = first_layer(configuration, anatomy)
    size = sum(_layer_sizes(anatomy)[:branch])
    return float(tokens) * passes(configuration, anatomy) * 2.0 * size


def _layer_sizes(anatomy: Anatomy) -> list[int]:
    """Weights of each layer's linear maps."""
    return [
        sum(site.in_features * site.out_features for site in layer.sites.values())
        for layer in anatomy.layers
    ]
