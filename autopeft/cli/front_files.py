"""The front as a file: a page, a picture, or a table."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.cli.faults import write_result
from autopeft.errors import AutopeftError, Fault, InputError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from autopeft.api.study import Study

FLAG = "--save"


def check_suffix(path: Path) -> None:
    """Raise InputError where no format goes by the file's suffix, or what draws it is missing."""
    if path.suffix not in _FORMATS:
        raise InputError(Fault(FLAG, "", str(path), f"a file ending in {', '.join(_FORMATS)}"))
    if path.suffix == ".png" and find_spec("kaleido") is None:
        hint = "pip install 'autopeft[images]', or save .html"
        raise InputError(Fault(FLAG, "", f"{path}, but kaleido is not installed", "", hint))


def save_front(study: "Study", path: Path) -> None:
    """Write the front in the format of the file's suffix.

    Raises:
        InputError: Another suffix, or a place that cannot be written.
        AutopeftError: The browser that draws pictures cannot be started.
    """
    check_suffix(path)
    _FORMATS[path.suffix](study, path)


def _save_csv(study: "Study", path: Path) -> None:
    from autopeft.cli.tables import trials_csv

    write_result(path, trials_csv(study.front(), study.frames, study.confirmation()), flag=FLAG)


def _figure(study: "Study") -> "Figure":
    from autopeft.export.front_figure import front_figure
    from autopeft.searchers.confirmed import redrawn

    trials, frames, found = study.trials(), study.frames, study.confirmation()
    kept = redrawn(found, trials, frames)
    return front_figure(study.name, trials, study.front(), frames, found, kept)


def _save_html(study: "Study", path: Path) -> None:
    from autopeft.export.front_figure import figure_html

    write_result(path, figure_html(_figure(study)), flag=FLAG)


def _save_png(study: "Study", path: Path) -> None:
    from autopeft.export.front_figure import figure_png

    try:
        picture = figure_png(_figure(study))
    except RuntimeError as error:
        raise AutopeftError(
            f"{FLAG}: the picture cannot be drawn: {' '.join(str(error).split())[:200]}",
            hint="install Chrome or Chromium (kaleido draws with it), or save .html",
        ) from error
    write_result(path, picture, flag=FLAG)


_FORMATS: Mapping[str, Callable[["Study", Path], None]] = {
    ".html": _save_html,
    ".png": _save_png,
    ".csv": _save_csv,
}
