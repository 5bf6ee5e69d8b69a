"""Policies on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from app.policies.examples import POLICY, ROLLOUT
from app.policies.service import FILE_NAME, PolicyEntry
from app.registry.schemas import FileBody
from app.validation import Name, Schema


class PolicyBody(Schema):
    """A policy that an adaptation yielded.

    ``task`` is the id of the task it was adapted to, or the task's definition where it was never registered;
    ``model`` and ``version`` are null where adapting began from scratch. ``environment`` is null where that is with a
    client; then ``revision`` counts how often the policy has changed. ``files`` are those stored, of the newest
    revision; ``policy.onnx`` is made when it is asked for, and its digest is not known before.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [POLICY]})

    id: str
    adaptation: str | None
    model: str | None
    version: int | None
    task: str | dict[str, Any] | None
    environment: str | None
    revision: int
    policy: dict[str, Any]
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    created_at: datetime
    expires_at: datetime | None
    files: list[FileBody]

    @classmethod
    def of(cls, entry: PolicyEntry) -> PolicyBody:
        """The wire form."""
        row = entry.policy
        return cls(
            id=row.id,
            adaptation=row.adaptation_id,
            model=row.model,
            version=row.version,
            task=entry.task,
            environment=row.spec["environment"],
            revision=row.revision,
            policy=row.spec["policy"],
            observation_space=row.spec["observation_space"],
            action_space=row.spec["action_space"],
            created_at=row.created_at,
            expires_at=row.expires_at,
            files=[FileBody(name=FILE_NAME, sha256=row.sha256, size_bytes=row.size_bytes)],
        )


class Policies(Schema):
    """A page of policies, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"policies": [POLICY], "next_page_token": None}]})

    policies: list[PolicyBody]
    next_page_token: str | None


class EpisodeBody(Schema):
    """One episode of ``T`` steps.

    ``observations`` are the ``T + 1`` before each step and after the last, and ``states`` the environment's own there,
    null of one that keeps them to itself; ``actions`` are in environment units, as ``:act`` gives them; ``values`` are
    what the policy expects of each observation that it acted on, and ``log_probs`` those of its actions. It ended in a
    terminal state (``terminated``) or was cut off at the task's horizon or by the environment (``truncated``).
    ``return`` is the undiscounted sum of the rewards.
    """

    observations: list[list[float]]
    states: list[list[float]] | None
    actions: list[int] | list[list[float]]
    rewards: list[float]
    values: list[float]
    log_probs: list[float]
    terminated: bool
    truncated: bool
    episode_return: float = Field(serialization_alias="return")


class RolloutBody(Schema):
    """Fresh episodes of a policy, and what they follow from.

    ``task`` is the id of the task, or its definition where it was never registered.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [ROLLOUT]})

    policy: str
    task: str | dict[str, Any]
    seed: int
    deterministic: bool
    episodes: list[EpisodeBody]


@dataclass(frozen=True)
class RolloutQuery:
    """Which episodes are asked for, and in what form.

    Attributes:
        episodes: How many.
        format: Numbers, or a film of one episode after another.
        seed: What they follow from, together with policy and task.
        deterministic: Take the most likely action in place of sampling.
        task: Id or name; None for the one that the policy was adapted to.
    """

    episodes: int
    format: Literal["json", "gif", "mp4"]
    seed: int
    deterministic: bool
    task: str | None


class Publication(Schema):
    """Where a policy is to become a version."""

    model_config = ConfigDict(
        use_attribute_docstrings=True, json_schema_extra={"examples": [{"model": "cartpole-long"}]}
    )

    model: Name
    """Whose next version it becomes; a new name makes a new model."""
