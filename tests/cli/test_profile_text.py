"""A profile in words: units, and the pack's seconds beside the trial's."""

from autopeft.cli.profile_text import probe_lines, profile_lines


def test_every_figure_has_its_unit_and_seconds_their_packs() -> None:
    profile = {
        "packs": 2,
        "optimizer_steps": 96,
        "samples": 3072,
        "tokens": 98_304,
        "train_seconds": 12.5,
        "evaluation_seconds": 0.25,
        "loading_seconds": 0.5,
        "waiting_seconds": 75.0,
        "pack_train_seconds": 100.0,
        "pack_evaluation_seconds": 2.0,
        "pack_loading_seconds": 4.0,
        "pack_lanes": 8,
        "peak_memory_bytes": 3 * 2**30,
        "novel": 1,
    }
    assert dict(profile_lines(profile)) == {
        "packs": "2",
        "trials in the last one": "8",
        "optimizer steps": "96",
        "examples": "3,072",
        "tokens, padded": "98,304",
        "training": "12.5 s of the pack's 1 min 40 s",
        "evaluation": "0.25 s of the pack's 2 s",
        "loading": "0.5 s of the pack's 4 s",
        "waiting for its pack": "1 min 15 s",
        "peak memory": "3 GiB",
        "novel": "1",
    }
    assert list(profile_lines({})) == []


def test_a_probe_is_told_by_itself() -> None:
    probe = {
        "latency_seconds": 0.0123,
        "train_seconds": 95.0,
        "step_seconds": [0.9, 1.0],
        "peak_memory_bytes": 3 * 2**29,
        "seconds": 7.25,
    }
    assert list(probe_lines(probe)) == [
        ("peak_memory_bytes", "1.5 GiB"),
        ("train_seconds", "1 min 35 s"),
        ("latency_seconds", "0.0123 s"),
        ("probing", "7.25 s"),
    ]
    assert "probe" not in dict(profile_lines({"probe": probe}))
