"""Evaluations over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from app.auth import Caller, Principal, require
from app.dependencies import RequestStore
from app.evaluations import service
from app.evaluations.schemas import EvaluationBody, EvaluationFile, Evaluations, EvaluationSummary, NewEvaluation
from app.files import file_responses, serve_file
from app.pagination import RequestPage
from app.tables import Evaluation
from app.transactions import RequestSession, TransactionalRoute
from app.work import State, cancel_work, get_work

router = APIRouter(prefix="/evaluations", tags=["evaluations"], route_class=TransactionalRoute)

Writer = Annotated[Principal, Depends(require("runs:write"))]


@router.post("", status_code=202)
def create_evaluation(
    body: NewEvaluation, session: RequestSession, by: Writer, response: Response
) -> EvaluationSummary:
    """Queue an evaluation. `leakage` and `warnings` are there at once."""
    row = service.create_evaluation(session, by, body)
    response.headers["Location"] = f"/v1/evaluations/{row.id}"
    return EvaluationSummary.of(row)


@router.get("")
def list_evaluations(
    session: RequestSession,
    page: RequestPage,
    _: Caller,
    name: Annotated[str | None, Query(description="Only those of this protocol.")] = None,
    state: Annotated[State | None, Query(description="Only those that stand there.")] = None,
) -> Evaluations:
    """Evaluations without their results, newest first."""
    rows, token = service.list_evaluations(session, page, name, state)
    return Evaluations(evaluations=[EvaluationSummary.of(row) for row in rows], next_page_token=token)


@router.get("/{evaluation_id}")
def get_evaluation(evaluation_id: str, session: RequestSession, store: RequestStore, _: Caller) -> EvaluationBody:
    """One evaluation: state, verdict, and all results once it has succeeded."""
    row = get_work(session, Evaluation, evaluation_id)
    files = [EvaluationFile.model_validate(file) for file in service.list_files(session, evaluation_id)]
    return EvaluationBody.of(row, result=service.read_result(session, store, evaluation_id), files=files)


@router.post("/{evaluation_id}:cancel")
def cancel_evaluation(evaluation_id: str, session: RequestSession, by: Writer) -> EvaluationSummary:
    """Cancel: a queued one ends at once, a running one within two seconds; one that is over is answered as it is."""
    return EvaluationSummary.of(cancel_work(session, by, Evaluation, evaluation_id))


@router.head("/{evaluation_id}/{name}", include_in_schema=False)
@router.get(
    "/{evaluation_id}/{name}",
    response_class=Response,
    responses=file_responses("application/json", "text/html", "text/csv", "image/png"),
)
def get_evaluation_file(
    evaluation_id: str,
    name: Annotated[str, Path(description="Name of the file, such as `report.html`.")],
    request: Request,
    session: RequestSession,
    store: RequestStore,
    _: Caller,
) -> Response:
    """A file: `evaluation.json` with every run, `report.html`, `runs.csv`, or a plot as PNG.

    ETag is its sha256; If-None-Match, Range and If-Range are honoured.
    """
    file = service.get_file(session, evaluation_id, name)
    return serve_file(request, store, file.name, file.sha256, file.size_bytes)
