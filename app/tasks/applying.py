"""Definitions that are to stand: what of them is new, what stands already, and what stands against them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.orm import Session

from app import tables
from app.auth import Principal
from app.database import exclusive
from app.errors import Conflict
from app.tasks.service import FAMILIES_LOCK, TASKS_LOCK, Registration, insert_tasks, place_family, place_tasks
from app.validation import MAX_ERRORS, FieldError, pointer_to
from models.families import TaskFamily
from models.types import canonical_json, sha256_of

Outcome = Literal["created", "unchanged", "conflict"]
"""What a definition comes to."""


@dataclass(frozen=True)
class Difference:
    """A member that does not stand as it is wanted.

    Attributes:
        pointer: JSON pointer to it, within the definition.
        expected: What the definition says, defaults filled in.
        stands: What stands; None where it has no such member.
    """

    pointer: str
    expected: Any
    stands: Any


@dataclass(frozen=True)
class Finding:
    """What one definition comes to.

    Attributes:
        name: Of what stands now, would stand, or stands against it.
        id: Of the task; None for a family, and for a task that does not stand.
        outcome: What it comes to.
        differences: Why it is a conflict.
    """

    name: str
    id: str | None
    outcome: Outcome
    differences: tuple[Difference, ...]


def apply_definitions(
    session: Session,
    by: Principal,
    families: Sequence[TaskFamily],
    tasks: Sequence[Registration],
    *,
    dry_run: bool,
) -> tuple[list[Finding], list[Finding]]:
    """Make families and tasks stand as they are defined, all of them or none; of each what it comes to.

    Stricter than registering: what a definition says of a task's name and labels must hold as well, because others
    find the task by them. What it leaves out is not compared.

    Args:
        session: A writing one, without changes so far.
        by: Who applies them.
        families: Registered first, so that the tasks may be theirs.
        tasks: The tasks.
        dry_run: Do all of it, then undo it; conflicts are findings then.

    Raises:
        Invalid: If a task's family is unknown, or another environment's.
        Conflict: If anything stands against a definition, and this is no dry run.
    """
    exclusive(session, FAMILIES_LOCK, TASKS_LOCK)
    of_families = [_find_family(session, by, family) for family in families]
    placed = place_tasks(session, tasks, "/tasks/{}".format)
    of_tasks = [_find_task(task, row, new, dry_run) for task, (row, new) in zip(tasks, placed, strict=True)]
    conflicts = [*_errors("/families", of_families), *_errors("/tasks", of_tasks)]
    if conflicts and not dry_run:
        raise Conflict(f"{conflicts[0].pointer}: {conflicts[0].detail}", errors=conflicts[:MAX_ERRORS])
    if not conflicts:
        insert_tasks(session, by, placed)
    if dry_run:
        session.rollback()
    return of_families, of_tasks


def _find_family(session: Session, by: Principal, family: TaskFamily) -> Finding:
    row, new = place_family(session, by, family)
    if new:
        return Finding(row.name, None, "created", ())
    found = tuple(_differences(family.definition(), _definition_of(row)))
    same = row.digest == sha256_of(family.definition())
    return Finding(row.name, None, "unchanged" if same else "conflict", found)


def _find_task(task: Registration, row: tables.Task, new: bool, dry_run: bool) -> Finding:
    if new:
        return Finding(row.name, None if dry_run else row.id, "created", ())
    labels = dict(task.labels or {})
    expected = {
        "name": task.name or row.name,
        **task.task.definition(),
        "family": task.family,
        "split": task.split,
        "labels": labels,
    }
    stands = {
        **_definition_of(row),
        "family": row.family,
        "split": row.split,
        "labels": {name: row.labels.get(name) for name in labels},
    }
    found = tuple(_differences(expected, stands))
    same = row.digest == task.digest and not found
    return Finding(row.name, row.id, "unchanged" if same else "conflict", found)


def _definition_of(row: tables.Task | tables.TaskFamily) -> dict[str, Any]:
    return {
        "name": row.name,
        "environment": row.environment,
        "parameters": row.parameters,
        "reward": None if row.reward is None else {"expression": row.reward},
        "discount": row.discount,
        "horizon": row.horizon,
    }


def _differences(expected: Mapping[str, Any], stands: Mapping[str, Any]) -> Iterator[Difference]:
    for member, value in expected.items():
        if member == "parameters" and expected["environment"] != stands["environment"]:
            continue  # of another environment: nothing to compare
        if member not in ("parameters", "labels"):
            if value != stands[member]:
                yield Difference(pointer_to(member), value, stands[member])
            continue
        for name in sorted({*value, *stands[member]}):
            ours, theirs = value.get(name), stands[member].get(name)
            if ours != theirs:
                yield Difference(pointer_to(member, name), ours, theirs)


def _errors(place: str, findings: Sequence[Finding]) -> Iterator[FieldError]:
    for index, finding in enumerate(findings):
        if finding.outcome == "conflict":
            for each in finding.differences or (Difference("", None, None),):
                yield FieldError(f"{place}/{index}{each.pointer}", _sentence(each))


def _sentence(difference: Difference) -> str:
    if not difference.pointer:
        return "stands with another definition"
    return f"expected {canonical_json(difference.expected)}, stands {canonical_json(difference.stands)}"
