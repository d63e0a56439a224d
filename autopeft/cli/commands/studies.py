"""`autopeft studies`: all studies of a database."""

from autopeft.cli.options import JsonOption, StorageOption
from autopeft.cli.streams import console, print_json, say


def studies(storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """List all studies with their progress."""
    from autopeft import api
    from autopeft.cli.tables import print_table, studies_table
    from autopeft.cli.wording import KILLED, lost

    statuses = api.list_studies(storage)
    if as_json:
        print_json(statuses)
    elif statuses:
        target = console()
        print_table(target, studies_table(statuses))
        if any(map(lost, statuses)):
            target.print(KILLED, soft_wrap=True)
    else:
        say(f"no study in {api.shown_storage(storage)}; autopeft search creates one")
