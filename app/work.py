"""Work: what runs, adaptations and evaluations have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from app import tables
from app.validation import Schema, Whole

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
"""Where work stands; the last three are final."""

FINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
"""States that work does not leave."""

Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
"""Of all randomness: equal requests with equal seeds compute equal results."""


class RunError(Schema):
    """Why work failed."""

    type: str
    detail: str


class WorkBody(Schema):
    """What is told of all work."""

    id: str
    state: State
    attempts: int
    error: RunError | None
    cancel_requested: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def members_of(row: tables.Work) -> dict[str, Any]:
    """The members of :class:`WorkBody`, as a row has them."""
    return {
        "id": row.id,
        "state": row.state,
        "attempts": row.attempt,
        "error": row.error,
        "cancel_requested": row.cancel_requested_at is not None,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
    }
