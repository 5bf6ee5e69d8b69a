"""What an evaluation measures, decided when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app import tables
from app.adaptations.service import require_method, require_same_spaces
from app.errors import Invalid, NotFound
from app.evaluations.exposure import Exposure, exposure_of
from app.evaluations.schemas import MULTITASK, SCRATCH, EvaluatedSubject, HeldOutTasks, NewEvaluation
from app.policies.service import get_policy, learner_of, require_settled
from app.registry.service import resolve
from app.runs.service import find_family, select_registered
from app.tasks.service import definition_of
from app.validation import pointer_to
from models.adaptation import InnerLoop
from models.checkpoint import learner_from_json, policy_to_json, to_json
from models.learners import Learner
from models.tasks import TaskBatch
from models.types import InvalidValue, Task

MAX_RUNS = 50_000
"""Adaptations that one evaluation may take."""

MAX_POINTS = 2_000_000
"""Measurements that the learning curves of one method may have, all runs together."""

MAX_TASKS = 1000
"""Tasks that one evaluation may have."""

_MOST_NAMED = 5


def decide(session: Session, request: NewEvaluation) -> dict[str, Any]:
    """What an evaluation that is asked for will measure, so that aliases that move and tasks that go change nothing.

    Returns:
        ``protocol``: the request with every default and with what aliases and selections stood for. ``spec``: what the
        worker needs, with what is known of leakage and what to warn of. ``progress``: how much there is to do.

    Raises:
        Invalid: If a subject or the tasks are unknown, the subjects' spaces differ from the tasks', a method does not
            fit, or it would be more than can be computed.
        InvalidValue: If the tasks run in different environments.
    """
    tasks, asked = _held_out(session, request.tasks)
    names = [each.name for each in tasks]
    TaskBatch.of([each.task for each in tasks], names=names)
    subjects = _subjects(session, request, tasks[0].task)
    first = subjects[0].exposure
    training = _training(first, request)
    _require_methods(request, subjects, tasks + training)
    runs = (len(subjects) * len(tasks) + _trained_alike(subjects) * len(training)) * request.seeds
    total = runs * len(request.methods)
    if total > MAX_RUNS:
        detail = f"the evaluation would take {total} adaptations; at most {MAX_RUNS}: fewer subjects, tasks or seeds"
        raise Invalid("/seeds", detail)
    _require_short_curves(request, runs)
    protocol = request.model_dump(mode="json", exclude={"subjects", "tasks", "methods"})
    protocol |= {
        "subjects": [each.asked for each in subjects if each.asked is not None],
        "multitask": next((each.label for each in subjects if each.kind == MULTITASK), None),
        "tasks": asked,
        "methods": [to_json(method) for method in request.methods],
    }
    spec = {
        "subjects": [each.definition(first) for each in subjects],
        "tasks": [each.definition(first) for each in tasks],
        "training_tasks": [each.definition(first) for each in training],
        "methods": _method_names(request),
        "leakage": [leak for each in subjects if (leak := _leak(each, tasks)) is not None],
        "warnings": _warnings(request, subjects, tasks),
    }
    return {"protocol": protocol, "spec": spec, "progress": {"done": 0, "total": total}}


@dataclass(frozen=True)
class _Subject:
    """A subject, resolved. ``asked`` is how a protocol names it; None for baselines."""

    name: str
    kind: str
    label: str
    learner: Learner[Any]
    exposure: Exposure
    asked: dict[str, Any] | None = None
    version: tables.Version | None = None
    policy: tables.Policy | None = None

    def definition(self, first: Exposure) -> dict[str, Any]:
        """What the worker needs."""
        model, number = None, None
        if self.policy is not None:
            model, number = self.policy.model, self.policy.version
        elif self.version is not None:
            model, number = self.version.model, self.version.number
        return {
            "name": self.name,
            "kind": self.kind,
            "label": self.label,
            "model": model,
            "version": number,
            "policy": None if self.policy is None else self.policy.id,
            "trained_alike": self.exposure.source is not None and self.exposure.source == first.source,
        }


@dataclass(frozen=True)
class _Task:
    """A task of an evaluation, and what it is filed under."""

    name: str
    id: str | None
    task: Task
    family: str | None
    split: str | None

    def definition(self, first: Exposure) -> dict[str, Any]:
        """What the worker needs; ``in_range``: of the first subject's training distribution, where it is known."""
        known = first.family
        return {
            "name": self.name,
            "id": self.id,
            "definition": self.task.definition(),
            "in_range": None if known is None else known.holds(self.task),
        }


def _held_out(session: Session, selection: HeldOutTasks) -> tuple[list[_Task], dict[str, Any]]:
    """The tasks, and how a protocol says them."""
    if selection.family is not None and not selection.registered:
        family, split = find_family(session, selection.family), selection.split or HeldOutTasks.default_split
        drawn = family.sample(split, selection.seed, range(selection.count))
        tasks = [_Task(f"{split}-{i}", None, task, family.name, split) for i, task in enumerate(drawn)]
        asked = {"family": family.name, "split": split, "count": selection.count, "seed": selection.seed}
        return tasks, asked
    rows = select_registered(session, selection)
    if len(rows) > MAX_TASKS:
        raise Invalid("/tasks", f"{len(rows)} tasks are selected; an evaluation takes at most {MAX_TASKS}")
    tasks = [_Task(row.name, row.id, definition_of(row), row.family, row.split) for row in rows]
    return tasks, {"ids": [row.id for row in rows]}


def _training(first: Exposure, request: NewEvaluation) -> list[_Task]:
    """Tasks that the first subject was trained on, some of them if there are many."""
    source, count = first.source, request.training_tasks
    if source is None or not count:
        return []
    if source.family is None or source.split is None:
        trained = [first.tasks[each] for each in source.tasks[:count]]
        return [_Task(f"training-{i}", None, task, None, None) for i, task in enumerate(trained)]
    family = first.families[source.family, source.split]
    drawn = family.sample(source.split, request.seed, range(count))
    return [_Task(f"{source.split}-{i}", None, task, family.name, source.split) for i, task in enumerate(drawn)]


def _subjects(session: Session, request: NewEvaluation, task: Task) -> list[_Subject]:
    subjects = [_resolved(session, asked, pointer_to("subjects", i)) for i, asked in enumerate(request.subjects)]
    names = [each.name for each in subjects]
    for i, name in enumerate(names):
        if name in (*names[:i], SCRATCH, MULTITASK):
            what = "a baseline's" if name in (SCRATCH, MULTITASK) else "another subject's"
            raise Invalid(pointer_to("subjects", i), f"the name {name!r} is {what}; give each a name of its own")
    if request.multitask is not None:
        version = resolve(session, request.multitask, "/multitask")
        learner, label = learner_from_json(version.manifest), f"{version.model}/{version.number}"
        if learner.config.name != MULTITASK:
            detail = f"{label} was made by {learner.config.name}, not by multitask; name it among the subjects"
            raise Invalid("/multitask", detail)
        exposure = exposure_of(session, version, None)
        subjects.append(_Subject(MULTITASK, MULTITASK, label, learner, exposure, version=version))
    if request.scratch:
        subjects.append(_Subject(SCRATCH, SCRATCH, "a new policy", subjects[0].learner, Exposure()))
    for i, each in enumerate(subjects):
        pointer = pointer_to("subjects", i) if each.asked is not None else f"/{each.kind}"
        require_same_spaces(policy_to_json(each.learner.policy), each.label, task, pointer)
    return subjects


def _resolved(session: Session, asked: EvaluatedSubject, pointer: str) -> _Subject:
    if asked.version is not None:
        version = resolve(session, asked.version, pointer)
        label = f"{version.model}/{version.number}"
        name = asked.name or asked.version
        learner, exposure = learner_from_json(version.manifest), exposure_of(session, version, None)
        return _Subject(name, "version", label, learner, exposure, {"name": name, "version": label}, version=version)
    assert asked.policy is not None
    try:
        policy = get_policy(session, asked.policy).policy
    except NotFound as error:
        raise Invalid(pointer, error.detail) from error
    require_settled(session, policy, pointer)
    origin = None if policy.model is None else resolve(session, f"{policy.model}/{policy.version}", pointer)
    exposure = exposure_of(session, origin, policy)
    name, label = asked.name or policy.id, f"policy {policy.id}"
    learner = learner_of(session, policy)
    return _Subject(name, "policy", label, learner, exposure, {"name": name, "policy": policy.id}, policy=policy)


def _require_methods(request: NewEvaluation, subjects: Sequence[_Subject], tasks: Sequence[_Task]) -> None:
    longest = max(each.task.horizon for each in tasks)
    for i, method in enumerate(request.methods):
        for subject in subjects:
            try:
                require_method(method, subject.learner, longest)
            except InvalidValue as error:
                pointer = pointer_to("methods", i) + error.pointer.removeprefix("/method")
                raise Invalid(pointer, f"{subject.label}: {error.detail}") from error


def _require_short_curves(request: NewEvaluation, runs: int) -> None:
    for i, method in enumerate(request.methods):
        if isinstance(method, InnerLoop) or method.environment_steps is None:
            continue
        points = method.environment_steps // method.evaluation_interval
        if runs * points > MAX_POINTS:
            detail = f"{runs} runs measured {points} times each are too much; at most {MAX_POINTS // runs} times"
            raise Invalid(pointer_to("methods", i, "evaluate_every"), detail)


def _trained_alike(subjects: Sequence[_Subject]) -> int:
    first = subjects[0].exposure
    return sum(each.definition(first)["trained_alike"] for each in subjects)


def _method_names(request: NewEvaluation) -> list[str]:
    """What results call each method: its name, and a number where there are several of that name."""
    names = [method.name for method in request.methods]
    return [name if names.count(name) == 1 else f"{name} {names[: i + 1].count(name)}" for i, name in enumerate(names)]


def _leak(subject: _Subject, tasks: Sequence[_Task]) -> dict[str, Any] | None:
    seen = [each.name for each in tasks if subject.exposure.saw(each.task, each.family, each.split)]
    if not seen:
        return None
    named = ", ".join(seen[:_MOST_NAMED]) + (", ..." if len(seen) > _MOST_NAMED else "")
    detail = f"{subject.name} was trained on {len(seen)} of the {len(tasks)} held-out tasks: {named}"
    return {"subject": subject.name, "tasks": seen, "detail": detail}


def _warnings(request: NewEvaluation, subjects: Sequence[_Subject], tasks: Sequence[_Task]) -> list[str]:
    """What an expert would say of the protocol before seeing a number."""
    said = [warning for each in subjects[1:] if (warning := _unequal(subjects[0], each, tasks)) is not None]
    if isinstance(request.tasks.seed, int) and not request.tasks.registered:
        drawn = (request.tasks.family, request.tasks.split, request.tasks.seed)
        said += [
            f"{each.name} is the best of its run by its return on these very held-out tasks ({drawn[0]}, split "
            f"{drawn[1]}, seed {drawn[2]}): choose another seed for an unbiased estimate"
            for each in subjects
            if drawn in each.exposure.held_out
        ]
    first = subjects[0]
    if first.exposure.family is not None:
        outside = sum(not first.exposure.family.holds(each.task) for each in tasks)
        if outside:
            range_ = f"the range that {first.name} was trained in ({first.exposure.family.name})"
            said.append(f"{outside} of the {len(tasks)} tasks are outside {range_}")
    if request.seeds == 1:
        said.append("there is one seed: intervals tell of these tasks, not of another run of the same evaluation")
    if any(getattr(method, "seconds", None) is not None for method in request.methods):
        said.append("a budget in seconds depends on the machine: sent again, the protocol may give other numbers")
    return said


def _unequal(first: _Subject, other: _Subject, tasks: Sequence[_Task]) -> str | None:
    """What to say where only one of two was trained on the tasks, or in their range."""
    if other.kind == SCRATCH:
        return None

    def trained(name: str, count: Callable[[Exposure], int]) -> str | None:
        ours, theirs = count(first.exposure), count(other.exposure)
        if bool(ours) == bool(theirs):
            return None
        one, two, amount = (first, other, ours) if ours else (other, first, theirs)
        return f"only {one.name} was trained {name} ({amount} of {len(tasks)} tasks), {two.name} was not"

    def exact(exposure: Exposure) -> int:
        return sum(exposure.saw(each.task, each.family, each.split) for each in tasks)

    def near(exposure: Exposure) -> int:
        family = exposure.family
        return 0 if family is None else sum(family.holds(each.task) for each in tasks)

    return trained("on these tasks", exact) or trained("on tasks of this kind", near)
