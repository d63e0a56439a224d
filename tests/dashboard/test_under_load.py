"""The served dashboard with ten viewers who never rest, beside a search by the real command.

A viewer speaks Streamlit's own protocol, as a browser does, and asks for the next page as soon as
it has one. What the search trains is a stand-in (`tests/support/stand_in_search.py`).
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import stand_in
from served_app import LOG, served
from stand_in_place import Place, placed
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import ClientConnection, connect

from autopeft.study.records import TrialState

VIEWERS, TRIALS = 10, 64
PAGES = ("", "front", "progress", "trial", "importance", "explanations")
"""By their paths, as a browser names them: the list of studies is the first page, at the root."""

PATIENCE_S = 120.0
STARTS_ANEW = ForwardMsg.FINISHED_EARLY_FOR_RERUN
"""A page that starts anew by itself, as the study has changed, is not drawn yet."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc"),
]


class Viewer(threading.Thread):
    """Looks at one page after the other until it is over and it has seen all, then once more.

    Attributes:
        looks: Pages that were drawn to their end.
        beside: Of these, before it was over.
        headings: What stood above them.
        alerts: What was said in coloured boxes.
        faults: What went wrong.
        longest_s: The page that took longest.
    """

    def __init__(self, port: int, over: threading.Event, first: int) -> None:
        super().__init__()
        self._address, self._over = f"ws://127.0.0.1:{port}/_stcore/stream", over
        self._next = first
        self.looks, self.beside, self.longest_s = 0, 0, 0.0
        self.headings: set[str] = set()
        self.alerts: set[str] = set()
        self.faults: list[str] = []

    def run(self) -> None:
        try:
            with connect(self._address, subprotocols=["streamlit"], max_size=None) as server:  # type: ignore[list-item]
                while not self._over.is_set() or self.looks < len(PAGES):
                    self._look(server, PAGES[self._next % len(PAGES)])
                    self._next += 1
                    self.beside += not self._over.is_set()
                self._look(server, "front")
        except Exception as error:
            self.faults.append(f"{type(error).__name__}: {error}")

    def _look(self, server: ClientConnection, page: str) -> None:
        asked, began = BackMsg(), time.monotonic()
        asked.rerun_script.query_string = "study=toy"
        asked.rerun_script.page_name = page
        server.send(asked.SerializeToString())
        while True:
            told = ForwardMsg.FromString(server.recv(PATIENCE_S))  # type: ignore[arg-type]
            kind = told.WhichOneof("type")
            if kind == "delta":
                self._see(page, told)
            elif kind == "page_not_found":
                self.faults.append(f"no page {page!r}")
            elif kind == "script_finished" and told.script_finished != STARTS_ANEW:
                break
        assert told.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY
        self.looks += 1
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def _see(self, page: str, told: ForwardMsg) -> None:
        element = told.delta.new_element
        match element.WhichOneof("type"):
            case "exception":
                self.faults.append(f"{page!r}: {element.exception.message}")
            case "heading":
                self.headings.add(element.heading.body)
            case "alert":
                self.alerts.add(element.alert.body)


@pytest.fixture
def place(tmp_path: Path, database_url: str) -> Iterator[Place]:
    """Searches on each database."""
    with placed(tmp_path, database_url) as made:
        yield made


@pytest.fixture
def port(place: Place) -> Iterator[int]:
    """Of the dashboard of that database."""
    with served(place.url, place.folder) as found:
        yield found


def test_ten_viewers_who_never_rest_neither_harm_a_search_nor_see_a_fault(
    place: Place, port: int
) -> None:
    process, over = place.start("--trials", str(TRIALS), "--quiet", step_s=0.01), threading.Event()
    place.until_training(process)
    viewers = [Viewer(port, over, first) for first in range(VIEWERS)]
    for viewer in viewers:
        viewer.start()
    try:
        out, _ = process.communicate(timeout=600)
    finally:
        over.set()
        for viewer in viewers:
            viewer.join()
    assert process.returncode == 0, out
    assert "waiting for it" not in out, "the search had to wait for its database"
    trials = place.trials()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    for trial in trials:
        assert (trial.state, trial.attempts) == (TrialState.COMPLETED, 1), "tried again"
        assert trial.objectives["accuracy"] == stand_in.quality(trial.configuration, 60)
    faults = [fault for viewer in viewers for fault in viewer.faults]
    assert faults == [], (place.folder / LOG).read_text()[-5000:]
    assert all(viewer.beside for viewer in viewers), "some have not looked while it ran"
    assert all({"Studies", "toy"} <= viewer.headings for viewer in viewers)
    said = {alert for viewer in viewers for alert in viewer.alerts}
    assert not [alert for alert in said if "database" in alert or "Killed" in alert]
