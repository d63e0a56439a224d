"""A trial's profile as people read it: units, and the pack's seconds beside the trial's share."""

from collections.abc import Iterator, Mapping
from typing import Any

from autopeft.cli.wording import byte_count, metric_value, number, plain_text, seconds
from autopeft.study.metrics import metrics_of

_COUNTS = {
    "packs": "packs",
    "pack_lanes": "trials in the last one",
    "optimizer_steps": "optimizer steps",
    "samples": "examples",
    "tokens": "tokens, padded",
}
_SECONDS = {
    "train_seconds": "training",
    "evaluation_seconds": "evaluation",
    "loading_seconds": "loading",
    "waiting_seconds": "waiting for its pack",
}


def profile_lines(profile: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A label and a text for every entry; entries that are unknown here come last, as they are."""
    seconds_of_pack = (f"pack_{name}" for name in _SECONDS)
    known = {*_COUNTS, *_SECONDS, *seconds_of_pack, "peak_memory_bytes", "probe", "reached"}
    for name, label in _COUNTS.items():
        if name in profile:
            yield label, number(profile[name])
    for name, label in _SECONDS.items():
        if name in profile:
            whole = profile.get(f"pack_{name}")
            pack = "" if whole is None else f" of the pack's {seconds(whole)}"
            yield label, f"{seconds(profile[name])}{pack}"
    if "peak_memory_bytes" in profile:
        yield "peak memory", byte_count(profile["peak_memory_bytes"])
    for name in sorted(set(profile) - known):
        yield name, plain_text(profile[name])


def probe_lines(probe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a trial costs by itself; how that came about is left to the JSON."""
    for name in metrics_of("measured"):
        if name in probe:
            yield name, metric_value(name, probe[name])
    if "seconds" in probe:
        yield "probing", seconds(probe["seconds"])
