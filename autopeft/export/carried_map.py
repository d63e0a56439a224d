"""The part of an importance map that one configuration uses, beside its configuration file.

What scores decide (which matrices a rule promotes, which weights are sparse) is decided anew
wherever a configuration is trained. So that this needs no second scoring pass, the scores that it
reads travel along: sums per site in the YAML, for people, and all that is read in a file of
tensors beside it, whose SHA-256 the YAML holds.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.backbone.anatomy import EXIT
from autopeft.backbone.importance import ImportanceMap, Key, SiteScores
from autopeft.configuration import Configuration
from autopeft.errors import Fault, InputError

UNMEASURED = ("magnitude", "random")
"""Scores that a configuration may name and that can be had without a map."""

SUFFIX = ".importance.safetensors"

_PARTS = ("inputs", "outputs", "blocks", "weights", "values")
_DIGITS = 4
"""Significant digits of the sums in the YAML: they are read by people alone."""


@dataclass(frozen=True)
class CarriedMap:
    """Scores that travel with a configuration; equal where the same tensors come from one map.

    Attributes:
        importance: The map, as far as it is used.
        fingerprint: Of the whole map.
        sha256: Of the file of tensors.
    """

    importance: ImportanceMap = field(compare=False, repr=False)
    fingerprint: str
    sha256: str

    @classmethod
    def of(cls, importance: ImportanceMap) -> "CarriedMap":
        """All of a map."""
        digest = hashlib.sha256(_tensor_bytes(importance)).hexdigest()
        return cls(importance, importance.fingerprint, digest)

    def to_plain(self, tensors: str) -> dict[str, Any]:
        """The `importance` block of a configuration file.

        Args:
            tensors: The name of the file of tensors.
        """
        own = self.importance
        scores = {
            score: {
                f"{layer}.{role}": float(f"{total:.{_DIGITS}g}")
                for (layer, role), total in sorted(own.sites(score).items())
            }
            for score in sorted(own.scores)
        }
        return {
            "fingerprint": own.fingerprint,
            "examples": own.examples,
            "block": own.block,
            "facts": dict(own.facts),
            "scores": scores,
            "tensors": {"file": tensors, "sha256": self.sha256},
        }

    def save(self, path: Path) -> None:
        """Write the file of tensors."""
        path.write_bytes(_tensor_bytes(self.importance))


def tensors_path(path: Path) -> Path:
    """Where the tensors of a configuration file lie: beside it."""
    return path.with_name(f"{path.stem}{SUFFIX}")


def carried_map(configuration: Configuration, whole: ImportanceMap) -> CarriedMap | None:
    """What of a map the configuration uses; None where it uses nothing of it.

    Raises:
        BackboneError: It uses a score that was not measured.
    """
    used = used_scores(configuration)
    if not used:
        return None
    scores = {
        score: {key: _trimmed(whole.of(score)[key], configuration) for key in keys}
        for score in sorted(used)
        if (keys := _keys(configuration, whole.of(score)))
    }
    part = ImportanceMap(scores, whole.block, whole.examples, whole.fingerprint, whole.facts)
    return CarriedMap.of(part)


def used_scores(configuration: Configuration) -> frozenset[str]:
    """Names of the scores that decide what a configuration trains, measured ones."""
    named = {group.get("score") for group in configuration.groups}
    sparsity = dict(configuration.sparsity)
    named.add(sparsity.get("score"))
    return frozenset(str(name) for name in named if name and name not in UNMEASURED)


def _keys(configuration: Configuration, own: Mapping[Key, SiteScores]) -> list[Key]:
    """The matrices that its groups occupy; of a sub-layer the last one, which stands for it."""
    keys = {
        (layer, EXIT.get(site, site))
        for group in configuration.groups
        for layer in group.layers
        for site in group.sites
    }
    return sorted(key for key in keys if key in own)


def _trimmed(own: SiteScores, configuration: Configuration) -> SiteScores:
    """Without the list of single weights where only whole rows, columns or blocks are chosen."""
    sources = [dict(group.settings) for group in configuration.groups]
    sources = [each for each in (*sources, dict(configuration.sparsity)) if "score" in each]
    if any(each.get("granularity", "weight") == "weight" for each in sources):
        return own
    return SiteScores(own.inputs, own.outputs, own.blocks, own.weights[:0], own.values[:0])


# -- the file of tensors --------------------------------------------------------------------------


def _tensor_bytes(importance: ImportanceMap) -> bytes:
    """The same bytes for the same scores."""
    from safetensors.numpy import save

    tensors = {
        f"{score}.{layer}.{role}.{part}": np.ascontiguousarray(getattr(own, part))
        for score, sites in importance.scores.items()
        for (layer, role), own in sites.items()
        for part in _PARTS
    }
    content: bytes = save(tensors)
    return content


def read_carried_map(block: Mapping[str, Any], path: Path) -> CarriedMap:
    """The map that a configuration file's `importance` block names.

    Args:
        block: A sound block.
        path: The configuration file; the tensors lie beside it.

    Raises:
        InputError: The file of tensors is missing, or is not the one that was written.
    """
    from safetensors.numpy import load

    name, wanted = str(block["tensors"]["file"]), str(block["tensors"]["sha256"])
    beside = path.with_name(Path(name).name)
    try:
        content = beside.read_bytes()
    except OSError as error:
        raise InputError(_fault(path, f"no file {name} that can be read", beside)) from error
    if (found := hashlib.sha256(content).hexdigest()) != wanted:
        raise InputError(
            _fault(path, f"{name} with the SHA-256 {found[:12]}", beside, wanted[:12])
        )
    importance = ImportanceMap(
        _scores(load(content)),
        int(block["block"]),
        int(block["examples"]),
        str(block["fingerprint"]),
        {str(key): str(value) for key, value in block.get("facts", {}).items()},
    )
    return CarriedMap(importance, importance.fingerprint, wanted)


def _scores(tensors: Mapping[str, NDArray[Any]]) -> dict[str, dict[Key, SiteScores]]:
    scores: dict[str, dict[Key, SiteScores]] = {}
    for name in tensors:
        score, layer, role, part = name.rsplit(".", 3)
        if part == _PARTS[0]:
            own = {part: tensors[f"{score}.{layer}.{role}.{part}"] for part in _PARTS}
            scores.setdefault(score, {})[int(layer), role] = SiteScores(**own)
    return scores


def _fault(path: Path, given: str, beside: Path, wanted: str = "") -> Fault:
    allowed = f"{beside.name} as it was exported" + (f" ({wanted})" if wanted else "")
    hint = "put it beside the file, or train with --rescore, which measures the scores again"
    return Fault(str(path), "importance.tensors", given, allowed, hint)
