"""What a runner loads is the study's, or nothing is trained."""

from types import SimpleNamespace
from typing import Any

import pytest

from autopeft.errors import InputError
from autopeft.execution.worker_materials import check_same

FOUND: Any = SimpleNamespace(
    backbone=SimpleNamespace(fingerprint="b" * 64), data=SimpleNamespace(fingerprint="d" * 64)
)


def test_the_studys_own_backbone_and_data_are_taken() -> None:
    check_same(FOUND, {"backbone": "b" * 64, "data": "d" * 64})


def test_others_are_refused_each_with_its_key() -> None:
    with pytest.raises(InputError) as caught:
        check_same(FOUND, {"backbone": "x" * 64, "data": "y" * 64})
    wheres = [fault.where.split()[0] for fault in caught.value.faults]
    assert wheres == ["model.name_or_path", "data.source"]
    assert "bbbbbbbbbbbb" in str(caught.value)
    assert "the study's xxxxxxxxxxxx" in str(caught.value)
