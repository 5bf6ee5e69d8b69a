"""Adaptations, as they are known: uses of a version on a task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from headstart_client.errors import AdaptationFailed
from headstart_client.events import FINISHED
from headstart_client.registry import Version, VersionReference
from headstart_client.tasks import Task
from headstart_client.wire import Failure, Resource, parse, without_none

LONGEST_PREFER_S = 10.0
COLLECTING = "collecting"
POLL_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Performance(Resource):
    """How well a policy did on fresh episodes of a task.

    Attributes:
        mean_return: Mean undiscounted return, in the task's reward units.
        episodes: How many episodes it is the mean of.
    """

    mean_return: float
    episodes: int | None = None


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Resource):
    """One point of an adaptation's learning curve.

    Attributes:
        episodes: Episodes of experience used until then.
        environment_steps: Steps of experience used until then.
        mean_return: Mean undiscounted return.
    """

    episodes: int | None = None
    environment_steps: int | None = None
    mean_return: float | None = None


@dataclass(frozen=True, kw_only=True)
class AdaptationProgress(Resource):
    """How far an adaptation is.

    Attributes:
        fraction: Of its budget, in [0, 1].
        environment_steps: Steps of experience used.
        episodes: Finished episodes of experience.
        seconds: Time spent.
    """

    fraction: float = 0.0
    environment_steps: int = 0
    episodes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Brought(Resource):
    """What came in for an adaptation whose environment is with the client, and what was made of it.

    Attributes:
        episodes: Complete ones.
        environment_steps: In those.
        episodes_used: Of those, the ones that were learned from.
        episodes_needed: That must still come before the next step, at least; 0 where one is due, or none is taken
            any more.
        environment_steps_needed: That those must have, at least.
        steps_taken: Inner steps, or rounds of PPO.
        off_policy: How far the policy that learned had moved from those that acted, in the newest step: the mean
            divergence, in nats.
    """

    episodes: int = 0
    environment_steps: int = 0
    episodes_used: int = 0
    episodes_needed: int = 0
    environment_steps_needed: int = 0
    steps_taken: int = 0
    off_policy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Adaptation(Resource):
    """One use of a version on one task.

    Attributes:
        id: Its unique id.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``; ``collecting`` while it waits for
            episodes of an environment that is with the client.
        policy: Id of the policy it yielded; ``None`` until it has succeeded, but there at once where the environment is
            with the client.
        revision: Of that policy: how often it has changed.
        model: Name of the model it started from; ``None`` from scratch.
        version: Number of that model's version.
        start_policy: Id of the policy it went on from; ``None`` where it was a version's or a new one.
        task: Id of the task, or its inline definition.
        method: How it adapted.
        before: How well the initialisation did.
        after: How well the adapted policy did.
        curve: Return against experience.
        seconds: Time it took.
        progress: How far it is.
        metrics: The newest numbers of its method: ``divergence``, ``loss``, ...
        stopped_by: The limit that ended it.
        cancel_requested: Whether somebody asked to cancel it.
        error: Why it failed.
        seed: Of all its randomness.
        remote: What came in, where the environment is with the client.
        created_at: When it was asked for, UTC.
    """

    id: str
    state: str
    policy: str | None = None
    revision: int = 0
    model: str | None = None
    version: int | None = None
    start_policy: str | None = None
    task: str | Mapping[str, Any] | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    before: Performance | None = None
    after: Performance | None = None
    curve: tuple[CurvePoint, ...] = ()
    seconds: float | None = None
    progress: AdaptationProgress = field(default_factory=AdaptationProgress)
    metrics: Mapping[str, float] = field(default_factory=dict)
    stopped_by: str | None = None
    cancel_requested: bool = False
    error: Failure | None = None
    seed: int | None = None
    remote: Brought | None = None
    created_at: datetime | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.state in FINISHED


@dataclass(frozen=True, kw_only=True)
class Uploaded(Resource):
    """What became of episodes that were brought to an adaptation.

    Attributes:
        accepted: Episodes, and pieces of some, that are new.
        duplicates: Those that stood already.
        adaptation: As it is now.
    """

    accepted: int
    duplicates: int
    adaptation: Adaptation


@dataclass(frozen=True, kw_only=True)
class BroughtEpisode(Resource):
    """An episode that was brought to an adaptation.

    Attributes:
        id: That its client chose.
        revision: Of the policy that acted in it.
        steps: As many as are in.
        episode_return: Undiscounted sum of their rewards.
        terminated: Whether it ended in a terminal state.
        truncated: Whether it was cut off.
        complete: Whether all of it is in.
        off_policy: How far the policy had moved when it was learned from, in nats.
        used_in: The step that learned from it, from 1.
        created_at: When its first piece came, UTC.
    """

    id: str
    revision: int
    steps: int
    episode_return: float
    terminated: bool = False
    truncated: bool = False
    complete: bool = False
    off_policy: float | None = None
    used_in: int | None = None
    created_at: datetime | None = None


def read_brought_episode(answer: object) -> BroughtEpisode:
    """An item of the list of episodes."""
    # What the service calls ``return`` cannot be an attribute's name.
    renamed = {**answer, "episode_return": answer.get("return")} if isinstance(answer, Mapping) else answer
    return parse(BroughtEpisode, renamed)


def adaptation_request(
    model: VersionReference | None,
    method: str | Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    **others: object,
) -> dict[str, object]:
    """The members of a request that adaptations to one task and to many have in common."""
    named: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
    body = without_none(method={**named, **hyperparameters}, **others)
    body["model"] = model.reference if isinstance(model, Version) else model
    return body


def task_reference(task: str | Task | Mapping[str, Any]) -> object:
    """What is sent for a task."""
    return task.id if isinstance(task, Task) else task


def left_s(deadline_s: float | None) -> float | None:
    """Seconds until a moment of the steady clock, at least 0."""
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())


def succeeded(adaptation: Adaptation) -> Adaptation:
    """The adaptation itself.

    Raises:
        AdaptationFailed: If it ended otherwise.
    """
    if adaptation.state != "succeeded":
        raise AdaptationFailed(adaptation)
    return adaptation
