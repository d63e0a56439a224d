"""Settings for all tests: no network, and nothing of the user's own environment."""

import os

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTOPEFT_STORAGE", "AUTOPEFT_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
