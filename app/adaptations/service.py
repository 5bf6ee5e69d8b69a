"""Asking for adaptations and finding them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import tables
from app.adaptations import remote
from app.adaptations.origin import learner_from_scratch
from app.adaptations.schemas import NewAdaptation, NewAdaptations, RemoteReference, TaskReference
from app.auth import Principal, audit
from app.database import new_id
from app.errors import Invalid, NotFound
from app.pagination import Page, paginate
from app.policies.service import get_policy, learner_of, require_settled
from app.registry.service import resolve
from app.store import ArtefactStore
from app.tasks.service import definition_of, get_task
from app.validation import MAX_ERRORS, FieldError
from models.adaptation import InnerLoop, require_memory, require_rate
from models.checkpoint import from_json, learner_from_json, space_to_json, to_json
from models.finetune import CONFIGS, MethodConfig, require_fit
from models.learners import Learner
from models.policy import PolicyConfig
from models.remote import define_remote
from models.tasks import define_task, environment_of
from models.types import InvalidValue, Task

MAX_STEPS_TOGETHER = 5_000_000
"""Steps that adaptations which are computed together may hold in memory."""


def create_adaptation(
    session: Session, store: ArtefactStore, by: Principal, request: NewAdaptation
) -> tables.Adaptation:
    """Queue an adaptation. What it starts from is decided now: an alias that moves later changes nothing.

    One to a task whose environment is with the client has its policy at once, and collects episodes.

    Raises:
        Corrupt: If what a remote one starts from is not what was stored.
        Invalid: If the model, the policy or the task is unknown, or their spaces differ.
        InvalidValue: If an inline task or a new policy's architecture is not valid, the method does not fit the task's
            actions or in memory, or gives a rate to a version that has learned its own.
    """
    asked = request.model_dump(mode="json")
    if isinstance(request.task, RemoteReference):
        return _create_remote(session, store, by, request, asked)
    [row] = _create(session, by, request, [(request.task, "/task")], [asked])
    return row


def create_adaptations(session: Session, by: Principal, request: NewAdaptations) -> list[tables.Adaptation]:
    """Queue adaptations of the same start by the same method, all or none.

    Those whose tasks are of one environment are computed together, as far as memory goes.

    Raises:
        Invalid: As :func:`create_adaptation`, with a pointer to each task at fault.
        InvalidValue: As there.
    """
    if request.seed + len(request.tasks) > 2**63:
        raise Invalid("/seed", f"must leave room for {len(request.tasks)} seeds below 2^63, one for each task")
    shared = request.model_dump(mode="json", exclude={"tasks"})
    tasks = request.model_dump(mode="json", include={"tasks"})["tasks"]
    asked = [shared | {"task": task, "seed": request.seed + place} for place, task in enumerate(tasks)]
    references = [(task, f"/tasks/{place}") for place, task in enumerate(request.tasks)]
    return _create(session, by, request, references, asked)


def list_adaptations(session: Session, page: Page) -> tuple[list[tables.Adaptation], str | None]:
    """A page of adaptations, newest first."""
    filters = {"list": "adaptations"}
    statement = select(tables.Adaptation)
    return paginate(session, statement, tables.Adaptation.id, page, filters, newest_first=True)


def read_task(definition: Mapping[str, Any]) -> Task:
    """The inverse of :meth:`models.types.Task.definition`."""
    reward = definition["reward"]
    return define_task(**{**definition, "reward": None if reward is None else reward["expression"]})


def read_method(definition: Mapping[str, Any]) -> InnerLoop | MethodConfig:
    """A method from what was written down of it, by its name."""
    if definition["name"] == "inner-loop":
        return from_json(InnerLoop, definition)
    return from_json(CONFIGS[definition["name"]], definition)


def find_task(session: Session, reference: TaskReference, pointer: str) -> tuple[Task, str | None]:
    """A task that a request refers to by id, name or definition, and its id where it is registered.

    Raises:
        Invalid: At ``pointer``, if there is none of that id or name, or its environment is with the client.
        InvalidValue: Below it, if the definition is not valid.
    """
    if isinstance(reference, str):
        try:
            row = get_task(session, reference)
        except NotFound as error:
            raise Invalid(pointer, error.detail) from error
        return definition_of(row), row.id
    if isinstance(reference, RemoteReference):
        detail = "must be a task of the service's own here; POST /v1/adaptations adapts to one remote task at a time"
        raise Invalid(f"{pointer}/remote", detail)
    try:
        return read_task(reference.model_dump()), None
    except InvalidValue as error:
        raise InvalidValue(f"{pointer}{error.pointer}", error.detail) from error


def require_same_spaces(theirs: Mapping[str, Any], name: str, task: Task, pointer: str) -> None:
    """Refuse to take what acts in some spaces to a task of others.

    Args:
        theirs: The spaces, as in a manifest.
        name: What has them.
        task: Where it is to act.
        pointer: Where in the request that is said.

    Raises:
        Invalid: At the pointer; describes both.
    """
    environment = environment_of(task)
    spaces = {
        "observation_space": space_to_json(environment.observation_space),
        "action_space": space_to_json(environment.action_space),
    }
    _require_equal(theirs, name, spaces, f"the task runs in {task.environment}, which", pointer)


def _require_equal(theirs: Mapping[str, Any], name: str, spaces: Mapping[str, Any], where: str, pointer: str) -> None:
    # The bounds of observations are no business of a network's.
    same_size = len(theirs["observation_space"]["low"]) == len(spaces["observation_space"]["low"])
    if not same_size or theirs["action_space"] != spaces["action_space"]:
        raise Invalid(pointer, f"{name} {_describe(theirs)}, but {where} {_describe(spaces)}")


def require_method(method: InnerLoop | MethodConfig, learner: Learner[Any], horizon: int) -> None:
    """Refuse a method that the core would refuse.

    Raises:
        InvalidValue: At ``/method/...``.
    """
    if isinstance(method, InnerLoop):
        require_rate(learner, method)
        require_memory(method.episodes, horizon, "/method/episodes", sum(learner.policy.config.hidden))
        require_memory(method.evaluation_episodes, horizon, "/method/evaluation_episodes")
    else:
        require_fit(method, learner.policy, horizon)


def most_together(method: Mapping[str, Any], horizon: int) -> int:
    """How many tasks of that horizon can be adapted to in one computation, as far as memory goes."""
    return max(1, MAX_STEPS_TOGETHER // _steps_in_memory(method, horizon))


def _create(
    session: Session,
    by: Principal,
    request: NewAdaptation | NewAdaptations,
    references: Sequence[tuple[TaskReference, str]],
    asked: Sequence[dict[str, Any]],
) -> list[tables.Adaptation]:
    start = _start(session, request)
    rows: list[tables.Adaptation] = []
    errors: list[FieldError] = []
    for (reference, pointer), body in zip(references, asked, strict=True):
        try:
            task, task_id = find_task(session, reference, pointer)
            _require_fit(request, start, task, pointer)
        except Invalid as error:
            errors += error.errors
            continue
        except InvalidValue as error:
            errors.append(FieldError(error.pointer, error.detail))
            continue
        rows.append(start.adaptation(request, body, task.definition(), task_id))
    if errors:
        raise Invalid.all_of(list(dict.fromkeys(errors))[:MAX_ERRORS])
    _lead(rows)
    session.add_all(rows)
    for row in rows:
        audit(session, by, "adaptations.create", f"adaptations/{row.id}", model=request.model)
    session.flush()
    return rows


@dataclass(frozen=True)
class _Start:
    """What adaptations begin with: a version's learner, a policy, or (with neither) a new policy's architecture."""

    model: str | None = None
    version: int | None = None
    policy_id: str | None = None
    spaces: Mapping[str, Any] | None = None
    name: str = ""
    learner: Learner[Any] | None = None
    architecture: PolicyConfig | None = None

    def adaptation(
        self,
        request: NewAdaptation | NewAdaptations,
        body: Mapping[str, Any],
        task: Mapping[str, Any],
        task_id: str | None,
    ) -> tables.Adaptation:
        """A new row."""
        return tables.Adaptation(
            id=new_id(),
            request=body,
            model=self.model,
            version=self.version,
            start_policy_id=self.policy_id,
            task_id=task_id,
            task_definition=task,
            method=to_json(request.method),
            seed=body["seed"],
            ttl_seconds=request.ttl_seconds,
        )


def _start(session: Session, request: NewAdaptation | NewAdaptations) -> _Start:
    if request.model is not None:
        if request.policy is not None:
            raise Invalid("/policy", "goes with no model: a version has a policy already")
        version = resolve(session, request.model)
        name, learner = f"{version.model}/{version.number}", learner_from_json(version.manifest)
        return _Start(version.model, version.number, None, version.manifest, name, learner)
    if isinstance(request.policy, str):
        try:
            policy = get_policy(session, request.policy).policy
        except NotFound as error:
            raise Invalid("/policy", error.detail) from error
        require_settled(session, policy, "/policy")
        name, learner = f"policy {policy.id}", learner_of(session, policy)
        return _Start(policy.model, policy.version, policy.id, policy.spec, name, learner)
    return _Start(architecture=request.policy)


def _require_fit(request: NewAdaptation | NewAdaptations, start: _Start, task: Task, pointer: str) -> None:
    """Refuse what the core would refuse."""
    if start.spaces is not None:
        require_same_spaces(start.spaces, start.name, task, pointer)
    learner = start.learner or learner_from_scratch(start.architecture or PolicyConfig(), environment_of(task))
    require_method(request.method, learner, task.horizon)


def _create_remote(
    session: Session, store: ArtefactStore, by: Principal, request: NewAdaptation, asked: Mapping[str, Any]
) -> tables.Adaptation:
    start, given = _start(session, request), asked["task"]["remote"]
    spaces = {name: given[name] for name in ("observation_space", "action_space")}
    try:
        task = define_remote(**spaces, discount=given["discount"], horizon=given["horizon"])
    except InvalidValue as error:
        raise InvalidValue(f"/task/remote{error.pointer}", error.detail) from error
    definition = task.definition()
    if start.spaces is not None:
        _require_equal(start.spaces, start.name, definition, "the task", "/task/remote")
    remote.require_remote_method(request.method)
    learner = start.learner or learner_from_scratch(start.architecture or PolicyConfig(), task)
    # There is nothing to evaluate in.
    require_method(replace(request.method, evaluation_episodes=1), learner, task.horizon)
    definition |= {"reward_seconds": given["reward_seconds"]}
    row = start.adaptation(request, asked, {"remote": definition}, None)
    remote.begin(session, store, row, task)
    audit(session, by, "adaptations.create", f"adaptations/{row.id}", model=request.model)
    session.flush()
    return row


def _lead(rows: Sequence[tables.Adaptation]) -> None:
    """Have adaptations whose tasks are of one environment computed together, so many at a time as fit in memory."""
    groups: dict[tuple[str, ...], list[tables.Adaptation]] = {}
    for row in rows:
        environment = environment_of(read_task(row.task_definition))
        groups.setdefault(
            (environment.id, str(environment.observation_space), str(environment.action_space)), []
        ).append(row)
    for group in groups.values():
        horizon = max(row.task_definition["horizon"] for row in group)
        most = most_together(group[0].method, horizon)
        for place, row in enumerate(group):
            if place % most:
                row.lead_id = group[place - place % most].id


def _steps_in_memory(method: Mapping[str, Any], horizon: int) -> int:
    """Steps of one task that a method holds in memory at a time, evaluations included."""
    evaluated = method["evaluation_episodes"] * horizon
    if method["name"] == "inner-loop":
        return int(max(evaluated, method["episodes"] * horizon))
    kept = method.get("buffer_size", method["parallel_episodes"] * method["steps"])
    return int(max(evaluated, kept))


def _describe(spaces: Mapping[str, Any]) -> str:
    size, actions = len(spaces["observation_space"]["low"]), spaces["action_space"]
    if actions["type"] == "discrete":
        return f"has observations of {size} numbers and {actions['n']} discrete actions"
    bounds = f"from {actions['low']} to {actions['high']}"
    return f"has observations of {size} numbers and actions of {len(actions['low'])} numbers {bounds}"
