"""Connections on which the head of a request never comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from uvicorn import Server

HEAD_S = 30.0
"""Time that a head may take at least; at most it may take twice as long."""

_NO_HTTP = object()


@final
class Heads:
    """Closes connections that waited for the same head at the last look already.

    The server closes a connection that is silent after an answer, and bodies have limits of their own; but who connects
    and says nothing, or half a head, would be waited for without end. A look now and then costs requests nothing.

    Args:
        server: Whose connections to look at.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._waiting: dict[Any, object] = {}

    async def look(self) -> None:
        """Look at all connections."""
        waiting = {}
        for connection in list(self._server.server_state.connections):
            # Of its newest request; a WebSocket has none any more.
            cycle: Any = getattr(connection, "cycle", _NO_HTTP)
            if cycle is _NO_HTTP or not (cycle is None or cycle.response_complete):
                continue
            if connection in self._waiting and self._waiting[connection] is cycle:
                connection.transport.close()
            else:
                waiting[connection] = cycle
        self._waiting = waiting
