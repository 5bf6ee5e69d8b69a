"""Asking for adaptations and finding them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import tables
from app.adaptations.schemas import NewAdaptation
from app.auth import Principal, audit
from app.database import new_id
from app.errors import Invalid, NotFound
from app.pagination import Page, paginate
from app.registry.service import resolve
from app.tasks.schemas import TaskDefinition
from app.tasks.service import definition_of, get_task
from models.adaptation import require_memory, require_rate
from models.checkpoint import learner_from_json, space_to_json, to_json
from models.learners import MAML, Learner, MAMLConfig
from models.policy import Policy, PolicyConfig
from models.tasks import define_task, environment_of
from models.types import InvalidValue, Task


def create_adaptation(session: Session, by: Principal, request: NewAdaptation) -> tables.Adaptation:
    """Queue an adaptation. What it starts from is decided now: an alias that moves later changes nothing.

    Raises:
        Invalid: If the model or the task is unknown, or their spaces differ.
        InvalidValue: If an inline task or a new policy's architecture is not valid, the method's episodes do not fit in
            memory, or it gives a rate to a version that has learned its own.
    """
    task, task_id = _task(session, request.task)
    version = None
    if request.model is not None:
        if request.policy is not None:
            raise Invalid("/policy", "goes with no model: a version has an architecture already")
        version = resolve(session, request.model)
        _require_same_spaces(version, task)
        learner = learner_from_json(version.manifest)
    else:
        learner = learner_from_scratch(request.policy or PolicyConfig(), task)
    require_rate(learner, request.method)
    require_memory(request.method.episodes, task.horizon, "/method/episodes", sum(learner.policy.config.hidden))
    require_memory(request.method.evaluation_episodes, task.horizon, "/method/evaluation_episodes")
    adaptation = tables.Adaptation(
        id=new_id(),
        request=request.model_dump(mode="json"),
        model=None if version is None else version.model,
        version=None if version is None else version.number,
        task_id=task_id,
        task_definition=task.definition(),
        method=to_json(request.method),
        seed=request.seed,
        ttl_seconds=request.ttl_seconds,
    )
    session.add(adaptation)
    audit(session, by, "adaptations.create", f"adaptations/{adaptation.id}", model=request.model)
    session.flush()
    return adaptation


def get_adaptation(session: Session, adaptation_id: str) -> tables.Adaptation:
    """The adaptation of that id.

    Raises:
        NotFound: If there is none.
    """
    adaptation = session.get(tables.Adaptation, adaptation_id)
    if adaptation is None:
        raise NotFound(f"there is no adaptation {adaptation_id!r}")
    return adaptation


def list_adaptations(session: Session, page: Page) -> tuple[list[tables.Adaptation], str | None]:
    """A page of adaptations, newest first."""
    filters = {"list": "adaptations"}
    statement = select(tables.Adaptation)
    return paginate(session, statement, tables.Adaptation.id, page, filters, newest_first=True)


def read_task(definition: Mapping[str, Any]) -> Task:
    """The inverse of :meth:`models.types.Task.definition`."""
    reward = definition["reward"]
    return define_task(**{**definition, "reward": None if reward is None else reward["expression"]})


def learner_from_scratch(config: PolicyConfig, task: Task) -> Learner[Any]:
    """What adapts a new policy of this architecture to a task: MAML's inner loop, as it is by default.

    Raises:
        InvalidValue: At ``/policy/...``, if the architecture does not fit the task's spaces or the inner loop.
    """
    environment = environment_of(task)
    return MAML(MAMLConfig(), Policy(config, environment.observation_space, environment.action_space))


def _task(session: Session, reference: str | TaskDefinition) -> tuple[Task, str | None]:
    if isinstance(reference, str):
        try:
            row = get_task(session, reference)
        except NotFound as error:
            raise Invalid("/task", error.detail) from error
        return definition_of(row), row.id
    try:
        return read_task(reference.model_dump()), None
    except InvalidValue as error:
        raise InvalidValue(f"/task{error.pointer}", error.detail) from error


def _require_same_spaces(version: tables.Version, task: Task) -> None:
    environment, manifest = environment_of(task), version.manifest
    spaces = {
        "observation_space": space_to_json(environment.observation_space),
        "action_space": space_to_json(environment.action_space),
    }
    # The bounds of observations are no business of a network's.
    same_size = len(manifest["observation_space"]["low"]) == len(spaces["observation_space"]["low"])
    if same_size and manifest["action_space"] == spaces["action_space"]:
        return
    name, where = f"{version.model}/{version.number}", f"the task runs in {task.environment}, which"
    raise Invalid("/task", f"{name} {_describe(manifest)}, but {where} {_describe(spaces)}")


def _describe(spaces: Mapping[str, Any]) -> str:
    size, actions = len(spaces["observation_space"]["low"]), spaces["action_space"]
    if actions["type"] == "discrete":
        return f"has observations of {size} numbers and {actions['n']} discrete actions"
    bounds = f"from {actions['low']} to {actions['high']}"
    return f"has observations of {size} numbers and actions of {len(actions['low'])} numbers {bounds}"
