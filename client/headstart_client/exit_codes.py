"""What ``headstart`` exits with, for pipelines."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended; a code never changes its meaning.

    Attributes:
        meaning: For people.
    """

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Exit:
        """A code and what it means."""
        made = int.__new__(cls, code)
        made._value_ = code
        made.meaning = meaning
        return made

    DONE = 0, "done"
    REFUSED = 1, "the service refused, or what it sent was damaged"
    USAGE = 2, "the command line, or a file on this machine, is at fault"
    CANNOT_CONNECT = 3, "cannot connect"
    WORK_FAILED = 4, "the run, the adaptation or the evaluation failed or was cancelled"
    TIMED_OUT = 5, "not finished in time; it goes on"
    NOT_SHOWN = 6, "the verdict of an evaluation is not what --fail-unless asks for"
    LEAKED = 7, "an evaluation has leakage: a subject was trained on held-out tasks"
    IN_CONFLICT = 8, "tasks apply: something stands against a definition, and nothing was changed"
    INTERRUPTED = 130, "interrupted with Ctrl-C"
    BROKEN_PIPE = 141, "whoever read the output has gone"
