"""What executing leased work needs: interrupting the core, and transactions that outlive a database's outage."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Final, Literal, TypeVar

import torch
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app.database import Database
from app.errors import HeadstartError
from app.leases import Lease
from app.settings import Settings
from app.store import ArtefactStore
from models.adaptation import AdaptationDiverged
from models.checkpoint import InvalidArtefact
from models.environments.bridge import EnvironmentFailed
from models.learners.base import Diverged
from models.rollout import NonFiniteReward
from models.types import InvalidValue

logger = logging.getLogger(__name__)

T = TypeVar("T")

Reason = Literal["stop", "cancel", "lost"]
"""Why a computation is interrupted: the process ends, somebody cancelled, or the lease is another worker's."""

DATABASE_AWAY: Final = (OperationalError, InterfaceError, PoolTimeout)
"""What a database raises that is restarting, unreachable, or was asked at a bad moment."""

_EXPECTED = (
    HeadstartError,
    InvalidValue,
    InvalidArtefact,
    Diverged,
    NonFiniteReward,
    AdaptationDiverged,
    EnvironmentFailed,
)


class Interrupted(BaseException):
    """The computation was cut short. Not an ``Exception``, so that nobody on the way takes it for a failure."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class Interrupter:
    """Cuts the core's computation short, in mid-iteration if need be, and nothing else.

    Make it in the thread that computes, which must be the main thread if :meth:`install` is called: signals
    are handled there.

    Attributes:
        stopping: Whether the process was asked to end.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._order: Reason | None = None
        self._computing = False
        self._thread = threading.get_ident()
        self._installed = False

    def install(self) -> None:
        """Handle SIGTERM and SIGINT, and the signal by which :meth:`order` reaches the computing thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, self._wake)
        self._installed = True

    def begin(self) -> None:
        """New work: forget what was ordered for the last."""
        self._order = None

    def order(self, reason: Reason) -> None:
        """Interrupt the computation, from another thread; the next one if none is under way."""
        self._order = reason
        if self._installed:
            signal.pthread_kill(self._thread, signal.SIGUSR1)

    def compute(self, function: Callable[[], T]) -> T:
        """Call the function.

        Raises:
            Interrupted: If that was asked for before or meanwhile.
        """
        try:
            self._computing = True
            self._interrupt()
            return function()
        except Interrupted:
            # The core may have been between switching gradients off and on again.
            torch.set_grad_enabled(True)
            raise
        finally:
            self._computing = False

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.stopping = True
        self._interrupt()

    def _wake(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._interrupt()

    def _interrupt(self) -> None:
        reason = self._order or ("stop" if self.stopping else None)
        if reason is not None and self._computing:
            self._computing = False
            raise Interrupted(reason)


def allowed_threads(settings: Settings) -> int:
    """Threads that a worker may compute with: what the settings say, else all cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.threads or cores


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Job:
    """Work under a lease, and what it is executed with."""

    lease: Lease
    database: Database
    store: ArtefactStore
    settings: Settings
    interrupter: Interrupter

    def persist(self, transaction: Callable[[Session], T]) -> T:
        """Run a transaction, again until it succeeds where the database is away: it must bear being repeated.

        Raises:
            sqlalchemy.exc.OperationalError: If the database is still away when the process is to end.
        """
        return self._insist(self.database.transaction, transaction)

    def read(self, transaction: Callable[[Session], T]) -> T:
        """Run a transaction that only reads, which nobody waits for; otherwise as :meth:`persist`."""
        return self._insist(self.database.snapshot, transaction)

    def _insist(
        self, begin: Callable[[], contextlib.AbstractContextManager[Session]], transaction: Callable[[Session], T]
    ) -> T:
        delay_s = 0.1
        while True:
            try:
                with begin() as session:
                    return transaction(session)
            except DATABASE_AWAY as error:
                if self.interrupter.stopping:
                    raise
                logger.warning(
                    "the database is away, trying again in %g s: %s", delay_s, describe_error(error)["detail"]
                )
                time.sleep(delay_s)
                delay_s = min(2 * delay_s, 2.0)

    def persist_soon(self, transaction: Callable[[Session], object]) -> bool:
        """Run a transaction once; False where the database is away and the caller should come again later."""
        try:
            with self.database.transaction() as session:
                transaction(session)
        except DATABASE_AWAY as error:
            logger.warning("the database is away, the work goes on: %s", describe_error(error)["detail"])
            return False
        return True


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of the numbers that are finite: others have no place in JSON."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def describe_error(error: Exception) -> dict[str, str]:
    """An error as the resource of failed work shows it: the ``type`` of its kind and, in ``detail``, what happened."""
    if not isinstance(error, _EXPECTED):
        return {"type": "internal-error", "detail": traceback.format_exception_only(error)[0].strip()}
    kind = re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__).lower()
    return {"type": kind, "detail": str(error)}
