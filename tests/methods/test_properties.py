"""What others ask of a method is said in its file: adding one touches nothing else."""

import ast
from pathlib import Path

import pytest

import autopeft
from autopeft.methods import registry

ROOT = Path(autopeft.__file__).parent
EVERY = (*registry.names(), *registry.offered())


@pytest.mark.parametrize("name", EVERY)
def test_a_method_without_sites_says_what_of_a_layer_reaches_it(name: str) -> None:
    """The memory model asks: without an answer it would count a layer without its attention."""
    method = registry[name]
    if method.schema.sites:
        assert method.reached == ""
    else:
        assert method.reached in ("attention", "norms", "nothing")


@pytest.mark.parametrize(
    ("file", "own"),
    [("training/pass_memory.py", set()), ("export/peft_folding.py", {"lora"})],
)
def test_no_method_is_named_where_methods_are_asked(file: str, own: set[str]) -> None:
    tree = ast.parse(ROOT.joinpath(file).read_text(encoding="utf-8"))
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert texts & set(EVERY) == own
