"""The schema's revision: which one a database has, and how it gets the newest.

A new revision is a new file in `migrations/versions`, written by hand, with its name added to
`REVISIONS`; tests compare its tables with the models and keep one database of every revision. The
list is spelled out, and a new database gets its tables from the models, because opening one must
be quick and Alembic is slow to import: only a schema that has to move asks for it.
"""

from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, inspect, text

from autopeft.errors import StorageError, StorageVersionError
from storage.engine import writer
from storage.faults import storage_errors
from storage.filesystem import check_file
from storage.models import Base
from storage.place import Place, parse_place

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every revision that this release knows, oldest first; the last is the one it works with."""

VERSION_TABLE = "autopeft_schema"
"""Not Alembic's default name, which Optuna's and MLflow's databases have too."""

_VERSION = Table(
    VERSION_TABLE,
    MetaData(naming_convention={"pk": "%(table_name)s_pkc"}),
    Column("version_num", String(32), primary_key=True),
)
"""As Alembic makes it."""

_LOCK = 0x6175746F
"""The key of PostgreSQL's advisory lock under which migrations run ("auto" in ASCII)."""


def current_revision(engine: Engine) -> str | None:
    """The revision of a database's schema, or None where it has none of ours."""
    with engine.connect() as connection:
        return _revision(connection)


def create(place: Place) -> None:
    """Makes the file and the tables where they are missing, and changes nothing where they are.

    Several processes may do this at once: the first one makes them. The engine that may create a
    file is given up at once, lest a file that is lost later be replaced by an empty one.

    Raises:
        StorageError: The database holds something else.
    """
    engine = writer(place, create=True)
    try:
        with engine.begin() as connection:
            _lock(connection)
            if _revision(connection) is None:
                if inspect(connection).get_table_names():
                    raise _foreign(place)
                _make(connection)
    finally:
        engine.dispose()


def check(engine: Engine, place: Place) -> None:
    """Raises unless the database has the revision that this release works with.

    Raises:
        StorageVersionError: It is older or newer.
        StorageError: It is no database of autopeft.
    """
    revision = current_revision(engine)
    _check_known(revision, place)
    if revision != REVISIONS[-1]:
        raise StorageVersionError(
            f"{place}: its schema is {revision}, this autopeft works with {REVISIONS[-1]}",
            hint="run `autopeft db upgrade`",
        )


def upgrade(url: str) -> tuple[str, str]:
    """Brings a database's schema to the newest revision, in one transaction.

    Returns:
        The revision before and after; the same where there was nothing to do.

    Raises:
        StorageError: There is no database, or it is none of autopeft's, or cannot be written.
        StorageVersionError: It is newer than this release.
    """
    place = parse_place(url)
    if place.path is not None:
        check_file(place.path, create=False, writable=True)
    engine = writer(place, foreign_keys=False)
    try:
        with storage_errors(place), engine.begin() as connection:
            _lock(connection)
            revision = _revision(connection)
            before = _check_known(revision, place)
            if before != REVISIONS[-1]:
                _migrate(connection)
                _check_foreign_keys(connection, place)
            return before, REVISIONS[-1]
    finally:
        engine.dispose()


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    return found


def _check_known(revision: str | None, place: Place) -> str:
    if revision is None:
        raise _foreign(place)
    if revision not in REVISIONS:
        raise StorageVersionError(
            f"{place}: its schema is {revision}, written by a newer autopeft; this one knows "
            f"schemas up to {REVISIONS[-1]}",
            hint="upgrade autopeft",
        )
    return revision


def _foreign(place: Place) -> StorageError:
    return StorageError(
        f"{place}: it is a database, but not one of autopeft", hint="name another with --storage"
    )


def _lock(connection: Connection) -> None:
    """SQLite's transaction has the write lock already; PostgreSQL's must ask for one."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


def _make(connection: Connection) -> None:
    """The newest tables, where there are none."""
    Base.metadata.create_all(connection)
    _VERSION.create(connection)
    connection.execute(_VERSION.insert().values(version_num=REVISIONS[-1]))


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "storage:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, REVISIONS[-1])


def _check_foreign_keys(connection: Connection, place: Place) -> None:
    """SQLite migrates with foreign keys off: see before the commit that all still hold."""
    if connection.dialect.name != "sqlite":
        return
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise StorageError(
            f"{place}: {len(broken)} rows refer to rows that are missing; nothing was changed",
            hint="restore a copy, or save what can be read with `sqlite3 FILE .recover`",
        )
