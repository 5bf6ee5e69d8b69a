"""Environments, task families and tasks, as they are known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from headstart_client.errors import FieldError, InvalidResponse, Problem
from headstart_client.wire import Resource, parse, without_none

LARGEST_BATCH = 1000
Reward = str | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Parameter(Resource):
    """One parameter of an environment's dynamics.

    Attributes:
        name: Its key in a task's ``parameters``.
        default: The value a task has that does not say.
        kind: ``number``, ``integer``, ``boolean`` or ``text``.
        low: Smallest value allowed, in ``unit``.
        high: Largest value allowed, in ``unit``.
        unit: Unit of the number; empty where it has none.
        choices: The words a categorical parameter can take; empty for a number.
        description: What it means.
    """

    name: str
    default: bool | int | float | str
    kind: str = "number"
    low: float | None = None
    high: float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Environment(Resource):
    """A model that tasks run in.

    Attributes:
        id: Its name in task definitions: ``CartPole-v1``.
        parameters: The parameters of its dynamics.
        observation_space: Shape and bounds of an observation.
        action_space: The actions it takes.
        default_horizon: Steps after which an episode is cut off, where a task does not say.
        title: What to call it.
        description: What it is and where it comes from.
    """

    id: str
    parameters: tuple[Parameter, ...] = ()
    observation_space: Mapping[str, Any] = field(default_factory=dict)
    action_space: Mapping[str, Any] = field(default_factory=dict)
    default_horizon: int | None = None
    title: str = ""
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskFamily(Resource):
    """A distribution over tasks that share observation and action spaces.

    Attributes:
        name: Its unique name.
        environment: Id of the environment of every task in it.
        parameters: Of each parameter, a constant or ``{"uniform": [low, high]}``, ``{"loguniform": ...}``,
            ``{"choice": [...]}``.
        reward: ``{"expression": ...}``, or ``None`` for the environment's own.
        discount: γ of every task, in (0, 1].
        horizon: Steps after which an episode is cut off.
        preset: Whether the service brought it along.
        recommended: ``{"learner": ..., "policy": ...}`` that a run on it has where it does not say; ``None`` where
            nothing is recommended.
        created_at: When it was registered, UTC.
    """

    name: str
    environment: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reward: Mapping[str, Any] | None = None
    discount: float | None = None
    horizon: int | None = None
    preset: bool = False
    recommended: Mapping[str, Any] | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Task(Resource):
    """One Markov decision process.

    Attributes:
        id: Its unique id.
        name: Its unique name.
        environment: Id of its environment.
        parameters: Every parameter of that environment, defaults filled in.
        reward: ``{"expression": ...}``, or ``None`` for the environment's own.
        discount: γ, in (0, 1].
        horizon: Steps after which an episode is cut off.
        family: Name of the family it belongs to, if any.
        split: ``train``, ``validation`` or ``test``; ``None`` outside of a family.
        labels: Words of the owner's, to find it by.
        digest: sha256 of its definition: the same for the same task.
        created_at: When it was registered, UTC.
    """

    id: str
    name: str
    environment: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reward: Mapping[str, Any] | None = None
    discount: float | None = None
    horizon: int | None = None
    family: str | None = None
    split: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    digest: str | None = None
    created_at: datetime | None = None

    def definition(self) -> dict[str, object]:
        """What registers this task again, here or at another service."""
        return task_definition(
            self.environment,
            name=self.name,
            parameters=self.parameters,
            reward=self.reward,
            discount=self.discount,
            horizon=self.horizon,
            family=self.family,
            split=self.split,
            labels=self.labels or None,
        )


def task_definition(
    environment: str,
    *,
    name: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    reward: Reward | None = None,
    discount: float | None = None,
    horizon: int | None = None,
    family: str | None = None,
    split: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """The JSON object that describes a task; arguments as in :meth:`Tasks.create`."""
    return without_none(
        name=name,
        environment=environment,
        parameters=parameters,
        reward={"expression": reward} if isinstance(reward, str) else reward,
        discount=discount,
        horizon=horizon,
        family=family,
        split=split,
        labels=labels,
    )


def tasks_of(answer: Any) -> list[Task]:
    """The tasks that a service answered.

    Raises:
        InvalidResponse: If it is none.
    """
    if not isinstance(answer, Mapping) or not isinstance(answer.get("tasks"), list):
        raise InvalidResponse("the answer has no list 'tasks'")
    return [parse(Task, task) for task in answer["tasks"]]


def counted_from(problem: Problem, first: int) -> Problem:
    """The problem of one batch, its pointers shifted to count from the first task of all batches."""

    def shifted(text: str) -> str:
        return re.sub(r"^/tasks/(\d+)", lambda found: f"/tasks/{int(found[1]) + first}", text)

    errors = tuple(FieldError(shifted(e.pointer), e.detail) for e in problem.errors)
    detail = shifted(problem.detail)
    listed = [{"pointer": e.pointer, "detail": e.detail} for e in errors]
    raw = {**problem.raw, "detail": detail, "errors": listed}
    return type(problem)(problem.status, problem.title, detail, errors, problem.type, raw)
