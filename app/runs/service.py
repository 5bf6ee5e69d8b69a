"""Asking for runs, finding them, and turning them into what the core trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from app import tables
from app.auth import Principal, audit
from app.database import exclusive, new_id
from app.errors import Invalid, NotFound
from app.pagination import Page, paginate
from app.runs.schemas import NewRun, TaskSelection
from app.tasks.schemas import Split
from app.tasks.service import TASKS_LOCK, definition_of, family_of, select_tasks
from app.validation import MAX_ERRORS, FieldError
from app.work import get_work
from models.device import Device
from models.families import TaskFamily, define_family
from models.tasks import TaskBatch
from models.training import FamilyTasks, FixedTasks, HeldOut, TaskSource, Training
from models.types import Task

MAX_TASKS = 10_000
"""Registered tasks that one run can select."""

_CHUNK = 500


def create_run(session: Session, by: Principal, request: NewRun) -> tables.Run:
    """Queue a run. All that the core would refuse is refused now, but for a device that the worker's machine lacks.

    What the run needs is written down with it, so that nothing that changes later changes the run: the
    request with every default, the family's definition, the selected tasks.

    Raises:
        Invalid: If the selection is empty, names what does not exist, or mixes environments; if the
            evaluation has no tasks to use. InvalidValue: As :class:`models.training.Training`.
    """
    family, rows = _select(session, request.tasks)
    if request.evaluation is not None:
        family = family or _family_of_tasks(session, rows)
        _require_held_out(request, rows)
    # This process need not run on the worker's machine: the processor, which both have, stands for the device.
    training = _training(request, family, rows, "cpu")
    spec = request.model_dump(mode="json", exclude={"model"})
    spec["tasks"] = {name: value for name, value in spec["tasks"].items() if value not in (None, False)}
    spec |= {"family": None if family is None else family.definition(), "environment": training.environment}
    run = tables.Run(id=new_id(), model=request.model, spec=spec)
    session.add(run)
    session.flush()
    if rows:
        session.execute(insert(tables.RunTask), [{"run_id": run.id, "task_id": row.id} for row in rows])
    audit(session, by, "runs.create", f"runs/{run.id}", model=run.model)
    return run


def list_runs(
    session: Session, page: Page, state: str | None, model: str | None
) -> tuple[list[tables.Run], str | None]:
    """A page of runs, newest first."""
    statement = select(tables.Run)
    if state is not None:
        statement = statement.where(tables.Run.state == state)
    if model is not None:
        statement = statement.where(tables.Run.model == model)
    filters = {"list": "runs", "state": state, "model": model}
    return paginate(session, statement, tables.Run.id, page, filters, newest_first=True)


def list_metrics(session: Session, page: Page, run_id: str, after: int) -> tuple[list[tables.RunMetric], str | None]:
    """A page of what a run measured after that sequence number, oldest first.

    Raises:
        NotFound: If there is no such run.
    """
    get_work(session, tables.Run, run_id)
    metric = tables.RunMetric
    statement = select(metric).where(metric.run_id == run_id, metric.sequence > after)
    filters = {"list": "metrics", "run": run_id, "after": after}
    return paginate(session, statement, metric.sequence, page, filters)


def newest_checkpoint(session: Session, run_id: str) -> tables.Checkpoint:
    """The newest state from which a run would resume.

    Raises:
        NotFound: If there is no such run, or it has none yet.
    """
    get_work(session, tables.Run, run_id)
    checkpoint: tables.Checkpoint | None = session.scalars(_checkpoints(run_id).limit(1)).one_or_none()
    if checkpoint is None:
        raise NotFound(f"run {run_id!r} has no checkpoint yet")
    return checkpoint


def list_checkpoints(session: Session, run_id: str) -> Sequence[tables.Checkpoint]:
    """A run's checkpoints, newest first."""
    return session.scalars(_checkpoints(run_id)).all()


def training_of(session: Session, run: tables.Run) -> Training:
    """What a run computes, from what was written down when it was asked for.

    Raises:
        InvalidValue: At ``/device``, if this machine lacks it.
    """
    request, family = _asked(run)
    rows = _in_order(
        session.scalars(
            select(tables.Task)
            .join(tables.RunTask, tables.RunTask.task_id == tables.Task.id)
            .where(tables.RunTask.run_id == run.id)
        )
    )
    return _training(request, family, rows, request.device)


def held_out_tasks(session: Session, run_id: str) -> tuple[TaskFamily, Split, int, Sequence[Task]]:
    """The family, the split and the seed of a run's held-out tasks, and these tasks in the order of their returns.

    Raises:
        NotFound: If there is no such run, or it has no evaluation.
    """
    request, family = _asked(get_work(session, tables.Run, run_id))
    if request.evaluation is None or family is None:
        raise NotFound(f"run {run_id!r} has no evaluation on held-out tasks")
    return family, request.evaluation.split, request.seed, _held_out(request, family).tasks


def read_family(definition: dict[str, Any]) -> TaskFamily:
    """The inverse of :meth:`models.families.TaskFamily.definition`."""
    reward = definition["reward"]
    return define_family(**(definition | {"reward": None if reward is None else reward["expression"]}))


def select_registered(session: Session, selection: TaskSelection) -> list[tables.Task]:
    """The registered tasks that were selected; they stay until the transaction ends.

    Raises:
        Invalid: At ``/tasks/...``, if one does not exist, there is none, or there are more than :data:`MAX_TASKS`.
    """
    # Held until it is written down what they are for: a selected task must not be deleted in between.
    exclusive(session, TASKS_LOCK)
    if selection.ids is not None:
        return _in_order(_find_tasks(session, selection.ids))
    statement = select_tasks(selection.family, selection.split, (selection.labels or {}).items())
    rows = session.scalars(statement.limit(MAX_TASKS + 1)).all()
    if not rows:
        what = f"of family {selection.family!r}" if selection.family else f"with labels {selection.labels}"
        split = f" in split {selection.split!r}" if selection.split else ""
        raise Invalid("/tasks", f"the selection is empty: no registered task {what}{split}")
    if len(rows) > MAX_TASKS:
        raise Invalid("/tasks", f"more than {MAX_TASKS} tasks are selected; a run takes at most that many")
    return _in_order(rows)


def find_family(session: Session, name: str) -> TaskFamily:
    """The family of that name, as the core knows it.

    Raises:
        Invalid: At ``/tasks/family``, if there is none.
    """
    row = session.scalar(select(tables.TaskFamily).where(tables.TaskFamily.name == name))
    if row is None:
        raise Invalid("/tasks/family", f"there is no task family {name!r}")
    return family_of(row)


def _asked(run: tables.Run) -> tuple[NewRun, TaskFamily | None]:
    """The request that was written down, and the family as it was then."""
    # What an earlier version wrote down has not all of today's members: they take their defaults.
    known = {name: run.spec[name] for name in NewRun.model_fields if name in run.spec}
    definition = run.spec["family"]
    request = NewRun.model_validate({"model": run.model, **known})
    return request, None if definition is None else read_family(definition)


def _training(request: NewRun, family: TaskFamily | None, rows: Sequence[tables.Task], device: Device) -> Training:
    learner, selection = request.learner, request.tasks
    held_out = None if request.evaluation is None or family is None else _held_out(request, family)

    def training(source: TaskSource) -> Training:
        return Training(learner, request.policy, source, request.stop, request.seed, held_out, device)

    if family is not None and selection.split is not None and not rows:
        return training(FamilyTasks(family, selection.split))
    tasks = [definition_of(row) for row in rows]
    others = held_out.tasks[:1] if held_out else ()
    TaskBatch.of([*tasks, *others], names=[*(row.name for row in rows), *("the held-out tasks" for _ in others)])
    # An iteration may draw the longest of the tasks together: that must fit too.
    training(FixedTasks(tuple(sorted(tasks, key=lambda task: -task.horizon)[: learner.tasks_per_iteration])))
    return training(FixedTasks(tuple(tasks)))


def _held_out(request: NewRun, family: TaskFamily) -> HeldOut:
    evaluation, learner = request.evaluation, request.learner
    assert evaluation is not None
    return HeldOut(
        tuple(family.sample(evaluation.split, request.seed, range(evaluation.tasks))),
        evaluation.every_iterations,
        evaluation.steps or learner.inner_steps,
        evaluation.episodes or learner.episodes_per_task,
    )


def _select(session: Session, selection: TaskSelection) -> tuple[TaskFamily | None, list[tables.Task]]:
    """The family that was named, if one was, and the registered tasks that were selected, if any are."""
    family = None if selection.family is None else find_family(session, selection.family)
    if family is not None and not selection.registered:
        return family, []
    return family, select_registered(session, selection)


def _in_order(rows: Iterable[tables.Task]) -> list[tables.Task]:
    # By definition, not by age or name: the same tasks train alike wherever and however they were registered.
    return sorted(rows, key=lambda row: row.digest)


def _find_tasks(session: Session, references: Sequence[str]) -> list[tables.Task]:
    found: dict[str, tables.Task] = {}
    for column in (tables.Task.name, tables.Task.id):  # where one task's name is another's id, the id counts
        for start in range(0, len(references), _CHUNK):
            wanted = column.in_(references[start : start + _CHUNK])
            for row in session.scalars(select_tasks().where(wanted)):
                found[getattr(row, column.key)] = row
    missing = [
        FieldError(f"/tasks/ids/{index}", f"there is no task {reference!r}")
        for index, reference in enumerate(references)
        if reference not in found
    ]
    if missing:
        raise Invalid.all_of(missing[:MAX_ERRORS])
    return list({found[reference].id: found[reference] for reference in references}.values())


def _family_of_tasks(session: Session, rows: Sequence[tables.Task]) -> TaskFamily:
    by_family = {row.family: row.name for row in rows}
    if len(by_family) > 1:
        (one, name), (other, other_name) = list(by_family.items())[:2]
        where = f"{name!r} is of {one or 'no family'} and {other_name!r} of {other or 'no family'}"
        raise Invalid("/evaluation", f"held-out tasks are drawn from the family of the selected tasks, but {where}")
    [family] = by_family
    if family is None:
        detail = "the selected tasks are of no family that held-out tasks could be drawn from; leave evaluation out"
        raise Invalid("/evaluation", detail)
    return find_family(session, family)


def _require_held_out(request: NewRun, rows: Sequence[tables.Task]) -> None:
    assert request.evaluation is not None
    trained = {row.split for row in rows} or {request.tasks.split}
    if request.evaluation.split in trained:
        detail = f"the run trains on tasks of split {request.evaluation.split!r}; evaluate on another"
        raise Invalid("/evaluation/split", detail)


def _checkpoints(run_id: str) -> Any:
    return (
        select(tables.Checkpoint).where(tables.Checkpoint.run_id == run_id).order_by(tables.Checkpoint.iteration.desc())
    )
