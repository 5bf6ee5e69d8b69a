"""YAML, and so JSON, read into values that know their lines.

Plain words mean what they mean in JSON and in the core schema of YAML 1.2: only ``true`` and ``false`` are truth
values, ``1e3`` is a number, and ``no``, ``on``, ``1_000``, ``12:30`` and ``2024-01-01`` are texts.

Source: YAML 1.2.2, section 10.3.2. PyYAML splits the text; it would resolve words as YAML 1.1 does.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from headstart_client.inputs import UsageError

MAX_DEPTH = 64
"""Levels of nesting that a request may have."""

MAX_VALUES = 2_000_000
"""Values of one document, each counted wherever an alias repeats it."""

# The parser in C is four times as fast, and not everywhere.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUTH = re.compile(r"true|True|TRUE|false|False|FALSE")
_WHOLE = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


@dataclass(frozen=True)
class Fault:
    """What is wrong at one place of a file.

    Attributes:
        file: Its name.
        line: Counted from 1; ``None`` where it is not known.
        pointer: JSON pointer within the document there; empty for the document, or where it cannot be read.
        detail: What is wrong.
    """

    file: str
    line: int | None
    pointer: str
    detail: str

    @property
    def place(self) -> str:
        """``tasks.yaml:12: /tasks/0/discount``."""
        line = "" if self.line is None else f":{self.line}"
        return f"{self.file}{line}" + (f": {self.pointer}" if self.pointer else "")

    def __str__(self) -> str:
        return f"{self.place}: {self.detail}"

    def document(self) -> dict[str, object]:
        """It as JSON, for programs."""
        return {"file": self.file, "line": self.line, "pointer": self.pointer, "detail": self.detail}


class DefinitionError(UsageError):
    """Files that cannot be read, or do not say what they should; nothing was sent.

    Attributes:
        faults: Every one that was found.
    """

    SHOWN = 20

    def __init__(self, faults: list[Fault]) -> None:
        more = [f"... and {len(faults) - self.SHOWN} more"] if len(faults) > self.SHOWN else []
        super().__init__("\n  ".join([*map(str, faults[: self.SHOWN]), *more]))
        self.faults = tuple(faults)


@dataclass(frozen=True)
class Node:
    """One value of a document.

    Attributes:
        content: A dict or a list of nodes, or a scalar of JSON.
        line: Where it begins, counted from 1.
        size: How many values it holds, itself included.
        depth: How deeply they are nested, 1 for a scalar.
    """

    content: Any
    line: int
    size: int = field(init=False)
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        inner = list(self.content.values()) if isinstance(self.content, dict) else self.content
        inner = inner if isinstance(inner, list) else []
        object.__setattr__(self, "size", 1 + sum(node.size for node in inner))
        object.__setattr__(self, "depth", 1 + max((node.depth for node in inner), default=0))

    def plain(self) -> Any:
        """The value without lines."""
        if isinstance(self.content, dict):
            return {name: node.plain() for name, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.plain() for node in self.content]
        return self.content

    def line_of(self, pointer: str) -> int:
        """Line of the member at a JSON pointer, or of the deepest one on the way to it that there is."""
        node = self
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node.content, dict) and name in node.content:
                node = node.content[name]
            elif isinstance(node.content, list) and name.isdigit() and int(name) < len(node.content):
                node = node.content[int(name)]
            else:
                break
        return node.line


def read_documents(text: str, file: str) -> Iterator[Node]:
    """The documents of a text that is YAML or JSON.

    Args:
        text: What the file holds.
        file: Its name, for messages.

    Raises:
        DefinitionError: If it is neither, or holds what JSON cannot say, or says one name twice.
    """
    reader = _Reader(file, yaml.parse(_as_yaml(text.removeprefix("\ufeff")), Loader=_LOADER))
    try:
        yield from reader.documents()
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        detail = ", ".join(each for each in (error.problem, error.context) if each)
        raise DefinitionError([Fault(file, line, "", f"not YAML: {detail}")]) from error
    except yaml.YAMLError as error:
        raise DefinitionError([Fault(file, None, "", f"not YAML: {str(error).splitlines()[0]}")]) from error


def _as_yaml(text: str) -> str:
    """JSON as YAML takes it: without tabs between values, and without characters in two halves."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text

    def joined(found: re.Match[str]) -> str:
        high, low = int(found[2], 16), int(found[3], 16)
        return found[1] + chr(0x10000 + (high - 0xD800) * 0x400 + low - 0xDC00)

    return _PAIR.sub(joined, text.replace("\t", " "))


class _Reader:
    """Builds nodes from what the parser sees."""

    def __init__(self, file: str, events: Iterator[yaml.Event]) -> None:
        self._file = file
        self._events = events
        self._anchors: dict[str, Node] = {}

    def documents(self) -> Iterator[Node]:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors = {}
                yield self._node(next(self._events), 1)

    def _node(self, event: yaml.Event, level: int) -> Node:
        if level > MAX_DEPTH:
            raise self._wrong(event, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._wrong(event, f"*{event.anchor} stands for nothing above")
            node = self._anchors[event.anchor]
        else:
            node = Node(self._content(event, level), _line(event))
            if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
                self._anchors[event.anchor] = node
        if node.size > MAX_VALUES or level + node.depth - 1 > MAX_DEPTH:
            raise self._wrong(event, f"holds more than {MAX_VALUES} values or {MAX_DEPTH} levels")
        return node

    def _content(self, event: yaml.Event, level: int) -> Any:
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.CollectionStartEvent) and event.tag is not None:
            raise self._wrong(event, f"the tag {event.tag} is not known here")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(level)
        items = []
        while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(inner, level + 1))
        return items

    def _mapping(self, level: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        lines: dict[str, int] = {}
        while not isinstance(key := next(self._events), yaml.MappingEndEvent):
            name = self._scalar(key) if isinstance(key, yaml.ScalarEvent) else None
            if not (isinstance(key, yaml.ScalarEvent) and isinstance(name, str)):
                raise self._wrong(key, "a name must be a text: quote it")
            if name in lines:
                raise self._wrong(key, f"{name!r} stands here already, in line {lines[name]}")
            lines[name] = _line(key)
            value = self._node(next(self._events), level + 1)
            if name == "<<" and key.implicit[0]:
                merged = self._merged(key, value)
            else:
                own[name] = value
        return merged | own

    def _merged(self, key: yaml.Event, value: Node) -> dict[str, Node]:
        """What ``<<`` brings in: the members of one mapping, or of several, of which the first counts most."""
        found: dict[str, Node] = {}
        for node in value.content if isinstance(value.content, list) else [value]:
            if not isinstance(node.content, dict):
                raise self._wrong(key, "<< takes a mapping, or a list of them")
            found = node.content | found
        return found

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        if event.tag == "tag:yaml.org,2002:str" or (event.tag is None and not event.implicit[0]):
            return text
        if event.tag is not None:
            raise self._wrong(event, f"the tag {event.tag} is not known here")
        if _NULL.fullmatch(text):
            return None
        if _TRUTH.fullmatch(text):
            return text.lower() == "true"
        if _OTHER_BASE.fullmatch(text):
            return int(text, 0)
        if _WHOLE.fullmatch(text) and len(text) <= 300:
            return int(text)
        if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        if _NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text):
            raise self._wrong(event, f"{text[:40]} is not a finite number")
        return text

    def _wrong(self, event: yaml.Event, detail: str) -> DefinitionError:
        return DefinitionError([Fault(self._file, _line(event), "", detail)])


def _line(event: yaml.Event) -> int:
    return 0 if event.start_mark is None else int(event.start_mark.line) + 1
