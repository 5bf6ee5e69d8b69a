"""The least that uvicorn can do: answer with a constant, without reading the body."""

from __future__ import annotations

from typing import Any

BODY = b'{"actions":[1],"log_probs":[-0.21],"values":[88.1],"policy":"0198c3a0-7b1e-7000-8000-000000000000"}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]


async def app(_: dict[str, Any], receive: Any, send: Any) -> None:
    """The ASGI application."""
    del receive
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
