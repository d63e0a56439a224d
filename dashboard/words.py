"""How the dashboard writes things down: numbers, times, configurations, command lines.

Also where stored text is made harmless: names and messages come from files and databases of
anyone, and Streamlit reads Markdown, Plotly a little HTML.
"""

import html
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from autopeft.api.place import DEFAULT_STORAGE, has_secret
from autopeft.configuration import Configuration, Group
from autopeft.study.metrics import metrics_of
from autopeft.study.placement import SIZE_NAMES

NOTHING = "-"
QUALITIES = metrics_of("quality")
MEASURED = metrics_of("measured")

KILLED = "Killed? No process holds it: the same `autopeft search` command goes on."
"""What is said of a study that calls itself running, but has lost its process."""

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>$:~^&])")
_LABELS = {
    "trainable_params": "trainable parameters",
    "head_params": "head parameters",
    "train_seconds": "training seconds",
    "evaluation_seconds": "evaluation",
    "loading_seconds": "loading",
    "waiting_seconds": "waiting for its pack",
    "pack_lanes": "trials in the last pack",
    "samples": "examples",
    "tokens": "tokens, padded",
    "peak_memory_bytes": "peak memory",
    "latency_seconds": "latency",
    "activation_density": "activation density",
}
PROFILE_SECONDS = ("train_seconds", "evaluation_seconds", "loading_seconds", "waiting_seconds")
"""The seconds of a profile; `pack_` before the name are those of all lanes together."""


def markdown(text: str) -> str:
    """`text` as Markdown that shows exactly that text, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def sentence(text: str) -> str:
    """A sentence as the library says it, as one to be read alone: a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def figure_text(text: str) -> str:
    """`text` for a Plotly figure, which reads a subset of HTML."""
    return html.escape(" ".join(text.split()))


def file_stem(text: str) -> str:
    """`text` as the stem of a file name on any system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "study"


def runner(where: Mapping[str, Any] | None) -> str:
    """Where an attempt ran."""
    return NOTHING if where is None else f"{where['device']} of {where['host']}"


def label(metric: str) -> str:
    """A metric's name in words."""
    return _LABELS.get(metric, metric.replace("_", " "))


def number(value: float | None) -> str:
    """A number as people write it: counts whole and grouped, the rest to four digits."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def compact(value: float | None) -> str:
    """A number in at most five characters and a unit: 294,912 is 295k."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return number(value)


def metric_value(metric: str, value: float | None) -> str:
    """A metric's value with its unit."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if metric.endswith("_bytes"):
        return _bytes(value)
    if metric.endswith("_seconds"):
        return duration(value) if value >= 60 else f"{value:.3g} s"
    if metric in (*QUALITIES, *metrics_of("reached")):
        return f"{value:.4f}"
    return number(value)


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """A span of time, in its two largest units."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    left = round(max(0.0, seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2])


def ago(then: datetime, now: datetime) -> str:
    """How long ago something was."""
    seconds = (now - then).total_seconds()
    if seconds < 5:
        return "just now"
    size = next(size for size in (86400, 3600, 60, 1) if seconds >= size)
    return f"{duration(seconds // size * size)} ago"


def summary(configuration: Configuration) -> str:
    """A configuration in one line: methods, sizes, sites, layers."""
    return "; ".join(map(_group, configuration.groups)) or "head only"


def _group(group: Group) -> str:
    settings = dict(group.settings)
    size = next((f" {name} {settings[name]}" for name in SIZE_NAMES if name in settings), "")
    sites = f" on {', '.join(group.sites)}" if group.sites else ""
    return f"{group.method}{size}{sites}, {layers_text(group.layers)}"


def layers_text(layers: Sequence[int]) -> str:
    """Sorted layer indices in words, with runs as ranges."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"layer{'s' if len(layers) != 1 else ''} {', '.join(parts)}"


def commands(study: str, trial: int, storage_url: str) -> str:
    """The command lines that export and train a trial, to be pasted into a POSIX shell."""
    stem = f"{file_stem(study)}-trial-{trial}"
    storage = storage_flag(storage_url)
    return (
        f"autopeft export {shlex.quote(study)} --trial {trial}{storage} -o {stem}.yaml\n"
        f"autopeft train {stem}.yaml -o {stem}/"
    )


def storage_flag(storage_url: str) -> str:
    """` --storage URL` where it is needed; a URL with a password is named, not shown."""
    if storage_url == DEFAULT_STORAGE:
        return ""
    if has_secret(storage_url):
        return ' --storage "$AUTOPEFT_STORAGE"'
    return f" --storage {shlex.quote(storage_url)}"


def place(storage_url: str) -> str:
    """Where the studies are kept, without a password."""
    return "database: $AUTOPEFT_STORAGE" if has_secret(storage_url) else storage_url
