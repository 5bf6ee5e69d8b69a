"""Adaptations, and the policies that they yield."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart_client.downloads import download
from headstart_client.errors import AdaptationFailed, HeadstartError, InvalidResponse
from headstart_client.registry import Version, VersionReference, Versions
from headstart_client.tasks import Task
from headstart_client.transport import Transport, json_of, segment
from headstart_client.waiting import poll
from headstart_client.wire import Failure, File, Resource, id_of, parse, without_none

LONGEST_PREFER_S = 10.0


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
class Adaptation(Resource):
    """One use of a version on one task.

    Attributes:
        id: Its unique id.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        policy: Id of the policy it yielded; ``None`` until it has succeeded.
        model: Name of the model it started from; ``None`` from scratch.
        version: Number of that model's version.
        task: Id of the task, or its inline definition.
        method: How it adapted.
        before: How well the initialisation did.
        after: How well the adapted policy did.
        curve: Return against experience.
        seconds: Time it took.
        error: Why it failed.
        seed: Of all its randomness.
        created_at: When it was asked for, UTC.
    """

    id: str
    state: str
    policy: str | None = None
    model: str | None = None
    version: int | None = None
    task: str | Mapping[str, Any] | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    before: Performance | None = None
    after: Performance | None = None
    curve: tuple[CurvePoint, ...] = ()
    seconds: float | None = None
    error: Failure | None = None
    seed: int | None = None
    created_at: datetime | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.state not in ("queued", "running")


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
    """What a policy does, for ``B`` observations.

    Attributes:
        actions: [B] int64 where actions are discrete, else [B, A] float64 in environment units.
        log_probs: [B], log-probability (density) of each action.
        values: [B], the value the policy expects from each observation on, in reward units; ``None`` without
            a critic.
        policy: Id of what acted.
        raw: The whole JSON object.
    """

    actions: NDArray[Any]
    log_probs: NDArray[np.float64]
    values: NDArray[np.float64] | None
    policy: str | None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Adaptations:
    """``client.adaptations``: uses of a version on a task."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        model: VersionReference | None,
        task: str | Task | Mapping[str, Any],
        *,
        method: str | Mapping[str, Any] = "inner-loop",
        seed: int | None = None,
        ttl_seconds: int | None = None,
        policy: Mapping[str, Any] | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
        **hyperparameters: Any,
    ) -> Adaptation:
        """Adapt a model to a task; this is ``client.adapt``.

        Args:
            model: A version, or ``"cartpole/3"``, ``"cartpole@champion"``, ``"cartpole"`` (its newest
                version); ``None`` for a policy from scratch.
            task: A registered task, its id or name, or the definition of one that is not registered.
            method: ``"inner-loop"`` or another method's name, or its name and hyperparameters.
            seed: Of all its randomness.
            ttl_seconds: How long to keep the policy, in seconds.
            policy: Architecture, where ``model`` is ``None``.
            wait: Whether to return only when it has succeeded.
            timeout_s: When to give up waiting, in seconds; ``None`` for never.
            **hyperparameters: Of the method, by name: ``steps=1, episodes=20``.

        Returns:
            The adaptation: with its ``policy``, ``before`` and ``after`` if it was waited for.

        Raises:
            AdaptationFailed: If it failed.
            Timeout: If the time is over; the adaptation goes on.
            InvalidRequest: If something in it is wrong.
        """
        named = {"name": method} if isinstance(method, str) else dict(method)
        body = without_none(
            task=task.id if isinstance(task, Task) else task,
            method=named | hyperparameters,
            seed=seed,
            ttl_seconds=ttl_seconds,
            policy=policy,
        )
        body["model"] = model.reference if isinstance(model, Version) else model
        prefer_s = min(LONGEST_PREFER_S, LONGEST_PREFER_S if timeout_s is None else timeout_s) if wait else 0.0
        answer = self._transport.create(
            "/v1/adaptations", body, headers={"Prefer": f"wait={int(prefer_s)}"}, answer_within_s=prefer_s
        )
        adaptation = parse(Adaptation, answer)
        if not wait:
            return adaptation
        if adaptation.finished:
            return _succeeded(adaptation)
        return self.wait(adaptation, None if timeout_s is None else max(0.0, timeout_s - prefer_s))

    def get(self, adaptation: str | Adaptation) -> Adaptation:
        """An adaptation as it is now."""
        return parse(Adaptation, self._transport.get(f"/v1/adaptations/{segment(id_of(adaptation))}"))

    def list(self) -> Iterator[Adaptation]:
        """Every adaptation, fetched as they are iterated over."""
        return (parse(Adaptation, a) for a in self._transport.items("/v1/adaptations", "adaptations"))

    def wait(self, adaptation: str | Adaptation, timeout_s: float | None = None) -> Adaptation:
        """Wait for an adaptation to succeed.

        Raises:
            AdaptationFailed: If it failed or was cancelled.
            Timeout: If the time, in seconds, is over; the adaptation goes on.
        """
        what = f"adaptation {id_of(adaptation)}"
        return _succeeded(poll(lambda: self.get(adaptation), lambda now: now.finished, what, timeout_s))


class Policies:
    """``client.policies``: what acts."""

    def __init__(self, transport: Transport, versions: Versions) -> None:
        self._transport = transport
        self._versions = versions

    def get(self, policy: str) -> Policy:
        """One policy, by id."""
        return parse(Policy, self._transport.get(f"/v1/policies/{segment(policy)}"))

    def list(self) -> Iterator[Policy]:
        """Every policy, fetched as they are iterated over."""
        return (parse(Policy, p) for p in self._transport.items("/v1/policies", "policies"))

    def delete(self, policy: str | Policy) -> None:
        """Remove a policy and its files."""
        self._transport.request("DELETE", f"/v1/policies/{segment(id_of(policy))}")

    def download(self, policy: str | Policy, to: str | Path, *, file: str = "policy.safetensors") -> Path:
        """Download one of a policy's files (or ``policy.onnx``) to the file ``to``, checked."""
        found = self.get(id_of(policy))
        sha256 = next((f.sha256 for f in found.files if f.name == file), None)
        return download(self._transport, f"/v1/policies/{segment(found.id)}/files/{segment(file)}", Path(to), sha256)

    def act(
        self,
        actor: str | Policy | Adaptation | Version,
        observations: ArrayLike,
        *,
        deterministic: bool = True,
        seed: int | None = None,
    ) -> Action:
        """Ask for actions; this is ``client.act``.

        Args:
            actor: A policy or its id, a finished adaptation, or a version (``"cartpole/3"``,
                ``"cartpole@champion"``) whose bare initialisation is to act. An alias costs a second request:
                in a loop, resolve it once with ``client.versions.get``.
            observations: [B, O], or [O] for one, in environment units.
            deterministic: The likeliest action (True) or one drawn from the policy's distribution.
            seed: Makes drawn actions repeatable.

        Raises:
            InvalidRequest: If an observation has the wrong size.
            ValueError: If an observation holds a NaN or an infinity.
        """
        batch = np.asarray(observations, dtype=np.float64)
        body = without_none(
            observations=batch[None] if batch.ndim <= 1 else batch, deterministic=deterministic, seed=seed
        )
        response = self._transport.request("POST", f"{self._actor_path(actor)}:act", body=body)
        return _action(json_of(response))

    def _actor_path(self, actor: str | Policy | Adaptation | Version) -> str:
        if isinstance(actor, Version) or (isinstance(actor, str) and ("/" in actor or "@" in actor)):
            return self._versions.path(actor)
        if isinstance(actor, Adaptation):
            if actor.policy is None:
                raise HeadstartError(f"adaptation {actor.id} has no policy: it is {actor.state}")
            actor = actor.policy
        return f"/v1/policies/{segment(id_of(actor))}"


def _succeeded(adaptation: Adaptation) -> Adaptation:
    if adaptation.state != "succeeded":
        raise AdaptationFailed(adaptation)
    return adaptation


def _action(answer: Any) -> Action:
    if not isinstance(answer, Mapping) or "actions" not in answer:
        raise InvalidResponse("the answer has no 'actions'")
    values = answer.get("values")
    return Action(
        actions=np.asarray(answer["actions"]),
        log_probs=np.asarray(answer.get("log_probs", ()), dtype=np.float64),
        values=None if values is None else np.asarray(values, dtype=np.float64),
        policy=answer.get("policy"),
        raw=answer,
    )
