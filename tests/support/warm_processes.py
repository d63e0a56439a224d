"""The command line as processes that find everything imported: forked from a server that did it.

Importing what trains takes a process some ten seconds, nine tenths of what a tiny search takes.
These are processes of their own, with their signals, exit codes and standard streams, but not
fresh interpreters: what is said about how the command itself starts needs one.
"""

import os
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

_FORKED = get_context("forkserver")


class WarmProcess:
    """A command in a folder; used like a `subprocess.Popen` with pipes for text.

    Args:
        folder: Its working directory.
        arguments: Of `autopeft`.
        environment: All of it.

    Attributes:
        args: The arguments.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.args = list(arguments)
        self._streams, plain = Path(mkdtemp()), dict(environment)
        finalize(self, shutil.rmtree, self._streams)
        given = (folder, self._streams, self.args, plain)
        self._process = _FORKED.Process(target=_run, args=given, daemon=True)
        with _environment(plain):  # the server's, where this is the first: libraries read it early
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
        out, err = ((self._streams / name).read_text() for name in ("out", "err"))
        return out, err

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
    folder: Path, streams: Path, arguments: Sequence[str], environment: dict[str, str]
) -> None:
    """What the process does."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(streams / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["autopeft", *arguments]
    from autopeft.cli.main import main

    main()


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    kept = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
