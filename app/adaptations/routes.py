"""Adaptations over HTTP."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response

from app.adaptations import service, waiting
from app.adaptations.schemas import AdaptationBody, Adaptations, NewAdaptation
from app.auth import Caller, Principal, require
from app.dependencies import RequestDatabase
from app.pagination import RequestPage
from app.transactions import RequestSession, TransactionalRoute, answer_after_commit

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


@router.get("")
def list_adaptations(session: RequestSession, page: RequestPage, _: Caller) -> Adaptations:
    """Adaptations, newest first."""
    rows, token = service.list_adaptations(session, page)
    return Adaptations(adaptations=[AdaptationBody.of(row) for row in rows], next_page_token=token)


@router.get("/{adaptation_id}")
def get_adaptation(adaptation_id: str, session: RequestSession, _: Caller) -> AdaptationBody:
    """One adaptation: state, and the result when it has ended."""
    return AdaptationBody.of(service.get_adaptation(session, adaptation_id))
