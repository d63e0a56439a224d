"""A study that begins with what somebody trains today: `init --from`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.backbone.request import BackboneRequest
from autopeft.errors import Fault, InputError
from autopeft.export.foreign import Foreign, baseline_of, read_foreign
from autopeft.study.definition import default_definition


@dataclass(frozen=True)
class Beginning:
    """What a file of another tool gives a study.

    Attributes:
        foreign: What the file says.
        model: The backbone.
    """

    foreign: Foreign
    model: str

    @property
    def data(self) -> str:
        """The data set that the file names, or ""."""
        return self.foreign.data

    def blocks(self, task: str) -> dict[str, Any]:
        """The study's `training` and `search`; BackboneError or InputError where it cannot be.

        Args:
            task: The study's.
        """
        from autopeft.backbone.skeleton import skeleton

        found = skeleton(BackboneRequest(self.model, task=task))
        baseline = baseline_of(self.foreign, found)
        names = list(default_definition().search.baselines)
        training = {"training": dict(self.foreign.training)} if self.foreign.training else {}
        return training | {"search": {"baselines": [baseline, *names]}}

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why the study says so, by dotted key."""
        where, left = self.foreign.where, self.foreign.left
        rest = f"; not taken over: {', '.join(left)}" if left else ""
        reasons = {"search.baselines": f"the first is the {self.foreign.kind} of {where}{rest}"}
        if self.foreign.training:
            reasons["training"] = f"as in {where}, where it says so"
        return reasons


def started(start: Path, model: str | None) -> Beginning:
    """What a file gives; InputError with all its faults, or where no model is named."""
    foreign = read_foreign(start)
    if not (model or foreign.model):
        hint = "give MODEL: autopeft init MODEL DATA --from FILE"
        raise InputError(Fault(str(start), "", "no base model", "a file that names one", hint))
    return Beginning(foreign, model or foreign.model)
