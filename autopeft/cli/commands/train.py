"""`autopeft train`: an exported configuration, trained at full budget."""

from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.options import JsonOption, QuietOption
from autopeft.cli.streams import console, print_json, say


def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml", help="What autopeft export wrote.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the adapter goes.")
    ],
    rescore: Annotated[
        bool,
        typer.Option(
            "--rescore", help="Measure importance again instead of taking the file's scores."
        ),
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train an exported configuration at full budget.

    DIR gets the adapter, the metrics and a model card; autopeft.load(DIR) loads it.
    """
    from autopeft import api
    from autopeft.cli.progress import display
    from autopeft.cli.tables import plain_table, print_table
    from autopeft.cli.wording import flattened, plain_text

    with display(quiet=quiet, unit="") as shown:
        metrics = api.train(config, output, listener=shown, rescore=rescore)
    if as_json:
        print_json(metrics)
        return
    table = plain_table("metric", "value", right=("value",))
    for key, value in flattened(metrics).items():
        table.add_row(key, plain_text(value))
    print_table(console(), table)
    say(f"wrote {output}; in Python: autopeft.load({str(output)!r}).predict([...])")
