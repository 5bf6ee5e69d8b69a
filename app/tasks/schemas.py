"""Environments, task families and tasks on the wire."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, Strict, StringConstraints

from app import tables
from app.tasks.applying import Finding, Outcome
from app.tasks.examples import APPLIED, ENVIRONMENT, FAMILY, NEW_FAMILY, NEW_TASK, TASK
from app.tasks.service import Registration
from app.validation import Name, Number, Schema, Whole
from models.checkpoint import space_to_json, to_json
from models.environments import Environment
from models.families import TaskFamily, define_family
from models.presets import RECOMMENDED
from models.tasks import define_task

Split = Literal["train", "validation", "test"]
"""A part of a task family."""

FamilyName = Annotated[Name, Field(max_length=90)]
"""Shorter than other names, so that the names of sampled tasks can start with it."""

LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]

LabelValue = Annotated[str, StringConstraints(max_length=256)]


def _few(labels: dict[str, str]) -> dict[str, str]:
    if len(labels) > 32:
        raise ValueError("at most 32 labels")
    return labels


Labels = Annotated[dict[LabelName, LabelValue], AfterValidator(_few)]
"""What a caller files a task under: at most 32 names, each with a value."""


class Reward(Schema):
    """A reward function: arithmetic over observation, action, next_observation, reward and terminated."""

    expression: str


class ParameterBody(Schema):
    """One parameter of an environment: a number from low to high, a truth value, a text, or one of the choices."""

    name: str
    default: bool | int | float | str
    kind: Literal["number", "integer", "boolean", "text"]
    low: float | None
    high: float | None
    unit: str
    description: str
    choices: list[str]


class EnvironmentBody(Schema):
    """An environment model, with what its tasks may set."""

    model_config = ConfigDict(json_schema_extra={"examples": [ENVIRONMENT]})

    id: str
    title: str
    description: str
    parameters: list[ParameterBody]
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    default_horizon: int

    @classmethod
    def of(cls, environment: Environment) -> EnvironmentBody:
        """The wire form of an environment."""
        return cls(
            id=environment.id,
            title=environment.title,
            description=environment.description,
            parameters=[
                ParameterBody(
                    name=each.name,
                    default=each.default,
                    kind=each.kind,
                    low=_bound(each.low),
                    high=_bound(each.high),
                    unit=each.unit,
                    description=each.description,
                    choices=list(each.choices),
                )
                for each in environment.parameters
            ],
            observation_space=space_to_json(environment.observation_space),
            action_space=space_to_json(environment.action_space),
            default_horizon=environment.default_horizon,
        )


def _bound(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Environments(Schema):
    """A page of environments."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"environments": [ENVIRONMENT], "next_page_token": None}]}
    )

    environments: list[EnvironmentBody]
    next_page_token: str | None


class NewFamily(Schema):
    """A task family that is asked for; parameters that are left out take the environment's default."""

    model_config = ConfigDict(json_schema_extra={"examples": [NEW_FAMILY]})

    name: FamilyName
    environment: str
    parameters: Annotated[dict[str, Any], Field(default_factory=dict)]
    reward: Reward | None = None
    discount: Number = 0.99
    horizon: Whole | None = None

    def family(self) -> TaskFamily:
        """The family that it describes, checked and completed."""
        reward = None if self.reward is None else self.reward.expression
        return define_family(self.name, self.environment, self.parameters, reward, self.discount, self.horizon)


class Recommendation(Schema):
    """The learner and the policy that a run on a family has where it does not say."""

    learner: dict[str, Any]
    policy: dict[str, Any]

    @classmethod
    def of(cls, family: tables.TaskFamily) -> Recommendation | None:
        """What is recommended for a family; None where nothing is."""
        known = RECOMMENDED.get(family.name)
        return cls(learner=to_json(known.learner), policy=to_json(known.policy)) if known else None


class FamilyBody(Schema):
    """A task family."""

    model_config = ConfigDict(json_schema_extra={"examples": [FAMILY]})

    name: str
    environment: str
    parameters: dict[str, Any]
    reward: Reward | None
    discount: float
    horizon: int
    preset: bool
    recommended: Recommendation | None
    created_at: datetime

    @classmethod
    def of(cls, row: tables.TaskFamily) -> FamilyBody:
        """The wire form of a row."""
        return cls(
            name=row.name,
            environment=row.environment,
            parameters=row.parameters,
            reward=_reward(row.reward),
            discount=row.discount,
            horizon=row.horizon,
            preset=row.preset,
            recommended=Recommendation.of(row),
            created_at=row.created_at,
        )


class Families(Schema):
    """A page of task families."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"task_families": [FAMILY], "next_page_token": None}]})

    task_families: list[FamilyBody]
    next_page_token: str | None


class SampleRequest(Schema):
    """Which tasks of a family to register: the first ``count`` of the endless list that seed and split name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"count": 20, "seed": 0, "split": "train"}]})

    count: Annotated[Whole, Field(ge=1, le=1000)]
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    split: Split = "train"


class TaskDefinition(Schema):
    """What a task is, registered or not; parameters that are left out take the environment's default."""

    environment: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    reward: Reward | None = None
    discount: Number = 0.99
    horizon: Whole | None = None


class NewTask(Schema):
    """A task that is asked for; parameters that are left out take the environment's default."""

    model_config = ConfigDict(json_schema_extra={"examples": [NEW_TASK]})

    name: Name | None = None
    environment: str
    parameters: Annotated[dict[str, Any], Field(default_factory=dict)]
    reward: Reward | None = None
    discount: Number = 0.99
    horizon: Whole | None = None
    family: str | None = None
    split: Split | None = None
    labels: Annotated[Labels, Field(default_factory=dict)]

    def registration(self) -> Registration:
        """The task that it describes, checked and completed, and what it is to be filed under."""
        reward = None if self.reward is None else self.reward.expression
        task = define_task(self.environment, self.parameters, reward, self.discount, self.horizon)
        split = self.split or ("train" if self.family is not None else None)
        return Registration(task, self.name, self.family, split, self.labels)


class NewTasks(Schema):
    """Tasks that are asked for together: all are registered, or none."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tasks": [NEW_TASK]}]})

    tasks: Annotated[list[NewTask], Field(min_length=1, max_length=1000)]


class Definitions(Schema):
    """Families and tasks that are to stand as they are defined here, all or none; the tasks may be of the families."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "families": [
                        {"name": "cartpole-long", "environment": "CartPole-v1", "parameters": {"length": 1.0}}
                    ],
                    "tasks": [{"name": "long", "environment": "CartPole-v1", "parameters": {"length": 1.0}}],
                    "dry_run": True,
                }
            ]
        }
    )

    families: Annotated[list[NewFamily], Field(default_factory=list, max_length=1000)]
    tasks: Annotated[list[NewTask], Field(default_factory=list, max_length=10_000)]
    dry_run: Annotated[bool, Strict()] = False


class DifferenceBody(Schema):
    """A member that does not stand as it is wanted: ``pointer`` to it within the definition, and both values."""

    pointer: str
    expected: Any
    stands: Any


class FindingBody(Schema):
    """What one definition comes to: ``created``, ``unchanged``, or ``conflict`` with what differs.

    ``name`` and ``id`` are those of what stands or would stand; a family, and a task that does not stand, has no id.
    """

    name: str
    id: str | None
    outcome: Outcome
    differences: list[DifferenceBody]


class Applied(Schema):
    """What definitions come to, in the order in which they came; ``applied`` is false after a dry run."""

    model_config = ConfigDict(json_schema_extra={"examples": [APPLIED]})

    applied: bool
    families: list[FindingBody]
    tasks: list[FindingBody]

    @classmethod
    def of(cls, applied: bool, families: Sequence[Finding], tasks: Sequence[Finding]) -> Applied:
        """The wire form of findings."""
        return cls(
            applied=applied,
            families=[FindingBody.model_validate(each) for each in families],
            tasks=[FindingBody.model_validate(each) for each in tasks],
        )


class TaskBody(Schema):
    """A registered task. ``digest`` is the sha256 of what it is: definition, family and split."""

    model_config = ConfigDict(json_schema_extra={"examples": [TASK]})

    id: str
    name: str
    environment: str
    parameters: dict[str, bool | int | float | str]
    reward: Reward | None
    discount: float
    horizon: int
    family: str | None
    split: str | None
    labels: dict[str, str]
    digest: str
    created_at: datetime

    @classmethod
    def of(cls, row: tables.Task) -> TaskBody:
        """The wire form of a row."""
        return cls(
            id=row.id,
            name=row.name,
            environment=row.environment,
            parameters=row.parameters,
            reward=_reward(row.reward),
            discount=row.discount,
            horizon=row.horizon,
            family=row.family,
            split=row.split,
            labels=row.labels,
            digest=row.digest,
            created_at=row.created_at,
        )


class Tasks(Schema):
    """Tasks in the order in which they were asked for."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tasks": [TASK]}]})

    tasks: list[TaskBody]


class TaskPage(Tasks):
    """A page of tasks."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tasks": [TASK], "next_page_token": None}]})

    next_page_token: str | None


def _reward(expression: str | None) -> Reward | None:
    return None if expression is None else Reward(expression=expression)
