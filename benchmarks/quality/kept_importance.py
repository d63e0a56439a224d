"""An importance map as a table keeps it: what a search problem reads of it, and no more.

Tables are rebuilt into problems without weights. A problem ranks layers and sites by their totals,
weighs what a configuration covers by them, and counts what SPT comes to by the order of the single
weights of all sites; which weights those are does not matter to it. So a table keeps totals, and
whose the weights are in descending order: half a megabyte of a map's twenty-seven.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.backbone.importance import ImportanceMap, Key, SiteScores

KEPT = "importance"
"""Its name among a table's metadata in memory."""

ORDERED = "sensitivity"
"""The score whose order of single weights is kept: that of SPT in the space `importance`."""

_PARTS = 3
"""float32 numbers whose sum is a float64 number, exactly."""


def kept_text(found: ImportanceMap) -> str:
    """A map as a table keeps it: a compressed archive, in base64."""
    keys = sorted(found.of(ORDERED))
    first = found.of(ORDERED)
    arrays: dict[str, NDArray[Any]] = {
        "layers": np.array([layer for layer, _ in keys], dtype=np.int32),
        "roles": np.array([role for _, role in keys]),
        "d_in": np.array([len(first[key].inputs) for key in keys], dtype=np.int64),
        "d_out": np.array([len(first[key].outputs) for key in keys], dtype=np.int64),
        "owners": _owners([first[key].values for key in keys]),
        "fixed": np.array([found.block, found.examples], dtype=np.int64),
        "fingerprint": np.array(found.fingerprint),
    }
    for name, sites in found.scores.items():
        arrays[f"total {name}"] = np.array([sites[key].total for key in keys])
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return base64.b64encode(stream.getvalue()).decode("ascii")


def kept_file(folder: Path, table: str) -> Path:
    """Where it lies beside a table: Parquet would keep it three times, in its metadata."""
    return folder / f"{table}.npz"


def write_kept(folder: Path, table: str, found: ImportanceMap) -> None:
    """Write a map beside a table."""
    path = kept_file(folder, table)
    path.with_suffix(".tmp").write_bytes(base64.b64decode(kept_text(found)))
    path.with_suffix(".tmp").replace(path)


def read_kept(folder: Path, table: str) -> dict[str, str]:
    """What a table's metadata gain by the file beside it; nothing where there is none."""
    path = kept_file(folder, table)
    return {KEPT: base64.b64encode(path.read_bytes()).decode("ascii")} if path.exists() else {}


def kept_map(text: str) -> ImportanceMap:
    """A map with the totals and the order of what `kept_text` was given.

    Totals lie in the first output channels, orders in made-up values; neither blocks nor channels
    are there.
    """
    stream = io.BytesIO(base64.b64decode(text))
    with np.load(stream, allow_pickle=False) as arrays:
        kept = dict(arrays)
    keys = [
        (int(layer), str(role)) for layer, role in zip(kept["layers"], kept["roles"], strict=True)
    ]
    shapes = list(zip(kept["d_in"].tolist(), kept["d_out"].tolist(), strict=True))
    totals = {name.removeprefix("total "): each for name, each in kept.items() if "total " in name}
    block, examples = kept["fixed"].tolist()
    scores = {
        name: _sites(keys, shapes, own, kept["owners"] if name == ORDERED else kept["owners"][:0])
        for name, own in totals.items()
    }
    return ImportanceMap(scores, block, examples, str(kept["fingerprint"]))


def _owners(values: Sequence[NDArray[np.float32]]) -> NDArray[Any]:
    """Whose the weights of all sites are, the highest first, as `sparsity.ranking` orders them."""
    of = np.repeat(np.arange(len(values)), [len(own) for own in values])
    order = np.argsort(-np.concatenate(values), kind="stable")
    return np.asarray(of[order].astype(np.min_scalar_type(len(values))))


def _sites(
    keys: Sequence[Key],
    shapes: Sequence[tuple[int, int]],
    totals: NDArray[np.float64],
    owners: NDArray[Any],
) -> dict[Key, SiteScores]:
    # float32 holds whole numbers up to 2^24 exactly: more weights than a map keeps.
    ranks = [np.flatnonzero(owners == place) for place in range(len(keys))]
    return {
        key: SiteScores(
            inputs=np.zeros(d_in, dtype=np.float32),
            outputs=_with_total(d_out, total),
            blocks=np.zeros((0, 0), dtype=np.float32),
            weights=own.astype(np.int64),
            values=(len(owners) - own).astype(np.float32),
        )
        for key, (d_in, d_out), total, own in zip(keys, shapes, totals, ranks, strict=True)
    }


def _with_total(n: int, total: float) -> NDArray[np.float32]:
    """`n` numbers whose float64 sum is `total`."""
    inputs, left = np.zeros(n, dtype=np.float32), total
    for place in range(_PARTS):
        inputs[place] = left
        left -= float(inputs[place])
    return inputs
