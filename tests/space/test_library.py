import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from made_up_rules import RULES

from autopeft.errors import InputError, NotFoundError, SpaceError
from autopeft.space.layer_choice import MODES
from autopeft.space.library import list_spaces, load_space
from autopeft.space.schema import MethodSchema, Shape

Schemas = Mapping[str, MethodSchema]

ALL = ("autopeft", "everything", "importance", "lora", "methods", "mixed", "quick")
MADE_UP = tuple(name for name in ALL if name not in ("everything", "methods"))
"""Those that name none but the methods of these tests' own schemas."""


def test_the_spaces_that_come_along(schemas: Schemas, minilm: Shape, bert_base: Shape) -> None:
    assert list_spaces() == ALL
    for name in MADE_UP:
        space = load_space(name, schemas=schemas, rules=RULES)
        assert space.name == name
        assert space.description
        for shape in (minilm, bert_base):
            assert space.bind(shape).distinct > 1000


def test_an_unknown_name_lists_the_known(schemas: Schemas) -> None:
    with pytest.raises(
        NotFoundError, match=r"importance, lora, methods, mixed, quick; write mixed"
    ):
        load_space("mixd", schemas=schemas, rules=RULES)


def test_a_relative_path_starts_at_base(schemas: Schemas, tmp_path: Path) -> None:
    text = "schema: autopeft/space/v1\nmethods: {lora: {rank: 8}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    for source in ("mine.yaml", "./mine.yaml", Path("mine.yaml"), tmp_path / "mine.yaml"):
        assert load_space(source, schemas=schemas, rules=RULES, base=tmp_path).name == "mine"


def test_a_file_must_name_its_schema(schemas: Schemas, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("methods: {lora: {rank: 8}}\n")
    with pytest.raises(SpaceError, match=r"mine\.yaml: schema.*autopeft/space/v1"):
        load_space(path, schemas=schemas, rules=RULES)


def test_a_missing_file_is_named(schemas: Schemas, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml; got no such file"):
        load_space("none.yaml", schemas=schemas, rules=RULES, base=tmp_path)


def test_an_inline_block_is_named_as_told(schemas: Schemas) -> None:
    with pytest.raises(SpaceError, match=r"^study\.yaml: methods"):
        load_space({}, schemas=schemas, rules=RULES, where="study.yaml")


def test_the_space_by_importance_needs_a_map_and_all_its_ways(
    schemas: Schemas, minilm: Shape
) -> None:
    space = load_space("importance", schemas=schemas, rules=RULES)
    assert space.measured
    names = {dimension.name for dimension in space.bind(minilm).dimensions}
    assert {
        "lora.layers.keep",
        "sparse.density",
        "sparse.layers.keep",
        "layers.first",
        "sparsity.rule",
        "sparsity.keep",
        "sparsity.budget",
    } <= names
    assert not load_space("mixed", schemas=schemas, rules=RULES).measured


def test_the_guide_writes_modes_of_layers_as_they_are_read() -> None:
    guide = Path(__file__).parents[2].joinpath("docs", "guide.md").read_text(encoding="utf-8")
    said = set(re.findall(r"\{mode: (\w+)", guide))
    assert set(MODES) - said == set()
    assert said <= set(MODES)
    assert not re.search(r"layers: all|are `all`", guide)
