"""Messages between two processes: a JSON object, and arrays as they lie in memory."""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

Arrays = Sequence[NDArray[Any]]
Message = tuple[dict[str, Any], list[NDArray[Any]]]

_HEAD: Final = struct.Struct("<IQ")
_KINDS: Final = frozenset({"<i4", "<i8", "<f4", "<f8", "|b1", "|u1"})


class Gone(EOFError):
    """The other side closed the connection, or ended."""


class Malformed(ValueError):
    """Bytes that are no message."""


@final
class Connection:
    """One side of a socket over which messages are sent in turn.

    Args:
        side: The connected socket; closed by :meth:`close`.
    """

    def __init__(self, side: socket.socket) -> None:
        self._side = side
        self._poll = select.poll()
        self._poll.register(side, select.POLLIN)

    def send(self, content: Mapping[str, Any], arrays: Arrays = ()) -> None:
        """Send a message.

        Raises:
            Gone: If nobody is there to receive it.
        """
        listed = [np.ascontiguousarray(array) for array in arrays]
        shapes = [[array.dtype.str, array.shape] for array in listed]
        text = json.dumps({**content, "arrays": shapes}).encode()
        head = _HEAD.pack(len(text), sum(array.nbytes for array in listed))
        try:
            self._side.sendall(b"".join((head, text, *(array.tobytes() for array in listed))))
        except OSError as error:
            raise Gone(str(error)) from error

    def wait(self, seconds: float) -> bool:
        """Whether there is something to receive, or nobody left to send it, within so many seconds."""
        return bool(self._poll.poll(seconds * 1000))

    def receive(self) -> Message:
        """Wait for a message.

        Raises:
            Gone: If the other side is.
            Malformed: If it sent something else.
        """
        text_size, size = _HEAD.unpack(self._read(_HEAD.size))
        try:
            content = json.loads(self._read(text_size))
            layouts = [(np.dtype(kind), tuple(shape), kind in _KINDS) for kind, shape in content.pop("arrays")]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Malformed(f"not a message: {error}") from error
        lengths = [int(np.prod(shape)) for _, shape, _ in layouts]
        expected = sum(dtype.itemsize * length for (dtype, _, _), length in zip(layouts, lengths, strict=True))
        if expected != size or not all(known for _, _, known in layouts):
            raise Malformed("arrays of another size or kind than announced")
        payload, offset, arrays = self._read(size), 0, []
        for (dtype, shape, _), length in zip(layouts, lengths, strict=True):
            arrays.append(np.frombuffer(payload, dtype, length, offset).reshape(shape))
            offset += dtype.itemsize * length
        return content, arrays

    def close(self) -> None:
        """End the conversation."""
        self._side.close()

    def _read(self, size: int) -> bytearray:
        data, place = bytearray(size), 0
        view = memoryview(data)
        while place < size:
            try:
                count = self._side.recv_into(view[place:])
            except OSError as error:
                raise Gone(str(error)) from error
            if count == 0:
                raise Gone("the connection was closed")
            place += count
        return data
