"""Work: what runs, adaptations and evaluations have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field
from sqlalchemy.orm import Session

from app.auth import Principal, audit
from app.errors import NotFound
from app.leases import request_cancellation
from app.tables import Work
from app.validation import Schema, Whole

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "collecting"]
"""Where work stands. Succeeded, failed and cancelled are final; only remote adaptations are ever collecting."""

FINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
"""States that work does not leave."""

Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
"""Of all randomness: equal requests with equal seeds compute equal results."""

W = TypeVar("W", bound=Work)
"""A kind of work, as a table."""


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


def members_of(row: Work) -> dict[str, Any]:
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


def get_work(session: Session, table: type[W], id_: str, *, lock: bool = False) -> W:
    """The work of that id; with ``lock`` as it is now, and until the transaction ends.

    Raises:
        NotFound: If there is none.
    """
    work = session.get(table, id_, with_for_update=True if lock else None, populate_existing=lock)
    if work is None:
        raise NotFound(f"there is no {table.__name__.lower()} {id_!r}")
    return work


def cancel_work(session: Session, by: Principal, table: type[W], id_: str) -> W:
    """End work: what is queued at once, what is running within two seconds; what is over stays as it is.

    Raises:
        NotFound: If there is none.
    """
    if request_cancellation(session, table, id_):
        kind = table.__tablename__
        audit(session, by, f"{kind}.cancel", f"{kind}/{id_}")
    return get_work(session, table, id_)
