"""`autopeft dashboard`: browse studies in the browser."""

from importlib import import_module
from typing import Annotated

import typer

from autopeft.cli.options import StorageOption
from autopeft.cli.streams import say


def dashboard(
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Where to listen.", show_default=True)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", help="Where to listen.", show_default=True)
    ] = 8501,
    base_path: Annotated[str, typer.Option(metavar="PATH", help="The path, behind a proxy.")] = "",
    storage: StorageOption = None,
) -> None:
    """Serve the dashboard until Ctrl-C.

    It reads the database and changes nothing. There is no login: it listens to
    this machine alone unless told otherwise.
    """
    from autopeft import api

    # By name: the dashboard stands beside the command line, not below it, and is not imported
    # by anything that does not serve it.
    launch = import_module("dashboard.launch")
    code = launch.run(
        storage_url=api.storage_url(storage), host=host, port=port, base_path=base_path, say=say
    )
    raise typer.Exit(code)
