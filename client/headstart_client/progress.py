"""A line that shows how far a run is."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from headstart_client.runs import Run

PLAIN_EVERY_S = 10.0
BAR_WIDTH = 24


class ProgressLine:
    """Shows a run on stderr: a bar that is redrawn on a terminal, else a line now and then if asked for."""

    def __init__(self, wanted: bool | None = None) -> None:
        self._stream = sys.stderr
        self._terminal = self._stream.isatty()
        self._wanted = self._terminal if wanted is None else wanted
        self._open = False
        self._state = ""
        self._written_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._stream.write("\n")

    def show(self, run: Run) -> None:
        """Bring the line up to date."""
        if not self._wanted:
            return
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + describe(run)[:width].ljust(width))
            self._stream.flush()
            self._open = True
        elif run.state != self._state or time.monotonic() - self._written_s >= PLAIN_EVERY_S:
            self._stream.write(describe(run) + "\n")
            self._state, self._written_s = run.state, time.monotonic()


def describe(run: Run) -> str:
    """A run in one line: bar, iterations, return before and after adapting, time left."""
    if run.state == "queued":
        return f"{run.model}: queued"
    progress = run.progress
    fraction = 1.0 if run.state == "succeeded" else min(max(progress.fraction, 0.0), 1.0)
    bar = ("=" * round(fraction * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
    parts = [f"{run.model} [{bar}] {fraction:4.0%}", f"iteration {progress.iterations}"]
    before, after = run.metrics.get("return_before"), run.metrics.get("return_after")
    if before is not None and after is not None:
        parts.append(f"return {before:.1f} -> {after:.1f}")
    if run.finished:
        parts.append(f"{run.state} after {duration(progress.seconds)}")
    elif fraction > 0.02:
        parts.append(f"{duration(progress.seconds * (1 - fraction) / fraction)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for a person: ``47 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
