"""A run as a stream of server-sent events."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import tables
from app.events import Event, Look
from app.runs.schemas import Metric, RunBody

_AT_ONCE = 500


def look(session: Session, run: tables.Run, after: int) -> Look:
    """A run, and what it measured after that sequence number, as far as it fits one look."""
    statement = (
        select(tables.RunMetric)
        .where(tables.RunMetric.run_id == run.id, tables.RunMetric.sequence > after)
        .order_by(tables.RunMetric.sequence)
        .limit(_AT_ONCE)
    )
    metrics = [Event("metrics", row.sequence, Metric.model_validate(row)) for row in session.scalars(statement)]
    body = RunBody.of(run)
    state = (body.state, body.attempts, body.cancel_requested)
    return Look(body, state, metrics, len(metrics) == _AT_ONCE)
