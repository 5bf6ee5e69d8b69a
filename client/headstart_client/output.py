"""What a command prints: a table or a record for people, one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from headstart_client.wire import Resource


@dataclass(frozen=True)
class Output:
    """The result of a command.

    Attributes:
        document: For programs, anything that JSON can say.
        text: For people.
        code: What the command exits with.
        notes: Lines for stderr.
    """

    document: Any
    text: str
    code: int = 0
    notes: tuple[str, ...] = ()


def listing(member: str, items: Iterable[Resource], columns: Sequence[str]) -> Output:
    """A list as a table of some of its members, and as ``{member: [...]}``.

    Args:
        member: What the list is called.
        items: What is in it.
        columns: Members of an item, ``progress.total`` for one of a member; ``title=member`` for another title than
            its own name.
    """
    found = list(items)
    rows = [[_member(item, column.rpartition("=")[2]) for column in columns] for item in found]
    titles = [column.partition("=")[0].rpartition(".")[2] for column in columns]
    return Output({member: [item.raw for item in found]}, table(titles, rows))


def record(resource: Resource) -> Output:
    """One resource: a line for each member, as the service sent it."""
    return Output(resource.raw, fields(resource.raw))


def fields(members: Mapping[str, object]) -> str:
    """Names and values, one pair on a line, values aligned."""
    width = max((len(name) for name in members), default=0)
    return "\n".join(f"{_printable(name):<{width}}  {cell(value)}" for name, value in members.items())


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns that are as wide as their widest cell, numbers to the right."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(header))]
    lines = [[name.upper().replace("_", " ") for name in header], *cells]
    return "\n".join(
        "  ".join(
            text.rjust(width) if numeric else text.ljust(width)
            for text, width, numeric in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def cell(value: object) -> str:
    """A value in a table: short, on one line, and without control characters, whoever chose it."""
    if value is None or value in ("", {}, (), []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, Mapping) and all(isinstance(v, int | float | str) for v in value.values()):
        return _printable(" ".join(f"{k}={cell(v)}" for k, v in value.items()))
    if isinstance(value, Mapping | list | tuple):
        return _printable(json.dumps(value, ensure_ascii=False, default=str))
    return _printable(str(value))


def _member(item: object, path: str) -> object:
    for name in path.split("."):
        item = item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
    return item


def _printable(text: str) -> str:
    # A label or a name could otherwise hold an escape sequence that rewrites somebody else's terminal.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
