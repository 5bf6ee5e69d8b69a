"""Server-sent events of a run, across broken connections.

Source: WHATWG HTML Living Standard, section 9.2, "Server-sent events".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator

import httpx

from headstart_client._async.transport import AsyncTransport
from headstart_client.errors import ConnectionFailed, HeadstartError
from headstart_client.events import FINISHED, LINE_END, Event, json_object
from headstart_client.ticking import AsyncFlag


async def lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Lines of a byte stream, as soon as each is whole. Only CR, LF and CRLF end one: the standard's rule."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = LINE_END.split(rest + chunk)
        for line in whole:
            yield line.decode("utf-8", "replace")


async def parse_events(text: AsyncIterable[str]) -> AsyncIterator[Event]:
    """Events from the lines of a stream, without comments and without a last event that broke off.

    Raises:
        InvalidResponse: If an event's data is not a JSON object.
    """
    last_id, kind, data = "", "message", list[str]()
    async for line in text:
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


async def _until(stopped: AsyncFlag, text: AsyncIterable[str]) -> AsyncIterator[str]:
    async for line in text:
        if stopped.is_set():
            return
        yield line


async def stream_events(
    transport: AsyncTransport, path: str, after: str | None = None, stopped: AsyncFlag | None = None
) -> AsyncGenerator[Event, None]:
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
    stopped = stopped or AsyncFlag()
    failures = 0
    while not stopped.is_set():
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if after:
            headers["Last-Event-ID"] = after
        failure: HeadstartError = ConnectionFailed(f"{path}: the stream ended before the run did")
        opened = False
        try:
            async with transport.stream(path, headers) as response:
                opened = True
                if response.status_code == 204:  # the standard's way to say: do not come back
                    return
                async for event in parse_events(_until(stopped, lines(response.aiter_bytes()))):
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
        await stopped.wait(pause_s)
        failures += 1
