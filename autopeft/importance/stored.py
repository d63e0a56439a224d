"""From an importance map to a record of the store, and back: compressed arrays, no pickles.

Channels, as sums of their weights, are small and apart from blocks and lists of single weights,
which few readers need. Lists that follow from others (see `settings.SHARED`) are not written, and
the random score never is.
"""

import io
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from autopeft.backbone.importance import ImportanceMap, Indices, Key, SiteScores
from autopeft.errors import StorageError
from autopeft.importance.settings import MEASURED, SHARED, ImportanceSettings
from autopeft.study.records import ImportanceRecord

Arrays = Mapping[str, NDArray[Any]]


def to_record(
    found: ImportanceMap,
    settings: ImportanceSettings,
    *,
    backbone: str,
    data: str,
    batch_size: int,
) -> ImportanceRecord:
    """What the store keeps of a map as it was measured.

    Args:
        found: Measured, without the random score.
        settings: What was asked for.
        backbone: The backbone's fingerprint.
        data: The data's fingerprint.
        batch_size: The study's.
    """
    keys = list(next(iter(found.scores.values())))
    return ImportanceRecord(
        key=found.fingerprint,
        backbone=backbone,
        data=data,
        settings=settings.to_dict(batch_size),
        facts={**found.facts, "examples": str(found.examples)},
        units=_packed(_units(found, keys)),
        fine=_packed(_fine(found, keys)),
    )


def from_record(record: ImportanceRecord) -> ImportanceMap:
    """The map of a record; without blocks and weights where the record has none.

    Raises:
        StorageError: Its arrays cannot be read.
    """
    try:
        units = _unpacked(record.units)
        fine = {} if record.fine is None else _unpacked(record.fine)
        keys = [
            (int(layer), str(role))
            for layer, role in zip(units["layers"], units["roles"], strict=True)
        ]
        coarse = {name: _coarse(name, keys, units) for name in MEASURED}
        scores = _refined(coarse, fine, int(record.settings["block"])) if fine else coarse
    except (KeyError, ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise StorageError(
            f"the arrays of the importance map {record.key[:16]} cannot be read ({error})",
            hint="`autopeft importance --again` measures it anew",
        ) from error
    return ImportanceMap(
        scores,
        int(record.settings["block"]),
        int(record.facts["examples"]),
        record.key,
        {name: value for name, value in record.facts.items() if name != "examples"},
    )


# -- channels -------------------------------------------------------------------------------------


def _units(found: ImportanceMap, keys: Sequence[Key]) -> dict[str, NDArray[Any]]:
    first = found.of(MEASURED[0])
    arrays: dict[str, NDArray[Any]] = {
        "layers": np.array([layer for layer, _ in keys], dtype=np.int32),
        "roles": np.array([role for _, role in keys]),
        "d_in": np.array([len(first[key].inputs) for key in keys], dtype=np.int64),
        "d_out": np.array([len(first[key].outputs) for key in keys], dtype=np.int64),
    }
    for name in MEASURED:
        own = found.of(name)
        arrays[f"{name}.inputs"] = np.concatenate([own[key].inputs for key in keys])
        arrays[f"{name}.outputs"] = np.concatenate([own[key].outputs for key in keys])
    return arrays


def _coarse(name: str, keys: Sequence[Key], units: Arrays) -> dict[Key, SiteScores]:
    inputs = _split(units[f"{name}.inputs"], units["d_in"])
    outputs = _split(units[f"{name}.outputs"], units["d_out"])
    blocks, values = np.zeros((0, 0), dtype=np.float32), np.zeros(0, dtype=np.float32)
    weights = np.zeros(0, dtype=np.int64)
    return {
        key: SiteScores(own_in, own_out, blocks, weights, values)
        for key, own_in, own_out in zip(keys, inputs, outputs, strict=True)
    }


def _split(together: NDArray[Any], sizes: NDArray[Any]) -> list[NDArray[Any]]:
    if len(together) != sizes.sum():
        raise ValueError(f"{len(together)} values for {sizes.sum()}")
    return np.split(together, np.cumsum(sizes)[:-1])


# -- blocks and single weights --------------------------------------------------------------------


def _fine(found: ImportanceMap, keys: Sequence[Key]) -> dict[str, NDArray[Any]]:
    """Weights by ascending index, as gaps, which compress; their order follows from the values."""
    arrays: dict[str, NDArray[Any]] = {}
    for name in MEASURED:
        own = [found.of(name)[key] for key in keys]
        arrays[f"{name}.blocks"] = np.concatenate([each.blocks.ravel() for each in own])
        if name in SHARED:
            continue
        orders = [np.argsort(each.weights) for each in own]
        pairs = list(zip(own, orders, strict=True))
        gaps = [np.diff(each.weights[order], prepend=0) for each, order in pairs]
        together = np.concatenate(gaps)
        arrays[f"{name}.gaps"] = together.astype(np.min_scalar_type(int(together.max(initial=0))))
        arrays[f"{name}.values"] = np.concatenate([each.values[order] for each, order in pairs])
        arrays[f"{name}.counts"] = np.array([len(each.weights) for each in own], dtype=np.int64)
    return arrays


def _refined(
    coarse: Mapping[str, dict[Key, SiteScores]], fine: Arrays, block: int
) -> dict[str, dict[Key, SiteScores]]:
    """The scores with blocks and weights."""
    lists = {name: _weights(name, fine) for name in MEASURED if name not in SHARED}
    refined: dict[str, dict[Key, SiteScores]] = {}
    for name, sites in coarse.items():
        shapes = [
            (-(-len(own.inputs) // block), -(-len(own.outputs) // block)) for own in sites.values()
        ]
        sizes = np.array([rows * columns for rows, columns in shapes], dtype=np.int64)
        blocks = _split(fine[f"{name}.blocks"], sizes)
        refined[name] = {
            key: SiteScores(
                own.inputs, own.outputs, of_blocks.reshape(shape), weights, _values(name, values)
            )
            for (key, own), shape, of_blocks, (weights, values) in zip(
                sites.items(), shapes, blocks, lists[SHARED.get(name, name)], strict=True
            )
        }
    return refined


def _weights(name: str, fine: Arrays) -> list[tuple[Indices, NDArray[np.float32]]]:
    """Every site's list, the largest first; of equal ones the first."""
    counts = fine[f"{name}.counts"]
    gaps, values = _split(fine[f"{name}.gaps"], counts), _split(fine[f"{name}.values"], counts)
    lists = []
    for own_gaps, own_values in zip(gaps, values, strict=True):
        indices = np.cumsum(own_gaps.astype(np.int64))
        order = np.argsort(-own_values, kind="stable")
        lists.append((indices[order], own_values[order]))
    return lists


def _values(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a score makes of the list that it shares."""
    return values * values if name == "taylor" else values


# -- bytes ----------------------------------------------------------------------------------------


def _packed(arrays: Arrays) -> bytes:
    stream = io.BytesIO()
    # The stubs take every keyword for `allow_pickle`.
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _unpacked(packed: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        return dict(arrays)
