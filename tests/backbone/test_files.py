import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from autopeft.backbone import files
from autopeft.backbone.files import CONFIG_PATTERNS, MINILM, MODEL_PATTERNS, model_folder
from autopeft.backbone.loading import BackboneRequest, load_backbone
from autopeft.errors import BackboneError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40

OFFLINE_SCRIPT = """
import sys
from autopeft.backbone.loading import BackboneRequest, config_anatomy, load_backbone
from autopeft.errors import BackboneError

backbone = load_backbone(BackboneRequest("org/tiny"))
assert backbone.name == "org/tiny"
assert backbone.tokenizer is None
assert config_anatomy(BackboneRequest("org/tiny", revision="main")) == backbone.anatomy
print(backbone.fingerprint)
try:
    load_backbone(BackboneRequest("org/absent"))
except BackboneError as error:
    print(error)
try:
    load_backbone(BackboneRequest("org/tiny", revision="v2"))
except BackboneError as error:
    print(error)
"""


def fill_cache(cache: Path, name: str, by_name: Any, commit: str = COMMIT) -> Path:
    """A tiny image model as the hub's client lays it out; gives the snapshot's folder."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    by_name["vit"].base().float().save_pretrained(snapshot)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that refuses connections."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    return folder


def fault(name: str, revision: str | None = None) -> str:
    with pytest.raises(BackboneError) as caught:
        model_folder(name, revision, MODEL_PATTERNS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cached_model_loads_offline_in_a_fresh_process(tmp_path: Path, by_name: Any) -> None:
    snapshot = fill_cache(tmp_path / "hub", "org/tiny", by_name)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGG"))},
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
    }
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE_SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    fingerprint, absent, other = run.stdout.strip().splitlines()
    assert fingerprint == load_backbone(BackboneRequest(str(snapshot))).fingerprint
    assert "org/absent, which is not in the cache" in absent
    assert "HF_HUB_OFFLINE is set" in absent
    assert "hf download org/absent" in absent
    assert "org/tiny at revision v2" in other


def test_a_cached_model_serves_where_the_hub_cannot_be_reached(cache: Path, by_name: Any) -> None:
    snapshot = fill_cache(cache, "org/tiny", by_name)
    assert model_folder("org/tiny", None, MODEL_PATTERNS) == snapshot
    assert model_folder("org/tiny", "main", CONFIG_PATTERNS) == snapshot


def test_an_unreachable_hub_says_how_to_go_offline(cache: Path) -> None:
    text = fault("org/tiny")
    assert f"not in the cache {cache}" in text
    assert "cannot be reached" in text
    assert "HF_HUB_OFFLINE=1" in text
    assert "hf download org/tiny" in text


def test_a_snapshot_that_lacks_unneeded_files_serves(cache: Path, by_name: Any) -> None:
    """The client knows from its listing that a file is missing; the model can do without."""
    snapshot = fill_cache(cache, "org/tiny", by_name)
    names = ("config.json", "model.safetensors", "merges.txt")
    listing = {name: {"size": 1, "blob_id": "0"} for name in names}
    trees = snapshot.parents[1] / "trees"
    trees.mkdir()
    (trees / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": listing}))
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download("org/tiny", allow_patterns=list(MODEL_PATTERNS))
    assert model_folder("org/tiny", None, MODEL_PATTERNS) == snapshot


@pytest.mark.parametrize("name", ["a/b/c", "with space", "org/na:me"])
def test_names_that_can_be_no_hub_id_are_faults(name: str, cache: Path) -> None:
    assert "allowed: a local folder, a hub id or builtin:minilm" in fault(name)


class Refusal(BaseHTTPRequestHandler):
    """Answers as the hub does for models that are not there or not open."""

    def do_GET(self) -> None:
        kinds = {"absent": (404, "RepoNotFound"), "gated": (403, "GatedRepo")}
        kind = self.path.split("/")[4]
        status, code = kinds.get(kind, (404, "RevisionNotFound"))
        self.send_response(500 if kind == "broken" else status)
        if kind != "broken":
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def refusing_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Refusal)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "revision", "text"),
    [
        ("org/absent", None, "not on the hub"),
        ("org/gated", None, "is gated"),
        ("org/there", "v9", "model: revision; got org/there at revision v9"),
        ("org/broken", None, "cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    name: str, revision: str | None, text: str, refusing_hub: None
) -> None:
    assert text in fault(name, revision)


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MINILM_PACKAGE", "a_package_that_is_not_installed")


@pytest.fixture
def small_minilm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_name: Any) -> Path:
    """A package, which must not be imported, with a tiny model whose hash is the one expected."""
    package = tmp_path / "packaged_minilm"
    by_name["bert"].base().float().save_pretrained(package / "model")
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(files, "MINILM_PACKAGE", "packaged_minilm")
    content = (package / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(files, "MINILM_SHA256", hashlib.sha256(content).hexdigest())
    return package / "model"


def test_the_builtin_is_found_in_its_package(small_minilm: Path) -> None:
    assert model_folder(MINILM, None, MODEL_PATTERNS) == small_minilm


def test_the_builtin_is_checked_before_it_is_loaded(
    small_minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MINILM_SHA256", "0" * 64)
    text = fault(MINILM)
    assert "--force-reinstall 'autopeft[demo]'" in text
    assert f"allowed: sha256 {'0' * 64}" in text


def test_the_builtin_may_come_from_the_cache(
    no_package: None, cache: Path, by_name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = fill_cache(cache, files.MINILM_HUB_ID, by_name, OTHER_COMMIT)
    content = (snapshot / "model.safetensors").read_bytes()
    monkeypatch.setattr(files, "MINILM_SHA256", hashlib.sha256(content).hexdigest())
    assert model_folder(MINILM, None, MODEL_PATTERNS) == snapshot


def test_a_missing_builtin_says_what_to_install(no_package: None, cache: Path) -> None:
    assert "pip install 'autopeft[demo]'" in fault(MINILM)
    assert "allowed: builtin:minilm" in fault("builtin:maxilm")


@pytest.mark.skipif(
    files._package_folder() is None, reason="the package of builtin:minilm is not installed"
)
def test_minilm_itself() -> None:
    backbone = load_backbone(BackboneRequest(MINILM))
    anatomy = backbone.anatomy
    assert files.MINILM_PACKAGE not in sys.modules
    assert isinstance(backbone.model, transformers.BertModel)
    assert (len(anatomy.layers), anatomy.hidden_size, anatomy.n_heads) == (6, 384, 12)
    assert anatomy.n_params == 22_713_216
    assert backbone.pretrained_pooler
    ids = backbone.tokenizer("a sentence", "a pair")["input_ids"]
    assert backbone.tokenizer.convert_ids_to_tokens(ids)[0] == "[CLS]"
    assert load_backbone(BackboneRequest(MINILM)).fingerprint == backbone.fingerprint
