"""A terminal: a pseudo-terminal of a given size, and what a person would see on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

_TOKEN = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Screen:
    """The cursor movements and erasures that the block uses; anything else, and a line too long, is an error.

    ``lines`` holds what has left the screen at its top, too.
    """

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.lines: list[str] = [""]
        self.columns, self.rows = columns, rows
        self.row = self.column = 0
        self.cursor_shown = True
        self.colours: set[str] = set()

    def feed(self, text: str) -> None:
        for token in _TOKEN.finditer(text):
            if token[2]:
                self._control(token[1], token[2])
            elif token[0] == "\r":
                self.column = 0
            elif token[0] == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            else:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + token[0] + line[self.column + len(token[0]) :]
                self.column += len(token[0])
                assert self.column <= self.columns

    def resize(self, columns: int, rows: int) -> None:
        """Break the lines that are too long now, as most terminals do."""
        broken = [[line[i : i + columns] for i in range(0, max(len(line), 1), columns)] for line in self.lines]
        self.row += sum(len(parts) - 1 for parts in broken[: self.row])
        self.lines = [part for parts in broken for part in parts]
        self.columns, self.rows = columns, rows

    @property
    def visible(self) -> list[str]:
        return self.lines[-self.rows :]

    def _control(self, number: str, kind: str) -> None:
        if kind == "A":
            self.row = max(self.row - int(number), len(self.lines) - self.rows, 0)
        elif kind == "K":
            self.lines[self.row] = self.lines[self.row][: self.column]
        elif kind == "J":
            self.lines[self.row] = self.lines[self.row][: self.column]
            del self.lines[self.row + 1 :]
        elif kind == "m":
            self.colours |= {number} - {"0"}
        else:
            assert (number, kind) in (("25", "l"), ("25", "h"))
            self.cursor_shown = kind == "h"

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class TerminalSession:
    """A command that runs in a pseudo-terminal."""

    def __init__(self, words: list[str], environ: Mapping[str, str], columns: int = 80, rows: int = 24) -> None:
        self.screen = Screen(columns, rows)
        self._fd, theirs = pty.openpty()
        self._bytes = b""
        self._resize(columns, rows)
        # A session of its own has the terminal as its own too, so that Ctrl-C typed there reaches it.
        self.process = subprocess.Popen(
            words,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=dict(environ),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)

    def resize(self, columns: int, rows: int) -> None:
        self._read()
        self._resize(columns, rows)
        self.screen.resize(columns, rows)

    def _resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self._fd, text)

    def until(self, condition: Callable[[Screen], bool], timeout_s: float = 30) -> None:
        """Read what the command writes until the screen looks as it should."""
        deadline_s = time.monotonic() + timeout_s
        while not (self._read() and condition(self.screen)):
            assert time.monotonic() < deadline_s, self.screen.text

    def end(self, timeout_s: float = 60) -> int:
        """Read to the end; the command's exit code."""
        deadline_s = time.monotonic() + timeout_s
        while self.process.poll() is None:
            self._read()
            assert time.monotonic() < deadline_s, self.screen.text
        self._read()
        return self.process.returncode

    def _read(self) -> bool:
        """Take what is there; whether the screen shows a whole frame."""
        # Once the other end is closed, Linux answers with an error instead of the end of the file.
        with contextlib.suppress(OSError):
            while select.select([self._fd], [], [], 0.05)[0] and (data := os.read(self._fd, 65536)):
                self._bytes += data
        whole, mark, rest = self._bytes.rpartition(b"\n" if self.process.poll() is not None else b"\x1b[?25h")
        self.screen.feed((whole + mark).decode())
        self._bytes = rest
        return bool(self.screen.text)
