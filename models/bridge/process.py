"""Processes that step environments: started when they are needed, killed when they hang, gone with this one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from typing import IO, Any, Final, final

from models.bridge.child import IDLE_S, Progress
from models.bridge.making import Failed
from models.bridge.wire import Arrays, Connection, Gone, Malformed, Message

_MAX_OUTPUT: Final = 1_000_000
_SHOWN_OUTPUT: Final = 3000
_LAST_WORDS_S: Final = 2.0
_LOOK_S: Final = 0.5
_START_S: Final = 30.0

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from models.bridge.child import main; "
    "main(*map(int, sys.argv[2:]))"
)


class EpisodeFailed(Exception):
    """An environment that failed in an episode, or took its process with it.

    Attributes:
        place: Of the episode among those that the process steps; -1 for none.
        failure: What happened.
    """

    def __init__(self, place: int, failure: Failed) -> None:
        super().__init__(failure.detail)
        self.place = place
        self.failure = failure


@final
class Process:
    """One process; it has a session of its own, no settings of the service, and nothing open but what it needs."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADSTART_")}
        try:
            with there, tempfile.TemporaryFile() as memory:
                memory.truncate(Progress.SIZE)
                self._progress = Progress(memory.fileno())
                descriptors = (there.fileno(), memory.fileno(), lifeline)
                self._popen = subprocess.Popen(
                    [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path), *map(str, descriptors)],
                    stdin=subprocess.DEVNULL,
                    stdout=self._output,
                    stderr=self._output,
                    env=environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                    pass_fds=descriptors,
                    start_new_session=True,
                )
        except BaseException:
            here.close()
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)
        self._connection = Connection(here)
        self._asked_at = time.monotonic()
        self._end = weakref.finalize(self, _end, self._popen, here, self._lifeline, self._output)

    @property
    def is_fresh(self) -> bool:
        """Whether it will be there for another question: it ends by itself where it is asked nothing."""
        return time.monotonic() - self._asked_at < IDLE_S / 2 and self._popen.poll() is None

    def ask(self, question: Mapping[str, Any], arrays: Arrays = ()) -> None:
        """Ask without waiting for the answer, which :meth:`answer` must take before the next question."""
        output = self._output.fileno()
        if os.fstat(output).st_size > _MAX_OUTPUT:
            # The place where the process writes next is the open file's, which both have in common.
            os.ftruncate(output, 0)
            os.lseek(output, 0, os.SEEK_SET)
        self._asked_at = time.monotonic()
        # That it is gone is for the answer to say.
        with contextlib.suppress(Gone):
            self._connection.send(question, arrays)

    def answer(self, timeout_s: float) -> Message:
        """The answer to what was asked.

        Args:
            timeout_s: How long one call of an environment may take; a process that is new may take longer to begin.

        Raises:
            EpisodeFailed: If an environment failed, took longer, or ended the process.
        """
        calls, since = self._progress.calls, time.monotonic()
        while not self._connection.wait(min(_LOOK_S, timeout_s)):
            if self._progress.calls != calls:
                calls, since = self._progress.calls, time.monotonic()
            elif time.monotonic() - since >= (timeout_s if calls else max(timeout_s, _START_S)):
                # It prints where it is, and ends.
                os.kill(self._popen.pid, signal.SIGABRT)
                raise self._lost(f"it did not answer within {timeout_s:g} s")
        try:
            content, arrays = self._connection.receive()
        except Gone:
            raise self._lost("") from None
        except Malformed as error:
            raise self._lost(f"its process sent what is no answer: {error}") from error
        if (failed := content.get("failed")) is not None:
            raise EpisodeFailed(failed["place"], Failed(failed["stage"], failed["detail"], failed["trace"]))
        return content, arrays

    def close(self) -> None:
        """Kill it, and whatever it started."""
        self._end()

    def _lost(self, detail: str) -> EpisodeFailed:
        """The failure of a process that ended or is about to, with the last that it printed."""
        deadline = time.monotonic() + _LAST_WORDS_S
        # Not taken off the system's books yet: its number must stay its own until its group is killed.
        look = os.WEXITED | os.WNOWAIT | os.WNOHANG
        while os.waitid(os.P_PID, self._popen.pid, look) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        output = self._output.fileno()
        size = os.fstat(output).st_size
        printed = os.pread(output, _SHOWN_OUTPUT, max(0, size - _SHOWN_OUTPUT)).decode(errors="replace").strip()
        place = self._progress.place
        self.close()
        code = self._popen.returncode
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return EpisodeFailed(place, Failed("step", detail or f"its process {ended}", printed))


def _end(popen: subprocess.Popen[bytes], here: socket.socket, lifeline: int, output: IO[bytes]) -> None:
    if popen.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
    here.close()
    os.close(lifeline)
    output.close()


@final
class Pool:
    """Processes that nobody uses, kept for the next who does."""

    def __init__(self) -> None:
        self._idle: list[Process] = []
        self._lock = threading.Lock()

    def take(self, count: int) -> list[Process]:
        """So many processes, to be given back or closed; in the order in which they were given back."""
        with self._lock:
            taken, self._idle = self._idle[:count], self._idle[count:]
        for process in [process for process in taken if not process.is_fresh]:
            taken.remove(process)
            process.close()
        return taken + [Process() for _ in range(count - len(taken))]

    def give_back(self, processes: list[Process], most: int) -> None:
        """Keep processes that have answered every question; at most so many."""
        with self._lock:
            self._idle, surplus = (processes + self._idle)[:most], (processes + self._idle)[most:]
        for process in surplus:
            process.close()

    def close(self) -> None:
        """Close those that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()
