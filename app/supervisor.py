"""Keeping the processes of the service alive, and ending them together."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

logger = logging.getLogger(__name__)

GRACE_S = 20.0
"""Time that the processes have to end after SIGTERM; then they are killed."""

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_STEADY_S = 60.0
_POLL_S = 0.1

WORKER_ENVIRONMENT: Mapping[str, str] = {
    # glibc gives big blocks back to the kernel at once and asks for them again: every activation of every
    # iteration would be cleared page by page anew. Kept by the process instead, training is 15 to 18 %
    # faster.
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
}
"""Environment variables of worker processes; read when a process starts, so the process cannot set them itself."""


@dataclass
class Child:
    """A process to keep alive.

    Attributes:
        name: What to call it.
        arguments: Of `headstart-server`.
        environment: Variables beside those of this process.
        descriptors: Open files that it inherits.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    descriptors: Sequence[int] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    delay_s: float = 0.0

    def start(self) -> None:
        """Start it. Its stdin is a pipe that ends with this process, which is how it notices if this one is killed."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.cli", *self.arguments, "--supervised"],
            stdin=subprocess.PIPE,
            env=os.environ | dict(self.environment),
            pass_fds=tuple(self.descriptors),
            # A group of its own: Ctrl-C in a terminal reaches this process alone, which then ends the others
            # in order.
            process_group=0,
        )
        self.started_at = time.monotonic()

    def restart_if_due(self) -> None:
        """Start it again if it has ended; the sooner it ended, the later."""
        if self.process is None:
            if time.monotonic() >= self.started_at + self.delay_s:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        lived_s = time.monotonic() - self.started_at
        grown = min(max(2 * self.delay_s, _FIRST_DELAY_S), _LONGEST_DELAY_S)
        self.delay_s = _FIRST_DELAY_S if lived_s > _STEADY_S else grown
        logger.warning("%s ended (%s); it is started again in %g s", self.name, _shown(code), self.delay_s)
        self._close()
        self.started_at = time.monotonic()

    def end(self) -> None:
        """Ask it to end."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def wait(self, deadline: float) -> bool:
        """Wait for its end until the deadline, then kill it; whether it ended by itself."""
        if self.process is None:
            return True
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.error("%s did not end in time and is killed", self.name)
            self.process.kill()
            self.process.wait()
            return False
        finally:
            self._close()
        return True

    def _close(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
        self.process = None


class Supervisor:
    """Starts processes, starts again those that crash, and passes SIGTERM and SIGINT on.

    Args:
        children: What to keep alive.
    """

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children
        self._stopping = False

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT, in the main thread; the exit code is 0 if all processes ended in time."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while not self._stopping:
            for child in self._children:
                child.restart_if_due()
            time.sleep(_POLL_S)
        logger.info("stopping")
        for child in self._children:
            child.end()
        deadline = time.monotonic() + GRACE_S
        return 0 if all([child.wait(deadline) for child in self._children]) else 1

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stopping = True


def end_with_supervisor() -> None:
    """End this process in order when its supervisor is gone, however that came: stdin ends then."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()


def _shown(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
