"""A folder of packages as a bare GPU machine has them."""

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

NEEDED = ("torch", "transformers", "peft", "numpy", "safetensors")

NOT_EVERYWHERE = {"pydantic", "pydantic-core"}
"""What the newest releases of the command lines that come with those require, older ones not."""


@pytest.fixture(scope="session")
def bare_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to what torch, transformers, peft, numpy and safetensors require, and nothing else.

    A process that has this folder and no site-packages (`python -S`) cannot import the rest.
    """
    folder = tmp_path_factory.mktemp("bare")
    for distribution in _closure(NEEDED):
        for name in _top_level(distribution):
            target = Path(str(distribution.locate_file(name)))
            if target.exists() and not (folder / name).exists():
                (folder / name).symlink_to(target)
    return folder


def _closure(names: tuple[str, ...]) -> Iterator[metadata.Distribution]:
    todo, seen = list(names), set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen | NOT_EVERYWHERE:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # another platform's or an accelerator's
        yield distribution
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)


def _top_level(distribution: metadata.Distribution) -> set[str]:
    files = distribution.files or ()
    return {file.parts[0] for file in files if file.parts[0] not in ("..", "bin", "__pycache__")}
