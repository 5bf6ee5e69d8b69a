"""Work in threads, few at a time, that is waited for no longer than anybody wants its result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, final

T = TypeVar("T")
Found = TypeVar("Found")


@final
class Threads:
    """So many threads for work of one kind.

    Work that nobody waits for any longer goes on to its end, and only then may other work begin in its place: else
    deadlines would let any number of threads pile up.

    Args:
        count: How many.

    Attributes:
        free: Counts those that are free.
    """

    def __init__(self, count: int) -> None:
        self.free = asyncio.Semaphore(count)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread."""
        await self.free.acquire()
        return await self._run(function, *arguments)

    async def run_with(self, find: Callable[[], Awaitable[Found]], function: Callable[[Found], T]) -> T:
        """Call a function in a thread with what is found, on the event loop, when a thread is free: not before.

        So there is no more of it at a time than there are threads, however many wait.
        """
        await self.free.acquire()
        try:
            found = await find()
        except BaseException:
            self.free.release()
            raise
        return await self._run(function, found)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        work = asyncio.create_task(asyncio.to_thread(function, *arguments))

        def end(work: asyncio.Task[T]) -> None:
            self.free.release()
            if not work.cancelled():
                work.exception()  # taken note of, as there may be nobody who waits for it

        work.add_done_callback(end)
        return await asyncio.shield(work)
