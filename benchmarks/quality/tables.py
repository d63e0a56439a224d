"""Tables of recorded trials: one parquet file per task, one row per trial, seed and rung."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import autopeft
from autopeft.backbone.importance import ImportanceMap
from benchmarks.quality.kept_importance import write_kept

COLUMNS = (
    "hash",
    "configuration",
    "origin",
    "baseline",
    "state",
    "seed",
    "rung",
    "step",
    "accuracy",
    "loss",
    "trainable_params",
    "train_seconds",
)


def write_table(
    folder: Path,
    name: str,
    studies: Sequence[autopeft.Study],
    *,
    importance: ImportanceMap | None = None,
) -> Path:
    """Write the measurements of studies of one task.

    Args:
        folder: Where tables lie.
        name: The task.
        studies: Of the same data, one per seed.
        importance: What places were chosen by, where the space asks for it.

    Returns:
        The file; its metadata hold the frame, the facts, the space's hash and the versions. What
        a search problem reads of the importance map lies beside it (`kept_importance`).
    """
    rows = pd.DataFrame([row for study in studies for row in _rows(study)], columns=list(COLUMNS))
    first = studies[0].record
    rows.attrs = {
        "task": name,
        "definition": dict(first.definition),
        "space_hash": first.space_hash,
        "facts": dict(first.facts),
        "fingerprints": dict(first.fingerprints),
        "versions": dict(first.versions),
        "frame": [
            [frame.name, frame.goal, frame.scale, frame.worst, frame.best] for frame in first.frame
        ],
    }
    # A path is of a machine, and of no interest.
    rows.attrs["definition"]["data"] = {**first.definition["data"], "source": name}
    rows.attrs = json.loads(json.dumps(rows.attrs, default=str))
    folder.mkdir(parents=True, exist_ok=True)
    if importance is not None:
        write_kept(folder, name, importance)
    path = folder / f"{name}.parquet"
    fresh = path.with_suffix(".tmp")
    rows.to_parquet(fresh, index=False)
    fresh.replace(path)
    return path


def _rows(study: autopeft.Study) -> list[dict[str, object]]:
    found = []
    for trial in study.trials():
        curve: dict[float, dict[str, object]] = {}
        for point in study.curve(trial.number):
            if point.split == "validation" and point.rung is not None:
                curve.setdefault(point.rung, {"step": point.step})[point.metric] = point.value
        common = {
            "hash": trial.hash,
            "configuration": json.dumps(trial.configuration.to_dict(), separators=(",", ":")),
            "origin": str(trial.origin),
            "baseline": trial.baseline or "",
            "state": str(trial.state),
            "seed": trial.seed,
            "trainable_params": trial.trainable_params,
            "train_seconds": trial.profile.get("train_seconds"),
        }
        found += [{**common, "rung": rung, **values} for rung, values in sorted(curve.items())]
        if not curve:
            found.append({**common, "rung": None})
    return found
