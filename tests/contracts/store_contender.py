"""One of several processes that use one store at once; started by `test_store.py`.

Arguments: what to do, the URL, the study, the fencing token. It says `ready`, waits for a line,
acts, answers with one line of JSON, and lives until its input is closed: a holder that has died
would not count as one.
"""

import json
import sys

from autopeft.configuration import Configuration, Group
from autopeft.errors import StudyHeldError
from autopeft.study.records import NewTrial, Origin
from storage import open_store
from storage.lease import this_process

ROUNDS = 10
TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}


def create(url: str, _study: str, _token: int) -> object:
    """Makes the tables where no other process has."""
    with open_store(url, create=True) as store:
        return len(store.studies())


def claim(url: str, study: str, _token: int) -> object:
    """Claims the lease: its token, or "held"."""
    with open_store(url) as store:
        try:
            return store.claim(study, this_process(), 60.0)
        except StudyHeldError:
            return "held"


def number(url: str, study: str, token: int) -> object:
    """Adds trials, two at a time: the numbers they got."""
    trial = NewTrial(
        Configuration.of([Group.of("lora", [0], rank=8)], training=TRAINING),
        Origin.SEARCHER,
        trainable_params=1,
        head_params=1,
        pack=0,
    )
    with open_store(url) as store:
        return [
            [added.number for added in store.add_trials(study, token, [trial, trial])]
            for _ in range(ROUNDS)
        ]


ACTIONS = {"create": create, "claim": claim, "number": number}


def main() -> None:
    """Plays one process's part."""
    action, url, study, token = sys.argv[1:]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write(json.dumps(ACTIONS[action](url, study, int(token))) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
