"""What happens to a run, as the service tells it in server-sent events."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headstart_client.errors import InvalidResponse

FINISHED = frozenset({"succeeded", "failed", "cancelled"})
LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    Attributes:
        id: Its place in the order of events; pass it as ``after`` to go on from here.
        kind: ``metrics`` or ``state``.
        data: The metrics item, or the run's new state.
    """

    id: str
    kind: str
    data: Mapping[str, Any]


def json_object(text: str) -> Mapping[str, Any]:
    """The data of an event.

    Raises:
        InvalidResponse: If it is not a JSON object.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidResponse(f"an event's data is not JSON: {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise InvalidResponse(f"an event's data is not a JSON object: {text[:80]!r}")
    return value
