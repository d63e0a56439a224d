"""`autopeft explain`: which choices mattered, and how far the searcher's predictions held."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autopeft.cli.options import JsonOption, OutputDirOption, StorageOption, StudyArgument
from autopeft.cli.streams import console, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from autopeft.searchers.explain.importances import Importance, Importances
    from autopeft.searchers.explain.predictions import Predictions

_BAR = 16
"""Characters of a bar that stands for all of the variance."""


def explain(
    study: StudyArgument = None,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which choices mattered, and how the searcher's predictions compare with measurements."""
    from autopeft import api

    loaded = api.load_study(study, storage=storage, output_dir=output_dir)
    importances, predictions = loaded.importances(), loaded.predictions()
    if as_json:
        plain = _plain(loaded.name, importances, predictions)
        print_json(plain | {"method_sources": loaded.method_sources})
        return
    target = console()
    target.print(f"What mattered in study {loaded.name}", style="bold")
    _print_importances(target, list(importances.values()))
    target.print("\nPredicted against measured", style="bold")
    _print_predictions(target, predictions)
    _print_sources(target, loaded.method_sources, list(importances.values()))


def _plain(
    name: str, importances: "Mapping[str, Importances]", predictions: "Sequence[Predictions]"
) -> dict[str, Any]:
    return {
        "study": name,
        "importances": {key: each.to_dict() for key, each in importances.items()},
        "predictions": [each.to_dict() for each in predictions],
    }


def _print_importances(target: "Console", found: "Sequence[Importances]") -> None:
    from autopeft.searchers.explain.importances import unexplained

    told = [each for each in found if each.choices]
    for each in told:
        _line(target, f"{each.target}: {each.basis()}")
    for sentence in unexplained(found):
        _line(target, sentence)
    if told:
        _print_shares(target, told)


def _print_shares(target: "Console", told: "Sequence[Importances]") -> None:
    """A row per choice that is clear for some target, then the names of the others."""
    from autopeft.cli.tables import plain_table, print_table
    from autopeft.searchers.explain.choices import in_words
    from autopeft.searchers.explain.importances import ordered

    clear, unclear = ordered(told)
    table = plain_table("choice", *(each.target for each in told))
    for choice in clear:
        shares = [next(each for each in one.choices if each.choice == choice) for one in told]
        table.add_row(in_words(choice), *map(_share, shares))
    if clear:
        print_table(target, table)
        _line(
            target, "a share is the part of the variance between trials that goes with a choice,"
        )
        _line(target, "alone or together with others, +- its standard error")
    if unclear:
        _line(target, f"not told from noise: {', '.join(map(in_words, unclear))}")


def _share(importance: "Importance") -> str:
    bar = "#" * round(_BAR * min(max(importance.share, 0.0), 1.0)) if importance.clear else ""
    return f"{importance.share:5.2f} +- {importance.error:.2f} {bar:<{_BAR}}".rstrip()


def _print_predictions(target: "Console", predictions: "Sequence[Predictions]") -> None:
    if not predictions:
        _line(target, "no trial was proposed with a prediction")
    for each in predictions:
        for sentence in each.sentences():
            _line(target, sentence)


def _print_sources(
    target: "Console", sources: "Mapping[str, str]", found: "Sequence[Importances]"
) -> None:
    """Of the methods that a choice is clear for."""
    clear = {each.choice for one in found for each in one.choices if each.clear}
    named = {choice.partition(".")[0] for choice in clear}
    if own := [name for name in sources if name in named]:
        target.print("\nSources of the methods", style="bold")
    for name in own:
        _line(target, f"{name}: {sources[name]}")


def _line(target: "Console", text: str) -> None:
    target.print(f"  {text}", soft_wrap=True)
