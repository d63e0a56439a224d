"""docs/adding-a-method.md shows the files that it speaks of, and what runs."""

import re
from pathlib import Path

from autopeft.methods import registry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")


def test_the_method_that_is_shown_is_the_one_that_runs() -> None:
    method, reference = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    files = [ROOT / "autopeft/methods/ssf.py", ROOT / "tests/methods/references/ssf.py"]
    assert [method, reference] == [path.read_text(encoding="utf-8") for path in files]
    assert "ssf" in registry.names()
    (line,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    for name in ("methods", "everything"):
        assert "ssf:" in (ROOT / f"search_spaces/{name}.yaml").read_text(encoding="utf-8")
    assert line in (ROOT / "search_spaces/methods.yaml").read_text(encoding="utf-8")


def test_every_file_that_is_named_is_there() -> None:
    named = re.findall(r"`((?:[\w/]+/)?\w+\.(?:py|yaml))`", PAGE)
    folders = ("", "autopeft/methods", "tests/methods", "search_spaces")
    for name in (each for each in set(named) if "NAME" not in each):
        assert any((ROOT / folder / name).is_file() for folder in folders), name
