"""Where a study lives: its database and its folder of artifacts."""

import hashlib
import importlib.util
import os
import re
from pathlib import Path

from autopeft.errors import AutopeftError
from autopeft.study.names import NAME_PATTERN

STORAGE_VARIABLE = "AUTOPEFT_STORAGE"
OUTPUT_VARIABLE = "AUTOPEFT_OUTPUT"
DEFAULT_STORAGE = "sqlite:///autopeft.db"
DEFAULT_OUTPUT = "autopeft-runs"

_SECRET = re.compile(r"://[^/?]*@|[?&](?:password|passfile|sslpassword)=")


def storage_url(url: str | None = None) -> str:
    """The database: the argument, else `AUTOPEFT_STORAGE`, else a file in the working folder."""
    return url or os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE


def has_secret(url: str) -> bool:
    """Whether a storage URL may hold a password, and so must not be shown."""
    return _SECRET.search(url) is not None


def shown_storage(url: str | None = None) -> str:
    """The database as messages show it: without a password."""
    found = storage_url(url)
    if not has_secret(found):
        return found
    from storage.place import parse_place

    return str(parse_place(found))


def output_folder(study: str, output_dir: Path | None = None) -> Path:
    """The study's artifacts: the argument or `AUTOPEFT_OUTPUT`, else `autopeft-runs/<study>`.

    A name from a database or a file of anyone's that is no study's name, `../..` say, gets a
    folder within `autopeft-runs` all the same.
    """
    if output_dir is not None:
        return output_dir.absolute()
    if given := os.environ.get(OUTPUT_VARIABLE):
        return Path(given).absolute()
    return Path(DEFAULT_OUTPUT, _folder_name(study)).absolute()


def _folder_name(study: str) -> str:
    if not study or re.fullmatch(NAME_PATTERN, study):
        return study
    digest = hashlib.sha256(study.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', study).strip('-')[:80]}-{digest}".strip("-")


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
