"""An adaptation as a stream of server-sent events."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app import tables
from app.adaptations.schemas import AdaptationBody
from app.events import Event, Look
from app.work import FINAL


def look(session: Session, adaptation_id: str, after: int) -> Look | None:
    """An adaptation, None where there is none, and the points of its curve after that many."""
    row = session.get(tables.Adaptation, adaptation_id)
    if row is None:
        return None
    body = AdaptationBody.of(row)
    points = [Event("curve", place, point) for place, point in enumerate(body.curve or [], 1) if place > after]
    state = (body.state, body.attempts, body.cancel_requested, body.progress)
    return Look(body, state, body.state in FINAL, points, more=False)
