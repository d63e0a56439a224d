"""JSON lines over a pipe: how a coordinator and its runners talk.

One message is one line, a JSON object; nothing that is read can run code. Floats are written with
all their digits, so that what arrives is what was measured.
"""

import json
import os
import select
import time
from collections.abc import Mapping
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]

CHUNK_BYTES = 1 << 16


class ChannelClosedError(Exception):
    """The other end is gone."""


def encoded(message: Mapping[str, Any]) -> bytes:
    """A message as it goes over the pipe."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decoded(line: bytes) -> Message:
    """The message of a line."""
    message: Message = json.loads(line)
    return message


class MessageReader:
    """Reads messages from a pipe without waiting longer than it is told.

    Args:
        descriptor: The pipe's, open for reading.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._rest = descriptor, b""
        self._waiting = select.poll()  # `select.select` knows no descriptor above 1023
        self._waiting.register(descriptor, select.POLLIN)

    def next(self, timeout_s: float) -> Message | None:
        """The next message, or None where none came in time.

        Raises:
            ChannelClosedError: The other end is gone, and all that it sent was read.
        """
        until = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            left = max(0.0, until - time.monotonic())
            if not self._waiting.poll(left * 1000.0):
                return None
            if not (chunk := os.read(self._descriptor, CHUNK_BYTES)):
                raise ChannelClosedError
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return decoded(line)
