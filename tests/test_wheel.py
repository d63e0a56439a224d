"""The wheel installs exactly the four packages, with the files that are not Python."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"autopeft", "storage", "dashboard", "search_spaces"}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every file in a wheel that is built from the tree."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_four_packages_and_nothing_else(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_data_files_travel(names: list[str]) -> None:
    spaces = {f"search_spaces/{path.name}" for path in (ROOT / "search_spaces").glob("*.yaml")}
    assert len(spaces) >= 4
    assert spaces <= set(names)
    assert {"autopeft/py.typed", "dashboard/icon.svg", "dashboard/app.py"} <= set(names)
    migrations = [name for name in names if name.startswith("storage/migrations/versions/")]
    assert any(name.endswith(".py") for name in migrations)


def test_the_command_line_is_installed(names: list[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)
