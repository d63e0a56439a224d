"""The dashboard's colours: one meaning each, legible on white and on near-black alike.

Surfaces, grids and fonts are left to Streamlit's theme, which follows the browser's light or dark
mode; only marks are coloured here.
"""

from collections.abc import Mapping
from typing import Literal

from autopeft.study.records import StudyState, TrialState

FRONT = "#3b82f6"
DOMINATED = "#94a3b8"
BASELINE = "#f59e0b"
STOPPED = "#94a3b8"
RUNNING = "#14b8a6"
FAILED = "#ef4444"
CONFIRMED = "#10b981"
TESTED = "#8b5cf6"
SELECTED = "#d946ef"
LOSS = "#f97316"
QUALITY = "#65a30d"
HYPERVOLUME = FRONT

NOTHING = "rgba(148,163,184,0.14)"

SIZES = ((0.0, "#bfdbfe"), (0.5, "#3b82f6"), (1.0, "#1e3a8a"))
"""A placement's sizes, small to large: readable on both backgrounds, text chosen by contrast."""


BadgeColor = Literal["gray", "green", "orange", "blue", "red"]

LOST_BADGE: BadgeColor = "orange"
"""Of a study that calls itself running, but has lost its process."""

_BADGES: Mapping[str, BadgeColor] = {
    StudyState.CREATED: "gray",
    StudyState.RUNNING: "green",
    StudyState.INTERRUPTED: "orange",
    StudyState.FINISHED: "blue",
    TrialState.WAITING: "gray",
    TrialState.COMPLETED: "blue",
    TrialState.STOPPED: "gray",
    TrialState.FAILED: "red",
}


def badge(state: StudyState | TrialState) -> BadgeColor:
    """Streamlit's badge colour of a state; running is running for studies and trials alike."""
    return _BADGES[state]
