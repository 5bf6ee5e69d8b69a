"""Waiting for clients that may never say a word more."""

from __future__ import annotations

import asyncio
import time


class Arrivals:
    """What tasks wait to receive, each at most so long.

    A timer for every request would cost more than reading it. In place of that :meth:`end_overdue`, called every
    second, looks at those that wait longest.

    Args:
        limit_s: Time that each may wait.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.since: dict[asyncio.Task[object], float] = {}
        self.late: set[asyncio.Task[object]] = set()

    def awaited(self) -> _Waiting:
        """A context for the time that the current task waits.

        It raises TimeoutError if the time is over.
        """
        return _Waiting(self)

    async def end_overdue(self) -> None:
        """End the waiting of those whose time is over."""
        before = time.monotonic() - self.limit_s
        for task, since in list(self.since.items()):
            if since > before:
                return
            if task not in self.late:
                self.late.add(task)
                task.cancel()


class _Waiting:
    """One task's waiting; a class, because a generator would cost more than all else here."""

    __slots__ = ("_arrivals", "_task")

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._arrivals.since[task] = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        del self._arrivals.since[self._task]
        if self._task in self._arrivals.late:
            self._arrivals.late.discard(self._task)
            if kind is asyncio.CancelledError:
                self._task.uncancel()
                raise TimeoutError from error
