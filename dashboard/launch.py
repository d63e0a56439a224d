"""Starting the dashboard: Streamlit as a child process, private and quiet.

Only this machine is served unless a host says otherwise. Telemetry, first-run prompts and the
look-up of the machine's public address are off. The storage URL travels in the environment: it may
hold a password, and neither a process list nor a browser's history shall show it.
"""

import ipaddress
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from autopeft.api.place import STORAGE_VARIABLE
from autopeft.errors import Fault, InputError

APP = Path(__file__).with_name("app.py")
GRACE_S = 10.0

_log = logging.getLogger(__name__)


def command(
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    base_path: str = "",
    headless: bool | None = None,
) -> list[str]:
    """The command line that serves the dashboard; see `environment` for what goes with it.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        base_path: Path under which a reverse proxy serves it, or "".
        headless: True opens no browser, False does, None leaves it to whether there is a display.
    """
    options: dict[str, str | int | bool] = {
        "server.address": host,
        "server.port": port,
        "server.baseUrlPath": base_path.strip("/"),
        "server.showEmailPrompt": False,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "type",
        "client.showErrorLinks": False,
        # The welcome message would ask a server abroad for this machine's public address.
        "logger.hideWelcomeMessage": True,
        "theme.light.primaryColor": "#2563eb",
        "theme.dark.primaryColor": "#60a5fa",
    }
    if headless is not None:
        options["server.headless"] = headless
    flags = [f"--{name}={_flag(value)}" for name, value in options.items()]
    # -P: a file called storage.py in the working directory must not hide a package.
    return [sys.executable, "-P", "-m", "streamlit", "run", str(APP), *flags]


def environment(storage_url: str) -> dict[str, str]:
    """What the child adds to this process's environment."""
    return {STORAGE_VARIABLE: storage_url, "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false"}


def address(host: str, port: int, base_path: str = "") -> str:
    """The URL to open; a wildcard host is reached through this machine."""
    shown = "localhost" if host in ("0.0.0.0", "::", "") else host
    shown = f"[{shown}]" if ":" in shown else shown
    path = base_path.strip("/")
    return f"http://{shown}:{port}/{path + '/' if path else ''}"


def exposure(host: str) -> str:
    """A warning where others than this machine can reach the host, else ""."""
    if _is_loopback(host):
        return ""
    return (
        f"warning: the dashboard listens on {host} and has no login: whoever reaches that address "
        "sees every study in this database; use 127.0.0.1 and an SSH tunnel, or a proxy with a "
        "login"
    )


def run(
    *,
    storage_url: str,
    host: str = "127.0.0.1",
    port: int = 8501,
    base_path: str = "",
    headless: bool | None = None,
    say: Callable[[str], None] = _log.info,
) -> int:
    """Serves the dashboard until it is interrupted.

    Args:
        storage_url: Whose studies to show.
        host: Address to listen on.
        port: Port to listen on.
        base_path: Path under which a reverse proxy serves it, or "".
        headless: See `command`.
        say: Takes the lines that the reader should see, one by one.

    Returns:
        The child's exit code; 130 and 143 after an interrupt and a termination.

    Raises:
        InputError: The host and port cannot be listened on.
    """
    _check_free(host, port)
    if warning := exposure(host):
        say(warning)
    child = _Child(command(host=host, port=port, base_path=base_path, headless=headless))
    previous = signal.signal(signal.SIGTERM, child.terminate)
    try:
        say(f"dashboard: {address(host, port, base_path)} (Ctrl-C ends it)")
        return child.serve(os.environ | environment(storage_url))
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Child:
    """The server's process, which does not outlive this one's interrupt or termination."""

    def __init__(self, line: Sequence[str]) -> None:
        self._line = line
        self._process: subprocess.Popen[bytes] | None = None
        self._terminated = False

    def terminate(self, _signal: int, _frame: FrameType | None) -> None:
        """Passes SIGTERM on, now or as soon as there is a process."""
        self._terminated = True
        if self._process is not None:
            self._process.terminate()

    def serve(self, variables: Mapping[str, str]) -> int:
        """Runs it to its end; its exit code, or 130 and 143."""
        self._process = subprocess.Popen(self._line, env=variables)
        try:
            if self._terminated:
                self._process.terminate()
            code = self._process.wait()
        except KeyboardInterrupt:
            _end(self._process)
            return 130
        return 143 if self._terminated else code


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ctrl-C reached the child as well; one that does not heed it is told again, then killed."""
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _flag(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_free(host: str, port: int) -> None:
    """Raises InputError where nothing can listen there: Streamlit would say less about it."""
    if not 0 < port < 65536:
        raise InputError(Fault("--port", "", str(port), "1 to 65535"))
    try:
        family, kind, proto, _, place = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InputError(
            Fault("--host", "", host, "an address of this machine", "try 127.0.0.1")
        ) from error
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            raise InputError(
                Fault(
                    "--port",
                    "",
                    f"{host}:{port} ({error.strerror})",
                    "an address that is free",
                    f"is a dashboard running there? give another port: --port {port % 65535 + 1}",
                )
            ) from error
