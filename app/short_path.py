"""The short path: requests that act are answered without a session, the framework, or a thread.

What they share, whichever way they ask, is here: the key, the body, how many at a time, how long.
"""

from __future__ import annotations

import asyncio
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, Protocol, TypeVar, final

import numpy as np
from starlette.types import Receive, Scope, Send

from app.auth import KeyRing, Principal, authenticate
from app.bodies import BODY_S, Bodies, Held
from app.errors import BadRequest, Busy, Forbidden, problem_response
from app.threads import Threads
from models.runtime import Architecture

INLINE_BYTES = 32 * 1024
"""Largest body that is read on the event loop."""

_INLINE_PRODUCTS = 8_000_000

Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")


class Sampling(Protocol):
    """How a request wants its actions taken."""

    @property
    def deterministic(self) -> bool:
        """The most likely ones."""

    @property
    def seed(self) -> int | None:
        """What sampled ones follow from; None: nothing that repeats."""


@final
class Load:
    """What there is for all requests that act in this process.

    Args:
        max_body_bytes: Of a request.
        max_in_flight: Requests that are worked on at a time; any more are answered 503 at once.
        deadline_s: Time that one may take once its body is there, unless it says less.

    Attributes:
        bodies: What there is for their bodies.
        in_flight: Requests that are worked on.
        threads: Where to act beside the event loop: arithmetic gains nothing from more of them than there are cores.
    """

    def __init__(self, max_body_bytes: int, max_in_flight: int, deadline_s: float) -> None:
        self.bodies = Bodies(max_body_bytes, BODY_S)
        self.max_in_flight = max_in_flight
        self.deadline_s = deadline_s
        self.in_flight = 0
        self.threads = Threads(os.cpu_count() or 1)


class ShortPath(ABC):
    """An ASGI application that answers requests of one kind by the short path.

    Args:
        keys: Who may call.
        load: What there is for all.
    """

    def __init__(self, keys: KeyRing, load: Load) -> None:
        self.load = load
        self._keys = keys
        self._generator = np.random.default_rng()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        held = Held()
        try:
            content, headers = await self._serve(scope, receive, held)
        except Exception as error:
            await problem_response(error, scope)(scope, receive, send)
            return
        finally:
            self.load.in_flight -= held.requests
            self.load.bodies.release(held)
        headers.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    @abstractmethod
    async def _serve(self, scope: Scope, receive: Receive, held: Held) -> tuple[bytes, Headers]:
        """The answer's body and headers."""

    async def _actor(self, sent: Mapping[bytes, bytes]) -> Principal:
        """Who sent a request with these headers: one who may act."""
        principal = await authenticate(self._keys, sent.get(b"authorization"))
        if not principal.may("policies:act"):
            raise Forbidden("the key needs the scope policies:act")
        return principal

    async def _body(self, receive: Receive, held: Held) -> bytes:
        """The body, unless it does not come in time, or is more than there is room for; then it is being worked on."""
        load = self.load
        body = await load.bodies.read(receive, held)
        if load.in_flight >= load.max_in_flight:
            raise Busy(f"{load.max_in_flight} requests are being worked on")
        held.requests = 1
        load.in_flight += 1
        return body

    async def _in_time(self, sent: Mapping[bytes, bytes], work: Coroutine[Any, Any, T]) -> T:
        """What the work gives, unless the request's time is over before."""
        try:
            seconds = min(_timeout(sent.get(b"headstart-timeout")), self.load.deadline_s)
        except BadRequest:
            work.close()
            raise
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError as error:
            raise Busy(f"there was no answer within {seconds:g} s") from error

    def _source(self, request: Sampling) -> np.random.Generator | None:
        if request.deterministic:
            return None
        return self._generator if request.seed is None else np.random.default_rng(request.seed)


def headers_of(scope: Scope, names: Collection[bytes]) -> dict[bytes, bytes]:
    """Those of a request's headers; the first of several counts, as everywhere."""
    return {name: value for name, value in reversed(scope["headers"]) if name in names}


def is_long(architecture: Architecture, observations: int) -> bool:
    """Whether acting on so many observations would hold the event loop for long."""
    return observations * architecture.size_bytes > _INLINE_PRODUCTS


def _timeout(header: bytes | None) -> float:
    if header is None:
        return math.inf
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise BadRequest("Headstart-Timeout must be a number of seconds above 0")
    return seconds
