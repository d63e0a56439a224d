"""`autopeft stop`: ask a running study to stop."""

from autopeft.cli.options import JsonOption, StorageOption, StudyArgument
from autopeft.cli.streams import print_json, say


def stop(
    study: StudyArgument = None, storage: StorageOption = None, as_json: JsonOption = False
) -> None:
    """Ask a running study to save and stop after its step.

    The search command that started it goes on later.
    """
    from autopeft import api

    name = api.stop(study, storage=storage)
    if as_json:
        print_json({"study": name, "stop_requested": True})
    else:
        say(f"study {name} will save and stop after its step")
