"""From what pydantic found wrong with a request to JSON pointers and sentences."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from fastapi.exceptions import RequestValidationError
from pydantic import (
    BaseModel,
    ConfigDict,
    Strict,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from models.types import InvalidValue

MAX_ERRORS = 100
"""Members at fault that one answer lists."""


_UNKNOWN_FIELD = ("extra_forbidden", "unexpected_keyword_argument")  # of a model, of a dataclass


class Schema(BaseModel):
    """Parent of every request and response body: unknown fields are errors and numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, from_attributes=True)


Number = Annotated[float, Strict()]
"""A JSON number; no text or truth value is taken for one."""

Whole = Annotated[int, Strict()]
"""A JSON number without a fraction."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?$")]
"""What things are called: lower-case letters, digits, dots, underscores and dashes, 128 at most."""


def _as_sent(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    config = validate(value)
    _require_same_kinds(value, config, ())
    return config


def _require_same_kinds(sent: object, taken: object, place: tuple[str | int, ...]) -> None:
    """Refuse a text or a truth value that was taken for a number: the core's configs do not say so themselves."""
    if isinstance(sent, dict) and dataclasses.is_dataclass(taken):
        for member, value in sent.items():
            _require_same_kinds(value, getattr(taken, member), (*place, member))
    elif isinstance(sent, list) and isinstance(taken, tuple):
        for index, (value, item) in enumerate(zip(sent, taken, strict=True)):
            _require_same_kinds(value, item, (*place, index))
    elif (isinstance(sent, str | bool) or isinstance(taken, bool)) and type(sent) is not type(taken):
        wanted = "must be true or false" if isinstance(taken, bool) else "must be a number"
        error = InitErrorDetails(type=PydanticCustomError("wrong_kind", wanted), loc=place, input=sent)
        raise ValidationError.from_exception_data("config", [error])


AsSent = WrapValidator(_as_sent)
"""Makes pydantic take a core config's numbers, texts and truth values only for what they are."""


class FieldError(NamedTuple):
    """A member at fault: the JSON pointer to it and what is wrong with it."""

    pointer: str
    detail: str


def pointer_to(*parts: str | int) -> str:
    """The JSON pointer (RFC 6901) to a member: ``pointer_to("tasks", 17)`` is ``/tasks/17``."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def field_errors(error: RequestValidationError) -> list[FieldError]:
    """One entry for each member of the body, or parameter of the URL, that is at fault."""
    found: dict[FieldError, None] = {}
    items = error.errors()[:MAX_ERRORS]
    for item in items:
        if item["type"] == "too_short" and any(_inside(other["loc"], item["loc"]) for other in items):
            continue  # pydantic counts the items that are valid, and one that is not is named already
        if _is_of_the_other_kind(item):
            continue
        place, *path = item["loc"]
        document = error.body if place == "body" else {str(path[0]): None} if path else None
        located = _locate(document, path, absent=item["type"] == "missing")
        detail = _sentence(item)
        if discriminator := item.get("ctx", {}).get("discriminator"):
            located = [*located, discriminator.strip("'")]
        found[FieldError(pointer_to(*located), detail)] = None
    return list(found) or [FieldError("", "not valid")]


def name_known_fields(error: RequestValidationError, annotation: object) -> None:
    """Add to each complaint about an unknown field the names that its object has.

    Args:
        error: Completed in place.
        annotation: The type of the body.
    """
    for item in error.errors():
        if item["type"] in _UNKNOWN_FIELD:
            names = sorted(_fields(_follow([annotation], item["loc"][1:-1])))
            item.setdefault("ctx", {})["known"] = ", ".join(names)


def _sentence(item: dict[str, Any]) -> str:
    match item["type"]:
        case "missing" | "union_tag_not_found":
            return "required"
        case unknown if unknown in _UNKNOWN_FIELD:
            known = item.get("ctx", {}).get("known")
            return f"unknown field; known: {known}" if known else "unknown field"
        case "union_tag_invalid":
            return f"unknown; known: {item['ctx']['expected_tags']}"
        case "model_attributes_type" | "dataclass_type" | "dict_type" | "model_type":
            return "must be an object"
        case "string_pattern_mismatch":
            return f"must match {item['ctx']['pattern']}"
        case "too_short":
            return f"must hold at least {item['ctx']['min_length']}, not {item['ctx']['actual_length']}"
        case "too_long":
            return f"must hold at most {item['ctx']['max_length']}"
        case "value_error":
            error = item["ctx"]["error"]
            return error.detail if isinstance(error, InvalidValue) else str(error)
    message: str = item["msg"]
    return message.replace("Input should be", "must be", 1).replace("Input should have", "must have", 1)


def _inside(place: Sequence[object], outer: Sequence[object]) -> bool:
    return len(place) > len(outer) and tuple(place[: len(outer)]) == tuple(outer)


def _is_of_the_other_kind(item: Mapping[str, Any]) -> bool:
    """Whether a member may be a number or a list, and this complains of the one although the other was sent."""
    arm = str(item["loc"][-1])  # of a union, where there is one: what pydantic calls that member of it
    if item["type"] == "float_type":
        return arm in ("float", "constrained-float") and isinstance(item["input"], list)
    return item["type"] == "tuple_type" and arm.startswith("tuple[")


def _locate(document: object, path: Sequence[str | int], absent: bool) -> list[str | int]:
    """What of a path is a place in the document, or, where the member is ``absent``, would be one.

    Pydantic puts the names of union members and validators into the path as well.
    """
    located: list[str | int] = []
    for index, part in enumerate(path):
        last = index == len(path) - 1
        if isinstance(document, dict) and (part in document or (absent and last)):
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
        else:
            continue
        located.append(part)
    return located


def _follow(annotations: Iterable[object], path: Sequence[str | int]) -> list[object]:
    """The types that the member at the end of the path may have."""
    reached = [member for annotation in annotations for member in _members(annotation)]
    for part in path:
        inner = [t for member in reached for t in _inner(member, part)]
        tagged = [member for member in reached if _has_tag(member, part)]
        reached = [member for t in inner for member in _members(t)] or tagged or reached
    return reached


def _members(annotation: object) -> list[object]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in _members(argument)]
    return [annotation]


def _inner(member: object, part: str | int) -> list[object]:
    if part in (fields := _fields([member])):
        return [fields[part]]
    # The last argument is the type of a list's items and of a dictionary's values.
    return list(typing.get_args(member)[-1:])


def _fields(members: Iterable[object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for member in members:
        if isinstance(member, type) and issubclass(member, BaseModel):
            found |= {field.alias or name: field.annotation for name, field in member.model_fields.items()}
        elif isinstance(member, type) and dataclasses.is_dataclass(member):
            hints = typing.get_type_hints(member, include_extras=True)
            found |= {field.name: hints[field.name] for field in dataclasses.fields(member)}
    return found


def _has_tag(member: object, part: str | int) -> bool:
    values = (v for t in _fields([member]).values() for v in _members(t) if typing.get_origin(v) is Literal)
    return getattr(member, "__name__", None) == part or any(part in typing.get_args(v) for v in values)
