"""`autopeft show`: one trial: its placement map, why it was proposed, its learning curve."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopeft.cli.options import JsonOption, OutputDirOption, StorageOption, StudyOption
from autopeft.cli.streams import ascii_only, console, print_json
from autopeft.study.records import TrialRecord

if TYPE_CHECKING:
    from rich.console import Console

    from autopeft.api.study import Study


def show(
    trial: Annotated[
        int, typer.Argument(metavar="TRIAL", help="The trial's number.", show_default=False)
    ],
    study: StudyOption = None,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one trial: its placement map, why it was proposed, its learning curve."""
    from autopeft import api

    loaded = api.load_study(study, storage=storage, output_dir=output_dir)
    record = loaded.trial(trial)
    if as_json:
        print_json(_plain(loaded, record))
        return
    target = console()
    _print_facts(target, loaded, record)
    _print_configuration(target, record)
    _print_sources(target, loaded, record)
    _print_placement(target, loaded, record)
    _print_reasons(target, record)
    _print_curve(target, loaded, record)
    _print_confirmation(target, loaded, record)
    _print_training(target, loaded, record)


def _plain(study: "Study", record: TrialRecord) -> dict[str, Any]:
    """The trial's JSON shape, with all that belongs to it."""
    placement = study.placement(record.number)
    confirmed = study.confirmation().trials.get(record.number)
    curve = [
        {
            "step": each.step,
            "metric": each.metric,
            "split": each.split,
            "value": each.value,
            "rung": each.rung,
        }
        for each in study.curve(record.number)
    ]
    return record.to_dict() | {
        "study": record.study,
        "message": record.message,
        "pack": record.pack,
        "details": record.details,
        "method_sources": study.trial_sources(record),
        "profile": record.profile,
        "curve": curve,
        "placement": {
            "rows": list(placement.rows),
            "n_layers": placement.n_layers,
            "sizes": placement.matrix(),
        },
        "confirmed": confirmed.to_dict() if confirmed is not None else None,
        "attempts": [
            {key: _time(value) for key, value in attempt.items()}
            for attempt in study.attempts(record.number)
        ],
        "confirmation_attempts": [
            {key: _time(value) for key, value in attempt.items()}
            for attempt in study.confirmation_attempts(record.number)
        ],
        "orphans": [
            {key: _time(value) for key, value in orphan.items()}
            for orphan in study.orphans()
            if orphan["trial"] == record.number
        ],
        "created_at": _time(record.created_at),
        "started_at": _time(record.started_at),
        "finished_at": _time(record.finished_at),
    }


def _time(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def _print_facts(target: "Console", study: "Study", record: TrialRecord) -> None:
    from autopeft.cli.wording import number, objective

    origin = f"baseline {record.baseline}" if record.baseline else record.origin.value
    mark = ", on the front" if study.on_front(record.number) else ""
    _heading(target, f"Trial {record.number} of study {record.study}")
    _line(target, "state", f"{record.state.value}{mark}")
    if record.cause or record.message:
        _line(target, "cause", ": ".join(filter(None, (record.cause, record.message))))
    _line(target, "origin", origin)
    for frame in study.frames:
        _line(target, frame.name, objective(frame, record.objectives.get(frame.name)))
    if "trainable_params" not in [frame.name for frame in study.frames]:
        _line(target, "trainable_params", number(record.trainable_params))
    _line(target, "head_params", number(record.head_params))
    _line(target, "rung", f"{number(record.rung)} ({record.optimizer_steps:,} optimizer steps)")
    _line(target, "hash", record.hash)


def _print_configuration(target: "Console", record: TrialRecord) -> None:
    from autopeft.cli.wording import flattened, plain_text

    _heading(target, "Configuration")
    for key, value in flattened(record.configuration.to_dict()).items():
        _line(target, key, plain_text(value))


def _print_sources(target: "Console", study: "Study", record: TrialRecord) -> None:
    if sources := study.trial_sources(record):
        _heading(target, "Sources of its methods")
    for name, source in sources.items():
        _line(target, name, source)


def _print_placement(target: "Console", study: "Study", record: TrialRecord) -> None:
    from autopeft.cli.placement_map import placement_lines
    from autopeft.study.placement import placed

    rule = dict(record.configuration.sparsity)["rule"]
    ruled = f", under the rule {rule}" if placed(record) != record.configuration else ""
    _heading(target, f"Placement (layers across, sizes in the cells{ruled})")
    placement = study.placement(record.number)
    for line in placement_lines(placement, width=target.width, ascii_only=ascii_only(target)):
        target.print(line, soft_wrap=True)


def _print_curve(target: "Console", study: "Study", record: TrialRecord) -> None:
    from autopeft.cli.plots import print_curve_plot
    from autopeft.cli.wording import number

    curve = study.curve(record.number)
    if not curve:
        return
    _heading(target, "Learning curve")
    metric = study.frames[0].name
    if not print_curve_plot(target, curve, metric):
        for each in curve:
            _line(target, f"step {each.step}", f"{each.split} {each.metric} {number(each.value)}")


def _print_confirmation(target: "Console", study: "Study", record: TrialRecord) -> None:
    found = study.confirmation()
    own = found.trials.get(record.number)
    if own is None:
        return
    _heading(target, "With other seeds than the search's")
    for split in ("validation", "test"):
        seen = getattr(own, split)
        if seen is None:
            continue
        name = f"{split} {found.frame.name}"
        _line(target, name, f"{seen.over.shown()}, {seen.over.n} seeds, 95 % interval")
        if seen.difference is not None:
            over, mark = seen.difference.over, seen.difference.mark.value
            versus = f"trial {found.reference}, the best baseline"
            _line(target, "difference", f"{over.shown(signed=True)} from {versus}: {mark}")
    for seed, why in sorted(own.missing.items()):
        _line(target, f"seed {seed}", why)
    for opening in found.openings:
        if record.number in opening.trials:
            again = " again" if opening.again else ""
            when = f"{opening.at:%Y-%m-%d %H:%M} UTC"
            _line(target, "test split", f"opened{again} {when} by {opening.by}")


def _print_reasons(target: "Console", record: TrialRecord) -> None:
    from autopeft.cli.wording import flattened, plain_text
    from autopeft.searchers.explain.reasons import sentences, unspoken

    _heading(target, "Why it was proposed")
    for sentence in sentences(record):
        target.print(f"  {sentence}", soft_wrap=True)
    for key, value in flattened(unspoken(record.details)).items():
        _line(target, key, plain_text(value))


def _print_training(target: "Console", study: "Study", record: TrialRecord) -> None:
    from autopeft.cli.profile_text import probe_lines, profile_lines

    if probe := record.profile.get("probe"):
        _heading(target, "By itself (solo probe)")
        for label, text in probe_lines(probe):
            _line(target, label, text)
    if record.profile:
        _heading(target, "Training")
        for label, text in profile_lines(record.profile):
            _line(target, label, text)
    _print_attempts(target, "Attempts", study.attempts(record.number))
    of_seeds = study.confirmation_attempts(record.number)
    _print_attempts(target, "Attempts with other seeds", of_seeds)
    _print_orphans(target, [each for each in study.orphans() if each["trial"] == record.number])


def _print_attempts(
    target: "Console", heading: str, attempts: Sequence[Mapping[str, Any]]
) -> None:
    """When and where it was started, what became of it, and how its last runner spoke its last."""
    from autopeft.cli.wording import duration

    if attempts:
        _heading(target, heading)
    for attempt in attempts:
        began, ended = attempt["started_at"], attempt["finished_at"]
        length = "not ended" if ended is None else duration((ended - began).total_seconds())
        why = ": ".join(filter(None, (attempt["cause"], attempt["message"])))
        parts = [f"{began:%Y-%m-%d %H:%M:%S} UTC", length, _place(attempt["runner"]), why]
        seed = f"seed {attempt['seed']}, " if "seed" in attempt else ""
        _line(target, f"{seed}{attempt['attempt']}", ", ".join(filter(None, parts)))
    logs = [attempt["log"] for attempt in attempts if attempt["log"]]
    if logs:
        _heading(target, "Last lines of the runner's log")
        for line in logs[-1].splitlines():
            target.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)


def _print_orphans(target: "Console", orphans: Sequence[Mapping[str, Any]]) -> None:
    """What came too late, and when."""
    from autopeft.study.orphans import WHY, orphan_text

    if orphans:
        _heading(target, f"Too late, {WHY}")
    for orphan in orphans:
        _line(target, f"{orphan['at']:%Y-%m-%d %H:%M:%S} UTC", orphan_text(orphan["content"]))


def _place(runner: Mapping[str, Any] | None) -> str:
    return "" if runner is None else f"on {runner['device']} of {runner['host']}"


def _heading(target: "Console", text: str) -> None:
    target.print(f"\n{text}" if not text.startswith("Trial") else text, style="bold")


def _line(target: "Console", name: str, text: str) -> None:
    target.print(f"  {name:<24} {text}", soft_wrap=True)
