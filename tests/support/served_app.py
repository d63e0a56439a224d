"""The dashboard, served as `autopeft dashboard` serves it, on a free loopback port."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dashboard import launch

PATIENCE_S = 60.0
LOG = "dashboard.log"


@contextmanager
def served(storage_url: str, folder: Path) -> Iterator[int]:
    """Its port, once it answers.

    Args:
        storage_url: Whose studies it shows.
        folder: Its working directory, in which its `LOG` is kept.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with (folder / LOG).open("wb") as log:
        child = subprocess.Popen(
            launch.command(port=port, headless=True),
            env=os.environ | launch.environment(storage_url),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/_stcore/health", child)
        yield port
    finally:
        child.terminate()
        child.wait(20)


def _wait_for(address: str, child: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            assert child.poll() is None, f"the server ended with {child.returncode}"
            assert time.monotonic() < end, "the server did not answer"
            time.sleep(0.2)
