"""What came too late, in words: the same in the command line and the dashboard."""

from collections.abc import Mapping
from typing import Any

WHY = "from a coordinator that another had replaced: kept apart, not counted"


def orphan_text(content: Mapping[str, Any]) -> str:
    """One of them in a line: how far the trial was, its values, how it ended.

    Args:
        content: A `TrialUpdate` as plain JSON, see `Store.orphans`.
    """
    step, rung, objectives = content["optimizer_steps"], content["rung"], content["objectives"]
    seed = content.get("replicate")  # of a confirmation; not in rows of before it was kept
    parts = [
        f"seed {seed}" if seed else "",
        "" if step is None else f"step {step}",
        "" if rung is None else f"rung {rung:g}",
        *(f"{name} {value:.6g}" for name, value in objectives.items() if value is not None),
        content["state"] or "",
        ": ".join(filter(None, (content["cause"], content["message"]))),
    ]
    return ", ".join(filter(None, parts)) or "points of its curve"
