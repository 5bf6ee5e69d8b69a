"""A run as a stream of server-sent events."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import tables
from app.events import Event, Look
from app.runs.schemas import Metric, RunBody
from app.work import FINAL

_AT_ONCE = 500


def look(session: Session, run_id: str, after: int) -> Look | None:
    """A run, None where there is none, and what it measured after that sequence number, as far as it fits one look."""
    # The run first: where it is seen as ended, all of its metrics are seen too.
    run = session.get(tables.Run, run_id)
    if run is None:
        return None
    statement = (
        select(tables.RunMetric)
        .where(tables.RunMetric.run_id == run_id, tables.RunMetric.sequence > after)
        .order_by(tables.RunMetric.sequence)
        .limit(_AT_ONCE)
    )
    metrics = [Event("metrics", row.sequence, Metric.model_validate(row)) for row in session.scalars(statement)]
    body = RunBody.of(run)
    state = (body.state, body.attempts, body.cancel_requested)
    return Look(body, state, body.state in FINAL, metrics, len(metrics) == _AT_ONCE)
