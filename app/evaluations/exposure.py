"""What versions and policies were trained on, over all that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import tables
from app.adaptations.remote import is_remote
from app.adaptations.service import read_task
from app.runs.service import read_family
from app.tasks.service import definition_of
from models.families import TaskFamily
from models.types import Task, sha256_of


@dataclass
class Exposure:
    """What was seen in training.

    Attributes:
        families: Fresh tasks of these were drawn: the family, by its name and the split.
        tasks: Single tasks that were trained on, or adapted to, by the digest of their definition.
        held_out: Held-out tasks that the best version was chosen by: family, split and seed.
        family: The distribution of the training tasks nearest in its past, where it is known.
        source: Of that training: what to draw training tasks from.
    """

    families: dict[tuple[str, str], TaskFamily] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    held_out: set[tuple[str, str, int]] = field(default_factory=set)
    family: TaskFamily | None = None
    source: TrainingSource | None = None

    def saw(self, task: Task, family: str | None, split: str | None) -> bool:
        """Whether it was trained on a task, which is filed under a family and a split."""
        if digest(task) in self.tasks or (family, split) in self.families:
            return True
        return any(seen.is_finite and seen.holds(task) for seen in self.families.values())


@dataclass(frozen=True)
class TrainingSource:
    """Where training tasks came from: fresh ones of a family's split, or some that were registered."""

    family: str | None
    split: str | None
    tasks: tuple[str, ...]


def digest(task: Task) -> str:
    """What makes two tasks one."""
    return sha256_of(task.definition())


def exposure_of(session: Session, version: tables.Version | None, policy: tables.Policy | None) -> Exposure:
    """What a version was trained on, or a policy."""
    seen = Exposure()
    if policy is not None:
        _add_policy(session, policy, seen)
    for each in _ancestry(session, version):
        _add_version(session, each, seen)
    return seen


def _ancestry(session: Session, version: tables.Version | None) -> Iterator[tables.Version]:
    while version is not None:
        yield version
        version = session.get(tables.Version, version.parent_id) if version.parent_id else None


def _add_version(session: Session, version: tables.Version, seen: Exposure) -> None:
    manifest = version.manifest
    if task := manifest.get("task"):
        _add_adapted(task, seen)
    if policy := session.get(tables.Policy, manifest.get("policy_id") or ""):
        _add_policy(session, policy, seen)
    selection, definition = manifest.get("tasks"), manifest.get("family")
    family = None if definition is None else read_family(definition)
    seen.family = seen.family or family
    source = None
    if family is not None and selection and selection.get("family") and not selection.get("registered"):
        split = selection["split"]
        seen.families[family.name, split] = family
        source = TrainingSource(family.name, split, ())
    elif version.run_id is not None:
        of_run = tables.RunTask.run_id == version.run_id
        joined = select(tables.Task).join(tables.RunTask, tables.RunTask.task_id == tables.Task.id).where(of_run)
        digests = [_add_task(definition_of(row), seen) for row in session.scalars(joined)]
        source = TrainingSource(None, None, tuple(sorted(digests)))
    seen.source = seen.source or source
    if family is not None and (evaluation := manifest.get("evaluation")):
        seen.held_out.add((family.name, evaluation["split"], manifest["seed"]))


def _add_policy(session: Session, policy: tables.Policy, seen: Exposure) -> None:
    current: tables.Policy | None = policy
    while current is not None:
        adaptation = session.get(tables.Adaptation, current.adaptation_id or "")
        current = None
        if adaptation is not None:
            _add_adapted(adaptation.task_definition, seen)
            current = session.get(tables.Policy, adaptation.start_policy_id or "")


def _add_adapted(definition: Mapping[str, Any], seen: Exposure) -> None:
    # Of an environment that is with a client nothing is known that a task could be compared with.
    if not is_remote(definition):
        _add_task(read_task(definition), seen)


def _add_task(task: Task, seen: Exposure) -> str:
    seen.tasks[digest(task)] = task
    return digest(task)
