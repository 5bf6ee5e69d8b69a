"""Waiting for clients that may never say a word more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Arrivals:
    """What tasks wait to receive, each at most so long.

    A timer for every request would cost more than reading it. In place of that :meth:`end_overdue`, called every
    second, looks at those that wait longest.

    Args:
        limit_s: Time that each may wait.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._since: dict[asyncio.Task[object], float] = {}
        self._late: set[asyncio.Task[object]] = set()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """While the current task waits.

        Raises:
            TimeoutError: If the time is over.
        """
        task = asyncio.current_task()
        assert task is not None
        self._since[task] = time.monotonic()
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            raise TimeoutError from None
        finally:
            del self._since[task]
            self._late.discard(task)

    async def end_overdue(self) -> None:
        """End the waiting of those whose time is over."""
        before = time.monotonic() - self.limit_s
        for task, since in list(self._since.items()):
            if since > before:
                return
            if task not in self._late:
                self._late.add(task)
                task.cancel()
