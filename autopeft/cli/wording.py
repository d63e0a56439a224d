"""Numbers, durations and configurations as people read them; ASCII alone."""

from collections.abc import Iterable, Mapping
from typing import Any

from autopeft.configuration import TRAINING_OPTIONS, Configuration
from autopeft.study.placement import SIZE_NAMES
from autopeft.study.records import ObjectiveFrame

KILLED = "killed? no process holds it: the same search command goes on"
"""What is said of a study that is lost."""

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_NO_SUFFIX = 1e15


def objective(frame: ObjectiveFrame, value: float | None) -> str:
    """An objective's value: counts with commas, qualities with four decimals."""
    if value is None or frame.scale == "log10":
        return number(value)
    return f"{value:.4f}"


def metric_value(metric: str, value: float) -> str:
    """A metric's value with its unit, where its name tells one."""
    if metric.endswith("_bytes"):
        return byte_count(value)
    return seconds(value) if metric.endswith("_seconds") else number(value)


def number(value: float | None) -> str:
    """Any number: thousands with commas, others with four significant digits."""
    if value is None:
        return "-"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4g}"


def compact(value: float) -> str:
    """A large number in short: 294912 is `295k`; what no suffix shortens is a power of ten."""
    if value >= _NO_SUFFIX:
        return f"{value:.3g}"
    for size, suffix in _STEPS:
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def byte_count(count: float) -> str:
    """Bytes in their largest unit: 3.2 GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def seconds(value: float) -> str:
    """Seconds of work: with digits where they are few, else as a duration."""
    return f"{value:.3g} s" if value < 60 else duration(value)


def duration(span_s: float | None) -> str:
    """A duration in its two largest units: `2 h 5 min`."""
    if span_s is None:
        return "unknown"
    whole = max(0, round(span_s))
    parts = [
        (whole // 86400, "d"),
        (whole // 3600 % 24, "h"),
        (whole // 60 % 60, "min"),
        (whole % 60, "s"),
    ]
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return (
        " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"
    )


def ranges(numbers: Iterable[int]) -> str:
    """Sorted whole numbers with runs joined: `0-3,7`."""
    runs: list[list[int]] = []
    for each in numbers:
        if runs and each == runs[-1][1] + 1:
            runs[-1][1] = each
        else:
            runs.append([each, each])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def configuration_text(configuration: Configuration) -> str:
    """A configuration in one line: `lora rank 8 query,value @ 4-5; lr 0.001`."""
    parts = []
    for group in configuration.groups:
        settings = dict(group.settings)
        size = next((f"{name} {settings[name]}" for name in SIZE_NAMES if name in settings), "")
        sites = ",".join(group.sites)
        words = [group.method, size, sites, f"@ {ranges(group.layers)}"]
        parts.append(" ".join(word for word in words if word))
    rule = dict(configuration.sparsity).get("rule", "none")
    if rule != "none":
        parts.append(f"sparsity {rule}")
    rate = configuration.training_value("learning_rate")
    options = [
        f"{name} {value:g}" for name, value in configuration.training if name in TRAINING_OPTIONS
    ]
    return "; ".join([*(parts or ["head only"]), f"lr {rate:.3g}", *options])


def lost(status: Mapping[str, Any]) -> bool:
    """Whether a study calls itself running, but its process is gone."""
    return status["state"] == "running" and not status.get("held", True)


def test_split(plain: Mapping[str, Any]) -> str:
    """Whether the test split is locked, and who opened it: of a status's `test`."""
    if plain["state"] == "none":
        return "none is named"
    if not plain["openings"]:
        return "locked"
    return "; ".join(
        f"opened{' again' if each['again'] else ''} {each['at'][:16].replace('T', ' ')} UTC by "
        f"{each['by']} for trials {', '.join(map(str, each['trials']))}"
        for each in plain["openings"]
    )


def flattened(plain: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested plain data as dotted keys; lists of mappings get an index, other lists stay."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping):
            flat |= flattened(value, name)
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            for index, item in enumerate(value):
                flat |= flattened(item, name if len(value) == 1 else f"{name}.{index}")
        else:
            flat[name] = value
    return flat


def plain_text(value: Any) -> str:
    """A plain value in a table cell: whole numbers joined to runs, missing ones as `-`."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        if value and all(isinstance(item, int) for item in value):
            return ranges(value)
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return number(value)
    return str(value)
