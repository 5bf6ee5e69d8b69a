"""Adaptations over HTTP."""

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from starlette.responses import StreamingResponse

from app.adaptations import act_events, episodes, remote, service, waiting
from app.adaptations.events import look
from app.adaptations.pieces import UPLOAD
from app.adaptations.schemas import (
    AdaptationBody,
    Adaptations,
    CreatedAdaptations,
    Episodes,
    EventReward,
    NewAdaptation,
    NewAdaptations,
    RewardedEvent,
    Uploaded,
    UploadedEpisode,
)
from app.auth import Caller, Principal, require
from app.bodies import JSONRequest
from app.dependencies import RequestDatabase, RequestStore
from app.events import STREAM, LastEventId, answer
from app.pagination import RequestPage
from app.tables import Adaptation
from app.transactions import RequestSession, TransactionalRoute, answer_after_commit
from app.work import cancel_work, get_work

router = APIRouter(prefix="/adaptations", tags=["adaptations"], route_class=TransactionalRoute)
events_router = APIRouter(prefix="/events", tags=["adaptations"], route_class=TransactionalRoute)

Adapter = Annotated[Principal, Depends(require("policies:act"))]
Prefer = Annotated[
    str | None, Header(description="`wait=N`: seconds to wait for the result, 60 at most; 10 by default.")
]


@router.post("", status_code=202, responses={201: {"model": AdaptationBody, "description": "It has made a policy"}})
def create_adaptation(
    body: NewAdaptation,
    session: RequestSession,
    database: RequestDatabase,
    store: RequestStore,
    by: Adapter,
    request: Request,
    response: Response,
    prefer: Prefer = None,
) -> AdaptationBody:
    """Adapt a version, or a new policy, to a task: 201 with the result if that comes in time, else 202.

    An adaptation that fails in time is a 202 too: its `state` is `failed`, and `error` says why. One to a task whose
    environment is with the client is a 201 at once: its `policy` is there, and it is `collecting` episodes.
    """
    adaptation = AdaptationBody.of(service.create_adaptation(session, store, by, body))
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
    """Cancel: what no worker has ends at once, what runs within two seconds; one that is over is answered as it is."""
    return AdaptationBody.of(cancel_work(session, by, Adaptation, adaptation_id))


@router.post("/{adaptation_id}:finish")
def finish_adaptation(
    adaptation_id: str,
    session: RequestSession,
    database: RequestDatabase,
    by: Adapter,
    request: Request,
    prefer: Prefer = None,
) -> AdaptationBody:
    """Finish a remote adaptation: a step that is due is taken first; one that is over is answered as it is."""
    adaptation = AdaptationBody.of(remote.finish(session, by, adaptation_id))
    answer_after_commit(request, partial(waiting.answer_finished, database, adaptation, *waiting.read_prefer(prefer)))
    return adaptation


async def _content(request: Request) -> bytes:
    assert isinstance(request, JSONRequest)
    return await request.content()


@router.post("/{adaptation_id}/episodes", openapi_extra=UPLOAD)
def upload_episodes(
    adaptation_id: str,
    content: Annotated[bytes, Depends(_content)],
    database: RequestDatabase,
    _: Adapter,
    request: Request,
    prefer: Annotated[
        str | None, Header(description="`wait=N`: seconds to wait for the step that is due, 60 at most; 0 by default.")
    ] = None,
) -> Uploaded:
    """Upload episodes of a remote adaptation, whole or in pieces, in any order: all of them are stored, or none.

    The same episode or piece may be sent again; with other content it is a 409. When enough is in, a step is taken.
    """
    uploaded = Uploaded.of(episodes.upload(database, adaptation_id, content))
    answer_after_commit(
        request, partial(waiting.answer_uploaded, database, uploaded, *waiting.read_prefer(prefer, default_s=0))
    )
    return uploaded


@router.get(
    "/{adaptation_id}/episodes",
    response_model=Episodes,
    responses={200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}},
)
def list_episodes(
    adaptation_id: str,
    session: RequestSession,
    database: RequestDatabase,
    page: RequestPage,
    _: Caller,
    format: Annotated[
        Literal["json", "jsonl"],
        Query(
            description="A page of a list; or all episodes, each a line that an upload takes, except recorded actions."
        ),
    ] = "json",
) -> Episodes | StreamingResponse:
    """Episodes of a remote adaptation, in the order in which they came: what is known of them, or all that was sent."""
    rows, token = episodes.list_episodes(session, adaptation_id, page)
    if format == "jsonl":
        return StreamingResponse(episodes.lines(database, adaptation_id), media_type="application/jsonl")
    return Episodes(episodes=[UploadedEpisode.model_validate(row) for row in rows], next_page_token=token)


@events_router.post("/{event_id}:reward")
def reward_event(event_id: str, body: EventReward, session: RequestSession, _: Adapter) -> RewardedEvent:
    """Tell what came of a recorded action: with its reward it is an episode of one step. It may be told again."""
    return RewardedEvent.of(act_events.reward_event(session, event_id, body.reward))


@router.get("/{adaptation_id}/events", response_class=StreamingResponse, responses=STREAM)
async def stream_adaptation_events(
    adaptation_id: str, request: Request, database: RequestDatabase, _: Caller, last_event_id: LastEventId = None
) -> StreamingResponse:
    """Server-sent events: `curve` with each point after `Last-Event-ID`, `state` at first and whenever it moves."""
    return await answer(request, database, Adaptation, adaptation_id, look, last_event_id)
