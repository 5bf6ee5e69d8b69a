"""A run as a stream of server-sent events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app import tables
from app.database import Database
from app.runs.schemas import FINAL, Metric, RunBody

POLL_S = 0.25
"""Time between two looks at the database."""

HEARTBEAT_S = 10.0
"""Time without an event after which a comment is sent, so that nobody on the way takes the connection for dead."""

_AT_ONCE = 500


def read(session: Session, run_id: str, after: int) -> tuple[RunBody | None, list[Metric]]:
    """A run, None where there is none, and what it measured after that sequence number, as far as it fits one look."""
    # The run first: where it is seen as ended, all of its metrics are seen too.
    run = session.get(tables.Run, run_id)
    statement = (
        select(tables.RunMetric)
        .where(tables.RunMetric.run_id == run_id, tables.RunMetric.sequence > after)
        .order_by(tables.RunMetric.sequence)
        .limit(_AT_ONCE)
    )
    metrics = [Metric.model_validate(row) for row in session.scalars(statement)]
    return None if run is None else RunBody.of(run), metrics


async def stream(
    database: Database, run_id: str, after: int, is_disconnected: Callable[[], Awaitable[bool]]
) -> AsyncIterator[str]:
    """Events of a run until it has ended.

    ``metrics`` events carry what was measured, each once and in order; ``state`` events carry the run, first
    as it is and then whenever its state changes. An event's id is the sequence number up to which the reader
    has all metrics.

    Args:
        database: Read in short transactions; none is open while the stream waits.
        run_id: A run that exists.
        after: Sequence number that the reader has already; 0 for all.
        is_disconnected: Whether the reader has gone.
    """

    def look(after: int) -> tuple[RunBody | None, list[Metric]]:
        with database.snapshot() as session:
            return read(session, run_id, after)

    told: object = None
    spoke_at = time.monotonic()
    while not await is_disconnected():
        try:
            run, metrics = await run_in_threadpool(look, after)
        except SQLAlchemyError:
            # The reader comes again, with the last id it has.
            return
        if run is None:
            return
        for metric in metrics:
            after = metric.sequence
            yield _event("metrics", after, metric.model_dump_json())
        if len(metrics) == _AT_ONCE:
            continue
        state = (run.state, run.attempts, run.cancel_requested)
        if state != told:
            yield _event("state", after, run.model_dump_json())
        if run.state in FINAL:
            return
        if state != told or metrics:
            told, spoke_at = state, time.monotonic()
        elif time.monotonic() - spoke_at >= HEARTBEAT_S:
            spoke_at = time.monotonic()
            yield ": still here\n\n"
        await anyio.sleep(POLL_S)


def _event(kind: str, sequence: int, data: str) -> str:
    return f"event: {kind}\nid: {sequence}\ndata: {data}\n\n"
