"""From JSON to typed results, and back to JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from headstart_client.errors import InvalidResponse

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What the service answered, typed.

    Attributes:
        raw: The whole JSON object, for members that this version of the client does not know.
    """

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class File(Resource):
    """One file of a version or a policy.

    Attributes:
        name: File name, without folders.
        sha256: Hex digest of its bytes.
        size_bytes: Its length.
    """

    name: str
    sha256: str
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Failure(Resource):
    """Why a run or an adaptation failed.

    Attributes:
        type: A short word for programs.
        detail: A sentence for people.
    """

    type: str = "unknown"
    detail: str = ""


def parse(kind: type[T], data: object) -> T:
    """Build the dataclass ``kind`` from a JSON object; members that it does not know are left in ``raw``.

    Raises:
        InvalidResponse: If a member without a default is missing, or one has another type.
    """
    if not isinstance(data, Mapping):
        raise InvalidResponse(f"{kind.__name__}: expected a JSON object, got {type(data).__name__}")
    values: dict[str, Any] = {}
    for name, hint, required in _members(kind):  # type: ignore[arg-type]
        if name == "raw":
            values[name] = data
        elif data.get(name) is not None or (name in data and _is_optional(hint)):
            values[name] = _convert(hint, data[name], f"{kind.__name__}.{name}")
        elif required:
            raise InvalidResponse(f"{kind.__name__}: the answer has no {name!r}; is this a Headstart service?")
    return kind(**values)


@functools.cache
def _members(kind: type) -> list[tuple[str, Any, bool]]:
    hints = get_type_hints(kind)
    return [
        (f.name, hints[f.name], f.default is f.default_factory is dataclasses.MISSING)
        for f in dataclasses.fields(kind)
        if not f.name.startswith("_")
    ]


def _is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any or value is None:
        return value
    if get_origin(hint) in (Union, types.UnionType):
        arms = [arm for arm in get_args(hint) if arm is not type(None)]
        return _convert(arms[0], value, where) if len(arms) == 1 else value
    if get_origin(hint) is tuple:
        return tuple(_convert(get_args(hint)[0], item, where) for item in _checked(list, value, where))
    if dataclasses.is_dataclass(hint):
        return parse(hint, value)  # type: ignore[arg-type]
    if hint is datetime:
        try:
            return datetime.fromisoformat(_checked(str, value, where))
        except ValueError as error:
            raise InvalidResponse(f"{where}: {error}") from error
    if hint is float:
        return float(_checked((int, float), value, where))
    return _checked(get_origin(hint) or hint, value, where)


def _checked(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidResponse(f"{where}: unexpected {type(value).__name__} in the answer")
    return value


def encode(body: object) -> bytes:
    """A request body as JSON; numpy numbers and arrays become plain ones.

    Raises:
        ValueError: If it holds a NaN or an infinity, which JSON has no way to say.
        TypeError: If it holds something else that JSON has no way to say.
    """
    return json.dumps(body, allow_nan=False, default=_plain, separators=(",", ":")).encode()


def encode_numbers(body: object) -> bytes:
    """As :func:`encode`, ten times as fast where the body is mostly numbers; what else is in it must be plain."""
    data = msgspec.json.encode(body, enc_hook=_plain)
    # It also writes null for what is not finite.
    return encode(body) if b"null" in data else data


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"cannot send a {type(value).__name__} as JSON")


def without_none(**members: object) -> dict[str, object]:
    """A request body of the members that were given."""
    return {name: value for name, value in members.items() if value is not None}


def id_of(resource: object) -> str:
    """The id of a resource, which may already be one."""
    return resource if isinstance(resource, str) else str(resource.id)  # type: ignore[attr-defined]
