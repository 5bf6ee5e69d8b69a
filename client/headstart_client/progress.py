"""How far a run is, in words and as a picture of text characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headstart_client.curve import ASCII, UNICODE, Curve, Glyphs, Span, chart
from headstart_client.history import COUNTABLE, History
from headstart_client.output import cell

if TYPE_CHECKING:
    from headstart_client.runs import RunRecord

PLAIN_BAR = 24
LONGEST_NAME = 32
LARGEST_CHART = (120, 16)
SMALLEST_CHART_ROWS = 5


def describe(history: History, now_s: float) -> str:
    """A run in one line: bar, iterations, speed, time left, return before and after adapting."""
    return "  ".join("".join(text for text, _ in part) for part in _parts(history, now_s, PLAIN_BAR, ASCII))


def frame(history: History, now_s: float, columns: int, rows: int, glyphs: Glyphs = UNICODE) -> list[list[Span]]:
    """A run as a block: the numbers of :func:`describe` and, below them, the curves so far.

    Args:
        history: What is known of the run.
        now_s: The time, by the clock of the history.
        columns: Longest line.
        rows: Most lines; where they are few, the chart is left out first.
        glyphs: What to draw with.

    Returns:
        The lines; none while nothing is known of the run.
    """
    bar = max(8, min(30, columns - 70))
    lines = _packed(_parts(history, now_s, bar, glyphs), columns)[: max(rows, 1)]
    height = min(LARGEST_CHART[1], rows - len(lines))
    if height >= SMALLEST_CHART_ROWS:
        curves = (
            Curve(history.before.points, "before", solid=False),
            Curve(history.after.points, "after", solid=True),
        )
        lines += chart(curves, min(columns, LARGEST_CHART[0]), height, glyphs)
    return [_cut(line, columns) for line in lines]


def _parts(history: History, now_s: float, width: int, glyphs: Glyphs) -> list[list[Span]]:
    run = history.run
    if run is None:
        return []
    name = cell(run.model)
    name = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
    if run.state == "queued" and not history.iterations:
        return [[(f"{name}: queued", "")]]
    fraction = history.fraction(now_s)
    done = round((fraction or 0.0) * width)
    bar = [(glyphs.bar[0] * done, "bar"), (glyphs.bar[1] * (width - done), "")]
    parts: list[list[Span]] = [
        [(name, "")] if fraction is None else [(f"{name} [", ""), *bar, (f"] {fraction:4.0%}", "")]
    ]
    words = [f"iteration {history.iterations}", *_times(history, run, now_s), *_returns(history)]
    return [*parts, *([(word, "")] for word in words)]


def _times(history: History, run: RunRecord, now_s: float) -> list[str]:
    rates = history.rates()
    elapsed = duration(history.elapsed_s(now_s))
    words = [] if rates is None else [f"{amount(rates[1])} steps/s"]
    if run.finished:
        return [*words, f"{run.state} after {elapsed}"]
    left_s = history.left_s(now_s)
    words.append(f"{elapsed} passed")
    if run.state != "running":
        words.append(run.state)
    if left_s is not None:
        sooner = any(limit is not None for name, limit in run.stop.items() if name not in COUNTABLE)
        words.append(f"{'at most ' if sooner else ''}{duration(left_s)} left")
    if run.attempts > 1:
        words.append(f"attempt {run.attempts}")
    if run.cancel_requested:
        words.append("asked to stop")
    return words


def _returns(history: History) -> list[str]:
    values = history.values
    words = []
    for name, prefix in (("return", ""), ("held-out return", "held_out_")):
        before, after = values.get(f"{prefix}return_before"), values.get(f"{prefix}return_after")
        if before is not None and after is not None:
            words.append(f"{name} {figure(before)} -> {figure(after)}")
    gap = values.get("generalisation_gap")
    return words if gap is None else [*words, f"gap {figure(gap)}"]


def _packed(parts: Sequence[list[Span]], columns: int) -> list[list[Span]]:
    """Parts one after the other, two spaces between, on as many lines as they need."""
    lines: list[list[Span]] = []
    for part in parts:
        if lines and _width(lines[-1]) + 2 + _width(part) <= columns:
            lines[-1] += [("  ", ""), *part]
        else:
            lines.append(list(part))
    return lines


def _width(line: Sequence[Span]) -> int:
    return sum(len(text) for text, _ in line)


def _cut(line: Sequence[Span], columns: int) -> list[Span]:
    """The line as far as it fits, without blanks at its end."""
    kept: list[Span] = []
    for text, role in line:
        kept.append((text[:columns], role))
        columns -= len(kept[-1][0])
    while kept and not kept[-1][0].rstrip():
        kept.pop()
    return [*kept[:-1], *((text.rstrip(), role) for text, role in kept[-1:])]


def duration(seconds: float) -> str:
    """Seconds for a person: ``47 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def amount(count: float) -> str:
    """A count for a person, three digits of it: ``812``, ``12.3K``, ``4.56M``."""
    for unit in ("", "K", "M", "G"):
        if count < 999.5 or unit == "G":
            break
        count /= 1000
    decimals = 0 if not unit or count >= 99.95 else (1 if count >= 9.995 else 2)
    return f"{count:.{decimals}f}{unit}"


def figure(value: float) -> str:
    """A return for a person: ``187.0``, ``-4.20``, ``0.667``."""
    if abs(value) >= 1e6:
        return f"{value:.4g}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"
