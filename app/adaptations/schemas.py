"""Adaptations on the wire. The method is the core's own config."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, Tag

from app import tables
from app.runs.schemas import AsSent, RunError, Seed, State
from app.tasks.schemas import TaskDefinition
from app.validation import Schema, Whole
from models.adaptation import InnerLoop
from models.policy import PolicyConfig

DAY_S = 86_400


TaskReference = Annotated[
    Annotated[str, Tag("reference")] | Annotated[TaskDefinition, Tag("definition")],
    Discriminator(lambda value: "reference" if isinstance(value, str) else "definition"),
]
"""A registered task by id or name, or a definition."""


class NewAdaptation(Schema):
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
                }
            ]
        },
    )

    model: str | None
    """`model@alias`, `model/3`, or `model` for its newest version; null adapts a new policy from scratch."""

    task: TaskReference
    """What to adapt to: id or name of a registered task, or a definition."""

    method: Annotated[InnerLoop, AsSent] = InnerLoop()
    """How to adapt."""

    seed: Seed = 0
    """Of all randomness, the new policy's parameters included where there is no model."""

    ttl_seconds: Annotated[Whole, Field(ge=1, le=365 * DAY_S)] = DAY_S
    """Life of the policy, from when it is made."""

    policy: Annotated[PolicyConfig, AsSent] | None = None
    """Without a model only: the new policy's architecture."""


class Return(Schema):
    """Mean undiscounted return over this many fresh episodes."""

    mean_return: float
    episodes: int


class CurvePoint(Schema):
    """Performance after this much adaptation data."""

    episodes: int
    environment_steps: int
    mean_return: float


class AdaptationBody(Schema):
    """An adaptation. ``policy``, ``before``, ``after``, ``curve`` and ``seconds`` are null until it has succeeded."""

    id: str
    state: State
    policy: str | None
    model: str | None
    version: int | None
    task: str | dict[str, Any]
    before: Return | None
    after: Return | None
    curve: list[CurvePoint] | None
    seconds: float | None
    method: dict[str, Any]
    seed: int
    ttl_seconds: int | None
    error: RunError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: tables.Adaptation) -> AdaptationBody:
        """The wire form of a row."""
        result = row.result or {}
        return cls(
            id=row.id,
            state=row.state,  # type: ignore[arg-type]  # the table has the same constraint
            policy=row.policy_id,
            model=row.model,
            version=row.version,
            task=row.task_id or row.task_definition,
            before=result.get("before"),
            after=result.get("after"),
            curve=result.get("curve"),
            seconds=result.get("seconds"),
            method=row.method,
            seed=row.seed,
            ttl_seconds=row.ttl_seconds,
            error=None if row.error is None else RunError(**row.error),
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )


class Adaptations(Schema):
    """A page of adaptations, newest first."""

    adaptations: list[AdaptationBody]
    next_page_token: str | None
