"""Adaptations over HTTP."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from starlette.responses import StreamingResponse

from app.adaptations import service, waiting
from app.adaptations.events import look
from app.adaptations.schemas import AdaptationBody, Adaptations, CreatedAdaptations, NewAdaptation, NewAdaptations
from app.auth import Caller, Principal, require
from app.dependencies import RequestDatabase
from app.events import STREAM, LastEventId, answer
from app.pagination import RequestPage
from app.tables import Adaptation
from app.transactions import RequestSession, TransactionalRoute, answer_after_commit
from app.work import cancel_work, get_work

router = APIRouter(prefix="/adaptations", tags=["adaptations"], route_class=TransactionalRoute)

Adapter = Annotated[Principal, Depends(require("policies:act"))]
Prefer = Annotated[
    str | None, Header(description="`wait=N`: seconds to wait for the result, 60 at most; 10 by default.")
]


@router.post("", status_code=202, responses={201: {"model": AdaptationBody, "description": "It has made a policy"}})
def create_adaptation(
    body: NewAdaptation,
    session: RequestSession,
    database: RequestDatabase,
    by: Adapter,
    request: Request,
    response: Response,
    prefer: Prefer = None,
) -> AdaptationBody:
    """Adapt a version, or a new policy, to a task: 201 with the result if that comes in time, else 202.

    An adaptation that fails in time is a 202 too: its `state` is `failed`, and `error` says why.
    """
    adaptation = AdaptationBody.of(service.create_adaptation(session, by, body))
    response.headers["Location"] = f"/v1/adaptations/{adaptation.id}"
    answer_after_commit(request, partial(waiting.answer, database, adaptation, *waiting.read_prefer(prefer)))
    return adaptation


@router.post(":batchCreate", status_code=202)
def create_adaptations(body: NewAdaptations, session: RequestSession, by: Adapter) -> CreatedAdaptations:
    """Adapt to up to 1000 tasks at once, all or none accepted: 202 with the adaptations in the order of the tasks.

    Those whose tasks are of one environment are computed together. Where one fails, the others go on one by one.
    """
    rows = service.create_adaptations(session, by, body)
    return CreatedAdaptations(adaptations=[AdaptationBody.of(row) for row in rows])


@router.get("")
def list_adaptations(session: RequestSession, page: RequestPage, _: Caller) -> Adaptations:
    """Adaptations, newest first."""
    rows, token = service.list_adaptations(session, page)
    return Adaptations(adaptations=[AdaptationBody.of(row) for row in rows], next_page_token=token)


@router.get("/{adaptation_id}")
def get_adaptation(adaptation_id: str, session: RequestSession, _: Caller) -> AdaptationBody:
    """One adaptation: state, and the result when it has ended."""
    return AdaptationBody.of(get_work(session, Adaptation, adaptation_id))


@router.post("/{adaptation_id}:cancel")
def cancel_adaptation(adaptation_id: str, session: RequestSession, by: Adapter) -> AdaptationBody:
    """Cancel: a queued one ends at once, a running one within two seconds; one that is over is answered as it is."""
    return AdaptationBody.of(cancel_work(session, by, Adaptation, adaptation_id))


@router.get("/{adaptation_id}/events", response_class=StreamingResponse, responses=STREAM)
async def stream_adaptation_events(
    adaptation_id: str, request: Request, database: RequestDatabase, _: Caller, last_event_id: LastEventId = None
) -> StreamingResponse:
    """Server-sent events: `curve` with each point after `Last-Event-ID`, `state` at first and whenever it moves."""
    return await answer(request, database, Adaptation, adaptation_id, look, last_event_id)
