"""Disks that are full or fail, told from other errors."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from autopeft.errors import OutputError, StorageError
from autopeft.study.disk import disk_fault, writing


@contextmanager
def most_bytes_of_a_file(limit: int) -> Iterator[None]:
    """The system refuses to write more, as a full disk does; Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_safetensors_says_of_a_write_that_fails_is_understood(tmp_path: Path) -> None:
    tensors = {"a": np.zeros(1 << 16)}
    with (
        most_bytes_of_a_file(4096),
        pytest.raises(OutputError, match="file too large") as caught,
        writing(tmp_path),
    ):
        save_file(tensors, tmp_path / "state")
    assert caught.value.message.startswith(f"{tmp_path}: ")
    assert " MiB free)" in caught.value.message
    full = SafetensorError("Error while serializing: I/O error: No space (os error 28)")
    fault = disk_fault(full)
    assert fault is not None
    assert "no space left on device" in fault.message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_is_known_by_its_number_wherever_it_was_met(number: int, tmp_path: Path) -> None:
    fault = disk_fault(OSError(number, os.strerror(number), str(tmp_path / "no/such/file")))
    assert fault is not None
    assert fault.message.startswith(f"{tmp_path}/no/such/file: ")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no such file", "x"),
        ConnectionError("no network"),
        RuntimeError("CUDA error"),
        StorageError("the database's own business"),
    ],
)
def test_other_errors_are_no_disk(error: Exception) -> None:
    assert disk_fault(error) is None


def test_what_was_to_be_written_is_the_places_fault_whatever_the_system_says(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not a directory"), writing(tmp_path / "file"):
        (tmp_path / "file" / "below").mkdir()
    with pytest.raises(StorageError), writing(tmp_path):
        raise StorageError("the database's own business")
