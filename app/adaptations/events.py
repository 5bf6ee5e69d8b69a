"""An adaptation as a stream of server-sent events."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app import tables
from app.adaptations.schemas import AdaptationBody
from app.events import Event, Look


def look(_: Session, row: tables.Adaptation, after: int) -> Look:
    """An adaptation, and the points of its curve after that many."""
    body = AdaptationBody.of(row)
    points = [Event("curve", place, point) for place, point in enumerate(body.curve or [], 1) if place > after]
    state = (body.state, body.attempts, body.cancel_requested, body.progress, body.revision, body.remote)
    return Look(body, state, points, more=False)
