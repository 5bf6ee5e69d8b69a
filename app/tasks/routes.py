"""Environments, task families and tasks over HTTP."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Response

from app.auth import Caller, Principal, require
from app.errors import Invalid, NotFound
from app.pagination import RequestPage, paginate_names
from app.tasks import applying, service
from app.tasks.schemas import (
    Applied,
    Definitions,
    EnvironmentBody,
    Environments,
    Families,
    FamilyBody,
    NewFamily,
    NewTask,
    NewTasks,
    SampleRequest,
    Split,
    TaskBody,
    TaskPage,
    Tasks,
)
from app.transactions import RequestSession, TransactionalRoute
from app.validation import MAX_ERRORS, FieldError
from models.environments import ENVIRONMENTS
from models.tasks import find_environment
from models.types import InvalidValue

router = APIRouter(route_class=TransactionalRoute)

T = TypeVar("T")
R = TypeVar("R")

Writer = Annotated[Principal, Depends(require("tasks:write"))]
FamilyName = Annotated[str, Path(description="Name of the family.")]
TaskReference = Annotated[str, Path(description="Id or name of the task.")]


@router.get("/environments", tags=["environments"])
def list_environments(page: RequestPage, _: Caller) -> Environments:
    """The built-in environment models, by id."""
    ids, token = paginate_names(ENVIRONMENTS, page, {"list": "environments"})
    return Environments(environments=[EnvironmentBody.of(ENVIRONMENTS[id_]) for id_ in ids], next_page_token=token)


@router.get("/environments/{environment_id:path}", tags=["environments"])
def get_environment(environment_id: str, _: Caller) -> EnvironmentBody:
    """One environment model: parameters, spaces, default horizon. Any other of Gymnasium's has one too."""
    try:
        return EnvironmentBody.of(find_environment(environment_id))
    except InvalidValue as error:
        raise NotFound(error.detail) from error


@router.post(
    "/task-families",
    status_code=201,
    tags=["task-families"],
    responses={200: {"model": FamilyBody, "description": "The same family stood already"}},
)
def create_task_family(body: NewFamily, session: RequestSession, by: Writer, response: Response) -> FamilyBody:
    """Register a family: 201; 200 where the same one stands, 409 where its name stands with another definition."""
    row, created = service.create_family(session, by, body.family())
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/task-families/{row.name}"
    return FamilyBody.of(row)


@router.get("/task-families", tags=["task-families"])
def list_task_families(session: RequestSession, page: RequestPage, _: Caller) -> Families:
    """All families, by name."""
    rows, token = service.list_families(session, page)
    return Families(task_families=[FamilyBody.of(row) for row in rows], next_page_token=token)


@router.get("/task-families/{name}", tags=["task-families"])
def get_task_family(name: FamilyName, session: RequestSession, _: Caller) -> FamilyBody:
    """One family."""
    return FamilyBody.of(service.get_family(session, name))


@router.post("/task-families/{name}:sample", tags=["task-families"])
def sample_task_family(name: FamilyName, body: SampleRequest, session: RequestSession, by: Writer) -> Tasks:
    """Register tasks of a family. The same call gives the same tasks in the same order, however often."""
    rows = service.sample_tasks(session, by, name, body.split, body.seed, body.count)
    return Tasks(tasks=[TaskBody.of(row) for row in rows])


@router.post(
    "/tasks",
    status_code=201,
    tags=["tasks"],
    responses={200: {"model": TaskBody, "description": "The same task stood already"}},
)
def create_task(body: NewTask, session: RequestSession, by: Writer, response: Response) -> TaskBody:
    """Register a task: 201; 200 where the same one stands, 409 where its name stands with another definition."""
    [(row, created)] = service.register_tasks(session, by, [body.registration()], lambda _: "")
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/tasks/{row.id}"
    return TaskBody.of(row)


@router.post("/tasks:batchCreate", tags=["tasks"])
def create_tasks(body: NewTasks, session: RequestSession, by: Writer) -> Tasks:
    """Register up to 1000 tasks, all or none, and give them in the order in which they came."""
    errors: list[FieldError] = []
    registrations = _each("/tasks", body.tasks, NewTask.registration, errors)
    if errors:
        raise Invalid.all_of(errors[:MAX_ERRORS])
    return Tasks(tasks=[TaskBody.of(row) for row, _ in service.register_tasks(session, by, registrations)])


@router.post("/tasks:apply", tags=["tasks"])
def apply_definitions(body: Definitions, session: RequestSession, by: Writer) -> Applied:
    """Make families and up to 10,000 tasks stand as they are defined, all or none; the answer says what each came to.

    Applied again, everything is unchanged. Names and labels that are given must hold too: a task that stands under
    another name, or without one of the labels, is a conflict. 409 where there is any, with what differs, and nothing
    is created. With `dry_run` the same is done and undone: the answer is what would be, and conflicts are in it.
    """
    errors: list[FieldError] = []
    families = _each("/families", body.families, NewFamily.family, errors)
    tasks = _each("/tasks", body.tasks, NewTask.registration, errors)
    if errors:
        raise Invalid.all_of(errors[:MAX_ERRORS])
    of_families, of_tasks = applying.apply_definitions(session, by, families, tasks, dry_run=body.dry_run)
    return Applied.of(not body.dry_run, of_families, of_tasks)


@router.get("/tasks", tags=["tasks"])
def list_tasks(
    session: RequestSession,
    page: RequestPage,
    _: Caller,
    family: Annotated[str | None, Query(description="Only tasks of this family.")] = None,
    split: Annotated[Split | None, Query(description="Only tasks of this part of their family.")] = None,
    label: Annotated[list[str], Query(max_length=32, description="`name:value`; repeat for more.")] = [],  # noqa: B006
) -> TaskPage:
    """The tasks of a family, of a split, with all of these labels; oldest first."""
    rows, token = service.list_tasks(session, page, family, split, label)
    return TaskPage(tasks=[TaskBody.of(row) for row in rows], next_page_token=token)


@router.get("/tasks/{reference}", tags=["tasks"])
def get_task(reference: TaskReference, session: RequestSession, _: Caller) -> TaskBody:
    """One task, by its id or name."""
    return TaskBody.of(service.get_task(session, reference))


@router.delete("/tasks/{reference}", status_code=204, tags=["tasks"])
def delete_task(reference: TaskReference, session: RequestSession, by: Writer) -> None:
    """Hide a task: 409 while a run that is queued or running uses it."""
    service.delete_task(session, by, reference)


def _each(place: str, items: Sequence[T], check: Callable[[T], R], errors: list[FieldError]) -> list[R]:
    """What the check gives for each item; what it refuses is added to the errors."""
    found = []
    for index, item in enumerate(items):
        try:
            found.append(check(item))
        except InvalidValue as error:
            errors.append(FieldError(f"{place}/{index}{error.pointer}", error.detail))
    return found
