"""How a search or one of its sittings ended, and why; stored in a study's facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from autopeft.errors import AutopeftError

Reason = Literal["trials", "wall_clock", "gpu_hours", "optimizer_steps", "exhausted", "min_gain"]

HINT = "the same command goes on"

_WHY: Mapping[str, str] = {
    "trials": "its trials are spent",
    "wall_clock": "its wall clock is spent",
    "gpu_hours": "its hours of devices are spent",
    "optimizer_steps": "its optimizer steps are spent",
    "exhausted": "every feasible configuration of the space has been tried",
}

_GOES_ON: Mapping[str, str] = {
    "trials": "a larger --trials lets it go on",
    "min_gain": "a smaller budget.min_gain (--set budget.min_gain=null) lets it go on",
    "exhausted": "another study with a larger space can go on",
}


def what_goes_on(ended: Mapping[str, Any] | None) -> str:
    """What lets a search that has ended go on.

    Args:
        ended: `Ending.to_dict()`, as in the study's facts; None of studies that kept none.
    """
    reason = ended["reason"] if ended else "trials"
    raised = f"a larger budget.{reason} (--set budget.{reason}=...) lets it go on"
    return _GOES_ON.get(reason, raised)


@dataclass(frozen=True)
class Ending:
    """Why a search ended, and what of its budget was left.

    Attributes:
        reason: What ran out; "exhausted" where it was the space, "min_gain" where proposals were
            not worth their cost any more.
        trials: Trials left.
        wall_clock: Seconds left, or None without such a budget.
        gpu_hours: Hours of devices left, or None without such a budget.
        optimizer_steps: Steps left, or None without such a budget.
        waiting: Trials that were begun and wait for a larger budget.
        min_gain: What a full trial had to promise, where that ended the search.
        gains: The best promise of each of the last asks, where that ended the search.
    """

    reason: Reason
    trials: int
    wall_clock: float | None = None
    gpu_hours: float | None = None
    optimizer_steps: float | None = None
    waiting: int = 0
    min_gain: float | None = None
    gains: tuple[float, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, as in the facts and in `status`."""
        left = {
            "trials": self.trials,
            "wall_clock": self.wall_clock,
            "gpu_hours": self.gpu_hours,
            "optimizer_steps": self.optimizer_steps,
        }
        plain: dict[str, Any] = {"reason": self.reason, "left": left, "text": self.sentence()}
        if self.min_gain is not None:
            plain |= {"min_gain": self.min_gain, "gains": list(self.gains)}
        return plain

    def sentence(self) -> str:
        """One honest line."""
        if self.waiting:
            return (
                f"the search ended: {_WHY[self.reason]}; {self.waiting} trials that were begun "
                "wait, and go on where the budget is raised"
            )
        if self.reason != "min_gain":
            return f"the search ended: {_WHY[self.reason]}{self._left()}"
        gains = ", then ".join(f"{gain:.2g}" for gain in self.gains)
        return (
            f"the search ended by itself: a full trial was expected to gain {gains} hypervolume "
            f"at best, less than budget.min_gain {self.min_gain:g}{self._left()}"
        )

    def _left(self) -> str:
        parts = [f"{self.trials} trials"] if self.trials else []
        if self.wall_clock:
            parts.append(f"{self.wall_clock / 3600.0:.3g} hours of wall clock")
        if self.gpu_hours:
            parts.append(f"{self.gpu_hours:.3g} hours of devices")
        if self.optimizer_steps:
            parts.append(f"{self.optimizer_steps:,.0f} optimizer steps")
        return f"; {', '.join(parts)} were left" if self.trials and parts else ""


@dataclass(frozen=True)
class Interruption:
    """Why a sitting ended before the search did.

    Attributes:
        reason: One line.
        hint: What to do about it.
    """

    reason: str
    hint: str

    @classmethod
    def by(cls, error: BaseException) -> "Interruption":
        """What an error says that ended it."""
        if isinstance(error, AutopeftError):
            return cls(" ".join(error.message.split()), error.hint or HINT)
        text = " ".join(str(error).split())
        named = type(error).__name__
        return cls(f"{named}: {text}" if text else named, HINT)

    def to_dict(self) -> dict[str, str]:
        """Plain JSON, as in the facts and in `status`."""
        return {"reason": self.reason, "hint": self.hint}
