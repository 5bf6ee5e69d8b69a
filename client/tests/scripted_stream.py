"""A real WebSocket server that acts, and does what a test writes down beforehand where that is something else."""

from __future__ import annotations

import http
import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve


@dataclass(frozen=True)
class Close:
    """Close the connection in place of an answer."""

    code: int
    reason: str = ""


@dataclass(frozen=True)
class Late:
    """Answer, but not at once."""

    seconds: float


@dataclass(frozen=True)
class Break:
    """Break the connection off without a word."""


@dataclass(frozen=True)
class Refuse:
    """Refuse the handshake."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


def acted(message: dict[str, Any]) -> dict[str, Any]:
    """What the policy here does: it pushes to the side that the first number is on; its value is their sum."""
    if message.get("observation") is not None:
        many = acted({**message, "observations": [message["observation"]]} | {"observation": None})
        plural = {"actions": "action", "log_probs": "log_prob", "values": "value", "policy_actions": "policy_action"}
        return {plural.get(name, name): value[0] if name in plural else value for name, value in many.items()}
    if "observations" not in message:
        return {"policy": "p1", "revision": message.get("revision", 0)}
    observations = message["observations"]
    answer = {
        "actions": [int(each[0] > 0) for each in observations],
        "log_probs": [-0.5 if message.get("deterministic", True) else -0.25] * len(observations),
        "values": [sum(each) for each in observations],
        "revision": message.get("revision", 0),
    }
    return answer | ({"policy_actions": observations} if message.get("policy_actions") else {})


class ScriptedStream:
    """Acts; what is scripted is done in place of the next answers, greetings left out.

    Args:
        key: The one that may act.
        **server: How the server is to be, as ``websockets.sync.server.serve`` takes it.
    """

    def __init__(self, key: str = "hs_test", **server: Any) -> None:
        self.messages: list[dict[str, Any]] = []
        self.handshakes: list[Request] = []
        self.key: str | None = key
        self._script = deque[object]()
        self._refusals = deque[Refuse]()
        self._greetings = deque[object]()
        options = {"process_request": self._handshake, "close_timeout": 0.5} | server
        self._server: Server = serve(self._serve, "127.0.0.1", 0, **options)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def script(self, *done: object) -> None:
        """What to do in place of the next answers: an object or a text to answer, or one of the classes above."""
        self._script.extend(done)

    def greet(self, *done: object) -> None:
        """The same for greetings."""
        self._greetings.extend(done)

    def refuse(self, *refusals: Refuse) -> None:
        """Refuse the next handshakes."""
        self._refusals.extend(refusals)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()

    def _handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes.append(request)
        if not self._refusals:
            return None
        refusal = self._refusals.popleft()
        status = http.HTTPStatus(refusal.status)
        response = connection.respond(status, json.dumps({"title": "X", "status": refusal.status, "detail": "no"}))
        for name, value in refusal.headers.items():
            response.headers[name] = value
        return response

    def _serve(self, connection: ServerConnection) -> None:
        if connection.request is not None and connection.request.headers.get("Authorization") != f"Bearer {self.key}":
            connection.close(4401, "no such key")
            return
        try:
            for text in connection:
                message = json.loads(text)
                if message:
                    self.messages.append(message)
                script = self._script if message else self._greetings
                done = script.popleft() if script else None
                if isinstance(done, Close):
                    connection.close(done.code, done.reason)
                elif isinstance(done, Break):
                    connection.socket.shutdown(2)
                else:
                    if isinstance(done, Late):
                        time.sleep(done.seconds)
                    answer = done if isinstance(done, str | dict) else acted(message)
                    connection.send(answer if isinstance(answer, str) else json.dumps(answer))
        except ConnectionClosed:
            pass
