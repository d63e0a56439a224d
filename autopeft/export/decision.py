"""What importance scores decided of a configuration: all that training it again takes of them.

Which matrices a rule promotes, and which weights, channels, blocks or heads are trained, follows
from the scores of a study's data. So that a configuration trains elsewhere without measuring them
again, and trains exactly the same weights, the outcome travels with it: the groups that it comes
to and the numbers of what was chosen. Short lists stand in the YAML; long ones, of single
weights, lie in a file of tensors beside it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from autopeft.configuration import Configuration
from autopeft.errors import Fault, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SUFFIX = ".importance.safetensors"

MOST_LISTED = 4096
"""Numbers that stand in the YAML, of all places together: some 20 kB. More go beside it."""

Chosen: TypeAlias = "Mapping[str, NDArray[np.int64]]"


@dataclass(frozen=True)
class Decision:
    """The outcome for one configuration; equal where the same was decided by the same map.

    Attributes:
        trained: What the configuration comes to: groups that no score decides any more.
        chosen: The tensor `index` of every place where a score chose, at `method.layer.site`.
        fingerprint: Of the importance map.
        examples: Training examples that the map was measured on.
        facts: What was measured on what, for people.
        scores: Sums of the deciding scores over each site, by score and `layer.role`, for people.
        digest: SHA-256 of the configuration and of what was decided for it.
    """

    trained: Configuration
    chosen: Chosen = field(compare=False, repr=False)
    fingerprint: str
    examples: int
    facts: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]
    digest: str

    @property
    def is_listed(self) -> bool:
        """Whether all that was chosen stands in the YAML."""
        return sum(map(len, self.chosen.values())) <= MOST_LISTED

    def fixed(self) -> dict[str, "Tensor"]:
        """What was chosen, as a lane keeps it: int64 by saved name."""
        from torch import from_numpy

        return {f"{place}.index": from_numpy(own) for place, own in self.chosen.items()}

    def to_plain(self, configuration: Configuration, tensors: str) -> dict[str, Any]:
        """The `importance` block of a configuration file.

        Args:
            configuration: What it was decided for.
            tensors: The name of the file of tensors, which is named where it is needed.
        """
        plain: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "examples": self.examples,
            "facts": dict(self.facts),
            "scores": {score: dict(sums) for score, sums in self.scores.items()},
        }
        if self.trained != configuration:
            plain["resolved"] = _without_training(self.trained)
        if self.is_listed:
            plain["chosen"] = {place: own.tolist() for place, own in self.chosen.items()}
        else:
            plain["tensors"] = tensors
        return plain | {"sha256": self.digest}

    def save(self, path: Path) -> None:
        """Write the file of tensors: int32, in which all but those of huge maps fit."""
        from safetensors.numpy import save_file

        save_file({place: _narrowed(own) for place, own in self.chosen.items()}, path)


def names_scores(configuration: Configuration) -> bool:
    """Whether some setting names a score; where none does, no map decides anything."""
    return "score" in dict(configuration.sparsity) or any(
        group.get("score") is not None for group in configuration.groups
    )


def _without_training(configuration: Configuration) -> dict[str, Any]:
    plain = configuration.to_dict()
    del plain["training"]
    return plain


def digest_of(configuration: Configuration, trained: Configuration, chosen: Chosen) -> str:
    """Of what decides and what was decided; training values may be changed by hand."""
    both = [_without_training(configuration), _without_training(trained)]
    digest = hashlib.sha256(json.dumps(both, sort_keys=True).encode())
    for place in sorted(chosen):
        digest.update(f"\n{place} ".encode())
        digest.update(chosen[place].astype("<i8").tobytes())
    return digest.hexdigest()


def _narrowed(index: "NDArray[np.int64]") -> "NDArray[Any]":
    return index.astype("int32") if index.max(initial=0) < 2**31 else index


# -- reading --------------------------------------------------------------------------------------


def tensors_path(path: Path) -> Path:
    """Where the tensors of a configuration file lie: beside it."""
    return path.with_name(f"{path.stem}{SUFFIX}")


def read_decision(block: Mapping[str, Any], configuration: Configuration, path: Path) -> Decision:
    """The decision that a configuration file's `importance` block holds.

    Args:
        block: A block of sound form.
        configuration: That of the file.
        path: The file; its tensors lie beside it.

    Raises:
        InputError: The file of tensors is missing or cannot be read; or the configuration, or
            what was decided for it, is not as it was exported.
    """
    import numpy as np

    chosen = {
        str(place): np.asarray(own, dtype=np.int64) for place, own in block["chosen"].items()
    }
    if block["tensors"]:
        chosen |= _read_tensors(str(block["tensors"]), path)
    trained = configuration
    if block["resolved"]:
        training = dict(configuration.training)
        trained = Configuration.from_dict({**block["resolved"], "training": training})
    if (found := digest_of(configuration, trained, chosen)) != block["sha256"]:
        given = f"a configuration, or what scores decided of it, changed by hand ({found[:12]})"
        raise InputError(
            _fault(path, "sha256", given, f"both as exported ({block['sha256'][:12]})")
        )
    return Decision(
        trained,
        chosen,
        str(block["fingerprint"]),
        int(block["examples"]),
        {str(key): str(value) for key, value in block["facts"].items()},
        block["scores"],
        found,
    )


def _read_tensors(name: str, path: Path) -> "dict[str, NDArray[np.int64]]":
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    beside = path.with_name(Path(name).name)
    try:
        return {place: own.astype("int64") for place, own in load_file(beside).items()}
    except (OSError, SafetensorError) as error:
        given = f"no file {beside.name} that can be read"
        raise InputError(_fault(path, "tensors", given, "the one exported with it")) from error


def _fault(path: Path, key: str, given: str, allowed: str) -> Fault:
    hint = "train with --rescore, which measures the scores again and decides anew"
    return Fault(str(path), f"importance.{key}", given, allowed, hint)
