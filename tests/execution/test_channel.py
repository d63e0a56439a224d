"""Messages between a coordinator and its runners."""

import fcntl
import os
import resource
from collections.abc import Iterator

import pytest

from autopeft.execution.channel import ChannelClosedError, MessageReader

HIGH = 1100
"""A descriptor that `select.select` does not know."""


@pytest.fixture
def high_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that a process with many open files would get: its end to read, and to write."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], HIGH + 100), limits[1]))
    low, write = os.pipe()
    read = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(low)
    yield read, write
    os.close(read)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_process_with_many_open_files_is_heard(high_pipe: tuple[int, int]) -> None:
    read, write = high_pipe
    reader = MessageReader(read)
    assert reader.next(0.01) is None
    os.write(write, b'{"a": 1}\n{"b"')
    assert reader.next(1.0) == {"a": 1}
    assert reader.next(0.01) is None
    os.write(write, b": 2}\n")
    assert reader.next(1.0) == {"b": 2}
    os.close(write)
    with pytest.raises(ChannelClosedError):
        reader.next(1.0)
