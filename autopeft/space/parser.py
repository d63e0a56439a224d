"""The YAML block of a space -> `Space`, with every fault of the block at once."""

from collections.abc import Mapping
from typing import Any

from autopeft.space.binding import MethodSpace, SpaceParts
from autopeft.space.exclusion import check_own_training, read_exclusive
from autopeft.space.faults import Faults
from autopeft.space.layers_parser import read_layers
from autopeft.space.method_names import listed, why_unknown
from autopeft.space.method_parser import MethodParser
from autopeft.space.schema import MethodSchema, RuleSchema
from autopeft.space.space import Space
from autopeft.space.sparsity import RuleSpace
from autopeft.space.sparsity_parser import read_sparsity
from autopeft.space.training_parser import read_training

SCHEMA = "autopeft/space/v1"

_KEYS = ("schema", "description", "source", "methods", "one_of", "layers", "sparsity", "training")
_KEY_SPELLINGS = {"method": "methods", "layer": "layers", "hyperparameters": "training"}


def parse_space(
    block: Mapping[str, Any],
    schemas: Mapping[str, MethodSchema],
    *,
    rules: Mapping[str, RuleSchema],
    name: str,
    where: str,
    is_file: bool = False,
) -> Space:
    """The space that a block describes.

    Args:
        block: Plain data, as YAML gives it.
        schemas: The registered methods by name.
        rules: The registered sparsity rules by name.
        name: The space's name.
        where: What the block is called in errors.
        is_file: Whether it must name its schema; an inline block need not.

    Raises:
        SpaceError: With all faults of the block.
    """
    faults = Faults(where)
    _check_keys(block, faults, is_file=is_file)
    layers = read_layers(block.get("layers", {"mode": "all"}), "layers", faults, of_space=True)
    methods = _methods(block.get("methods"), schemas, faults)
    names = tuple(sorted(method.schema.name for method in methods))
    listed: tuple[RuleSpace, ...] = ()
    if "sparsity" in block:
        listed = read_sparsity(block["sparsity"], rules, names, faults)
    training = read_training(block.get("training", {}), "training", faults)
    exclusive = read_exclusive(block.get("one_of", []), methods, faults)
    check_own_training(methods, exclusive, training, faults)
    if "layers" in block and methods and all(m.layers.mode != "shared" for m in methods):
        hint = "give a method `layers: {mode: shared}`, or remove the space's own layers"
        faults.add("layers", "layers that no method uses", "layers that a method shares", hint)
    faults.raise_if_any()
    return Space(
        name=name,
        where=where,
        parts=SpaceParts(
            methods=tuple(sorted(methods, key=lambda method: method.schema.name)),
            layers=layers,
            training=training,
            rules=listed,
            exclusive=exclusive,
        ),
        description=str(block.get("description", "")),
        source=str(block.get("source", "")),
        block=dict(block),
    )


def _check_keys(block: Mapping[str, Any], faults: Faults, *, is_file: bool) -> None:
    for key in block:
        if key not in _KEYS:
            faults.unknown(key, key, _KEYS, _KEY_SPELLINGS)
    if (is_file or "schema" in block) and block.get("schema") != SCHEMA:
        given = block.get("schema", "no schema")
        faults.add("schema", given, SCHEMA, f"write `schema: {SCHEMA}`")
    for key in ("description", "source"):
        if not isinstance(block.get(key, ""), str):
            faults.add(key, block[key], "text")


def _methods(
    raw: Any, schemas: Mapping[str, MethodSchema], faults: Faults
) -> tuple[MethodSpace, ...]:
    known = listed(schemas)
    if not isinstance(raw, Mapping) or not raw:
        faults.add("methods", raw, f"a mapping of at least one method: {known}")
        return ()
    methods = []
    for name, block in raw.items():
        key = f"methods.{name}"
        if name not in schemas:
            faults.add(key, name, known, why_unknown(str(name), schemas, say="write {}"))
        elif not isinstance(block, Mapping):
            size = schemas[name].size
            example = f"{{{size}: {{choice: [0, 8]}}}}" if size else "{}, or {present: true}"
            faults.add(key, block, f"a mapping such as {example}")
        else:
            method = MethodParser(schemas[name], key, faults).parse(block)
            methods += [method] if method else []
    return tuple(methods)
