"""Work as a stream of server-sent events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any, NamedTuple

import anyio
from fastapi import Header
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from app.database import Database
from app.errors import BadRequest
from app.validation import Schema

LastEventId = Annotated[str | None, Header(description="Id of the last event that was received.")]
"""Where a stream is to go on."""

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""What the OpenAPI document says of a stream's answer."""

POLL_S = 0.25
"""Time between two looks at the database."""

HEARTBEAT_S = 10.0
"""Time without an event after which a comment is sent, so that nobody on the way takes the connection for dead."""


class Event(NamedTuple):
    """Something that happened once.

    Attributes:
        kind: What it is called.
        sequence: Its number; events of a piece of work count up.
        body: What it tells.
    """

    kind: str
    sequence: int
    body: Schema


class Look(NamedTuple):
    """What a look at a piece of work showed.

    Attributes:
        body: The work as it is.
        state: What of it is told at every change.
        is_final: Whether it has ended.
        events: What happened after the sequence number that was asked for, in order.
        more: Whether there is more of that already.
    """

    body: Schema
    state: object
    is_final: bool
    events: Sequence[Event]
    more: bool


Reader = Callable[[Session, int], Look | None]
"""Looks at work, for what happened after a sequence number; None where the work is gone."""


def answer(
    database: Database, read: Reader, after: int, is_disconnected: Callable[[], Awaitable[bool]]
) -> StreamingResponse:
    """The stream as the answer to a request; arguments as :func:`stream`."""
    # A proxy that collects the answer before it passes it on would hold every event back.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        stream(database, read, after, is_disconnected), media_type="text/event-stream", headers=headers
    )


def sequence_of(last_event_id: str | None) -> int:
    """The number in a ``Last-Event-ID`` header; 0 without one.

    Raises:
        BadRequest: If it is none.
    """
    text = last_event_id or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadRequest("Last-Event-ID must be the id of an event of this stream: a whole number")
    return int(text)


async def stream(
    database: Database, read: Reader, after: int, is_disconnected: Callable[[], Awaitable[bool]]
) -> AsyncIterator[str]:
    """Events of a piece of work until it has ended.

    What happened is told once and in order; ``state`` events carry the work, first as it is and then whenever its
    state changes. An event's id is the sequence number up to which the reader has everything.

    Args:
        database: Read in short transactions; none is open while the stream waits.
        read: Looks at the work.
        after: Sequence number that the reader has already; 0 for all.
        is_disconnected: Whether the reader has gone.
    """

    def look(after: int) -> Look | None:
        with database.snapshot() as session:
            return read(session, after)

    told: object = None
    spoke_at = time.monotonic()
    while not await is_disconnected():
        try:
            seen = await run_in_threadpool(look, after)
        except SQLAlchemyError:
            # The reader comes again, with the last id it has.
            return
        if seen is None:
            return
        for event in seen.events:
            after = event.sequence
            yield _event(event.kind, after, event.body)
        if seen.more:
            continue
        if seen.state != told:
            yield _event("state", after, seen.body)
        if seen.is_final:
            return
        if seen.state != told or seen.events:
            told, spoke_at = seen.state, time.monotonic()
        elif time.monotonic() - spoke_at >= HEARTBEAT_S:
            spoke_at = time.monotonic()
            yield ": still here\n\n"
        await anyio.sleep(POLL_S)


def _event(kind: str, sequence: int, body: Schema) -> str:
    return f"event: {kind}\nid: {sequence}\ndata: {body.model_dump_json()}\n\n"
