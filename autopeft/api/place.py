"""Where a study lives: its database and its folder of artifacts."""

import importlib.util
import os
from pathlib import Path

from autopeft.errors import AutopeftError

STORAGE_VARIABLE = "AUTOPEFT_STORAGE"
OUTPUT_VARIABLE = "AUTOPEFT_OUTPUT"
DEFAULT_STORAGE = "sqlite:///autopeft.db"
DEFAULT_OUTPUT = "autopeft-runs"


def storage_url(url: str | None = None) -> str:
    """The database: the argument, else `AUTOPEFT_STORAGE`, else a file in the working folder."""
    return url or os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE


def output_folder(study: str, output_dir: Path | None = None) -> Path:
    """The study's artifacts: the argument or `AUTOPEFT_OUTPUT`, else `autopeft-runs/<study>`."""
    if output_dir is not None:
        return output_dir.absolute()
    if given := os.environ.get(OUTPUT_VARIABLE):
        return Path(given).absolute()
    return Path(DEFAULT_OUTPUT, study).absolute()


def activations_folder(output: Path) -> Path:
    """Where frozen activations go that memory does not hold, within a study's artifacts."""
    return output / "activations"


def check_packages() -> None:
    """`storage` and `dashboard` are names that others use too: make sure that they are ours.

    Raises:
        AutopeftError: Another package or module of that name would be imported in their place.
    """
    home = Path(__file__).resolve().parents[2]
    for name in ("storage", "dashboard"):
        spec = importlib.util.find_spec(name)
        found = Path((spec and spec.origin) or "nowhere").resolve()
        if home not in found.parents:
            raise AutopeftError(
                f"`{name}` is {found} here, not autopeft's own package beside {home / 'autopeft'}",
                hint="rename that file, or start autopeft from another folder",
            )
