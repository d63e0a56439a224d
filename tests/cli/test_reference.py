"""The CLI reference says what the commands say."""

from pathlib import Path

import pytest

from autopeft.cli.methods_page import page
from autopeft.cli.reference import reference

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "cli.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "write it again: python -m autopeft.cli.reference > docs/cli.md"
    )


def test_the_page_of_methods_is_up_to_date() -> None:
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == page(), "write it: make docs"


@pytest.mark.parametrize("command", ["search", "front", "db upgrade", "doctor"])
def test_commands_have_a_section(command: str) -> None:
    assert f"\n## `autopeft {command}`\n" in reference()


@pytest.mark.parametrize(
    "row",
    [
        "| `--pick best\\|knee\\|smallest` | Choose one trial, and say why. |",
        "| `--port PORT` | Where to listen. Default: `8501`. |",
        "| `TRIAL` | The trial's number. |",
        "| `-o, --output DIR` | Where the adapter goes. Required. |",
    ],
)
def test_options_have_rows(row: str) -> None:
    assert row in reference().splitlines()
