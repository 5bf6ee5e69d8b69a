"""The worker process: claims work of one kind, executes it, and again.

The core computes in the main thread. A second thread renews the lease meanwhile and learns of cancellations;
SIGTERM asks the process to end. All three interrupt the computation at once, wherever it is, and never
anything else: no transaction, no file is cut short.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sqlalchemy import ColumnElement, exists
from sqlalchemy.orm import Session, aliased

from app.adaptations.act_events import expire_events
from app.adaptations.execution import execute_adaptation
from app.adaptations.remote import close_expired, is_awaited
from app.database import Database
from app.evaluations.execution import execute_evaluation
from app.execution import DATABASE_AWAY, Interrupted, Interrupter, Job, allowed_threads, describe_error
from app.leases import Clock, Lease, LeaseLost, Leases, database_clock
from app.preparation import prepare
from app.runs.execution import execute_run
from app.settings import Settings
from app.store import ArtefactStore
from app.sweep import sweep
from app.tables import Adaptation, Evaluation, Run, Work
from models.environments.bridge import configure

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
"""Time between two heartbeats at most: a cancellation is noticed within it."""

AWAITED_POLL_S = 0.005
"""Time between two looks for work that somebody is about to wait for."""

TIDY_S = 60.0
"""Time between two looks for remote adaptations and recorded actions whose time is over."""

SWEEP_S = 3600.0
"""Time between two looks for artefacts that nothing refers to any longer."""


@dataclass(frozen=True)
class Slot:
    """A kind of work, with processes of its own.

    Attributes:
        table: Whose rows are the work.
        execute: Does one piece of it.
        poll_s: Time between two looks for more.
        threads: Threads that it computes with, of all that the settings allow.
        niceness: How far it stands back for others on its machine (0 to 19), above all for API processes.
        sweeps: Whether its workers remove artefacts that nothing refers to.
        among: Which rows may be claimed; by default any.
        is_awaited: Whether somebody is about to wait for work of this kind; by default nobody ever is.
    """

    table: type[Work]
    execute: Callable[[Job], None]
    poll_s: float
    threads: Callable[[int], int]
    niceness: int
    sweeps: bool = False
    among: ColumnElement[bool] | None = None
    is_awaited: Callable[[Session], bool] | None = None


_lead = aliased(Adaptation)
_LED = exists().where(_lead.id == Adaptation.lead_id, _lead.state.in_(("queued", "running")))

SLOTS: dict[str, Slot] = {
    "runs": Slot(Run, execute_run, 0.2, lambda allowed: allowed, 19),
    # One task's tensors are too small to share out: more threads would only be taken from the run beside it.
    "adaptations": Slot(
        Adaptation, execute_adaptation, 0.05, lambda _: 1, 5, sweeps=True, among=~_LED, is_awaited=is_awaited
    ),
    "evaluations": Slot(Evaluation, execute_evaluation, 0.2, lambda _: 1, 19),
}
"""Kinds of work: neither a long run nor a long evaluation ever delays an adaptation."""


class Worker:
    """Executes the work of one slot, one piece at a time.

    Args:
        settings: Of the service.
        slot: A key of :data:`SLOTS`.
        interrupter: How computations are cut short; by default one that no signal reaches.
        clock: What leases are measured with.
    """

    def __init__(
        self, settings: Settings, slot: str, interrupter: Interrupter | None = None, clock: Clock = database_clock
    ) -> None:
        configure(settings.environment_modules, settings.environment_timeout)
        self._settings = settings
        self._slot = SLOTS[slot]
        self._interrupter = interrupter or Interrupter()
        self._database = Database(settings.database_url)
        self._store = ArtefactStore(settings.artefacts)
        self._leases = Leases(
            self._database,
            self._slot.table,
            settings.lease_seconds,
            settings.max_attempts,
            clock=clock,
            among=self._slot.among,
        )
        self._swept_at = self._tidied_at = time.monotonic()

    def prepare(self) -> None:
        """Wait for the database and bring it to this version's schema, if nobody has."""
        delay_s = 0.1
        while not self._interrupter.stopping:
            try:
                return prepare(self._database, self._settings)
            except DATABASE_AWAY as error:
                logger.warning(
                    "the database is away, trying again in %g s: %s", delay_s, describe_error(error)["detail"]
                )
                time.sleep(delay_s)
                delay_s = min(2 * delay_s, 2.0)

    def work_once(self) -> bool:
        """Execute one piece of work, if there is any; whether there was."""
        lease = self._leases.claim()
        if lease is None:
            return False
        logger.info("%s %s: attempt %d", lease.table.__tablename__, lease.id, lease.attempt)
        job = Job(lease, self._database, self._store, self._settings, self._interrupter)
        self._interrupter.begin()
        heart = _Heart(self._database, lease, self._interrupter)
        heart.start()
        try:
            self._execute(job)
        except LeaseLost as lost:
            logger.warning("another worker has taken over, or the work is over: %s", lost)
        except DATABASE_AWAY:
            logger.exception("the database is away; the lease is left to run out")
        finally:
            heart.stop()
        return True

    def run(self) -> None:
        """Work until the process is asked to end."""
        delay_s = self._slot.poll_s
        while not self._interrupter.stopping:
            try:
                if self.work_once():
                    delay_s = self._slot.poll_s
                    continue
                self._sweep_sometimes()
                delay_s = self._slot.poll_s
                if self._is_awaited():
                    self._watch(delay_s)
                    continue
            except DATABASE_AWAY as error:
                logger.warning(
                    "the database is away, trying again in %g s: %s", delay_s, describe_error(error)["detail"]
                )
                delay_s = min(2 * delay_s, 2.0)
            time.sleep(delay_s)

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def _execute(self, job: Job) -> None:
        lease = job.lease
        try:
            self._slot.execute(job)
        except Interrupted as interruption:
            logger.info("%s %s: interrupted (%s)", lease.table.__tablename__, lease.id, interruption.reason)
            if interruption.reason == "stop":
                job.persist(lease.release)
            elif interruption.reason == "cancel":
                job.persist(lambda session: lease.end(session, "cancelled"))
        except (LeaseLost, *DATABASE_AWAY):
            raise
        except Exception as error:
            logger.exception("%s %s failed", lease.table.__tablename__, lease.id)
            failure = describe_error(error)
            job.persist(lambda session: lease.end(session, "failed", error=failure))

    def _is_awaited(self) -> bool:
        """Whether somebody is about to wait for work."""
        if self._slot.is_awaited is None:
            return False
        with self._database.snapshot() as session:
            return self._slot.is_awaited(session)

    def _watch(self, seconds: float) -> None:
        """Wait so long, or until there is work: a look that finds none is far cheaper than a claim."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._interrupter.stopping:
            time.sleep(AWAITED_POLL_S)
            if self._leases.is_queued():
                return

    def _sweep_sometimes(self) -> None:
        if self._slot.sweeps and time.monotonic() - self._tidied_at > TIDY_S:
            self._tidied_at = time.monotonic()
            close_expired(self._database)
            expire_events(self._database)
        if self._slot.sweeps and time.monotonic() - self._swept_at > SWEEP_S:
            self._swept_at = time.monotonic()
            removed = sweep(self._database, self._store)
            logger.info("removed %d artefacts that nothing referred to", removed)


class _Heart(threading.Thread):
    """Renews a lease until it is stopped, and passes on what it hears: the work is cancelled, the lease is lost."""

    def __init__(self, database: Database, lease: Lease, interrupter: Interrupter) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._database = database
        self._lease = lease
        self._interrupter = interrupter
        self._stopped = threading.Event()

    def run(self) -> None:
        """Beat."""
        told = False
        while not self._stopped.wait(min(HEARTBEAT_S, self._lease.seconds / 4)):
            try:
                with self._database.transaction() as session:
                    cancelled = self._lease.write(session)
            except LeaseLost:
                # The work may have ended between two beats: then nobody computes, and nothing is interrupted.
                self._interrupter.order("lost")
                return
            except DATABASE_AWAY:
                # The fencing token decides what still counts when the database is back.
                continue
            if cancelled and not told:
                told = True
                self._interrupter.order("cancel")

    def stop(self) -> None:
        """Beat no more; returns when the last beat is over."""
        self._stopped.set()
        self.join()


def run_worker(settings: Settings, slot: str) -> None:
    """Be a worker until SIGTERM or SIGINT. Call it in the main thread of a process of its own."""
    interrupter = Interrupter()
    interrupter.install()
    # Nobody waits for a run by the millisecond; somebody waits for every action.
    os.nice(min(SLOTS[slot].niceness, settings.niceness))
    torch.set_num_threads(SLOTS[slot].threads(allowed_threads(settings)))
    worker = Worker(settings, slot, interrupter)
    try:
        worker.prepare()
        # What the libraries made when they were imported stays; the collector need not look at it again.
        gc.freeze()
        worker.run()
    finally:
        worker.close()
