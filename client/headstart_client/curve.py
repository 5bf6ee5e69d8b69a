"""Learning curves drawn with plain text characters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

KEPT = 1024
LARGEST = 1e300
BRAILLE = 0x2800
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of each dot of a braille character: by column, then by row from the top. Source: Unicode 16.0, table 2800."""

Point = tuple[float, float]
Span = tuple[str, str]
"""Text, and the role that decides its colour; an empty role has none."""


@final
class Series:
    """A quantity over iterations, thinned to some two thousand points by averaging neighbours.

    Args:
        kept: Points that are always kept apart; twice as many are held at most.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._rows_each = 1
        self._sums: list[list[float]] = []
        self._last_x = -math.inf

    def add(self, x: float, value: float) -> None:
        """Append a value; one that is not later than the last, or too large to calculate with, is left out."""
        if x <= self._last_x or not abs(value) < LARGEST:
            return
        self._last_x = x
        if self._sums and self._sums[-1][2] < self._rows_each:
            self._sums[-1] = _merged(self._sums[-1], [x, value, 1.0])
        else:
            self._sums.append([x, value, 1.0])
        if len(self._sums) == 2 * self._kept:
            self._rows_each *= 2
            self._sums = [_merged(self._sums[i], self._sums[i + 1]) for i in range(0, len(self._sums), 2)]

    @property
    def points(self) -> list[Point]:
        """Mean place and mean value of every point, in order."""
        return [(x / count, value / count) for x, value, count in self._sums]


def _merged(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(one, other, strict=True)]


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        points: Its places and values, places rising.
        role: Decides its colour.
        solid: Drawn without gaps; else as dots, to be told apart without colours too.
    """

    points: Sequence[Point]
    role: str
    solid: bool


@dataclass(frozen=True)
class Glyphs:
    """The characters to draw with.

    Attributes:
        bar: Done and not yet done.
        axis: Wall, tick, corner and floor.
        cell: Columns and rows of dots in a character.
        solid: A piece of a solid curve for the legend, and in a chart of one dot a character.
        dotted: The same of a dotted one.
    """

    bar: tuple[str, str]
    axis: tuple[str, str, str, str]
    cell: tuple[int, int]
    solid: str
    dotted: str


UNICODE = Glyphs(bar=("█", "░"), axis=("│", "┤", "└", "─"), cell=(2, 4), solid="⠤", dotted="⠄")
ASCII = Glyphs(bar=("=", "."), axis=("|", "+", "+", "-"), cell=(1, 1), solid="*", dotted=".")


def chart(curves: Sequence[Curve], width: int, height: int, glyphs: Glyphs = UNICODE) -> list[list[Span]]:
    """Curves with their axes; the value axis ends at the smallest and the largest value that is drawn.

    Args:
        curves: Later ones are drawn over earlier ones.
        width: Columns of characters in all.
        height: Rows of characters in all, axis and its labels included.
        glyphs: What to draw with.

    Returns:
        ``height`` rows, none longer than ``width``; none at all where there is nothing to draw or no room.
    """
    drawn = [curve for curve in curves if curve.points]
    rows = height - 2
    if not drawn or rows < 2:
        return []
    first = min(curve.points[0][0] for curve in drawn)
    last = max(curve.points[-1][0] for curve in drawn)
    margin, needed = 0, 1
    # What is drawn decides how wide the labels are, and they how much room there is to draw.
    while needed > margin:
        margin = needed
        columns = width - margin - 2
        if columns < 4:
            return []
        lines = [sampled(curve.points, first, last, columns * glyphs.cell[0]) for curve in drawn]
        low, high = _range([value for line in lines for value in line if value is not None])
        labels = (label(low, high - low), label(high, high - low))
        needed = max(map(len, labels))
    canvas = _Canvas(columns, rows, glyphs)
    for curve, line in zip(drawn, lines, strict=True):
        canvas.draw(curve, line, low, high)
    return [*_framed(canvas.rows(), labels, margin, glyphs), *_floor(first, last, margin, columns, glyphs)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    # A constant runs along the middle.
    margin = 0.5 if abs(low) < 1e6 else abs(low) * 1e-3
    return low - margin, high + margin


def sampled(points: Sequence[Point], first: float, last: float, columns: int) -> list[float | None]:
    """A curve at evenly spaced places: the mean of the points there, or a straight line between neighbours.

    Args:
        points: At least one.
        first: Place of the first column.
        last: Place of the last column.
        columns: At least 1.

    Returns:
        A value for each column, ``None`` before its first point and after its last.
    """
    sums: dict[int, tuple[float, int]] = {}
    for x, value in points:
        column = round((x - first) / (last - first) * (columns - 1)) if last > first else 0
        total, count = sums.get(column, (0.0, 0))
        sums[column] = (total + value, count + 1)
    known = [(column, total / count) for column, (total, count) in sorted(sums.items())]
    line: list[float | None] = [None] * columns
    for (left, low), (right, high) in itertools.pairwise(known):
        for column in range(left, right):
            line[column] = low + (high - low) * (column - left) / (right - left)
    line[known[-1][0]] = known[-1][1]
    return line


@final
class _Canvas:
    """Characters that are made of dots."""

    def __init__(self, columns: int, rows: int, glyphs: Glyphs) -> None:
        self._glyphs = glyphs
        self._height = rows * glyphs.cell[1]
        self._bits = [[0] * columns for _ in range(rows)]
        self._owner: list[list[Curve | None]] = [[None] * columns for _ in range(rows)]

    def draw(self, curve: Curve, line: Sequence[float | None], low: float, high: float) -> None:
        across = self._glyphs.cell[0]
        previous = None
        for x, value in enumerate(line):
            if value is None:
                continue
            y = round((high - value) / (high - low) * (self._height - 1))
            if curve.solid:
                # A steep piece is drawn as high as it is, from beside the dot on its left.
                start = y if previous is None else previous + (y > previous) - (y < previous)
                for between in range(min(start, y), max(start, y) + 1):
                    self._dot(curve, x, between)
            elif x % across == 0:
                self._dot(curve, x, y)
            previous = y

    def _dot(self, curve: Curve, x: int, y: int) -> None:
        across, down = self._glyphs.cell
        row, column = y // down, x // across
        self._bits[row][column] |= DOTS[x % across][y % down]
        self._owner[row][column] = curve

    def rows(self) -> list[list[Span]]:
        return [
            [self._span(bits, owner) for bits, owner in zip(row, owners, strict=True)]
            for row, owners in zip(self._bits, self._owner, strict=True)
        ]

    def _span(self, bits: int, owner: Curve | None) -> Span:
        if owner is None:
            return " ", ""
        if self._glyphs.cell == (2, 4):
            return chr(BRAILLE + bits), owner.role
        return self._glyphs.solid if owner.solid else self._glyphs.dotted, owner.role


def _framed(rows: Sequence[list[Span]], labels: tuple[str, str], margin: int, glyphs: Glyphs) -> list[list[Span]]:
    wall, tick = glyphs.axis[:2]
    left = [f"{'':>{margin}} {wall}"] * len(rows)
    left[0], left[-1] = f"{labels[1]:>{margin}} {tick}", f"{labels[0]:>{margin}} {tick}"
    return [[(start, ""), *row] for start, row in zip(left, rows, strict=True)]


def _floor(first: float, last: float, margin: int, columns: int, glyphs: Glyphs) -> list[list[Span]]:
    corner, floor = glyphs.axis[2:]
    left, right = f"{first:.0f}", f"{last:.0f}" if last > first else ""
    legend = [
        ("   ", ""),
        (f"{glyphs.solid * 2} after", "after"),
        ("   ", ""),
        (f"{glyphs.dotted * 2} before", "before"),
    ]
    # As much of the middle as there is room for.
    for middle in ([("iteration", ""), *legend], legend[1:], [("iteration", "")], []):
        spare = columns - len(left) - len(right) - sum(len(text) for text, _ in middle)
        if spare >= 2:
            break
    start = " " * (margin + 2) + left + " " * (max(spare, 1) // 2)
    ends = [(start, ""), *middle, (" " * (spare - spare // 2) + right if spare > 0 else "", "")]
    return [[(" " * (margin + 1) + corner + floor * columns, "")], ends]


def label(value: float, spread: float) -> str:
    """A number at an axis, with as many digits as tell values apart that differ by a hundredth of the axis."""
    if abs(value) >= 1e6 or spread < 1e-6:
        return f"{value:.4g}"
    decimals = min(max(0, 2 - math.ceil(math.log10(spread))), 6)
    return f"{value if round(value, decimals) else 0.0:.{decimals}f}"
