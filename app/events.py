"""Work as a stream of server-sent events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any, NamedTuple

import anyio
from fastapi import Header, Request
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from app.database import Database
from app.errors import BadRequest, NotFound
from app.validation import Schema
from app.work import FINAL, W, WorkBody, get_work

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
        events: What happened after the sequence number that was asked for, in order.
        more: Whether there is more of that already.
    """

    body: WorkBody
    state: object
    events: Sequence[Event]
    more: bool


Reader = Callable[[Session, W, int], Look]
"""Looks at work, for what happened after a sequence number."""


async def answer(
    request: Request, database: Database, table: type[W], id_: str, read: Reader[W], last_event_id: str | None
) -> StreamingResponse:
    """The stream as the answer to a request.

    Args:
        request: Ends the stream when its sender has gone.
        database: Read in short transactions; none is open while the stream waits.
        table: Where the work is a row.
        id_: Of the row.
        read: Looks at the work.
        last_event_id: What the reader has already; None for nothing.

    Raises:
        BadRequest: If that is no event's id.
        NotFound: If there is no such work.
    """
    after = _sequence_of(last_event_id)

    def require() -> None:
        with database.snapshot() as session:
            get_work(session, table, id_)

    def look(after: int) -> Look:
        with database.snapshot() as session:
            # The work first: where it is seen as ended, all that happened is seen too.
            return read(session, get_work(session, table, id_), after)

    await run_in_threadpool(require)
    # A proxy that collects the answer before it passes it on would hold every event back.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(look, after, request.is_disconnected), 200, headers, "text/event-stream")


def _sequence_of(last_event_id: str | None) -> int:
    text = last_event_id or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadRequest("Last-Event-ID must be the id of an event of this stream: a whole number")
    return int(text)


async def _stream(
    look: Callable[[int], Look], after: int, is_disconnected: Callable[[], Awaitable[bool]]
) -> AsyncIterator[str]:
    """Events of a piece of work until it has ended.

    What happened is told once and in order; ``state`` events carry the work, first as it is and then whenever its
    state changes. An event's id is the sequence number up to which the reader has everything.
    """
    told: object = None
    spoke_at = time.monotonic()
    while not await is_disconnected():
        try:
            seen = await run_in_threadpool(look, after)
        except (SQLAlchemyError, NotFound):
            # The reader comes again, with the last id it has.
            return
        for event in seen.events:
            after = event.sequence
            yield _event(event.kind, after, event.body)
        if seen.more:
            continue
        if seen.state != told:
            yield _event("state", after, seen.body)
        if seen.body.state in FINAL:
            return
        if seen.state != told or seen.events:
            told, spoke_at = seen.state, time.monotonic()
        elif time.monotonic() - spoke_at >= HEARTBEAT_S:
            spoke_at = time.monotonic()
            yield ": still here\n\n"
        await anyio.sleep(POLL_S)


def _event(kind: str, sequence: int, body: Schema) -> str:
    return f"event: {kind}\nid: {sequence}\ndata: {body.model_dump_json()}\n\n"
