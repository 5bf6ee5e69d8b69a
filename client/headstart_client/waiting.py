"""Waiting for work that the service does in the background."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from headstart_client.errors import ConnectionFailed, HeadstartError, ServiceFailed, Timeout

T = TypeVar("T")
PATIENCE_S = 60.0


def poll(
    fetch: Callable[[], T],
    is_finished: Callable[[T], bool],
    what: str,
    timeout_s: float | None,
    interval_s: float = 0.5,
) -> T:
    """Fetch again and again until the work is finished.

    A service that is away for less than a minute, as when it is restarted, does not end the wait.

    Args:
        fetch: Reads the work's state.
        is_finished: Whether there is nothing left to wait for.
        what: Names the work in the message of a Timeout.
        timeout_s: When to give up, in seconds from now; ``None`` for never.
        interval_s: Between two reads, in seconds.

    Raises:
        Timeout: If the time is over.
        ConnectionFailed: If the service stays away.
        Problem: If it refuses.
    """
    started_s = reached_s = time.monotonic()
    while True:
        try:
            state = fetch()
        except (ConnectionFailed, ServiceFailed) as error:
            if time.monotonic() - reached_s > PATIENCE_S or not error.transient:
                raise
            failure: HeadstartError | None = error
        else:
            failure = None
            reached_s = time.monotonic()
            if is_finished(state):
                return state
        passed_s = time.monotonic() - started_s
        if timeout_s is not None and passed_s >= timeout_s:
            raise _too_late(what, timeout_s) from failure
        time.sleep(interval_s if timeout_s is None else max(0.0, min(interval_s, timeout_s - passed_s)))


def ticking(
    follow: Callable[[threading.Event], Iterator[T]], what: str, timeout_s: float | None, tick_s: float
) -> Iterator[T | None]:
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
    stopped = threading.Event()
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
                raise _too_late(what, timeout_s)
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


def _too_late(what: str, timeout_s: float) -> Timeout:
    return Timeout(f"{what} was not finished after {timeout_s:g} s; it goes on")


@contextmanager
def goes_on(what: str, stop_with: str) -> Iterator[None]:
    """Add to an interrupt from the keyboard that it ended the wait, and not the work."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"{what} goes on; stop it with: {stop_with}")
        raise
