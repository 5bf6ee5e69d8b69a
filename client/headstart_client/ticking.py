"""Following work while a clock goes on: with a thread, and, written a second time, with a task of asyncio."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from typing import TypeVar, final

from headstart_client.waiting import too_late

T = TypeVar("T")
Flag = threading.Event


@final
class AsyncFlag:
    """What an event of :mod:`threading` is between threads, between tasks of one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._event.is_set()

    def set(self) -> None:
        """Set it, for good."""
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until it is set, at most so many seconds; whether it is."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout_s)
        return self.is_set()


def ticking(
    follow: Callable[[Flag], Iterator[T]], what: str, timeout_s: float | None, tick_s: float
) -> Generator[T | None, None, None]:
    """Items as they come, and ``None`` whenever none has come for a while.

    Args:
        follow: Called once, in a thread of its own; ends soon after the event that it is given is set.
        what: Names the work in the message of a Timeout.
        timeout_s: When to give up, in seconds from now; ``None`` for never.
        tick_s: Longest time without an item or a ``None``, in seconds.

    Raises:
        Timeout: If the time is over.
        Exception: What ``follow`` raises.
    """
    started_s = time.monotonic()
    stopped = Flag()
    inbox: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for item in follow(stopped):
                inbox.put((item,))
                if stopped.is_set():
                    return
            inbox.put(None)
        # Whatever it is, it is raised where somebody waits for it.
        except BaseException as error:
            inbox.put(error)

    threading.Thread(target=read, name=f"follow {what}", daemon=True).start()
    try:
        while True:
            passed_s = time.monotonic() - started_s
            if timeout_s is not None and passed_s >= timeout_s:
                raise too_late(what, timeout_s)
            try:
                got = inbox.get(timeout=tick_s if timeout_s is None else min(tick_s, timeout_s - passed_s))
            except queue.Empty:
                yield None
                continue
            if got is None:
                return
            if isinstance(got, BaseException):
                raise got
            yield got[0]
    finally:
        stopped.set()


async def async_ticking(
    follow: Callable[[AsyncFlag], AsyncIterator[T]], what: str, timeout_s: float | None, tick_s: float
) -> AsyncGenerator[T | None, None]:
    """As :func:`ticking`; ``follow`` is called in a task of its own, which is cancelled when nobody listens."""
    started_s = time.monotonic()
    inbox: asyncio.Queue[tuple[T] | Exception | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for item in follow(AsyncFlag()):
                inbox.put_nowait((item,))
            inbox.put_nowait(None)
        except Exception as error:
            inbox.put_nowait(error)

    reader = asyncio.create_task(read(), name=f"follow {what}")
    try:
        while True:
            passed_s = time.monotonic() - started_s
            if timeout_s is not None and passed_s >= timeout_s:
                raise too_late(what, timeout_s)
            try:
                got = await asyncio.wait_for(
                    inbox.get(), tick_s if timeout_s is None else min(tick_s, timeout_s - passed_s)
                )
            except TimeoutError:
                yield None
                continue
            if got is None:
                return
            if isinstance(got, Exception):
                raise got
            yield got[0]
    finally:
        reader.cancel()
        await asyncio.wait([reader])
