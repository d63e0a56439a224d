"""`autopeft importance`: how much every site matters for a study's data."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopeft.cli.options import (
    DataOption,
    JsonOption,
    ModelOption,
    NameOption,
    OutputDirOption,
    QuietOption,
    SettingsOption,
    StorageOption,
    as_overrides,
)
from autopeft.cli.streams import ascii_only, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from autopeft.backbone.importance import ImportanceMap

NAMED = 8
"""Sites of the ranking that are printed; --json has all."""


class Score(StrEnum):
    """A score of the map."""

    GRADIENT = "gradient"
    GRADIENT_SUM = "gradient_sum"
    SENSITIVITY = "sensitivity"
    SNIP = "snip"
    FISHER = "fisher"
    TAYLOR = "taylor"
    MAGNITUDE = "magnitude"
    ACTIVATION = "activation"


class FirstHead(StrEnum):
    """The task head that the loss is taken through."""

    INITIAL = "initial"
    FITTED = "fitted"


def importance(  # noqa: PLR0913, PLR0917 - one parameter per option
    study: Annotated[
        Path | None,
        typer.Argument(
            metavar="STUDY.yaml",
            help="The study file; without one, the embedded default.",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        Score, typer.Option(metavar="|".join(Score), help="The score to print.")
    ] = Score.SENSITIVITY,
    examples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Training examples to read.")
    ] = 512,
    head: Annotated[
        FirstHead,
        typer.Option(
            metavar="|".join(FirstHead),
            help="The task head: as trials begin, or fitted on the frozen backbone.",
        ),
    ] = FirstHead.FITTED,
    again: Annotated[
        bool, typer.Option("--again", help="Measure even where a map is stored.")
    ] = False,
    name: NameOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    settings: SettingsOption = None,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show how much every layer and site matters for a study's data.

    Measured once per backbone and data, by all scores at once, and stored for every study on
    them. Trains nothing but a small head. With --json, all scores are printed, as
    {"study", "facts", "block", "examples", "fingerprint", "scores": {score: {"layers",
    "layer_ranking", "sites", "site_ranking"}}}.
    """
    from autopeft import api
    from autopeft.api.definitions import resolve_definition
    from autopeft.cli.progress import display
    from autopeft.cli.signals import stop_on_signals
    from autopeft.study.progress import Stopper

    flags = {"model.name_or_path": model, "data.source": data}
    overrides = (*as_overrides(flags), *(settings or ()))
    definition, stopper = resolve_definition(study, name=name, overrides=overrides), Stopper()
    with (
        display(quiet=quiet, plain=as_json, unit="") as shown,
        stop_on_signals(stopper, shown.notice),
    ):
        found = api.importance_map(
            definition,
            storage=storage,
            output_dir=output_dir,
            examples=examples,
            head=head.value,
            again=again,
            listener=shown,
            stopper=stopper,
        )
    if as_json:
        print_json(to_plain(found, definition.study.name))
        return
    _print(console(), found, definition.study.name, score.value)


def to_plain(found: "ImportanceMap", study: str) -> dict[str, Any]:
    """The map as JSON, sums and means per site; single channels and weights are left out."""
    return {
        "study": study,
        "facts": dict(found.facts),
        "block": found.block,
        "examples": found.examples,
        "fingerprint": found.fingerprint,
        "scores": {name: _plain_score(found, name) for name in found.scores},
    }


def _plain_score(found: "ImportanceMap", score: str) -> dict[str, Any]:
    from autopeft.cli.importance_table import roles_of, site_means

    means = site_means(found, score)
    return {
        "layers": [{"layer": n, "total": total} for n, total in found.layers(score).items()],
        "layer_ranking": list(found.layer_ranking(score)),
        "sites": [
            {"layer": layer, "site": role, "total": total, "mean": means[layer, role]}
            for (layer, role), total in found.sites(score).items()
        ],
        "site_ranking": [list(key) for key in found.site_ranking(score, roles_of(found, score))],
    }


def _print(target: "Console", found: "ImportanceMap", study: str, score: str) -> None:
    from autopeft.cli.importance_table import importance_table, roles_of
    from autopeft.cli.tables import print_table

    target.print(f"Importance for study {study}: {score}", style="bold")
    target.print(about(found.facts, found.examples), soft_wrap=True)
    print_table(target, importance_table(found, score, ascii_only=ascii_only(target)))
    ranking = ", ".join(str(layer) for layer in found.layer_ranking(score))
    target.print(f"layers, most important first: {ranking}", soft_wrap=True)
    sites = found.site_ranking(score, roles_of(found, score))[:NAMED]
    named = ", ".join(f"{layer} {role}" for layer, role in sites)
    target.print(f"sites, by their mean weight: {named}", soft_wrap=True)
    target.print("cells are means per weight, relative to the largest", style="dim")


def about(facts: Mapping[str, str], examples: int) -> str:
    """What was measured on what, in a line."""
    from autopeft.study.records import asked_of

    when = f"stored {facts['stored_at']}" if "stored_at" in facts else "measured now"
    head = {"none": "its own head", "fitted": "a fitted head", "initial": "the initial head"}
    return (
        f"{facts['backbone']}, {facts['task']} through {head[facts['head']]}, {examples} training "
        f"examples in batches of {facts['batch_size']}, {float(facts['seconds']):.1f} s on "
        f"{facts['device']}{asked_of(facts)}; {when}"
    )
