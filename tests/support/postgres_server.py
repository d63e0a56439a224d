"""A real PostgreSQL server for tests: in a temporary folder, on loopback, for one session."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from urllib.parse import quote

WRITER, PASSWORD = "ann", "s3cr3t@pass/word"
"""A password with what URLs must quote; tests search every output for it."""

START_S = 20.0
_DEBIAN = Path("/usr/lib/postgresql")
# Nothing here outlives a crash of the machine, so nothing waits for the disk; a crash of the
# server alone loses no commit.
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "200", "jit": "off"}


class ServerUnavailableError(Exception):
    """No server can run here; says why."""


def binaries() -> Path:
    """The folder of `initdb` and `postgres`, of the newest release installed.

    Raises:
        ServerUnavailableError: There is none.
    """
    found = shutil.which("initdb")
    if found is not None and shutil.which("postgres") is not None:
        return Path(found).resolve().parent
    folders = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not folders:
        raise ServerUnavailableError("PostgreSQL is not installed (Debian: postgresql)")
    return folders[-1].parent


class PostgresServer:
    """A running server; every test takes a database of its own.

    Args:
        folder: An empty folder that the server's user owns.
        user: The system's user that runs it, or None for this one.
    """

    def __init__(self, folder: Path, user: str | None) -> None:
        self.folder, self.port = folder, _free_port()
        self._user, self._numbers = user, count()
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-E",
                  "UTF8", "--locale=C", "--no-sync")  # fmt: skip
        # Passwords are asked of everyone but the superuser.
        rules = ("host all postgres 127.0.0.1/32 trust", "host all all 127.0.0.1/32 scram-sha-256")
        (folder / "data" / "pg_hba.conf").write_text("\n".join(rules) + "\n")
        self.start()
        self.execute(f"CREATE ROLE {WRITER} LOGIN PASSWORD '{PASSWORD}'")

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts it and waits until it answers."""
        flags = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [binaries() / "postgres", "-D", self.folder / "data", "-p", str(self.port),
                 "-h", "127.0.0.1", "-k", self.folder, *flags],
                stdout=log, stderr=log, cwd=self.folder, user=self._user, group=self._group,
                extra_groups=None if self._user is None else [],
            )  # fmt: skip
        self._wait()

    def stop(self, *, crash: bool = False) -> None:
        """Ends it, with all its connections; `crash` gives it no time to tidy up."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
            self._process.wait(START_S)
            self._process = None

    @property
    def pid(self) -> int:
        """Of its first process, which takes new connections."""
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    def restart(self, *, crash: bool = False, after_s: float = 0.0) -> None:
        """Ends it and starts it again, on the same port."""
        self.stop(crash=crash)
        time.sleep(after_s)
        self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within, it and whoever serves a connection stand still: its kernel answers for it."""
        serving = self.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' "
            "AND pid <> pg_backend_pid()"
        )
        pids = [*(int(str(pid)) for (pid,) in serving), self.pid]
        try:
            for pid in pids:
                _send(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                _send(pid, signal.SIGCONT)

    # -- databases ----------------------------------------------------------------------------

    def new_database(self) -> str:
        """The URL of an empty database that `WRITER` owns."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} OWNER {WRITER}")
        return self.url(name)

    def url(self, database: str, user: str = WRITER, password: str = PASSWORD) -> str:
        """The URL of a database, for a user."""
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Runs statements as the superuser; the rows of the last one."""
        import psycopg

        place = f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"
        with psycopg.connect(place, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    # -- parts --------------------------------------------------------------------------------

    @property
    def _group(self) -> int | None:
        return None if self._user is None else pwd.getpwnam(self._user).pw_gid

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [binaries() / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            user=self._user,
            group=self._group,
            extra_groups=None if self._user is None else [],
        )
        if done.returncode != 0:
            raise ServerUnavailableError(f"{program} failed: {done.stderr.strip()}")

    def _wait(self) -> None:
        import psycopg

        end = time.monotonic() + START_S
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError as error:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > end:
                    raise ServerUnavailableError(
                        f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-500:]}"
                    ) from error
                time.sleep(0.05)
            else:
                return


def server_folder() -> tuple[Path, str | None]:
    """A new folder for a server, and the user who runs it: PostgreSQL refuses to run as root."""
    folder = Path(tempfile.mkdtemp(prefix="autopeft-postgres-"))
    if os.geteuid() != 0:
        return folder, None
    for user in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(user)
        except KeyError:
            continue
        os.chown(folder, found.pw_uid, found.pw_gid)
        return folder, user
    raise ServerUnavailableError("no user but root, as whom PostgreSQL does not run")


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # its client has left meanwhile
        os.kill(pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
