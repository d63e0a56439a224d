"""What files, names and databases of anyone cannot do: run code, leave a folder, show a password.

The dashboard's own part (loopback, escaping, no way to write) is in `tests/dashboard`.
"""

import ast
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from postgres_server import PASSWORD, WRITER, PostgresServer
from stand_in_place import placed
from typer.testing import CliRunner

import autopeft
from autopeft import api
from autopeft.api.place import DEFAULT_OUTPUT, output_folder
from autopeft.cli.main import app
from autopeft.cli.next_commands import Place, after_search
from autopeft.errors import InputError
from autopeft.passwords import blotted
from autopeft.space.document import parse_yaml
from autopeft.study.records import NewStudy
from storage import open_store

ROOT = Path(autopeft.__file__).parent.parent
PACKAGES = ("autopeft", "storage", "dashboard", "search_spaces")

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "os.system", "yaml.unsafe_load", "yaml.full_load"}
NEEDED = {  # a call -> the keyword without which it may run code
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "pd.read_pickle": ("", None),
}


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def unsafe(tree: ast.AST) -> Iterator[str]:
    """What in a module can run code that was data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in FORBIDDEN_MODULES:
                yield node.module
        elif isinstance(node, ast.Call):
            yield from _unsafe_call(node)


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in FORBIDDEN_CALLS or "shell" in given:
        yield name
    if name in NEEDED:
        key, value = NEEDED[name]
        found = given.get(key)
        if not isinstance(found, ast.Constant) or found.value is not value:
            yield f"{name} without {key}={value}"
    if name == "yaml.load" and ast.unparse(given.get("Loader", ast.Constant(None))) != "_Loader":
        yield "yaml.load"
    if "unsafe_allow_html" in given:
        yield f"{name}(unsafe_allow_html)"


def test_nothing_runs_code_that_was_data() -> None:
    files = list(sources())
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}: {what}"
        for path in files
        for what in unsafe(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
        "st.markdown(text, unsafe_allow_html=True)",
    ],
)
def test_the_search_for_unsafe_calls_finds_them(code: str) -> None:
    assert len(list(unsafe(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "study: !!python/object/apply:os.system ['touch {mark}']",
        "study: !!python/object/new:subprocess.Popen [['touch', '{mark}']]",
        "study: !!python/name:os.system",
        "study: !!python/module:os",
    ],
)
def test_yaml_makes_no_objects(text: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(InputError):
        parse_yaml(text.format(mark=mark), "study.yaml")
    path = tmp_path / "study.yaml"
    path.write_text(text.format(mark=mark))
    assert CliRunner().invoke(app, ["validate", str(path)]).exit_code == 2
    assert not mark.exists()


# -- names and folders ----------------------------------------------------------------------------

NAMES = (
    "..", ".", "../..", "../../etc", "/etc", "a/../../b", "a\\..\\b", "..\\..", "~", "~/x", "-",
    "CON",
    "a\0b", "a\nb", "%2e%2e/", "..%2f", "\u202e", "é", "x" * 300, " ", "a b", "<b>", "$(id)",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_artifacts_stay_under_the_output_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / DEFAULT_OUTPUT
    folder = output_folder(name)
    assert folder.parent == root
    assert folder.resolve().parent == root.resolve()
    assert folder.name not in ("", ".", "..")
    folder.mkdir(parents=True)


def test_names_share_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len({output_folder(name) for name in NAMES}) == len(NAMES)
    assert output_folder("rte-minilm.v2").name == "rte-minilm.v2"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("CON", "-")])
def test_a_study_file_cannot_take_such_a_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"schema": "autopeft/v1", "study": {"name": name}}))
    result = CliRunner().invoke(app, ["validate", str(path), "--json"])
    assert result.exit_code == 2
    assert "study.name" in result.stdout


def test_a_name_in_a_database_deletes_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for folder in ("activations", "states", "data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.txt").write_text("kept")
    monkeypatch.chdir(home)
    with open_store("sqlite:///autopeft.db", create=True) as store:
        store.create_study(NewStudy("../..", {}, "", (), {}, {}, {}))
    api.delete("../..")
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("mine.txt"))
    assert kept == ["activations/mine.txt", "data/mine.txt", "states/mine.txt"]
    with open_store("sqlite:///autopeft.db") as store:
        assert store.studies() == []


# -- passwords ------------------------------------------------------------------------------------


def spellings() -> tuple[str, ...]:
    from urllib.parse import quote

    return (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD))


def check_clean(text: str) -> None:
    for spelling in spellings():
        assert spelling not in text


def commands(url: str) -> list[list[str]]:
    """Whatever takes a storage URL, in ways that succeed and that fail."""
    place = ["--storage", url]
    return [
        ["studies", *place],
        ["studies", "--json", *place],
        ["status", *place],
        ["status", "nobody", *place],
        ["front", "secret", *place],
        ["trials", "secret", "--json", *place],
        ["show", "3", "--study", "secret", *place],
        ["export", "secret", "--trial", "0", *place],
        ["stop", "secret", *place],
        ["delete", "secret", *place],
        ["doctor", "--json", *place],
        ["db", "upgrade", *place],
        ["db", "upgrade", "--json", *place],
        ["db", "copy", url, "sqlite:///copied.db"],
        ["db", "copy", url, url],
        ["--debug", "db", "copy", "sqlite:///missing.db", url],
        ["--debug", "status", "nobody", *place],
    ]


def test_a_password_is_in_no_output_no_log_and_no_file(
    postgresql_url: str,
    postgres_server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_store(postgresql_url, create=True) as store, caplog.at_level(logging.DEBUG):
        empty = CliRunner().invoke(app, ["studies", "--storage", postgresql_url])
        check_clean(empty.output)
        assert "***" in empty.output
        store.create_study(NewStudy("secret", {}, "", (), {}, {}, {}))
        check_clean(repr(store.place) + str(store.place))
        for words in commands(postgresql_url):
            result = CliRunner().invoke(app, words)
            check_clean(result.output + str(result.exception or ""))
    name = postgresql_url.rpartition("/")[2]
    unreachable = postgresql_url.replace(f":{postgres_server.port}/", ":1/")
    no_database = postgres_server.url("nowhere")
    wrong = postgres_server.url(name, "nobody", PASSWORD)
    query = f"postgresql://{WRITER}@127.0.0.1:{postgres_server.port}/{name}?password={PASSWORD}"
    broken = f"postgresql://{WRITER}:{PASSWORD}@127.0.0.1:port/x"
    for url in (unreachable, no_database, wrong, query, broken):
        for words in (["studies"], ["--debug", "studies", "--json"], ["db", "upgrade"]):
            result = CliRunner().invoke(app, [*words, "--storage", url])
            check_clean(result.output + str(result.exception or ""))
    check_clean(caplog.text)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        check_clean(path.read_bytes().decode(errors="replace"))
    dumped = postgres_server.execute(
        "SELECT string_agg(s::text, ' ') FROM studies s", database=name
    )
    check_clean(str(dumped))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_search_leaves_its_password_nowhere(
    postgresql_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """Every table, every file that it writes, everything that it says and that is exported."""
    with placed(tmp_path, postgresql_url) as place:
        said = place.search("--json", script={"1": "once die", "2": "err"})
        said += place.search("--trials", "14")
        for words in (
            ["status", "--json"],
            ["front", "--json"],
            ["show", "2", "--json"],
            ["front", "--save", "front.html"],
            ["front", "--save", "front.csv"],
            ["trials", "--json"],
            ["export", "--trial", "0"],
            ["export", "--trial", "0", "--json"],
            ["export", "--trial", "0", "-o", "best.yaml"],
        ):
            said += place.command(*words)
        check_clean(said)
        assert "schema: autopeft/config/v1" in said
        front = json.loads(place.command("front", "--json"))
    assert front
    database = postgresql_url.rpartition("/")[2]
    tables = postgres_server.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'",
        database=database,
    )
    rows = 0
    for (table,) in tables:
        found = postgres_server.execute(f'SELECT t::text FROM "{table}" t', database=database)
        check_clean(str(found))
        rows += len(found)
    assert len(tables) > 5
    assert rows > 12 * 60, "curves"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    written = {"front.html", "front.csv", "best.yaml"}
    assert written <= {path.name for path in files}
    for path in files:
        check_clean(path.read_bytes().decode(errors="replace"))


KEYS = (
    "X-Amz-Security-Token",
    "X-Amz-Signature",
    "X-Amz-Credential",
    "sig",
    "api_key",
    "apikey",
    "pwd",
    "Authorization-Key",
)


def test_what_is_no_secret_is_shown() -> None:
    url = "postgresql+psycopg://ann@db.example/studies?busy_seconds=3&signed=no#keys=3"
    assert blotted(url) == url
    assert (
        blotted("see https://data.example/a@b?sort=key") == "see https://data.example/a@b?sort=key"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["validate", "study.yaml"],
        ["validate", "study.yaml", "--json"],
        ["--debug", "validate", "study.yaml"],
        ["search", "study.yaml", "--set", "model.name_or_path=ftp://bob:hunter2@models/x"],
        ["search", "--ray-address", "ray://bob:hunter2@head:10001"],
        ["studies", "--storage", "sqlite:///a.db?password=hunter2"],
        ["studies", "--storage", "bob:hunter2@db/studies"],
        ["--debug", "studies", "--json", "--storage", "postgresql://bob:hunter2@[db/x"],
        *(["studies", "--storage", f"https://data.example/x?{key}=hunter2"] for key in KEYS),
        ["studies", "--storage", "https://data.example/x?a=1&sig=hunter2"],
        ["studies", "--storage", "https://data.example/x#access_token=hunter2"],
        ["studies", "--storage", "sqlite:///x.db?key=hunter2"],
        ["studies", "--storage", "hf://hunter2@datasets/x"],
        ["studies", "--storage", "ftp://hunter2@data.example/x"],
        ["search", "study.yaml", "--set", "model.name_or_path=hf://hunter2@models/x"],
    ],
)
def test_a_password_that_is_refused_is_not_echoed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    long = f"https://bob:hunter2{'x' * 40}@data.example/{'a' * 40}.csv"
    plain = {
        "schema": "autopeft/v1",
        "model": {"name_or_path": "https://hunter2@models.example/bert"},
        "data": {"source": long, "text": "text", "label": "label"},
        "execution": {"ray": {"address": "ray://bob:hunter2/2@head:10001"}},
    }
    Path("study.yaml").write_text(yaml.safe_dump(plain))
    result = CliRunner().invoke(app, words)
    assert result.exit_code in (2, 3)
    assert "***" in result.output
    assert "hunter2" not in result.output + str(result.exception or "")


def test_a_process_that_fails_shows_no_password(tmp_path: Path) -> None:
    """With tracebacks and all: what a real process writes on both streams."""
    url = f"postgresql://{WRITER}:s3cr3t%40pass@127.0.0.1:1/x"
    done = subprocess.run(
        [sys.executable, "-m", "autopeft", "--debug", "studies", "--storage", url],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 3
    assert "s3cr3t" not in done.stdout + done.stderr
    assert done.stderr.count("error: ") == 1


def test_a_missing_driver_and_a_server_that_is_away_are_one_line_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"postgres://{WRITER}:s3cr3t@127.0.0.1:1/x"
    away = CliRunner().invoke(app, ["studies", "--storage", url])
    monkeypatch.setitem(sys.modules, "psycopg", None)
    missing = CliRunner().invoke(app, ["studies", "--storage", url, "--json"])
    assert (away.exit_code, missing.exit_code) == (3, 3)
    (line,) = away.stderr.splitlines()
    assert "check that the server runs" in line
    (error,) = json.loads(missing.stdout)["errors"]
    assert "autopeft[postgres]" in error["hint"]
    assert "s3cr3t" not in away.output + missing.output


def test_the_next_commands_name_the_variable_of_a_url_with_a_password() -> None:
    place = Place(f"postgresql://{WRITER}:s3cr3t@db/studies")
    lines = [line for line, _ in after_search("demo", 3, place)]
    assert lines[0].endswith('--storage "$AUTOPEFT_STORAGE"')
    assert "s3cr3t" not in "".join(lines)
    plain = [line for line, _ in after_search("demo", 3, Place("sqlite:///my studies.db"))]
    assert plain[0].endswith("--storage 'sqlite:///my studies.db'")
