"""Waiting for work that the service does in the background."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from headstart_client.errors import Timeout

PATIENCE_S = 60.0


def too_late(what: str, timeout_s: float) -> Timeout:
    """The exception for a wait that ended before the work did."""
    return Timeout(f"{what} was not finished after {timeout_s:g} s; it goes on")


@contextmanager
def goes_on(what: str, stop_with: str) -> Iterator[None]:
    """Add to an interrupt from the keyboard that it ended the wait, and not the work."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"{what} goes on; stop it with: {stop_with}")
        raise
