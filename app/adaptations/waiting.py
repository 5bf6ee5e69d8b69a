"""Waiting for an adaptation on behalf of a caller, without holding a thread or a connection."""

from __future__ import annotations

import re
import time
from collections.abc import Collection

import anyio
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.adaptations.schemas import AdaptationBody, Uploaded
from app.database import Database
from app.tables import Adaptation
from app.validation import Schema
from app.work import get_work

DEFAULT_S = 10
"""Seconds that a POST waits where the caller does not say."""

LONGEST_S = 60
"""Seconds that it waits at most."""

_POLL_S = 0.005
_SLOWEST_POLL_S = 0.2
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?")


def read_prefer(header: str | None, default_s: int = DEFAULT_S) -> tuple[int, str | None]:
    """Seconds to wait by a ``Prefer`` header (RFC 7240), and the preference that was applied, None where none was."""
    preferences = [part.split(";")[0].strip().lower() for part in (header or "").split(",")]
    for preference in preferences:
        if found := _WAIT.fullmatch(preference):
            seconds = min(int(found[1]), LONGEST_S)
            return seconds, f"wait={seconds}"
    if "respond-async" in preferences:
        return 0, "respond-async"
    return default_s, None


async def answer(database: Database, adaptation: AdaptationBody, seconds: float, applied: str | None) -> Response:
    """Wait until the adaptation has ended, at most so long, and answer.

    201 where it has made a policy; a remote one has, at once. 202 otherwise, also where it has failed: what was asked
    for was not created, and who goes on to the ``Location``, as after every 202, finds the same state and error that
    this body has.
    """
    adaptation = await _settled(database, adaptation, seconds, {"queued", "running"})
    headers = {"Location": f"/v1/adaptations/{adaptation.id}"}
    if adaptation.state in ("queued", "running"):
        headers["Retry-After"] = "1"
    status = 201 if adaptation.state in ("succeeded", "collecting") else 202
    return _response(adaptation, status, headers, applied)


async def answer_finished(
    database: Database, adaptation: AdaptationBody, seconds: float, applied: str | None
) -> Response:
    """Wait until an adaptation that is being finished has ended, at most so long, and answer."""
    unfinished = {"queued", "running", "collecting"}
    return _response(await _settled(database, adaptation, seconds, unfinished), 200, {}, applied)


async def answer_uploaded(database: Database, uploaded: Uploaded, seconds: float, applied: str | None) -> Response:
    """Wait until no step is due, at most so long, and answer."""
    adaptation = await _settled(database, uploaded.adaptation, seconds, {"queued", "running"})
    return _response(uploaded.model_copy(update={"adaptation": adaptation}), 200, {}, applied)


async def _settled(
    database: Database, adaptation: AdaptationBody, seconds: float, passing: Collection[str]
) -> AdaptationBody:
    """The adaptation as soon as it is in none of these states, or when the time is over."""
    deadline, pause_s = time.monotonic() + seconds, _POLL_S
    while adaptation.state in passing and time.monotonic() < deadline:
        await anyio.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
        pause_s = min(1.1 * pause_s, _SLOWEST_POLL_S)
        try:
            adaptation = await run_in_threadpool(_look, database, adaptation.id)
        except SQLAlchemyError:
            # It is as it was, and that is what the caller must be told.
            continue
    return adaptation


def _response(body: Schema, status: int, headers: dict[str, str], applied: str | None) -> Response:
    if applied is not None:
        headers["Preference-Applied"] = applied
    return Response(body.model_dump_json(by_alias=True), status, headers, media_type="application/json")


def _look(database: Database, adaptation_id: str) -> AdaptationBody:
    with database.snapshot() as session:
        return AdaptationBody.of(get_work(session, Adaptation, adaptation_id))
