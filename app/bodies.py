"""Reading request bodies: limits on their size and on the time they take, and JSON that every later layer can hold."""

from __future__ import annotations

import json
import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar, final

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.arrivals import Arrivals
from app.errors import BadRequest, Busy, Invalid, PayloadTooLarge, TooSlow, UnsupportedMediaType
from app.validation import MAX_ERRORS, FieldError, pointer_to

MAX_DEPTH = 64
"""Levels of nesting that a JSON body may have."""

MAX_PATH_BYTES = 1024
"""Longest path: no name of this service comes near it."""

BODY_S = 30.0
"""Time that a body may take to arrive, or more where a larger one may come: the time that takes at 64 KiB/s."""

T = TypeVar("T")

_SLOWEST_BYTES_PER_S = 64 * 1024
_HELD_BYTES = 128 * 1024 * 1024
_WHOLE_NUMBER_DIGITS = 19
_LARGE_BODY_BYTES = 64 * 1024


@dataclass(slots=True)
class Held:
    """What a request takes of what there is for all: the bytes of its body, and 1 where requests are counted."""

    size_bytes: int = 0
    requests: int = 0


@final
class Bodies:
    """What there is for bodies: memory for all of them, and time for each to arrive.

    Args:
        max_body_bytes: Of one.
        limit_s: Time for one to arrive.

    Attributes:
        most_held_bytes: Of all.
        held_bytes: Of those that are there or arriving.
        arrivals: Waiting for them.
    """

    def __init__(self, max_body_bytes: int, limit_s: float) -> None:
        self.max_body_bytes = max_body_bytes
        self.most_held_bytes = max(_HELD_BYTES, 2 * max_body_bytes)
        self.held_bytes = 0
        self.arrivals = Arrivals(limit_s)

    async def read(self, receive: Receive, held: Held) -> bytes:
        """The whole body; what is held of it is for the caller to give back, with :meth:`release`.

        Raises:
            BadRequest: If the client leaves before.
            PayloadTooLarge: If it is too large.
            Busy: If the others leave no room for it.
            TooSlow: If it does not arrive in time.
        """
        parts: list[bytes] = []
        try:
            with self.arrivals.awaited():
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise BadRequest("the client left before the body was complete")
                    part = message.get("body", b"")
                    held.size_bytes += len(part)
                    self.held_bytes += len(part)
                    if held.size_bytes > self.max_body_bytes:
                        raise self.too_large()
                    if self.held_bytes > self.most_held_bytes:
                        raise Busy("the bodies of other requests take all memory there is for them")
                    if not message.get("more_body", False):
                        return b"".join([*parts, part]) if parts else part
                    parts.append(part)
        except TimeoutError as error:
            raise TooSlow(f"the body did not arrive within {self.arrivals.limit_s:g} s") from error

    def release(self, held: Held) -> None:
        """The body is held no longer."""
        self.held_bytes -= held.size_bytes

    def too_large(self) -> PayloadTooLarge:
        """The error for one that is, or says that it is."""
        return PayloadTooLarge(f"the body may have at most {self.max_body_bytes} bytes")


def time_for(max_body_bytes: int) -> float:
    """Seconds in which the largest body arrives that may come, over a slow line."""
    return max(BODY_S, max_body_bytes / _SLOWEST_BYTES_PER_S)


class BodyMiddleware:
    """Reads the body of a request before anything else is done for it, unless it is refused."""

    def __init__(self, app: ASGIApp, bodies: Bodies) -> None:
        self.app = app
        self.bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            raise BadRequest("a URL cannot hold NUL characters")
        if len(scope["path"].encode()) > MAX_PATH_BYTES:
            raise BadRequest(f"the path has more than {MAX_PATH_BYTES} bytes")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or len(announced) > 18 or int(announced) > self.bodies.max_body_bytes:
            raise self.bodies.too_large()
        held = Held()
        try:
            body: bytes | None = await self.bodies.read(receive, held)

            async def read() -> Message:
                nonlocal body
                if body is None:
                    return await receive()  # that the client has left
                message, body = {"type": "http.request", "body": body, "more_body": False}, None
                return message

            await self.app(scope, read, send)
        finally:
            self.bodies.release(held)


class JSONRequest(Request):
    """A request whose JSON was read by :func:`parse_json`, off the event loop where it is long."""

    async def load(self) -> None:
        """Read and check the body.

        Raises:
            UnsupportedMediaType: If it is not JSON by its content type.
            BadRequest: If it is not JSON.
            Invalid: If it holds what cannot be stored.
        """
        body = await self.content()
        if not body:
            return
        if len(body) < _LARGE_BODY_BYTES:
            self._json = parse_json(body)
        else:
            self._json = await run_in_threadpool(parse_json, body)

    async def content(self) -> bytes:
        """The body as it came, for :func:`read_struct`.

        Raises:
            UnsupportedMediaType: If it is not JSON by its content type.
        """
        body = await self.body()
        if body:
            require_json(self.headers.get("content-type", "").encode("latin-1"))
        return body


def media_type(content_type: bytes) -> bytes:
    """What a ``Content-Type`` says the body is, without its parameters."""
    return content_type.partition(b";")[0].strip().lower()


def require_json(content_type: bytes) -> None:
    """Refuse a body that is not JSON by its ``Content-Type``.

    Raises:
        UnsupportedMediaType: If it is of another kind, or of none.
    """
    kind = media_type(content_type)
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        raise UnsupportedMediaType("send JSON, with Content-Type: application/json")


def read_struct(decoder: msgspec.json.Decoder[T], body: bytes | str) -> T:
    """A body by the quick reader, which holds numbers and nothing else in memory.

    Raises:
        BadRequest: If it is not JSON.
        Invalid: At the first member that is not as the struct says.
    """
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        # The quick reader says little of what is wrong; the careful one names the place.
        parse_json(body.encode() if isinstance(body, str) else body)
        raise refusal(str(error), decoder.type) from error


def refusal(message: str, struct: type) -> Invalid:
    """The error for what the quick reader found: ``Expected `float`, got `str` - at `$.observations[0][2]```."""
    detail, _, place = message.partition(" - at ")
    if place.startswith("`key` in "):
        detail, place = f"the name of a member: {detail}", place.removeprefix("`key` in ")
    path = [
        int(part) if part.isdigit() else part
        for part in re.findall(r"[A-Za-z_]\w*|\d+", place.strip("`").removeprefix("$"))
    ]
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", detail, re.DOTALL):
        known = ", ".join(_struct_at(struct, path).__struct_fields__)
        return Invalid(pointer_to(*path, found[1]), f"unknown field; known: {known}")
    if found := re.fullmatch(r"Object missing required field `(.*)`", detail):
        return Invalid(pointer_to(*path, found[1]), "required")
    return Invalid(pointer_to(*path), detail)


def _struct_at(struct: type, path: list[str | int]) -> type[msgspec.Struct]:
    """The struct whose members are at a place."""
    reached: Any = struct
    for part in path:
        reached = typing.get_type_hints(reached)[part] if isinstance(part, str) else typing.get_args(reached)[0]
        if isinstance(reached, types.UnionType):
            # What may be left out is a union with None.
            reached = typing.get_args(reached)[0]
    found: type[msgspec.Struct] = reached
    return found


def parse_json(body: bytes) -> Any:
    """A JSON document whose numbers are finite and whose strings are storable text.

    Whole numbers of more digits than a 64-bit integer has become floats.

    Raises:
        BadRequest: If it is not UTF-8, not JSON, or nested too deeply.
        Invalid: If a number is not finite, or a string holds NUL or a lone surrogate.
    """
    try:
        document = json.loads(body.decode("utf-8"), parse_int=_whole_number)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg}, line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise BadRequest(f"the body is nested more than {MAX_DEPTH} levels deep") from error
    if errors := _unstorable(document):
        raise Invalid.all_of(errors)
    return document


def _whole_number(digits: str) -> int | float:
    # Python refuses to read very long integers, and databases refuse what 64 bits cannot hold.
    return int(digits) if len(digits.lstrip("-")) <= _WHOLE_NUMBER_DIGITS else float(digits)


def _unstorable(document: object) -> list[FieldError]:
    errors: list[FieldError] = []
    pending: list[tuple[object, tuple[str | int, ...]]] = [(document, ())]
    while pending and len(errors) < MAX_ERRORS:
        value, path = pending.pop()
        if len(path) > MAX_DEPTH:
            raise BadRequest(f"the body is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            pending.extend((item, (*path, name)) for name, item in value.items())
            if not all(map(_is_text, value)):
                errors.append(FieldError(pointer_to(*path), "a name holds characters that are no text"))
        elif isinstance(value, list):
            # Long lists are lists of numbers: one pass in C for those that are in order.
            if not (set(map(type, value)) <= {int, float} and all(map(math.isfinite, value))):
                pending.extend((item, (*path, index)) for index, item in enumerate(value))
        elif isinstance(value, float) and not math.isfinite(value):
            errors.append(FieldError(pointer_to(*path), "must be a finite number"))
        elif isinstance(value, str) and not _is_text(value):
            errors.append(FieldError(pointer_to(*path), "holds characters that are no text"))
    return errors[::-1]


def _is_text(value: str) -> bool:
    return (value.isascii() and "\0" not in value) or not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)
