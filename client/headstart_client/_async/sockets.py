"""A WebSocket on a connection of the transport's: who calls sends and reads its frames, and nobody beside."""

from __future__ import annotations

import time
from collections import deque
from typing import final

import httpcore
import httpx
from websockets.frames import DATA_OPCODES, Frame
from websockets.protocol import CLOSED, OPEN, Protocol, Side
from websockets.utils import accept_key, generate_key

from headstart_client._async.transport import AsyncTransport
from headstart_client.errors import ConnectionFailed, HeadstartError, StreamClosed
from headstart_client.locks import AsyncLock
from headstart_client.streams import stream_end

CLOSE_S = 2.0
LARGEST_ANSWER_BYTES = 64 * 1024 * 1024

_AHEAD_BYTES = 64 * 1024
"""Of messages that are not answered yet: so many fit in the buffers on the way.

Were there more, each side could wait for the other to read.
"""

_CHUNK_BYTES = 64 * 1024


@final
class AsyncSocket:
    """An open WebSocket (RFC 6455) whose messages are answered in order, each by one.

    One task may send while another receives; threads take turns.

    Args:
        response: 101, on whose connection the handshake is over; it is closed with the socket.
        timeout_s: Longest silence before a call fails, in seconds.
    """

    def __init__(self, response: httpx.Response, timeout_s: float) -> None:
        self._response = response
        self._connection: httpcore.AsyncNetworkStream = response.extensions["network_stream"]
        self._timeout_s = timeout_s
        self._protocol = Protocol(Side.CLIENT, state=OPEN, max_size=LARGEST_ANSWER_BYTES)
        self._torn = False
        self._reading, self._writing = AsyncLock(), AsyncLock()
        self._unanswered = deque[int]()
        self._ahead = 0
        self._parts: list[bytes] = []
        self._answers = deque[bytes]()

    async def send(self, data: bytes) -> None:
        """Send one text message. Where many are unanswered, answers are awaited first, and kept for :meth:`receive`.

        Raises:
            ConnectionFailed: If the service takes or answers nothing in time.
            HeadstartError: If the stream is over, by the code that the service gave.
        """
        # Before any lock is asked for, which an interrupt may have left held.
        self._require_open()
        while self._is_ahead(len(data)):
            async with self._reading:
                if self._is_ahead(len(data)):
                    await self._hear()
        try:
            async with self._writing:
                self._require_open()
                self._protocol.send_text(data)
                self._unanswered.append(len(data))
                self._ahead += len(data)
                await self._write_out()
        except httpcore.TimeoutException as error:
            raise self._silence() from error
        except httpcore.NetworkError as error:
            # What it said before it went explains more.
            await self._drain()
            raise self._end() from error

    async def receive(self) -> bytes:
        """The next answer; a late one can still be received by the next call.

        Raises:
            ConnectionFailed: If none came in time.
            HeadstartError: If the stream is over, by the code that the service gave.
        """
        self._require_whole()
        async with self._reading:
            while not self._answers:
                await self._hear()
            return self._answers.popleft()

    def tear(self) -> None:
        """What was under way may have been lost in part: nothing more can be sent or received."""
        self._torn = True

    async def close(self) -> None:
        """Say goodbye, and wait a moment for the same."""
        try:
            if not self._torn and self._protocol.state is OPEN:
                self._protocol.send_close(1000)
                await self._flush()
                await self._drain()
        except (httpcore.NetworkError, httpcore.TimeoutException):
            pass  # It is over in any case.
        finally:
            await self._response.aclose()

    def _is_ahead(self, more: int) -> bool:
        return bool(self._unanswered) and self._ahead + more > _AHEAD_BYTES

    def _require_whole(self) -> None:
        if self._torn:
            raise StreamClosed("a call was interrupted: open the stream again", 1006)

    def _require_open(self) -> None:
        self._require_whole()
        if self._protocol.state is not OPEN:
            raise self._end()

    def _end(self) -> HeadstartError:
        said = self._protocol.close_rcvd
        return stream_end(1006, "") if said is None else stream_end(said.code, said.reason)

    def _silence(self) -> ConnectionFailed:
        return ConnectionFailed(f"no answer on the stream within {self._timeout_s:g} s")

    async def _hear(self) -> None:
        """Read on, or raise what :meth:`receive` does."""
        self._require_open()
        try:
            await self._read(self._timeout_s)
        except httpcore.TimeoutException as error:
            raise self._silence() from error
        except httpcore.NetworkError as error:
            self._protocol.receive_eof()
            raise self._end() from error

    async def _drain(self) -> None:
        """Read until the service has closed the connection, for a moment."""
        until_s = time.monotonic() + CLOSE_S
        try:
            while self._protocol.state is not CLOSED and (left_s := until_s - time.monotonic()) > 0:
                await self._read(left_s)
        except (httpcore.NetworkError, httpcore.TimeoutException):
            pass

    async def _read(self, timeout_s: float) -> None:
        """Take in what comes next: answers, pings, or the end."""
        # A task that is cancelled here loses nothing.
        data = await self._connection.read(_CHUNK_BYTES, timeout_s)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for frame in self._protocol.events_received():
            if not isinstance(frame, Frame) or frame.opcode not in DATA_OPCODES:
                continue
            self._parts.append(bytes(frame.data))
            if frame.fin:
                self._answers.append(b"".join(self._parts))
                self._parts.clear()
                if self._unanswered:
                    self._ahead -= self._unanswered.popleft()
        await self._flush()

    async def _flush(self) -> None:
        """Send what is to be sent: answers to pings and to a goodbye."""
        async with self._writing:
            await self._write_out()

    async def _write_out(self) -> None:
        for data in filter(None, self._protocol.data_to_send()):
            try:
                await self._connection.write(data, self._timeout_s)
            except httpcore.NetworkError:
                raise
            except BaseException:
                # It may have been sent in part.
                self.tear()
                raise


async def async_open_socket(transport: AsyncTransport, path: str) -> AsyncSocket:
    """Open a WebSocket.

    Args:
        transport: To the service; the key travels in the handshake's headers, never in the address.
        path: From the root of the service.

    Raises:
        ConnectionFailed: If there is no answer, or not that of a WebSocket.
        Problem: If the service refuses.
    """
    nonce = generate_key()
    headers = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": nonce}
    response = await transport.upgrade(path, headers)
    if response.headers.get("Sec-WebSocket-Accept") != accept_key(nonce):
        await response.aclose()
        raise ConnectionFailed(f"{transport.url} does not speak WebSocket, or something on the way does not")
    return AsyncSocket(response, transport.timeout_s)
