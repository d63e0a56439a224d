"""The commands to type next: exact, with the storage and output folder that were given."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from autopeft.api.place import STORAGE_VARIABLE, has_secret

_FROM_ENVIRONMENT = f"${STORAGE_VARIABLE}"


@dataclass(frozen=True)
class Place:
    """Where a command was told to look; what was not given stays out of the next command.

    Attributes:
        storage: The storage URL, or None.
        output_dir: The artifacts' folder, or None.
    """

    storage: str | None = None
    output_dir: Path | None = None

    @property
    def storage_flags(self) -> list[str]:
        """`--storage URL`, where it was given; a URL with a password is named, not shown."""
        if self.storage is None:
            return []
        return ["--storage", _FROM_ENVIRONMENT if has_secret(self.storage) else self.storage]

    @property
    def flags(self) -> list[str]:
        """`--storage` and `--output-dir`, where they were given."""
        output = [] if self.output_dir is None else ["--output-dir", str(self.output_dir)]
        return [*self.storage_flags, *output]


def command(*words: str) -> str:
    """An `autopeft` command line, quoted for a shell."""
    quoted = (f'"{word}"' if word == _FROM_ENVIRONMENT else shlex.quote(word) for word in words)
    return " ".join(["autopeft", *quoted])


def after_search(study: str, trial: int, place: Place) -> list[tuple[str, str]]:
    """What to do with a front: (command, what it does).

    Args:
        study: The study's name.
        trial: The trial that the knee picks.
        place: Where the study is.
    """
    pick = ("export", study, "--pick", "knee", "-o", "best.yaml")
    return [
        (command("show", str(trial), "--study", study, *place.flags), "look at the knee's trial"),
        (command("confirm", study, *place.flags), "train it and others again with 5 seeds"),
        (command(*pick, *place.flags), "write its configuration"),
        (command("train", "best.yaml", "-o", "adapter"), "train it at full budget"),
        (command("dashboard", *place.storage_flags), "browse the front"),
    ]


def listed(commands: list[tuple[str, str]]) -> list[str]:
    """The lines that show them, explained."""
    return [f"  {line}    # {does}" for line, does in commands]
