import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autopeft.errors import InputError
from dashboard import launch


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_command_is_private_and_quiet() -> None:
    line = launch.command(port=8600, base_path="/peft/", headless=True)
    assert line[:5] == [sys.executable, "-P", "-m", "streamlit", "run"]
    assert Path(line[5]).name == "app.py"
    assert Path(line[5]).is_file()
    assert {
        "--server.address=127.0.0.1",
        "--server.port=8600",
        "--server.baseUrlPath=peft",
        "--server.headless=true",
        "--server.showEmailPrompt=false",
        "--browser.gatherUsageStats=false",
        "--logger.hideWelcomeMessage=true",
    } <= set(line)


def test_streamlit_decides_about_a_browser_unless_told() -> None:
    assert not [flag for flag in launch.command() if "headless" in flag]


def test_the_storage_url_travels_in_the_environment() -> None:
    assert launch.environment("postgresql://u:p@h/d")["AUTOPEFT_STORAGE"] == "postgresql://u:p@h/d"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_loopback_needs_no_warning(host: str) -> None:
    assert launch.exposure(host) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "box.example"])
def test_other_hosts_are_warned_about(host: str) -> None:
    assert "no login" in launch.exposure(host)


def test_the_address_to_open() -> None:
    assert launch.address("127.0.0.1", 8501) == "http://127.0.0.1:8501/"
    assert launch.address("0.0.0.0", 8501, "a/b") == "http://localhost:8501/a/b/"
    assert launch.address("::1", 8501) == "http://[::1]:8501/"


def test_a_taken_port_is_refused_with_the_next_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port + 1}"):
            launch.run(storage_url="sqlite:///x.db", port=port)


def test_an_impossible_port_is_refused() -> None:
    with pytest.raises(InputError, match="1 to 65535"):
        launch.run(storage_url="sqlite:///x.db", port=70000)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("when", ["before it serves", "while it serves"])
def test_termination_ends_the_child(when: str, tmp_path: Path) -> None:
    """The parent is ended by SIGTERM; the server must not outlive it."""
    port = _free_port()
    code = (
        "import sys; from dashboard import launch\n"
        "sys.exit(launch.run(storage_url='sqlite:///none.db', "
        f"port={port}, headless=True, say=lambda line: print(line, flush=True)))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline().startswith(f"dashboard: http://127.0.0.1:{port}/")
    deadline = time.monotonic() + 60
    while when == "while it serves" and not _listens(port):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=20) == 143
    parent.stdout.close()
    assert not _listens(port)
