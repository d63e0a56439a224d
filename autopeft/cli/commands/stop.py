"""`autopeft stop`: ask a running study to stop."""

from autopeft.cli.options import JsonOption, StorageOption, StudyArgument
from autopeft.cli.streams import print_json, say
from autopeft.study.records import StudyState


def stop(
    study: StudyArgument = None, storage: StorageOption = None, as_json: JsonOption = False
) -> None:
    """Ask a running study to save and stop after its step.

    The search command that started it goes on later.
    """
    from autopeft import api

    asked = api.stop(study, storage=storage)
    if as_json:
        print_json(asked)
    elif asked["running"]:
        say(f"study {asked['study']} will save and stop after its step")
    else:
        state = "killed?" if asked["state"] == StudyState.RUNNING else asked["state"]
        say(f"nobody runs study {asked['study']} ({state}): there is nothing to stop")
