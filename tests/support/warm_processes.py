"""The command line as processes that find everything imported: forked from a server that did it.

Importing what trains takes a process some ten seconds, nine tenths of what a tiny search takes.
These are processes of their own, with their signals, exit codes and standard streams, but not
fresh interpreters: what is said about how the command itself starts needs one.
"""

import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp
from weakref import finalize

IMPORTED = (
    "alembic.command",
    "autopeft.api.confirming",
    "autopeft.api.preparation",
    "autopeft.api.training",
    "autopeft.cli.main",
    "autopeft.cli.progress",
    "autopeft.execution.inprocess",
    "autopeft.searchers.gp",
    "autopeft.tuner",
    "datasets",
    "scipy.stats",
    "sklearn.metrics",
    "storage.store",
    "transformers.models.bert.modeling_bert",
)

SERVERS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
"""What libraries read while they are imported."""

_FORKED = get_context("forkserver")


class WarmProcess:
    """A command in a folder; used like a `subprocess.Popen` with pipes for text.

    Args:
        folder: Its working directory.
        arguments: Of the command.
        environment: All of it.
        script: What is run in place of `autopeft`.
        merged: Whether what it says on standard error goes to standard output.

    Attributes:
        args: The arguments.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        script: Path | None = None,
        merged: bool = False,
    ) -> None:
        self.args = list(arguments)
        self._streams, plain = Path(mkdtemp()), dict(environment)
        finalize(self, shutil.rmtree, self._streams)
        said = (self._streams / "out", self._streams / ("out" if merged else "err"))
        for path in said:
            path.touch()  # it may be killed before it opens them
        given = (folder, said, script, self.args, plain)
        self._process = _FORKED.Process(target=_run, args=given, daemon=True)
        with _environment(SERVERS):
            _FORKED.set_forkserver_preload(list(IMPORTED))
            self._process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As `Popen` tells it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Likewise."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has one."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to standard output and error, once it has ended."""
        self.wait(timeout)
        return (self._streams / "out").read_text(), self._error()

    def _error(self) -> str:
        error = self._streams / "err"
        return error.read_text() if error.exists() else ""

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _run(
    folder: Path,
    said: tuple[Path, Path],
    script: Path | None,
    arguments: Sequence[str],
    environment: dict[str, str],
) -> None:
    """What the process does."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(said, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.argv = [str(script or "autopeft"), *arguments]
    if script is not None:
        runpy.run_path(str(script), run_name="__main__")
    else:
        from autopeft.cli.main import main

        main()


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    kept = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
