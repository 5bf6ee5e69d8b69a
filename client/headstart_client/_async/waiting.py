"""Waiting for work that the service does in the background."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from headstart_client.errors import ConnectionFailed, HeadstartError, ServiceFailed
from headstart_client.waiting import PATIENCE_S, too_late

T = TypeVar("T")


async def poll(
    fetch: Callable[[], Awaitable[T]],
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
            state = await fetch()
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
            raise too_late(what, timeout_s) from failure
        await asyncio.sleep(interval_s if timeout_s is None else max(0.0, min(interval_s, timeout_s - passed_s)))
