"""What a runner needs that lies on its coordinator's machine: files, and who names them.

No shared disk is assumed, and none is in the way: a file that lies on the node under the same path
(with the same size) is used there, all others are sent along. Whether the runner then holds the
study's very backbone and data is told by their fingerprints, which it compares once it has loaded
them (`worker_materials`).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from autopeft.backbone.files import MODEL_PATTERNS, PICKLE_PATTERNS, safetensors_files
from autopeft.errors import Fault, InputError

MOST_BYTES = 1 << 30
"""More than this is not sent to every runner, but must lie on its node: 1 GiB, which holds a
model of 250 M parameters in float32."""

CACHE = "cache"
"""Within `data/`: what `datasets` made of files, and makes again."""


@dataclass(frozen=True)
class Parcel:
    """Files that one value of a request names.

    Attributes:
        key: Where the value stands in the request.
        value: What it is where the runner is: a place below its folder.
        files: What has to lie there, by place below that folder; local paths.
        in_place: The value as it is here, if the runner may find it under the same path; or None.
        hint: What helps where they are too large to be sent.
    """

    key: tuple[str, ...]
    value: str
    files: Mapping[str, Path]
    in_place: Path | None = None
    hint: str = "put it on a disk that all nodes see, or name a model of the hub"

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of its files, by their paths here."""
        return {str(path): path.stat().st_size for path in self.files.values()}

    def check_size(self, host: str) -> None:
        """Make sure that the files may be sent to a node.

        Raises:
            InputError: They are too large.
        """
        total = sum(self.sizes.values())
        if total > MOST_BYTES:
            raise InputError(
                Fault(
                    "ray",
                    ".".join(self.key).removeprefix("definition."),
                    f"{self.in_place}, {total / 2**30:.1f} GiB, not on {host}",
                    f"the same path on every node, or at most {MOST_BYTES / 2**30:g} GiB to send",
                    self.hint,
                )
            )


def study_parcels(request: Mapping[str, Any]) -> list[Parcel]:
    """What the runners of a study need beside their request, a plain `worker_materials.Request`.

    Models and data sets of the hub are no parcels: a node takes them from its own cache or the
    hub.
    """
    definition, output = request["definition"], Path(request["output_dir"])
    parcels = [
        Parcel(("output_dir",), "output", _materialised(output)),
        Parcel(("activations",), "activations", {}),
    ]
    for block, key, choose in (
        ("model", "name_or_path", _model_files),
        ("data", "source", _data_files),
    ):
        path = Path(definition[block][key]).expanduser()
        if path.is_absolute() and path.exists():
            value = f"{block}/{path.name}"
            files = _placed(choose(path), path, value)
            parcels.append(Parcel(("definition", block, key), value, files, path))
    if request["importance"] is not None:
        path = Path(request["importance"])
        beside = sorted(path.parent.glob(f"{path.stem}.*"))
        files = {f"importance/{each.name}": each for each in beside}
        hint = "give an output folder (--output-dir) on a disk that all nodes see"
        value = f"importance/{path.name}"
        parcels.append(Parcel(("importance",), value, files, path, hint))
    return parcels


def readdressed(request: Mapping[str, Any], values: Mapping[tuple[str, ...], str]) -> Any:
    """A request whose values at some keys are others."""
    result = copy.deepcopy(dict(request))
    for key, value in values.items():
        block = result
        for part in key[:-1]:
            block = block[part]
        block[key[-1]] = value
    return result


def beside(paths: Sequence[Path]) -> list[Path]:
    """Files with all that lies beside them under the same stem: a lane's state and its profile."""
    return [each for path in paths for each in sorted(path.parent.glob(f"{path.stem}.*"))]


def _materialised(output: Path) -> dict[str, Path]:
    """The built-in data set as the study was created with; nothing for other data."""
    found: dict[str, Path] = {}
    for folder in (output / "data").glob("*"):
        if folder.name != CACHE:
            found |= _placed(_data_files(folder), folder, f"output/data/{folder.name}")
    return found


def _model_files(folder: Path) -> list[Path]:
    """What is loaded of a saved model: only files at its top; pickles where there is no other."""
    wanted = MODEL_PATTERNS if safetensors_files(folder) else (*MODEL_PATTERNS, *PICKLE_PATTERNS)
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in wanted)
    ]


def _data_files(path: Path) -> list[Path]:
    """A file, or all files of a folder but the hidden ones."""
    if path.is_file():
        return [path]
    return [
        each
        for each in sorted(path.rglob("*"))
        if each.is_file() and not any(p.startswith(".") for p in each.relative_to(path).parts)
    ]


def _placed(files: Sequence[Path], root: Path, value: str) -> dict[str, Path]:
    """Files by their places below `value`, as they lie below `root`, or are it."""
    return {str(PurePosixPath(value, *each.relative_to(root).parts)): each for each in files}
