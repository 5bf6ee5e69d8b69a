"""WebSockets, for threads and for asyncio: the same few verbs, and failures as this package names them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

import httpx

from headstart_client.discovery import is_on_this_machine
from headstart_client.errors import ConnectionFailed, HeadstartError
from headstart_client.streams import stream_end
from headstart_client.transport import refusal, user_agent

# It is loaded when the first stream is opened: no command needs it.
if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection as AsyncConnection
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import ClientConnection as Connection

CLOSE_S = 2.0
LARGEST_ANSWER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Address:
    """Where to open a socket.

    Attributes:
        service: Address of the service, http or https.
        path: From there.
        key: Sent in the handshake's ``Authorization`` header, never in the address.
        timeout_s: Longest silence before a call fails, in seconds.
    """

    service: httpx.URL
    path: str
    key: str | None
    timeout_s: float

    @property
    def url(self) -> str:
        """As a WebSocket's."""
        scheme = "wss" if self.service.scheme == "https" else "ws"
        return str(self.service.copy_with(scheme=scheme)).rstrip("/") + self.path

    @property
    def headers(self) -> dict[str, str]:
        """Of the handshake."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def proxy(self) -> Literal[True] | None:
        """Whatever is configured, but none to a service on this machine: it would see the admin key."""
        return None if is_on_this_machine(self.service) else True

    def failure(self, error: Exception) -> HeadstartError:
        """The exception for a handshake that failed."""
        from websockets.exceptions import InvalidHeader, InvalidStatus, InvalidURI

        if isinstance(error, InvalidStatus):
            given = error.response
            request = httpx.Request("GET", self.service.join(self.path), headers=self.headers)
            response = httpx.Response(
                given.status_code, headers=list(given.headers.raw_items()), content=bytes(given.body), request=request
            )
            return refusal(response)
        failure = ConnectionFailed(f"cannot reach {self.service}: {error or type(error).__name__}")
        failure.transient = not isinstance(error, InvalidHeader | InvalidURI)
        return failure


def _ended(error: ConnectionClosed) -> HeadstartError:
    return stream_end(1006, "") if error.rcvd is None else stream_end(error.rcvd.code, error.rcvd.reason)


def _silent(timeout_s: float) -> ConnectionFailed:
    return ConnectionFailed(f"no answer on the stream within {timeout_s:g} s")


@final
class Socket:
    """An open WebSocket, for one thread at a time."""

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    def send(self, data: bytes) -> None:
        """Send one text message."""
        from websockets.exceptions import ConnectionClosed

        try:
            self._connection.send(data, text=True)
        except ConnectionClosed as error:
            raise _ended(error) from error

    def receive(self) -> bytes:
        """The next message; an interrupted or late one can still be received by the next call."""
        from websockets.exceptions import ConnectionClosed

        try:
            return self._connection.recv(timeout=self._timeout_s, decode=False)
        except TimeoutError as error:
            raise _silent(self._timeout_s) from error
        except ConnectionClosed as error:
            raise _ended(error) from error

    def close(self) -> None:
        """Close it."""
        self._connection.close()


def open_socket(address: Address) -> Socket:
    """Open a WebSocket.

    Raises:
        ConnectionFailed: If there is no answer.
        Problem: If the service refuses.
    """
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import reconnect

    connecting = reconnect(
        address.url,
        additional_headers=address.headers,
        user_agent_header=user_agent(),
        proxy=address.proxy,
        compression=None,
        open_timeout=address.timeout_s,
        close_timeout=CLOSE_S,
        max_size=LARGEST_ANSWER_BYTES,
        # Answers that nobody has received yet wait here: else a long pipeline would stand still, each side waiting for
        # the other to read.
        max_queue=None,
    )
    try:
        return Socket(connecting.__enter__(), address.timeout_s)
    except (WebSocketException, OSError, EOFError) as error:
        raise address.failure(error) from error


@final
class AsyncSocket:
    """An open WebSocket, for one task at a time."""

    def __init__(self, connection: AsyncConnection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    async def send(self, data: bytes) -> None:
        """Send one text message."""
        from websockets.exceptions import ConnectionClosed

        try:
            await self._connection.send(data, text=True)
        except ConnectionClosed as error:
            raise _ended(error) from error

    async def receive(self) -> bytes:
        """The next message; an interrupted or late one can still be received by the next call."""
        from websockets.exceptions import ConnectionClosed

        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._connection.recv(decode=False)
        except TimeoutError as error:
            raise _silent(self._timeout_s) from error
        except ConnectionClosed as error:
            raise _ended(error) from error

    async def close(self) -> None:
        """Close it."""
        await self._connection.close()


async def async_open_socket(address: Address) -> AsyncSocket:
    """As :func:`open_socket`."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import WebSocketException

    connecting = connect(
        address.url,
        additional_headers=address.headers,
        user_agent_header=user_agent(),
        proxy=address.proxy,
        compression=None,
        open_timeout=address.timeout_s,
        close_timeout=CLOSE_S,
        max_size=LARGEST_ANSWER_BYTES,
        max_queue=None,
    )
    try:
        return AsyncSocket(await connecting, address.timeout_s)
    except (WebSocketException, OSError, EOFError) as error:
        raise address.failure(error) from error
