"""A real HTTP server whose answers a test writes down beforehand: for what only a troubled network shows."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """One response.

    ``cut`` closes the connection after so many bytes of its body, 0 before any byte; ``held`` keeps it open
    after the body, for as long as the server lives.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    held: bool = False


@dataclass(frozen=True)
class Received:
    """One request, as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def answer(document: object, status: int = 200, **headers: str) -> Answer:
    """A JSON answer; underscores in header names stand for dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json", **named})


def problem(status: int, detail: str = "no", **headers: str) -> Answer:
    return answer({"type": "/problems/x", "title": "X", "status": status, "detail": detail}, status, **headers)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128


class ScriptedServer:
    """Gives its answers in order, whatever is asked, and remembers the requests."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self._answers: deque[Answer | Callable[[], Answer]] = deque()
        self._over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def script(self, *answers: Answer | Callable[[], Answer]) -> None:
        """What to answer next; a function is called when its request is there."""
        self._answers.extend(answers)

    def forget(self) -> None:
        """Drop the answers that nobody has asked for."""
        self._answers.clear()

    @property
    def unused(self) -> int:
        return len(self._answers)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        script = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                script.requests.append(Received(self.command, self.path, headers, body))
                given = script._answers.popleft() if script._answers else problem(501, "no answer left")
                given = given if isinstance(given, Answer) else given()
                if given.cut != 0:
                    self.send_response(given.status)
                    for name, value in given.headers.items():
                        self.send_header(name, value)
                    if not given.held and "Content-Length" not in given.headers and given.status not in (204, 304):
                        self.send_header("Content-Length", str(len(given.body)))
                    self.end_headers()
                    self.wfile.write(given.body[: given.cut])
                if given.held:
                    self.wfile.flush()
                    script._over.wait()
                self.close_connection = True

            do_GET = do_POST = do_PUT = do_DELETE = _serve

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
