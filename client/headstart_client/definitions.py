"""Files of task families and tasks: read, checked as far as that needs no service, and found again by line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart_client.documents import DefinitionError, Fault, Node, read_documents
from headstart_client.errors import FieldError, Problem
from headstart_client.inputs import SPLITS, UsageError, read_text

SUFFIXES = (".yaml", ".yml", ".json")
"""What files of a folder are read."""


@dataclass(frozen=True)
class Definition:
    """One family or task, as a file defines it.

    Attributes:
        file: The file.
        pointer: JSON pointer within its document: ``/tasks/0``.
        node: Itself, with its lines.
        body: Itself, as it is sent.
    """

    file: str
    pointer: str
    node: Node
    body: Mapping[str, Any]

    def fault(self, pointer: str, detail: str) -> Fault:
        """Something wrong with a member of it, at a JSON pointer within it."""
        return Fault(self.file, self.node.line_of(pointer), self.pointer + pointer, detail)


@dataclass(frozen=True)
class Definitions:
    """What files define.

    Attributes:
        families: Task families, in their order.
        tasks: Tasks, in their order.
    """

    families: tuple[Definition, ...]
    tasks: tuple[Definition, ...]

    def located(self, problem: Problem) -> Problem:
        """The problem, its pointers into the request made places in the files."""
        faults = [self._fault(error) for error in problem.errors]
        if not any(faults):
            return problem
        errors = tuple(
            error if fault is None else FieldError(fault.place, fault.detail)
            for error, fault in zip(problem.errors, faults, strict=True)
        )
        listed = [
            {"pointer": error.pointer, "detail": error.detail} if fault is None else fault.document()
            for error, fault in zip(problem.errors, faults, strict=True)
        ]
        detail = f"{problem.title}; nothing was changed"
        raw = {**problem.raw, "detail": detail, "errors": listed}
        return type(problem)(problem.status, problem.title, detail, errors, problem.type, raw)

    def _fault(self, error: FieldError) -> Fault | None:
        found = re.match(r"/(families|tasks)/(\d+)", error.pointer)
        if found is None:
            return None
        among = self.families if found[1] == "families" else self.tasks
        return among[int(found[2])].fault(error.pointer[found.end() :], error.detail)


def read_definitions(paths: Sequence[str]) -> Definitions:
    """Read and check files.

    Args:
        paths: Files, folders of them, and ``-`` for stdin.

    Raises:
        UsageError: If one cannot be read, or there is nothing in them.
        DefinitionError: If anything in them is at fault: unknown members, wrong types, a name defined twice.
    """
    faults: list[Fault] = []
    found: dict[str, list[Definition]] = {"families": [], "tasks": []}
    for path in _files(paths):
        name = "stdin" if path == "-" else path
        for document in read_documents(read_text(path), name):
            faults += _collect(document, name, found)
    for kind, definitions in found.items():
        faults += [fault for each in definitions for fault in _check(each, _MEMBERS[kind])]
        faults += _twice(definitions)
    if faults:
        raise DefinitionError(faults)
    if not any(found.values()):
        raise UsageError(f"{', '.join(paths)}: defines no families and no tasks")
    return Definitions(tuple(found["families"]), tuple(found["tasks"]))


def _files(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if path == "-" or not Path(path).is_dir():
            yield path
        else:
            yield from sorted(str(each) for each in Path(path).iterdir() if each.suffix in SUFFIXES)


def _collect(document: Node, file: str, found: dict[str, list[Definition]]) -> Iterator[Fault]:
    """Put the definitions of a document where they belong."""
    if document.content is None:
        return
    if not isinstance(document.content, dict):
        yield Fault(file, document.line, "", "must be an object with families, tasks or both")
        return
    for member, items in document.content.items():
        place = f"/{_escaped(member)}"
        if member not in found:
            yield Fault(file, items.line, place, f"unknown; known: {', '.join(found)}")
        elif not isinstance(items.content, list):
            yield Fault(file, items.line, place, f"must be a list, not {_words(items.content)}")
        else:
            for index, node in enumerate(items.content):
                if isinstance(node.content, dict):
                    found[member].append(Definition(file, f"{place}/{index}", node, node.plain()))
                else:
                    detail = f"must be an object, not {_words(node.content)}"
                    yield Fault(file, node.line, f"{place}/{index}", detail)


@dataclass(frozen=True)
class _Kind:
    """What a member may be.

    Attributes:
        words: For messages.
        holds: Whether a value is it.
        required: Whether it must be there.
        nullable: Whether null stands for leaving it out.
    """

    words: str
    holds: Callable[[Any], bool]
    required: bool = False
    nullable: bool = False


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_reward(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"expression"} and _is_text(value["expression"])


_EPISODE = {
    "environment": _Kind("a text", _is_text, required=True),
    "parameters": _Kind("an object", lambda value: isinstance(value, dict)),
    "reward": _Kind("an object {expression: a text}", _is_reward, nullable=True),
    "discount": _Kind("a number", _is_number),
    "horizon": _Kind("a whole number", lambda value: type(value) is int, nullable=True),
}
_MEMBERS = {
    "families": {"name": _Kind("a text", _is_text, required=True)} | _EPISODE,
    "tasks": {"name": _Kind("a text", _is_text, nullable=True)}
    | _EPISODE
    | {
        "family": _Kind("a text", _is_text, nullable=True),
        "split": _Kind(f"one of {', '.join(SPLITS)}", lambda value: value in SPLITS, nullable=True),
        "labels": _Kind("an object", lambda value: isinstance(value, dict)),
    },
}
"""The members of ``POST /v1/task-families`` and ``POST /v1/tasks``; what is in parameters only the service knows."""


def _check(definition: Definition, members: Mapping[str, _Kind]) -> Iterator[Fault]:
    body = definition.body
    for name in sorted(body.keys() - members.keys()):
        yield definition.fault(f"/{_escaped(name)}", f"unknown; known: {', '.join(members)}")
    for name, kind in members.items():
        if name not in body:
            if kind.required:
                yield definition.fault(f"/{name}", "required")
        elif not (kind.holds(body[name]) or (kind.nullable and body[name] is None)):
            yield definition.fault(f"/{name}", f"must be {kind.words}, not {_words(body[name])}")
    labels = body.get("labels")
    for name, value in labels.items() if isinstance(labels, dict) else ():
        if not _is_text(value):
            yield definition.fault(f"/labels/{_escaped(name)}", f"must be a text, not {_words(value)}: quote it")


def _twice(definitions: Sequence[Definition]) -> Iterator[Fault]:
    first: dict[str, Definition] = {}
    for each in definitions:
        name = each.body.get("name")
        if isinstance(name, str):
            other = first.setdefault(name, each)
            if other.body != each.body:
                place = f"{other.file}:{other.node.line}"
                yield each.fault("/name", f"{name!r} is defined otherwise at {place}")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _words(value: object) -> str:
    """What a value is, for messages: names a text that somebody meant as something else, and the other way round."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value[:60]!r}"
        case dict():
            return "an object"
    return "a list"
