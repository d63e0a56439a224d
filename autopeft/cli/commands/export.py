"""`autopeft export`: one configuration as a file that trains elsewhere, or a whole study."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopeft.cli.faults import writing
from autopeft.cli.next_commands import command, listed
from autopeft.cli.options import (
    ExportFormat,
    JsonOption,
    OutputDirOption,
    Pick,
    StorageOption,
    StudyArgument,
)
from autopeft.cli.streams import print_json, say
from autopeft.errors import Fault, InputError

if TYPE_CHECKING:
    from autopeft.api.study import Study


def export(
    study: StudyArgument = None,
    trial: Annotated[
        int | None, typer.Option(metavar="N", help="This trial, on the front or not.")
    ] = None,
    pick: Annotated[
        Pick | None,
        typer.Option(
            metavar="|".join(Pick), help="Choose from the front; the knee where no trial is given."
        ),
    ] = None,
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format", metavar="|".join(ExportFormat), help="What to write.", show_default=True
        ),
    ] = ExportFormat.YAML,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="File (yaml, axolotl) or folder (peft, llama-factory), else stdout; for optuna, "
            "a URL or a journal file.",
        ),
    ] = None,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a configuration as a file that trains elsewhere, or the whole study.

    Without --trial or --pick, the knee of the front is taken. A format that cannot carry the
    configuration is refused: axolotl and llama-factory train LoRA on causal language models, and
    the file says which version reads it. --format optuna writes every trial to a database or
    journal file that optuna-dashboard opens, such as -o sqlite:///optuna.db.
    """
    from autopeft import api

    _refuse_contradictions(trial, pick, form, output)
    loaded = api.load_study(study, storage=storage, output_dir=output_dir)
    if form is ExportFormat.OPTUNA and output is not None:
        _export_study(loaded, output, as_json)
        return
    how = (pick or Pick.KNEE).value
    number, why = _choose(loaded, trial, how)
    path = None if output is None else Path(output)
    with writing(path or Path(), flag="-o"):
        text = loaded.export(path, trial=trial, pick=how, format=form.value)
    if as_json:
        written = None if path is None else str(path)
        plain = {"trial": number, "why": why, "format": form.value, "output": written}
        print_json({**plain, "text": text})
        return
    say(why)
    if path is None:
        typer.echo(text, nl=not text.endswith("\n"))
    else:
        _tell_written(path, form)


def _refuse_contradictions(
    trial: int | None, pick: Pick | None, form: ExportFormat, output: str | None
) -> None:
    faults = []
    if trial is not None and pick is not None:
        faults.append(Fault("--pick", "", "--trial as well", "one of --trial and --pick"))
    if form is ExportFormat.OPTUNA:
        chosen = {"--trial": trial is not None, "--pick": pick is not None}
        faults += [
            Fault(flag, "", "--format optuna as well", "every trial", f"leave {flag} out")
            for flag, given in chosen.items()
            if given
        ]
        if output is None:
            allowed = "a URL such as sqlite:///optuna.db, or a journal file such as optuna.log"
            faults.append(Fault("-o", "", "nothing", allowed))
    if faults:
        raise InputError(faults)


def _export_study(study: "Study", output: str, as_json: bool) -> None:
    written = study.export_study(output)
    if as_json:
        why = "every trial of the study"
        print_json({"trial": None, "why": why, "format": "optuna", "text": None, **written})
        return
    count = sum(written["trials"].values())
    say(f"wrote study {written['study']} with its {count} trials to {written['output']}")
    say(f"  optuna-dashboard {written['output']}    # pip install optuna-dashboard; browse it")


def _choose(study: "Study", trial: int | None, how: str) -> tuple[int, str]:
    """The trial's number, and why it is taken."""
    if trial is not None:
        return study.trial(trial).number, f"trial {trial}, as asked"
    chosen, why = study.pick(how)
    return chosen.number, why


def _tell_written(output: Path, form: ExportFormat) -> None:
    """Where the file is, and what can be done with it."""
    say(f"wrote {output}")
    if form is ExportFormat.YAML:
        for line in listed([(command("train", str(output), "-o", "adapter"), "train it")]):
            say(line)
