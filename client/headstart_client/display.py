"""A run on a screen: a block that is redrawn in place, or a line now and then."""

from __future__ import annotations

import codecs
import os
import shutil
from collections.abc import Sequence
from typing import Protocol, TextIO, final

from headstart_client.curve import ASCII, UNICODE, Glyphs, Span
from headstart_client.history import History
from headstart_client.progress import describe, frame

PLAIN_EVERY_S = 10.0
FRAME_S = 0.1
COLOURS = {"bar": "\x1b[32m", "after": "\x1b[32m", "before": "\x1b[36m"}
HIDE, SHOW, RESET = "\x1b[?25l", "\x1b[?25h", "\x1b[0m"


class Display(Protocol):
    """Shows a run."""

    def show(self, history: History, now_s: float) -> None:
        """Bring what is shown up to date, if it is time."""

    def close(self, history: History, now_s: float) -> None:
        """Show the run as it is known last, and leave that standing."""


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream goes to a terminal on which lines can be drawn over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def choose_display(wanted: bool | None, stream: TextIO) -> Display | None:
    """What shows a run on ``stream``.

    Args:
        wanted: ``None``: only if it is a terminal; ``False``: not at all.
        stream: Where to write.
    """
    terminal = is_terminal(stream)
    if wanted is False or (wanted is None and not terminal):
        return None
    return LiveBlock(stream) if terminal else PlainLines(stream)


@final
class PlainLines:
    """A line when the state changes, and every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._state: str | None = None
        self._written_s = 0.0

    def show(self, history: History, now_s: float) -> None:
        """Write a line, if it is time."""
        if history.run is None:
            return
        if history.run.state != self._state or now_s - self._written_s >= PLAIN_EVERY_S:
            self._stream.write(describe(history, now_s) + "\n")
            self._stream.flush()
            self._state, self._written_s = history.run.state, now_s

    def close(self, history: History, now_s: float) -> None:
        """Nothing is left to write."""


@final
class LiveBlock:
    """Lines at the cursor of a terminal that are drawn over again; what stands above them stays.

    The cursor rests below the block. It is hidden while a frame is drawn and never longer, so that it is
    there however the process ends.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._glyphs = glyphs_for(stream)
        self._colours = COLOURS if not os.environ.get("NO_COLOR") else {}
        self._widths: list[int] = []
        self._drawn_s = -FRAME_S

    def show(self, history: History, now_s: float) -> None:
        """Draw a frame, unless the last one is too young to be worth it."""
        if now_s - self._drawn_s >= FRAME_S:
            self._draw(history, now_s)

    def close(self, history: History, now_s: float) -> None:
        """Draw the last frame, if anything is known of the run; what is written next comes below it."""
        self._draw(history, now_s)

    def _draw(self, history: History, now_s: float) -> None:
        self._drawn_s = now_s
        columns, rows = terminal_size(self._stream)
        # The last column stays free: a character there makes some terminals begin a new line.
        lines = frame(history, now_s, columns - 1, rows - 1, self._glyphs)
        text = "".join(f"{self._painted(line)}\x1b[K\n" for line in lines)
        self._stream.write(f"{HIDE}{self._up(columns, rows)}{text}\x1b[J{SHOW}")
        self._stream.flush()
        self._widths = [sum(len(part) for part, _ in line) for line in lines]

    def _up(self, columns: int, rows: int) -> str:
        # A terminal that was made narrower has broken the long lines.
        height = min(sum(max(1, -(-width // columns)) for width in self._widths), rows - 1)
        return f"\r\x1b[{height}A" if height else "\r"

    def _painted(self, line: Sequence[Span]) -> str:
        """Neighbours of one colour share an escape sequence."""
        text, now = "", ""
        for part, role in line:
            # A blank has no colour to change to.
            colour = now if part.isspace() else self._colours.get(role, "")
            if colour != now:
                text += (RESET if now else "") + colour
                now = colour
            text += part
        return text + (RESET if now else "")


def glyphs_for(stream: TextIO) -> Glyphs:
    """Braille where the stream can say it and the terminal has it, else ASCII."""
    try:
        unicode = codecs.lookup(stream.encoding or "ascii").name == "utf-8"
    except LookupError:
        unicode = False
    # The console of a Linux kernel has 512 characters, and braille is not among them.
    return UNICODE if unicode and os.environ.get("TERM") != "linux" else ASCII


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """Columns and rows of the terminal that a stream goes to, 80 and 24 where it does not tell."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, rows = shutil.get_terminal_size()
    return columns or 80, rows or 24
