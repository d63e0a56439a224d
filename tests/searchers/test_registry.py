import subprocess
import sys

import pytest

from autopeft.errors import InputError
from autopeft.searchers.registry import SEARCHERS, make_searcher


@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_every_searcher_can_be_made(make_problem, name: str) -> None:
    assert make_searcher(name, make_problem()).ask(1)


def test_an_unknown_name_gets_the_nearest(make_problem) -> None:
    with pytest.raises(InputError, match="did you mean evolution") as caught:
        make_searcher("evolutoin", make_problem())
    assert caught.value.faults[0].key == "search.searcher"


def test_torch_waits_for_the_gp() -> None:
    code = (
        "import sys; import autopeft.searchers.front, autopeft.searchers.registry;"
        "import autopeft.searchers.evolution, autopeft.searchers.random;"
        "sys.exit('torch' in sys.modules or 'botorch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
