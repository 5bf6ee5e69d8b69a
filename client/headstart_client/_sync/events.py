# Generated from headstart_client/_async/events.py by: python client/generate_sync.py
"""Server-sent events of a run, across broken connections.

Source: WHATWG HTML Living Standard, section 9.2, "Server-sent events".
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

import httpx

from headstart_client._sync.transport import Transport
from headstart_client.errors import ConnectionFailed, HeadstartError
from headstart_client.events import FINISHED, LINE_END, Event, json_object
from headstart_client.ticking import Flag


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a byte stream, as soon as each is whole. Only CR, LF and CRLF end one: the standard's rule."""
    rest = b""
    for chunk in chunks:
        *whole, rest = LINE_END.split(rest + chunk)
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
                yield Event(last_id, kind, json_object("\n".join(data)))
            kind, data = "message", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id":
            last_id = value


def _until(stopped: Flag, text: Iterable[str]) -> Iterator[str]:
    for line in text:
        if stopped.is_set():
            return
        yield line


def stream_events(
    transport: Transport, path: str, after: str | None = None, stopped: Flag | None = None
) -> Generator[Event, None, None]:
    """Events until the run has ended; a stream that breaks off is taken up after the last event received.

    Args:
        transport: To the service.
        path: Of the stream.
        after: Id of the last event that is known already.
        stopped: Set from elsewhere to end the stream; seen when the service speaks next, if only to say
            that it is there.

    Raises:
        ConnectionFailed: If the service stays away.
        Problem: If it refuses.
    """
    stopped = stopped or Flag()
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
                for event in parse_events(_until(stopped, lines(response.iter_bytes()))):
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
