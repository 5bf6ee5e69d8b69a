"""Registering and finding tasks and task families."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Select, insert, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app import tables
from app.auth import OPERATOR, Principal, audit
from app.database import exclusive, new_id, now
from app.errors import Conflict, Invalid, NotFound
from app.pagination import Page, paginate
from app.validation import MAX_ERRORS, FieldError
from models.families import TaskFamily, define_family
from models.presets import PRESETS
from models.tasks import define_task
from models.types import Task, sha256_of

TASKS_LOCK = "tasks"
"""What :func:`app.database.exclusive` holds while tasks are registered, deleted, or selected for a run."""

FAMILIES_LOCK = "task-families"
"""The same for families."""

_CHUNK = 500


@dataclass(frozen=True)
class Registration:
    """A task and what it is to be filed under.

    Attributes:
        task: Checked and complete.
        name: None: made from the digest.
        family: Name of the task family that it belongs to, or None.
        split: Its part of the family.
        labels: Free for the caller.
    """

    task: Task
    name: str | None = None
    family: str | None = None
    split: str | None = None
    labels: Mapping[str, str] | None = None

    @cached_property
    def digest(self) -> str:
        """What makes it the same task as another: name and labels are no part of it."""
        return sha256_of({"definition": self.task.definition(), "family": self.family, "split": self.split})


def register_tasks(
    session: Session,
    by: Principal,
    registrations: Sequence[Registration],
    pointer: Callable[[int], str] = "/tasks/{}".format,
) -> list[tuple[tables.Task, bool]]:
    """Register all of them or none; for each the row, and whether it is new.

    A task whose definition stands is the one that stands, under whatever name; so is one that comes twice. A name that
    stands with another definition is a conflict all the same.

    Args:
        session: A writing one.
        by: Who registers.
        registrations: The tasks.
        pointer: Where in the request the task at a place is.

    Raises:
        Invalid: If a family is unknown, or another environment's.
        Conflict: If a name stands with another definition.
    """
    placed = place_tasks(session, registrations, pointer)
    conflicts = [
        FieldError(f"{pointer(index)}/name", f"{row.name!r} is another task")
        for index, (registration, (row, _)) in enumerate(zip(registrations, placed, strict=True))
        if row.digest != registration.digest
    ]
    if conflicts:
        raise Conflict(f"{conflicts[0].detail}, with another definition", errors=conflicts[:MAX_ERRORS])
    insert_tasks(session, by, placed)
    return placed


def place_tasks(
    session: Session, registrations: Sequence[Registration], pointer: Callable[[int], str]
) -> list[tuple[tables.Task, bool]]:
    """For each the row that it is or would be, and whether that is a new one; nothing is written.

    Where the name is another task's, the row is that other task, and its digest differs.

    Raises:
        Invalid: If a family is unknown, or another environment's.
    """
    exclusive(session, TASKS_LOCK)
    _check_families(session, registrations, pointer)
    digests = [registration.digest for registration in registrations]
    standing = {row.digest: row for row in _standing(session, tables.Task.digest, digests)}
    wanted = {r.name for r in registrations if r.name is not None}
    defaults = {f"task-{digest[:12]}" for digest in digests}
    named = {row.name: row for row in _standing(session, tables.Task.name, wanted | defaults)}
    placed: list[tuple[tables.Task, bool]] = []
    for registration, digest in zip(registrations, digests, strict=True):
        name = registration.name or f"task-{digest[:12]}"
        if registration.name is None and name in named and named[name].digest != digest:
            name = f"task-{digest}"
        holder = named.get(name)
        if holder is not None and holder.digest != digest:
            placed.append((holder, False))
        elif digest in standing:
            placed.append((standing[digest], False))
        else:
            standing[digest] = named[name] = row = _row(registration, digest, name)
            placed.append((row, True))
    return placed


def insert_tasks(session: Session, by: Principal, placed: Iterable[tuple[tables.Task, bool]]) -> None:
    """Write the rows that :func:`place_tasks` found to be new."""
    rows = [row for row, new in placed if new]
    if not rows:
        return
    session.add_all(rows)
    session.flush()
    labels = [{"task_id": row.id, "name": name, "value": value} for row in rows for name, value in row.labels.items()]
    if labels:
        session.execute(insert(tables.TaskLabel), labels)
    subject = f"tasks/{rows[0].id}" if len(rows) == 1 else "tasks"
    audit(session, by, "tasks.create", subject, tasks=[row.id for row in rows])


def sample_tasks(
    session: Session, by: Principal, family_name: str, split: str, seed: int, count: int
) -> list[tables.Task]:
    """Register the first tasks of a family's list; the same call gives the same tasks, in the same order.

    Where a family draws the same definition twice, both places hold the same task.

    Raises:
        NotFound: If there is no such family.
        Conflict: If a name that a task would get stands with another definition.
    """
    family = family_of(get_family(session, family_name))
    registrations = [
        Registration(task, f"{family.name}-{split}-{seed}-{index}", family.name, split)
        for index, task in enumerate(family.sample(split, seed, range(count)))
    ]
    return [row for row, _ in register_tasks(session, by, registrations, lambda _: "")]


def get_task(session: Session, reference: str) -> tables.Task:
    """The task of that id or name; where one task's name is another's id, the id counts.

    Raises:
        NotFound: If there is none, or it was deleted.
    """
    found = session.scalars(
        select(tables.Task).where(
            or_(tables.Task.id == reference, tables.Task.name == reference),
            tables.Task.deleted_at.is_(None),
        )
    ).all()
    if not found:
        raise NotFound(f"there is no task {reference!r}")
    return next((row for row in found if row.id == reference), found[0])


def select_tasks(
    family: str | None = None, split: str | None = None, labels: Iterable[tuple[str, str]] = ()
) -> Select[tables.Task]:
    """The statement that finds the registered tasks of a family, of a split, with all of these labels."""
    statement = select(tables.Task).where(tables.Task.deleted_at.is_(None))
    if family is not None:
        statement = statement.where(tables.Task.family == family)
    if split is not None:
        statement = statement.where(tables.Task.split == split)
    for name, value in labels:
        labelled = select(tables.TaskLabel.task_id).where(
            tables.TaskLabel.name == name, tables.TaskLabel.value == value
        )
        statement = statement.where(tables.Task.id.in_(labelled))
    return statement


def list_tasks(
    session: Session, page: Page, family: str | None, split: str | None, labels: Sequence[str]
) -> tuple[list[tables.Task], str | None]:
    """A page of tasks, oldest first.

    Args:
        session: Where to read.
        page: Which page.
        family: Only tasks of this family.
        split: Only tasks of this split.
        labels: Only tasks with all of these, each ``name:value``.

    Raises:
        Invalid: If a label has no colon.
        BadRequest: If the page token is not valid.
    """
    pairs = []
    for label in labels:
        name, colon, value = label.partition(":")
        if not colon:
            raise Invalid("/label", "must be name:value")
        pairs.append((name, value))
    filters = {"list": "tasks", "family": family, "split": split, "labels": sorted(labels)}
    return paginate(session, select_tasks(family, split, pairs), tables.Task.id, page, filters)


def delete_task(session: Session, by: Principal, reference: str) -> None:
    """Hide a task; its name and definition are free again, runs that used it keep it.

    Raises:
        NotFound: If there is none.
        Conflict: If a run that is queued or running was given it.
    """
    exclusive(session, TASKS_LOCK)
    task = get_task(session, reference)
    using = session.scalars(
        select(tables.Run.id)
        .join(tables.RunTask, tables.RunTask.run_id == tables.Run.id)
        .where(tables.RunTask.task_id == task.id, tables.Run.state.in_(("queued", "running")))
        .order_by(tables.Run.id)
        .limit(5)
    ).all()
    if using:
        raise Conflict(f"the task {task.name!r} is in use by: {', '.join(f'run {run}' for run in using)}")
    task.deleted_at = now()
    audit(session, by, "tasks.delete", f"tasks/{task.id}", name=task.name)


def definition_of(row: tables.Task) -> Task:
    """The task that a row holds, as the core knows it."""
    return define_task(row.environment, row.parameters, row.reward, row.discount, row.horizon)


def create_family(session: Session, by: Principal, family: TaskFamily) -> tuple[tables.TaskFamily, bool]:
    """Register a family; its row and whether it is new. The same definition again is the one that stands.

    Raises:
        Conflict: If the name stands with another definition.
    """
    row, created = place_family(session, by, family)
    if row.digest != sha256_of(family.definition()):
        detail = f"the task family {family.name!r} stands with another definition"
        raise Conflict(detail, errors=[FieldError("/name", detail)])
    return row, created


def place_family(session: Session, by: Principal, family: TaskFamily) -> tuple[tables.TaskFamily, bool]:
    """The row of that name, whatever it holds, and whether it was registered just now because there was none."""
    exclusive(session, FAMILIES_LOCK)
    row = _find_family(session, family.name)
    if row is not None:
        return row, False
    row = _add_family(session, by, family, preset=False)
    session.flush()
    return row, True


def get_family(session: Session, name: str) -> tables.TaskFamily:
    """The family of that name.

    Raises:
        NotFound: If there is none.
    """
    row = _find_family(session, name)
    if row is None:
        raise NotFound(f"there is no task family {name!r}")
    return row


def list_families(session: Session, page: Page) -> tuple[list[tables.TaskFamily], str | None]:
    """A page of families, by name."""
    filters = {"list": "task_families"}
    return paginate(session, select(tables.TaskFamily), tables.TaskFamily.name, page, filters)


def family_of(row: tables.TaskFamily) -> TaskFamily:
    """The family that a row holds, as the core knows it."""
    return define_family(row.name, row.environment, row.parameters, row.reward, row.discount, row.horizon)


def install_presets(session: Session) -> None:
    """Add the preset families that do not stand; one that stands is left as it is."""
    exclusive(session, FAMILIES_LOCK)
    standing = set(session.scalars(select(tables.TaskFamily.name)))
    for name, family in PRESETS.items():
        if name not in standing:
            _add_family(session, OPERATOR, family, preset=True)


def _add_family(session: Session, by: Principal, family: TaskFamily, *, preset: bool) -> tables.TaskFamily:
    definition = family.definition()
    row = tables.TaskFamily(
        name=family.name,
        environment=family.environment,
        parameters=definition["parameters"],
        reward=family.reward,
        discount=family.discount,
        horizon=family.horizon,
        preset=preset,
        digest=sha256_of(definition),
    )
    session.add(row)
    audit(session, by, "task-families.create", f"task-families/{family.name}")
    return row


def _find_family(session: Session, name: str) -> tables.TaskFamily | None:
    return session.scalar(select(tables.TaskFamily).where(tables.TaskFamily.name == name))


def _check_families(session: Session, registrations: Sequence[Registration], pointer: Callable[[int], str]) -> None:
    names = {r.family for r in registrations if r.family is not None}
    families = {
        row.name: row for row in session.scalars(select(tables.TaskFamily).where(tables.TaskFamily.name.in_(names)))
    }
    errors = []
    for index, registration in enumerate(registrations):
        if registration.family is None:
            continue
        family = families.get(registration.family)
        if family is None:
            errors.append(FieldError(f"{pointer(index)}/family", f"there is no task family {registration.family!r}"))
        elif family.environment != registration.task.environment:
            detail = f"the tasks of {family.name!r} run in {family.environment}"
            errors.append(FieldError(f"{pointer(index)}/environment", detail))
    if errors:
        raise Invalid.all_of(errors[:MAX_ERRORS])


def _standing(session: Session, column: InstrumentedAttribute[str], values: Iterable[str]) -> Iterable[tables.Task]:
    listed = sorted(set(values))
    for start in range(0, len(listed), _CHUNK):
        statement = select(tables.Task).where(
            column.in_(listed[start : start + _CHUNK]), tables.Task.deleted_at.is_(None)
        )
        yield from session.scalars(statement)


def _row(registration: Registration, digest: str, name: str) -> tables.Task:
    task = registration.task
    return tables.Task(
        id=new_id(),
        name=name,
        environment=task.environment,
        parameters=dict(task.parameters),
        reward=task.reward,
        discount=task.discount,
        horizon=task.horizon,
        family=registration.family,
        split=registration.split,
        labels=dict(registration.labels or {}),
        digest=digest,
    )
