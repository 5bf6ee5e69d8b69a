"""Server-sent events of a run, across broken connections.

Source: WHATWG HTML Living Standard, section 9.2, "Server-sent events".
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from headstart_client.errors import ConnectionFailed, HeadstartError, InvalidResponse
from headstart_client.transport import Transport

FINISHED = frozenset({"succeeded", "failed", "cancelled"})
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


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


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a byte stream, as soon as each is whole. Only CR, LF and CRLF end one: the standard's rule."""
    rest = b""
    for chunk in chunks:
        *whole, rest = _LINE_END.split(rest + chunk)
        for line in whole:
            yield line.decode("utf-8", "replace")


def parse_events(text: Iterable[str]) -> Iterator[Event]:
    """Events from the lines of a stream, without comments and without a last event that broke off.

    Raises:
        InvalidResponse: If an event's data is not a JSON object.
    """
    last_id, kind, data = "", "message", list[str]()
    for line in text:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Event(last_id, kind, _object("\n".join(data)))
            kind, data = "message", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id":
            last_id = value


def _object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidResponse(f"an event's data is not JSON: {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise InvalidResponse(f"an event's data is not a JSON object: {text[:80]!r}")
    return value


def stream_events(
    transport: Transport, path: str, after: str | None = None, stopped: threading.Event | None = None
) -> Iterator[Event]:
    """Events until the run has ended; a stream that breaks off is taken up after the last event received.

    Args:
        transport: To the service.
        path: Of the stream.
        after: Id of the last event that is known already.
        stopped: Set by another thread to end the stream; seen when the service speaks next, if only to say
            that it is there.

    Raises:
        ConnectionFailed: If the service stays away.
        Problem: If it refuses.
    """
    stopped = stopped or threading.Event()
    failures = 0
    while not stopped.is_set():
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if after:
            headers["Last-Event-ID"] = after
        failure: HeadstartError = ConnectionFailed(f"{path}: the stream ended before the run did")
        opened = False
        try:
            with transport.stream(path, headers) as response:
                opened = True
                if response.status_code == 204:  # the standard's way to say: do not come back
                    return
                heard = itertools.takewhile(lambda _: not stopped.is_set(), lines(response.iter_bytes()))
                for event in parse_events(heard):
                    failures, after = 0, event.id or after
                    yield event
                    if event.kind == "state" and event.data.get("state") in FINISHED:
                        return
        except HeadstartError as error:
            failure = error
        # An open stream that was only silent for long is no sign of trouble: a queued run has nothing to say.
        if stopped.is_set() or (opened and isinstance(failure.__cause__, httpx.ReadTimeout)):
            continue
        pause_s = transport.retry.pause_s(failures, failure)
        if pause_s is None:
            raise failure
        stopped.wait(pause_s)
        failures += 1
