"""`autopeft compare`: where two trials differ."""

from typing import Annotated, Any

import typer

from autopeft.cli.options import JsonOption, OutputDirOption, StorageOption, StudyOption
from autopeft.cli.streams import console, print_json
from autopeft.study.records import TrialRecord


def compare(
    first: Annotated[
        int, typer.Argument(metavar="A", help="A trial's number.", show_default=False)
    ],
    second: Annotated[
        int, typer.Argument(metavar="B", help="Another trial's number.", show_default=False)
    ],
    study: StudyOption = None,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show two trials side by side, and where they differ."""
    from autopeft import api
    from autopeft.cli.tables import plain_table, print_table
    from autopeft.cli.wording import plain_text

    loaded = api.load_study(study, storage=storage, output_dir=output_dir)
    a, b = loaded.trial(first), loaded.trial(second)
    results, differing = _results(a, b), _differing(a, b)
    if as_json:
        plain = [{"key": key, "a": x, "b": y} for key, x, y in differing]
        print_json({"a": a.to_dict(), "b": b.to_dict(), "differences": plain})
        return
    table = plain_table(
        "", f"trial {first}", f"trial {second}", "difference", right=("difference",)
    )
    for key, x, y in results:
        table.add_row(key, plain_text(x), plain_text(y), _gap(x, y))
    table.add_section()
    for key, x, y in differing:
        table.add_row(key, plain_text(x), plain_text(y), "")
    if not differing:
        table.add_row("configuration", "the same", "the same", "")
    print_table(console(), table)


def _results(a: TrialRecord, b: TrialRecord) -> list[tuple[str, Any, Any]]:
    """Objectives, sizes and states of both, equal or not."""
    names = list(dict.fromkeys([*a.objectives, *b.objectives]))
    rows: list[tuple[str, Any, Any]] = [("state", a.state.value, b.state.value)]
    rows += [(name, a.objectives.get(name), b.objectives.get(name)) for name in names]
    if "trainable_params" not in names:
        rows.append(("trainable_params", a.trainable_params, b.trainable_params))
    return [*rows, ("rung", a.rung, b.rung)]


def _differing(a: TrialRecord, b: TrialRecord) -> list[tuple[str, Any, Any]]:
    """Keys of the two configurations whose values differ; None where one lacks the key."""
    from autopeft.cli.wording import flattened

    x, y = flattened(a.configuration.to_dict()), flattened(b.configuration.to_dict())
    keys = dict.fromkeys([*x, *y])
    return [(key, x.get(key), y.get(key)) for key in keys if x.get(key) != y.get(key)]


def _gap(x: Any, y: Any) -> str:
    """B minus A, where both are numbers that differ."""
    from autopeft.cli.wording import number

    if not all(isinstance(value, int | float) for value in (x, y)) or x == y:
        return ""
    return f"{'+' if y > x else ''}{number(y - x)}"
