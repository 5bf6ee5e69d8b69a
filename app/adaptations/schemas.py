"""Adaptations on the wire. The method is the core's own config."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

from app import tables
from app.adaptations.counts import Counts
from app.adaptations.episodes import Stored
from app.adaptations.examples import ADAPTATION, COLLECTING, QUEUED, REWARDED_EVENT, UPLOADED_EPISODE
from app.tasks.schemas import TaskDefinition
from app.validation import AsSent, Number, Schema, Whole
from app.work import Seed, WorkBody, members_of
from models.adaptation import InnerLoop
from models.finetune import MethodConfig
from models.policy import PolicyConfig
from models.remote import LARGEST
from models.tasks import MAX_HORIZON

DAY_S = 86_400


class BoxSpace(Schema):
    """Lists of numbers within bounds; null is no bound."""

    type: Literal["box"]
    low: list[Number | None]
    high: list[Number | None]


class DiscreteSpace(Schema):
    """The whole numbers from 0 to ``n`` - 1."""

    type: Literal["discrete"]
    n: Whole


class RemoteTask(Schema):
    """What is known of a task whose environment is with the client."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    observation_space: BoxSpace
    """What the environment shows."""

    action_space: Annotated[BoxSpace | DiscreteSpace, Field(discriminator="type")]
    """What it takes."""

    discount: Annotated[Number, Field(gt=0, le=1)] = 0.99
    """γ."""

    horizon: Annotated[Whole, Field(ge=1, le=MAX_HORIZON)] = 1000
    """Steps of an episode at most."""

    reward_seconds: Annotated[Number, Field(gt=0, le=30 * DAY_S)] = 3600.0
    """Time within which the reward of a recorded action must come."""


class RemoteReference(Schema):
    """A task whose environment is with the client."""

    remote: RemoteTask


def _kind_of_task(value: object) -> str:
    if isinstance(value, str):
        return "reference"
    return (
        "remote"
        if isinstance(value, RemoteReference) or (isinstance(value, dict) and "remote" in value)
        else "definition"
    )


TaskReference = Annotated[
    Annotated[str, Tag("reference")]
    | Annotated[TaskDefinition, Tag("definition")]
    | Annotated[RemoteReference, Tag("remote")],
    Discriminator(_kind_of_task),
]
"""A registered task by id or name, or a definition, or what is known of a task whose environment is with the client."""


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
                {
                    "model": "cartpole@champion",
                    "task": {
                        "remote": {
                            "observation_space": {"type": "box", "low": [None] * 4, "high": [None] * 4},
                            "action_space": {"type": "discrete", "n": 2},
                            "discount": 0.99,
                            "horizon": 200,
                        }
                    },
                    "method": {"name": "inner-loop", "steps": 3, "episodes": 20},
                },
            ]
        },
    )

    task: TaskReference
    """What to adapt to: id or name of a registered task, a definition, or an environment that is with the client."""


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


class RemoteBody(Schema):
    """What came in for a remote adaptation, and what was made of it.

    ``episodes`` are complete ones, with ``environment_steps`` in all; ``episodes_used`` of them were learned from.
    ``episodes_needed`` must still come in before the next step, at least, and with `ppo` so many episodes that they
    have ``environment_steps_needed``; both are 0 once no more steps are taken. ``steps_taken`` counts inner steps, or
    rounds of `ppo`. ``off_policy`` is the newest step's mean divergence between the policies that acted and the one
    that learned, in nats. ``events_expired`` recorded actions never got a reward.
    """

    episodes: int
    environment_steps: int
    episodes_used: int
    episodes_needed: int
    environment_steps_needed: int
    steps_taken: int
    off_policy: float | None
    events_expired: int


class AdaptationBody(WorkBody):
    """An adaptation.

    ``before`` and ``curve`` are there from the first evaluation on; ``policy``, ``after`` and ``seconds`` once it has
    succeeded. ``start_policy`` is the policy that it went on from.

    One to a task whose environment is with the client has a ``remote`` part and its policy from the start;
    ``revision`` says how often that has changed. Its curve is of the episodes that each step learned from, and
    ``after`` of those that the last revision acted in.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [ADAPTATION]})

    policy: str | None
    revision: int
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
    remote: RemoteBody | None

    @classmethod
    def of(cls, row: tables.Adaptation) -> AdaptationBody:
        """The wire form of a row."""
        result, progress = row.result or {}, dict(row.progress or {})
        counts = None if row.counts is None else Counts.of(row)
        return cls(
            **members_of(row),
            policy=row.policy_id,
            revision=0 if counts is None else counts.revision,
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
            remote=None if counts is None else _remote(row, counts),
        )


def _remote(row: tables.Adaptation, counts: Counts) -> RemoteBody:
    return RemoteBody(
        episodes=counts.episodes,
        environment_steps=counts.environment_steps,
        episodes_used=counts.episodes_used,
        episodes_needed=counts.episodes_needed(row.method, row.task_definition["remote"]["horizon"]),
        environment_steps_needed=counts.environment_steps_needed(row.method),
        steps_taken=counts.steps_taken,
        off_policy=counts.off_policy,
        events_expired=counts.events_expired,
    )


class UploadedEpisode(Schema):
    """An uploaded episode.

    ``steps`` and ``return`` (undiscounted) are of what is in; it is ``complete`` when all of it is. ``used_in`` is the
    step that learned from it, from 1, and ``off_policy`` how far the policy had moved by then from the ``revision``
    that acted, in nats.
    """

    id: str
    revision: int
    steps: int
    episode_return: float = Field(serialization_alias="return")
    terminated: bool
    truncated: bool
    complete: bool
    off_policy: float | None
    used_in: int | None
    created_at: datetime


class Episodes(Schema):
    """A page of uploaded episodes, in the order in which they came."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"episodes": [UPLOADED_EPISODE], "next_page_token": None}]}
    )

    episodes: list[UploadedEpisode]
    next_page_token: str | None


class Uploaded(Schema):
    """What became of an upload: pieces that are new, pieces that stood already, and the adaptation."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"accepted": 1, "duplicates": 0, "adaptation": COLLECTING}]}
    )

    accepted: int
    duplicates: int
    adaptation: AdaptationBody

    @classmethod
    def of(cls, stored: Stored) -> Uploaded:
        """The wire form."""
        adaptation = AdaptationBody.of(stored.adaptation)
        return cls(accepted=stored.accepted, duplicates=stored.duplicates, adaptation=adaptation)


class EventReward(Schema):
    """What came of a recorded action."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reward": 1.0}]})

    reward: Annotated[Number, Field(ge=-LARGEST, le=LARGEST)]


class RewardedEvent(Schema):
    """A recorded action that has its reward: an episode of one step."""

    model_config = ConfigDict(json_schema_extra={"examples": [REWARDED_EVENT]})

    event_id: str
    adaptation: str
    policy: str
    reward: float

    @classmethod
    def of(cls, row: tables.ActEvent) -> RewardedEvent:
        """The wire form of a row that has its reward."""
        return cls(event_id=row.id, adaptation=row.adaptation_id, policy=row.policy_id, reward=row.reward or 0.0)


class Adaptations(Schema):
    """A page of adaptations, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"adaptations": [ADAPTATION], "next_page_token": None}]})

    adaptations: list[AdaptationBody]
    next_page_token: str | None


class CreatedAdaptations(Schema):
    """The adaptations that were asked for at once, in the order of their tasks."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"adaptations": [QUEUED]}]})

    adaptations: list[AdaptationBody]
