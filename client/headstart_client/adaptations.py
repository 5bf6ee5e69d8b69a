"""Adaptations: uses of a version on a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from typing import Any

from headstart_client.errors import AdaptationFailed
from headstart_client.events import Event, stream_events
from headstart_client.registry import Version, VersionReference
from headstart_client.tasks import Task
from headstart_client.transport import Transport, json_of, segment
from headstart_client.waiting import poll
from headstart_client.wire import Failure, Resource, id_of, parse, without_none

LONGEST_PREFER_S = 10.0
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
class Adaptation(Resource):
    """One use of a version on one task.

    Attributes:
        id: Its unique id.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        policy: Id of the policy it yielded; ``None`` until it has succeeded.
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
        created_at: When it was asked for, UTC.
    """

    id: str
    state: str
    policy: str | None = None
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
    created_at: datetime | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.state not in ("queued", "running")


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
        policy: str | Mapping[str, Any] | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
        **hyperparameters: Any,
    ) -> Adaptation:
        """Adapt a model to a task; this is ``client.adapt``.

        Args:
            model: A version, or ``"cartpole/3"``, ``"cartpole@champion"``, ``"cartpole"`` (its newest
                version); ``None`` to start from ``policy``.
            task: A registered task, its id or name, or the definition of one that is not registered.
            method: ``"inner-loop"``, ``"ppo"``, ``"dqn"`` or ``"sac"``, or that and hyperparameters.
            seed: Of all its randomness.
            ttl_seconds: How long to keep the policy, in seconds.
            policy: Where ``model`` is ``None``: id of the policy to go on from, or a new one's architecture.
            wait: Whether to return only when it has succeeded.
            timeout_s: When to give up waiting, in seconds; ``None`` for never.
            **hyperparameters: Of the method, by name: ``steps=1, episodes=20``; of all but the inner loop, a budget
                is one of them: ``environment_steps=20_000, target_return=475``.

        Returns:
            The adaptation: with its ``policy``, ``before`` and ``after`` if it was waited for.

        Raises:
            AdaptationFailed: If it failed.
            Timeout: If the time is over; the adaptation goes on.
            InvalidRequest: If something in it is wrong.
        """
        body = _asked(model, method, hyperparameters, seed=seed, ttl_seconds=ttl_seconds, policy=policy)
        body["task"] = _task(task)
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

    def create_many(
        self,
        model: VersionReference | None,
        tasks: Iterable[str | Task | Mapping[str, Any]],
        *,
        method: str | Mapping[str, Any] = "inner-loop",
        seed: int | None = None,
        ttl_seconds: int | None = None,
        policy: str | Mapping[str, Any] | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
        **hyperparameters: Any,
    ) -> list[Adaptation]:
        """Adapt a model to up to 1000 tasks at once; arguments as :meth:`create`.

        Returns:
            The adaptations in the order of the tasks; those that were waited for have ended, well or badly.

        Raises:
            Timeout: If the time is over; the adaptations go on.
            InvalidRequest: If something in it is wrong; then none is begun.
        """
        body = _asked(model, method, hyperparameters, seed=seed, ttl_seconds=ttl_seconds, policy=policy)
        body["tasks"] = [_task(task) for task in tasks]
        answer = self._transport.create("/v1/adaptations:batchCreate", body)
        created = [parse(Adaptation, each) for each in answer.get("adaptations", ())]
        if not wait:
            return created
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        return self._all_ended(created, deadline_s)

    def _all_ended(self, created: Sequence[Adaptation], deadline_s: float | None) -> list[Adaptation]:
        """Adaptations of one request: most end together, so that after the last one they are read as a list."""
        self._ended(created[-1], _left(deadline_s))
        oldest = min(each.id for each in created)
        now = {each.id: each for each in takewhile(lambda each: each.id >= oldest, self.list()) if each.finished}
        return [now.get(each.id) or self._ended(each, _left(deadline_s)) for each in created]

    def cancel(self, adaptation: str | Adaptation) -> Adaptation:
        """Ask an adaptation to stop; a queued one never starts."""
        answer = self._transport.request("POST", f"/v1/adaptations/{segment(id_of(adaptation))}:cancel")
        return parse(Adaptation, json_of(answer))

    def events(self, adaptation: str | Adaptation, *, after: str | int | None = None) -> Iterator[Event]:
        """What happens to an adaptation, as it happens, until it has ended: ``curve`` and ``state`` events."""
        path = f"/v1/adaptations/{segment(id_of(adaptation))}/events"
        return stream_events(self._transport, path, None if after is None else str(after))

    def get(self, adaptation: str | Adaptation) -> Adaptation:
        """An adaptation as it is now."""
        return parse(Adaptation, self._transport.get(f"/v1/adaptations/{segment(id_of(adaptation))}"))

    def list(self) -> Iterator[Adaptation]:
        """Every adaptation, fetched as they are iterated over."""
        return (parse(Adaptation, a) for a in self._transport.items("/v1/adaptations", "adaptations"))

    def wait(
        self,
        adaptation: str | Adaptation,
        timeout_s: float | None = None,
        *,
        show: Callable[[Adaptation], None] | None = None,
    ) -> Adaptation:
        """Wait for an adaptation to succeed.

        Args:
            adaptation: The adaptation, or its id.
            timeout_s: When to give up, in seconds from now; ``None`` for never.
            show: Called with the adaptation as it is, about twice a second.

        Raises:
            AdaptationFailed: If it failed or was cancelled.
            Timeout: If the time, in seconds, is over; the adaptation goes on.
        """
        return _succeeded(self._ended(adaptation, timeout_s, show))

    def _ended(
        self,
        adaptation: str | Adaptation,
        timeout_s: float | None,
        show: Callable[[Adaptation], None] | None = None,
    ) -> Adaptation:
        def look() -> Adaptation:
            found = self.get(adaptation)
            if show is not None:
                show(found)
            return found

        return poll(look, lambda now: now.finished, f"adaptation {id_of(adaptation)}", timeout_s, POLL_S)


def _asked(
    model: VersionReference | None,
    method: str | Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    **others: object,
) -> dict[str, object]:
    named: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
    body = without_none(method={**named, **hyperparameters}, **others)
    body["model"] = model.reference if isinstance(model, Version) else model
    return body


def _task(task: str | Task | Mapping[str, Any]) -> object:
    return task.id if isinstance(task, Task) else task


def _left(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())


def _succeeded(adaptation: Adaptation) -> Adaptation:
    if adaptation.state != "succeeded":
        raise AdaptationFailed(adaptation)
    return adaptation
