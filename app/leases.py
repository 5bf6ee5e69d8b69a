"""Leases: which worker executes which work, and what it may still write.

Work is ``queued`` until a worker claims it: then it is ``running`` and the worker's until the lease runs out.
Every claim gets the next ``attempt``, the fencing token: a write names it, so that a worker that was taken
for dead changes nothing when it comes back.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_, select, true, update
from sqlalchemy.orm import Session

from app.database import Database, now
from app.tables import Work

Clock = Callable[[Session], datetime]
"""Tells the time within a transaction."""


class LeaseLost(Exception):
    """The work is another worker's now, or over; nothing more may be written to it."""


def database_clock(session: Session) -> datetime:
    """The time by the one clock that all workers of a database share: PostgreSQL's, or this machine's for SQLite."""
    if session.get_bind().dialect.name == "postgresql":
        moment: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
        return moment
    return now()


def request_cancellation(session: Session, table: type[Work], id_: str) -> bool:
    """End work that no worker has at once, and have work that is running ended by its worker; whether it was either."""
    moment = now()
    idle = table.state.in_(("queued", "collecting"))
    # One statement for idle work, one for running: a worker may claim it, or end it, at any moment.
    statements = (
        (idle, {"state": "cancelled", "cancel_requested_at": moment, "finished_at": moment}),
        (table.state == "running", {"cancel_requested_at": func.coalesce(table.cancel_requested_at, moment)}),
    )
    found = False
    for condition, values in statements:
        statement = update(table).where(table.id == id_, condition).values(values).returning(table.id)
        found |= session.scalar(statement.execution_options(synchronize_session=False)) is not None
    return found


@dataclass(frozen=True)
class Lease:
    """A worker's hold on one piece of work.

    Attributes:
        table: Where the work is a row.
        id: Of the row.
        attempt: The row's fencing token while the lease holds.
        seconds: Time without a renewal after which others may claim the work.
        clock: What it is measured with.
    """

    table: type[Work]
    id: str
    attempt: int
    seconds: float
    clock: Clock = database_clock

    def write(self, session: Session, **values: Any) -> bool:
        """Change the row, if it is still this worker's, and renew the lease.

        The row is locked until the transaction ends. What else a worker writes for its work goes into the same
        transaction, after this.

        Returns:
            Whether somebody asked to cancel the work.

        Raises:
            LeaseLost: If it is this worker's no longer.
        """
        table = self.table
        renewed = {"lease_expires_at": self.clock(session) + timedelta(seconds=self.seconds)}
        statement = (
            update(table)
            .where(table.id == self.id, table.attempt == self.attempt, table.state == "running")
            .values(renewed | values)
            .returning(table.cancel_requested_at)
            .execution_options(synchronize_session=False)
        )
        row = session.execute(statement).one_or_none()
        if row is None:
            raise LeaseLost(f"{table.__tablename__} {self.id}, attempt {self.attempt}")
        return row[0] is not None

    def end(self, session: Session, state: str, **values: Any) -> None:
        """Close the work in a final state; raises as :meth:`write`."""
        over = {"finished_at": self.clock(session), "lease_owner": None, "lease_expires_at": None}
        self.write(session, state=state, **over, **values)

    def release(self, session: Session) -> None:
        """Give unfinished work back: the next worker goes on at once, and it does not count as a crash."""
        if self.write(session):
            self.end(session, "cancelled")
        else:
            self.write(session, state="queued", lease_owner=None, lease_expires_at=None)


class Leases:
    """Hands out the work of one table.

    Args:
        database: Where the table is.
        table: Whose rows to claim.
        seconds: Duration of a lease.
        max_attempts: Leases of one piece of work that may run out; with the last one it fails.
        owner: Who claims, for operators to read.
        clock: What tells the time.
        among: Which rows may be claimed at all; by default any.
    """

    def __init__(
        self,
        database: Database,
        table: type[Work],
        seconds: float,
        max_attempts: int,
        owner: str | None = None,
        clock: Clock = database_clock,
        among: ColumnElement[bool] | None = None,
    ) -> None:
        self._database = database
        self._table = table
        self._seconds = seconds
        self._max_attempts = max_attempts
        self._owner = owner or f"{socket.gethostname()}:{os.getpid()}"
        self._clock = clock
        self._among = true() if among is None else among
        self._queued = select(table.id).where(table.state == "queued").limit(1)

    def is_queued(self) -> bool:
        """Whether there is new work, by a look that costs little: what was lost, or may not be claimed, is not seen."""
        return self._database.finds(self._queued)

    def claim(self) -> Lease | None:
        """The oldest work that is queued or whose worker was lost; None where there is none."""
        table = self._table
        # Looking takes no write lock, which on SQLite everybody else would wait for.
        with self._database.snapshot() as session:
            waiting = self._claimable(self._clock(session))
            if session.scalar(select(table.id).where(waiting).limit(1)) is None:
                return None
        with self._database.transaction() as session:
            moment = self._clock(session)
            self._close_lost(session, moment)
            oldest = select(table.id).where(self._claimable(moment)).order_by(table.id).limit(1)
            statement = (
                update(table)
                .where(table.id == oldest.with_for_update(skip_locked=True).scalar_subquery())
                .values(
                    state="running",
                    attempt=table.attempt + 1,
                    crashes=table.crashes + case((self._lost(moment), 1), else_=0),
                    lease_owner=self._owner,
                    lease_expires_at=moment + timedelta(seconds=self._seconds),
                    started_at=func.coalesce(table.started_at, moment),
                )
                .returning(table.id, table.attempt)
                .execution_options(synchronize_session=False)
            )
            claimed = session.execute(statement).one_or_none()
        if claimed is None:
            return None
        return Lease(table, claimed[0], claimed[1], self._seconds, self._clock)

    def _claimable(self, moment: datetime) -> ColumnElement[bool]:
        # One that runs and is nobody's was begun under another's lease.
        left = and_(self._table.state == "running", self._table.lease_owner.is_(None))
        return and_(or_(self._table.state == "queued", left, self._lost(moment)), self._among)

    def _lost(self, moment: datetime) -> ColumnElement[bool]:
        return and_(self._table.state == "running", self._table.lease_expires_at < moment)

    def _close_lost(self, session: Session, moment: datetime) -> None:
        """End what nobody should take up again: it was to be cancelled, or has lost too many workers."""
        table = self._table
        closed = {"finished_at": moment, "crashes": table.crashes + 1, "lease_owner": None, "lease_expires_at": None}
        times = "once" if self._max_attempts == 1 else f"{self._max_attempts} times"
        reason = f"its worker was lost {times}, without a word; HEADSTART_MAX_ATTEMPTS says when to give up"
        failed = {"state": "failed", "error": {"type": "worker-lost", "detail": reason}}
        for condition, values in (
            (table.cancel_requested_at.is_not(None), {"state": "cancelled"}),
            (table.crashes + 1 >= self._max_attempts, failed),
        ):
            statement = update(table).where(self._lost(moment), condition).values(closed | values)
            session.execute(statement.execution_options(synchronize_session=False))
