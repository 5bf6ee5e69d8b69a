"""Adaptations on the wire. The method is the core's own config."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

from app import tables
from app.adaptations.examples import ADAPTATION, QUEUED
from app.tasks.schemas import TaskDefinition
from app.validation import AsSent, Schema, Whole
from app.work import Seed, WorkBody, members_of
from models.adaptation import InnerLoop
from models.finetune import MethodConfig
from models.policy import PolicyConfig

DAY_S = 86_400


TaskReference = Annotated[
    Annotated[str, Tag("reference")] | Annotated[TaskDefinition, Tag("definition")],
    Discriminator(lambda value: "reference" if isinstance(value, str) else "definition"),
]
"""A registered task by id or name, or a definition."""


def _named(method: object) -> object:
    return {"name": "inner-loop", **method} if isinstance(method, dict) else method


Method = Annotated[InnerLoop | MethodConfig, Field(discriminator="name"), AsSent, BeforeValidator(_named)]
"""How to adapt, told apart by its name; without one, by the inner loop."""

Start = Annotated[
    Annotated[str, Tag("reference")] | Annotated[PolicyConfig, AsSent, Tag("architecture")],
    Discriminator(lambda value: "reference" if isinstance(value, str) else "architecture"),
]
"""A policy by id, or the architecture of a new one."""


class _Asked(Schema):
    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str | None
    """`model@alias`, `model/3`, or `model` for its newest version; null starts from `policy`."""

    method: Method = Field(default_factory=InnerLoop)
    """How to adapt: the learner's own `inner-loop`, or to train on with `ppo`, `dqn` or `sac` within a budget."""

    seed: Seed = 0
    """Of all randomness, a new policy's parameters included."""

    ttl_seconds: Annotated[Whole, Field(ge=1, le=365 * DAY_S)] = DAY_S
    """Life of the policy, from when it is made."""

    policy: Start | None = None
    """Without a model only: the id of a policy to go on from, or the architecture of a new one."""


class NewAdaptation(_Asked):
    """An adaptation that is asked for."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "model": "cartpole@champion",
                    "task": "cartpole-long",
                    "method": {"name": "inner-loop", "steps": 3, "episodes": 20},
                    "seed": 0,
                    "ttl_seconds": DAY_S,
                },
                {
                    "model": "cartpole@champion",
                    "task": "cartpole-long",
                    "method": {"name": "ppo", "environment_steps": 20000, "target_return": 475},
                },
                {
                    "model": None,
                    "policy": {"hidden": [64, 64]},
                    "task": {"environment": "CartPole-v1"},
                    "method": {"name": "dqn", "environment_steps": 50000},
                },
                {
                    "model": None,
                    "policy": {"hidden": [64, 64], "action_scaling": "squash", "log_std": "state"},
                    "task": {"environment": "Pendulum-v1"},
                    "method": {"name": "sac", "environment_steps": 10000},
                },
            ]
        },
    )

    task: TaskReference
    """What to adapt to: id or name of a registered task, or a definition."""


class NewAdaptations(_Asked):
    """Many adaptations that are asked for at once, of the same start by the same method."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "model": "cartpole@champion",
                    "tasks": ["cartpole-short", "cartpole-long"],
                    "method": {"name": "ppo", "environment_steps": 20000},
                    "seed": 0,
                }
            ]
        },
    )

    tasks: Annotated[list[TaskReference], Field(min_length=1, max_length=1000)]
    """What to adapt to. The seed of the task at place i is `seed` + i."""


class Return(Schema):
    """Mean undiscounted return over this many fresh episodes."""

    mean_return: float
    episodes: int


class CurvePoint(Schema):
    """Performance after this much adaptation data."""

    episodes: int
    environment_steps: int
    mean_return: float


class AdaptationProgress(Schema):
    """How far an adaptation is: ``fraction`` of its budget in [0, 1]; ``seconds`` spent, over all attempts."""

    fraction: float = 0.0
    environment_steps: int = 0
    episodes: int = 0
    seconds: float = 0.0


class AdaptationBody(WorkBody):
    """An adaptation.

    ``before`` and ``curve`` are there from the first evaluation on; ``policy``, ``after`` and ``seconds`` once it has
    succeeded. ``start_policy`` is the policy that it went on from.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [ADAPTATION]})

    policy: str | None
    model: str | None
    version: int | None
    start_policy: str | None
    task: str | dict[str, Any]
    before: Return | None
    after: Return | None
    curve: list[CurvePoint] | None
    seconds: float | None
    progress: AdaptationProgress
    metrics: dict[str, float]
    stopped_by: str | None
    method: dict[str, Any]
    seed: int
    ttl_seconds: int | None

    @classmethod
    def of(cls, row: tables.Adaptation) -> AdaptationBody:
        """The wire form of a row."""
        result, progress = row.result or {}, dict(row.progress or {})
        return cls(
            **members_of(row),
            policy=row.policy_id,
            model=row.model,
            version=row.version,
            start_policy=row.start_policy_id,
            task=row.task_id or row.task_definition,
            before=result.get("before"),
            after=result.get("after"),
            curve=result.get("curve"),
            seconds=result.get("seconds"),
            metrics=progress.pop("metrics", {}),
            progress=AdaptationProgress(**progress),
            stopped_by=result.get("stopped_by"),
            method=row.method,
            seed=row.seed,
            ttl_seconds=row.ttl_seconds,
        )


class Adaptations(Schema):
    """A page of adaptations, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"adaptations": [ADAPTATION], "next_page_token": None}]})

    adaptations: list[AdaptationBody]
    next_page_token: str | None


class CreatedAdaptations(Schema):
    """The adaptations that were asked for at once, in the order of their tasks."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"adaptations": [QUEUED]}]})

    adaptations: list[AdaptationBody]
