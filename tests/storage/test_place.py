from pathlib import Path

import pytest

from autopeft.errors import StorageError
from storage import DEFAULT_URL
from storage.place import BUSY_TIMEOUT_S, parse_place

SECRET = "s3cr3t"


def test_a_relative_path_starts_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = parse_place(DEFAULT_URL)
    monkeypatch.chdir("/")
    assert place.path == tmp_path / "autopeft.db"
    assert str(place) == str(tmp_path / "autopeft.db")
    assert place.busy_timeout_s == BUSY_TIMEOUT_S


def test_an_absolute_path_and_a_timeout() -> None:
    place = parse_place("sqlite:////data/my studies.db?timeout=2.5")
    assert place.path == Path("/data/my studies.db")
    assert place.busy_timeout_s == 2.5


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_is_normalised_and_keeps_its_password_to_itself(scheme: str) -> None:
    place = parse_place(f"{scheme}://ann:{SECRET}@db.example:5433/studies?sslmode=require")
    assert place.path is None
    assert place.url.drivername == "postgresql+psycopg"
    assert place.url.password == SECRET
    for shown in (str(place), repr(place), f"{place!r}"):
        assert SECRET not in shown
        assert "db.example:5433/studies" in shown


def test_a_password_in_the_query_is_not_shown_either() -> None:
    place = parse_place(f"postgresql://ann@db/studies?password={SECRET}&sslmode=require")
    assert SECRET not in str(place)
    assert "sslmode=require" in str(place)
    assert place.without_secrets(f'auth "{SECRET}" failed') == 'auth "***" failed'


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "got nothing"),
        ("autopeft.db", "try sqlite:///autopeft.db"),
        ("sqlite://autopeft.db", "allowed: sqlite:///autopeft.db"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("sqlite:///a.db?mode=ro", "got mode in .*allowed: timeout"),
        ("sqlite:///a.db?timeout=soon", "timeout=soon"),
        ("sqlite:///a.db?timeout=-1", "timeout=-1"),
        ("sqlite:///a.db?timeout=nan", "timeout=nan"),
        ("sqlite:///a.db?timeout=inf", "timeout=inf"),
        (f"mysql://ann:{SECRET}@db/studies", "allowed: sqlite"),
        (f"postgresql+psycopg2://ann:{SECRET}@db/studies", "allowed: sqlite"),
        (f"postgresql://ann:{SECRET}@db", "without a database"),
        (f"postgresql://ann:{SECRET}@db:port/studies", r"\*\*\*@db:port"),
        (f"postgresql://ann:a@{SECRET}@db/studies", "write that @ as %40"),
        (f"postgresql://ann:a/{SECRET}@db:x/studies", "allowed: sqlite"),
        (f"nonsense://ann@db/x?password={SECRET}", "allowed: sqlite"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_without_secrets(url: str, says: str) -> None:
    with pytest.raises(StorageError, match=says) as raised:
        parse_place(url)
    assert "\n" not in str(raised.value)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
