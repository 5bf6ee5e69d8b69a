"""Runs over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.responses import StreamingResponse

from app.auth import Caller, Principal, require
from app.dependencies import RequestDatabase, RequestStore
from app.events import STREAM, LastEventId, answer
from app.files import file_responses, serve_file
from app.pagination import RequestPage
from app.runs import service
from app.runs.events import look
from app.runs.schemas import EvaluationTasks, Metric, Metrics, NewRun, RunBody, Runs
from app.tables import Run
from app.tasks.schemas import TaskDefinition
from app.transactions import RequestSession, TransactionalRoute
from app.work import State, cancel_work, get_work

router = APIRouter(prefix="/runs", tags=["runs"], route_class=TransactionalRoute)

Writer = Annotated[Principal, Depends(require("runs:write"))]
After = Annotated[int, Query(ge=0, lt=2**31, description="Only what has a larger sequence number.")]


@router.post("", status_code=202)
def create_run(body: NewRun, session: RequestSession, by: Writer, response: Response) -> RunBody:
    """Queue a run. Whatever would keep it from starting is refused here, with a pointer to it."""
    run = service.create_run(session, by, body)
    response.headers["Location"] = f"/v1/runs/{run.id}"
    return RunBody.of(run)


@router.get("")
def list_runs(
    session: RequestSession,
    page: RequestPage,
    _: Caller,
    state: Annotated[State | None, Query(description="Only those that stand there.")] = None,
    model: Annotated[str | None, Query(description="Only those that make versions of this model.")] = None,
) -> Runs:
    """Runs, newest first."""
    rows, token = service.list_runs(session, page, state, model)
    return Runs(runs=[RunBody.of(row) for row in rows], next_page_token=token)


@router.get("/{run_id}")
def get_run(run_id: str, session: RequestSession, _: Caller) -> RunBody:
    """One run: state, progress, newest metrics."""
    return RunBody.of(get_work(session, Run, run_id))


@router.post("/{run_id}:cancel")
def cancel_run(run_id: str, session: RequestSession, by: Writer) -> RunBody:
    """Cancel: a queued run ends at once, a running one within two seconds; one that is over is answered as it is."""
    return RunBody.of(cancel_work(session, by, Run, run_id))


@router.get("/{run_id}/metrics")
def list_run_metrics(run_id: str, session: RequestSession, page: RequestPage, _: Caller, after: After = 0) -> Metrics:
    """What a run measured, iteration by iteration, oldest first."""
    rows, token = service.list_metrics(session, page, run_id, after)
    return Metrics(metrics=[Metric.model_validate(row) for row in rows], next_page_token=token)


@router.get("/{run_id}/evaluation-tasks")
def list_run_evaluation_tasks(run_id: str, session: RequestSession, _: Caller) -> EvaluationTasks:
    """The held-out tasks of a run, all at once: entry n of a metric's `evaluation` is the return of task n."""
    family, split, seed, tasks = service.held_out_tasks(session, run_id)
    definitions = [TaskDefinition.model_validate(task.definition()) for task in tasks]
    return EvaluationTasks(family=family.name, split=split, seed=seed, tasks=definitions)


@router.get("/{run_id}/events", response_class=StreamingResponse, responses=STREAM)
async def stream_run_events(
    run_id: str, request: Request, database: RequestDatabase, _: Caller, last_event_id: LastEventId = None
) -> StreamingResponse:
    """Server-sent events: `metrics` after `Last-Event-ID`, `state` at first and at every change; ends with the run."""
    return await answer(request, database, Run, run_id, look, last_event_id)


@router.head("/{run_id}/files/checkpoint.safetensors", include_in_schema=False)
@router.get(
    "/{run_id}/files/checkpoint.safetensors",
    response_class=Response,
    responses=file_responses("application/octet-stream"),
)
def get_run_checkpoint(
    run_id: str, request: Request, session: RequestSession, store: RequestStore, _: Caller
) -> Response:
    """The newest state from which the run would resume. ETag is its sha256; Range is honoured."""
    checkpoint = service.newest_checkpoint(session, run_id)
    return serve_file(request, store, "checkpoint.safetensors", checkpoint.sha256, checkpoint.size_bytes)
