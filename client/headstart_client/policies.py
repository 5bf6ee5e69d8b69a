"""Policies, as they are known: what acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart_client.adaptations import Adaptation
from headstart_client.errors import HeadstartError, InvalidResponse
from headstart_client.wire import File, Resource, id_of

ROLLOUT_S = 120.0
VIDEO_S = 900.0
MEDIA_TYPES = {"json": "application/json", "gif": "image/gif", "mp4": "video/mp4"}


@dataclass(frozen=True, kw_only=True)
class Policy(Resource):
    """What acts.

    Attributes:
        id: Its unique id.
        adaptation: Id of the adaptation that yielded it.
        model: Name of the model that was adapted.
        version: Number of that model's version.
        task: Id of the task it was adapted to, or its inline definition.
        observation_space: Shape and bounds of what it takes.
        action_space: What it answers.
        files: What can be downloaded.
        created_at: When it was made, UTC.
        expires_at: When it is removed, UTC; ``None`` for never.
    """

    id: str
    adaptation: str | None = None
    model: str | None = None
    version: int | None = None
    task: str | Mapping[str, Any] | None = None
    observation_space: Mapping[str, Any] = field(default_factory=dict)
    action_space: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    created_at: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, eq=False)
class Action:
    """What a policy does, for ``B`` observations: one may act in many places at once.

    Attributes:
        actions: [B] int64 where actions are discrete, else [B, A] float64 in environment units.
        log_probs: [B], log-probability (density) of each action.
        values: [B], the value the policy expects from each observation on, in reward units; ``None`` without
            a critic.
        policy: Id of what acted.
        raw: The whole JSON object.
        revision: Of the policy; it grows where an adaptation goes on from episodes that are brought to it.
        policy_actions: [B, A], continuous actions as they were drawn, before scaling and clipping, where asked for.
        event_id: What to tell the reward to, where the action was recorded: :meth:`Policies.reward`.
    """

    actions: NDArray[Any]
    log_probs: NDArray[np.float64]
    values: NDArray[np.float64] | None
    policy: str | None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    revision: int | None = None
    policy_actions: NDArray[np.float64] | None = None
    event_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome(Resource):
    """A recorded action and what came of it: an episode of one step.

    Attributes:
        event_id: Of the action.
        adaptation: Id of the adaptation that learns from it.
        policy: Id of what acted.
        reward: In the task's reward units.
    """

    event_id: str
    adaptation: str | None = None
    policy: str | None = None
    reward: float


def policy_of(actor: str | Policy | Adaptation) -> str:
    """Id of a policy.

    Raises:
        HeadstartError: If the adaptation has not yielded one.
    """
    if not isinstance(actor, Adaptation):
        return id_of(actor)
    if actor.policy is None:
        raise HeadstartError(f"adaptation {actor.id} has no policy: it is {actor.state}")
    return actor.policy


def observation_batch(observations: ArrayLike) -> NDArray[np.float64]:
    """Observations as [B, O]; one, [O], is a batch of one."""
    batch = np.asarray(observations, dtype=np.float64)
    return batch[None] if batch.ndim <= 1 else batch


def read_action(answer: Any, raw: Mapping[str, Any] | None = None) -> Action:
    """What a service answered to observations.

    Args:
        answer: Over a batch.
        raw: As it came, where that is something else.

    Raises:
        InvalidResponse: If it is no action.
    """
    if not isinstance(answer, Mapping) or "actions" not in answer:
        raise InvalidResponse("the answer has no 'actions'")
    return Action(
        actions=np.asarray(answer["actions"]),
        log_probs=np.asarray(answer.get("log_probs", ()), dtype=np.float64),
        values=_numbers(answer.get("values")),
        policy=answer.get("policy"),
        raw=answer if raw is None else raw,
        revision=answer.get("revision"),
        policy_actions=_numbers(answer.get("policy_actions")),
        event_id=answer.get("event_id"),
    )


def _numbers(values: Any) -> NDArray[np.float64] | None:
    return None if values is None else np.asarray(values, dtype=np.float64)
