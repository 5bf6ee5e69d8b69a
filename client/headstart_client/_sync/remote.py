# Generated from headstart_client/_async/remote.py by: python client/generate_sync.py
"""Adapting to the user's own environment: acting in it here, learning on the service."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart_client._sync.adaptations import Adaptations
from headstart_client._sync.streams import PolicyStream
from headstart_client._sync.transport import Transport
from headstart_client._sync.waiting import poll
from headstart_client.adaptations import LONGEST_PREFER_S, POLL_S, Adaptation
from headstart_client.collecting import CollectedEpisode, Collector
from headstart_client.errors import AdaptationFailed, HeadstartError, InvalidResponse
from headstart_client.local import LocalPolicy
from headstart_client.policies import Action
from headstart_client.registry import VersionReference
from headstart_client.remote import (
    LARGEST_MESSAGE,
    MOST_OBSERVATIONS,
    RemoteProgress,
    ShowRemote,
    choose_show,
    joined,
    remote_task,
    uploads,
)
from headstart_client.spaces import Spaces
from headstart_client.stepping import GymEnvironment, SubEnvironments
from headstart_client.transport import segment

WAITING = frozenset({"queued", "running"})
WEIGHING = frozenset({"ppo"})
"""Methods that learn from steps, each weighed by the policy that took it, rather than from episodes of one policy."""


def _fetch(transport: Transport, policy: str, revision: int | None = None) -> LocalPolicy:
    """A policy, to act here: one revision of it; the newest where not given."""
    path, headers = f"/v1/policies/{segment(policy)}/files/policy.safetensors", {"Accept": "*/*"}
    response = transport.request("GET", path, query={"revision": revision}, headers=headers)
    return LocalPolicy.from_bytes(response.content)


@final
class RemotePolicy:
    """A policy that was adapted to the user's own environment, and acts on the service.

    Close it when it is not needed any more, or use it in a ``with`` statement.

    Attributes:
        id: Its unique id.
        adaptation: What it comes from, with its learning curve.
    """

    def __init__(self, transport: Transport, adaptation: Adaptation, spaces: Spaces) -> None:
        self.id = str(adaptation.policy)
        self.adaptation = adaptation
        self._transport = transport
        self._spaces = spaces
        self._stream = PolicyStream(transport, self.id, deterministic=True, reopen=True)

    def __call__(self, observation: ArrayLike, *, deterministic: bool = True) -> Any:
        """The action for an observation [O], as the environment takes it; for many, [M, O], an array of them.

        Args:
            observation: In environment units.
            deterministic: The likeliest action (True) or one drawn from the policy's distribution.

        Raises:
            ConnectionFailed: If the service stays away.
            Gone: If the policy has expired or was deleted.
            InvalidRequest: If the observation has the wrong size.
        """
        actions = (self._stream.act(observation, deterministic=deterministic)).actions
        own = self._spaces.to_environment(actions)
        if np.ndim(observation) == 2:
            return own
        return int(own[0]) if self._spaces.discrete else own[0]

    def local(self) -> LocalPolicy:
        """The same policy, taken away: it acts here, without the service, and is called alike."""
        return _fetch(self._transport, self.id)

    def close(self) -> None:
        """Close its connection; the policy stands until it expires."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RemoteAdaptations:
    """Adaptations whose environment is with the client."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        model: VersionReference | None,
        environment: GymEnvironment,
        *,
        method: str | Mapping[str, Any] = "inner-loop",
        discount: float = 0.99,
        horizon: int | None = None,
        seed: int | None = None,
        ttl_seconds: int | None = None,
        policy: str | Mapping[str, Any] | None = None,
        local: bool = False,
        evaluation_episodes: int = 0,
        progress: bool | ShowRemote | None = None,
        **hyperparameters: Any,
    ) -> RemotePolicy:
        """Adapt a model to an environment of gymnasium that is here; this is ``client.adapt`` of one.

        It is stepped here, where this is called, while the policy acts over a stream, with drawn actions: in all parts
        of a vector environment with one message. The episodes that a step of the method wants are brought to the
        service, and the next are acted by what it learned. A service that is away for less than a minute does not end
        it.

        Args:
            model: A version, or ``"cartpole/3"``, ``"cartpole@champion"``, ``"cartpole"`` (its newest version);
                ``None`` to start from ``policy``.
            environment: A ``gymnasium.Env`` or ``gymnasium.vector.VectorEnv`` whose observations are a Box with one
                axis, and its actions a Discrete or a Box with one axis.
            method: ``"inner-loop"`` or ``"ppo"``, or that and hyperparameters.
            discount: γ in (0, 1].
            horizon: Steps after which an episode is cut off; by default the time limit of the environment, or 1000.
            seed: Of the environment's first episodes, of what the policy draws, and of the method.
            ttl_seconds: How long to keep the policy, in seconds.
            policy: Where ``model`` is ``None``: id of the policy to go on from, or a new one's architecture.
            local: Whether the policy is fetched at every revision and acts here, in place of the stream: where the way
                to the service is long, or the steps of the environment are short.
            evaluation_episodes: How many more to roll out with the last revision; their mean return is the
                adaptation's ``after``.
            progress: ``None`` draws a line on stderr where that is a terminal; ``True`` writes lines where it is not;
                ``False`` keeps silent. Or a function that is called with a :class:`RemoteProgress`.
            **hyperparameters: Of the method, by name: ``steps=3, episodes=20``.

        Returns:
            The policy, to be called like a function.

        Raises:
            AdaptationFailed: If it failed or was cancelled.
            InvalidRequest: If something in it is wrong: spaces that are not the model's, one that learns otherwise.
            ValueError: If the environment has other spaces, or gives numbers that are not finite.
        """
        parts = SubEnvironments(environment)
        limit = horizon or parts.horizon
        transport = self._transport.patient()
        adaptations = Adaptations(transport)
        adaptation = adaptations.create(
            model,
            remote_task(parts.spaces, discount, limit),
            method=method,
            seed=seed,
            ttl_seconds=ttl_seconds,
            policy=policy,
            wait=False,
            **hyperparameters,
        )
        if adaptation.policy is None or adaptation.remote is None:
            raise InvalidResponse(f"adaptation {adaptation.id} has no policy to act with")
        actor: _Actor = _LocalActor(transport, adaptation, seed) if local else _StreamActor(transport, adaptation, seed)
        learning = _Learning(adaptations, adaptation, parts, limit, actor, choose_show(progress, sys.stderr))
        try:
            ended = learning.run(seed, evaluation_episodes)
        except BaseException:
            # Nobody would bring it episodes any more.
            with suppress(HeadstartError):
                Adaptations(self._transport.hasty()).cancel(adaptation)
            raise
        finally:
            actor.close()
        return RemotePolicy(self._transport, ended, parts.spaces)


class _Actor(Protocol):
    """What acts in the environment, with drawn actions."""

    def act(self, observations: NDArray[np.float64], revision: int) -> Action:
        """Actions of a revision, or a newer one."""

    def close(self) -> None:
        """Nothing more is asked for."""


@final
class _StreamActor:
    def __init__(self, transport: Transport, adaptation: Adaptation, seed: int | None) -> None:
        self._stream = PolicyStream(transport, str(adaptation.policy), deterministic=False, reopen=True)
        self._seed = seed

    def act(self, observations: NDArray[np.float64], revision: int) -> Action:
        rows = max(1, min(MOST_OBSERVATIONS, LARGEST_MESSAGE // observations.shape[1]))
        acted = [self._act(observations[start : start + rows], revision) for start in range(0, len(observations), rows)]
        return acted[0] if len(acted) == 1 else joined(acted)

    def _act(self, observations: NDArray[np.float64], revision: int) -> Action:
        seed, self._seed = self._seed, None
        return self._stream.act(
            observations, episode_start=seed is not None, seed=seed, revision=revision, policy_actions=True
        )

    def close(self) -> None:
        self._stream.close()


@final
class _LocalActor:
    def __init__(self, transport: Transport, adaptation: Adaptation, seed: int | None) -> None:
        self._id = str(adaptation.policy)
        self._transport = transport
        self._rng = np.random.default_rng(seed)
        self._held: tuple[int, LocalPolicy] | None = None

    def act(self, observations: NDArray[np.float64], revision: int) -> Action:
        if self._held is None or self._held[0] != revision:
            self._held = revision, _fetch(self._transport, self._id, revision)
        policy = self._held[1]
        acted = policy.act(observations, self._rng)
        return Action(
            actions=acted.actions,
            log_probs=acted.log_probs.astype(np.float64),
            values=acted.values.astype(np.float64),
            policy=self._id,
            revision=revision,
            policy_actions=None if policy.discrete else acted.policy_actions.astype(np.float64),
        )

    def close(self) -> None:
        pass


@final
class _Learning:
    """One adaptation, from its first episode to its end."""

    def __init__(
        self,
        adaptations: Adaptations,
        adaptation: Adaptation,
        parts: SubEnvironments,
        horizon: int,
        actor: _Actor,
        show: ShowRemote | None,
    ) -> None:
        self._adaptations = adaptations
        self._adaptation = adaptation
        self._parts = parts
        self._actor = actor
        self._show = show
        self._collector = Collector(parts.count, parts.autoreset, horizon)
        self._name = uuid.uuid4().hex
        self._started_s = time.monotonic()
        self._returns: list[float] = []

    def run(self, seed: int | None, evaluation_episodes: int) -> Adaptation:
        """Bring what each step of the method wants until none is taken any more, then what measures the result."""
        self._begin(seed)
        begun_by = self._adaptation.revision
        while (wanted := self._wanted()) != (0, 0):
            # Where episodes are to be of one policy, what an older revision began is nothing to learn from.
            if begun_by != self._adaptation.revision and self._adaptation.method.get("name") not in WEIGHING:
                self._begin()
                begun_by = self._adaptation.revision
            self._bring(*wanted)
        if evaluation_episodes:
            self._begin()
            self._bring(evaluation_episodes)
        self._adaptation = self._adaptations.finish(self._adaptation)
        self._tell([])
        return self._adaptation

    def _begin(self, seed: int | None = None) -> None:
        self._collector.begin(self._parts.reset(seed))

    def _wanted(self) -> tuple[int, int]:
        brought = self._adaptation.remote
        return (
            (0, 0)
            if brought is None or self._adaptation.finished
            else (brought.episodes_needed, brought.environment_steps_needed)
        )

    def _bring(self, episodes: int, environment_steps: int = 0) -> None:
        """Roll so many episodes out, upload them, and wait for the step that is due then."""
        collector, parts, told = self._collector, self._parts, -1
        while True:
            found, enough = collector.ready(episodes, environment_steps)
            if len(found) != told:
                told = len(found)
                self._tell(found)
            if enough:
                break
            if collector.ended.any():
                collector.restart(parts.restart(collector.ended))
            action = self._actor.act(collector.observations, self._adaptation.revision)
            collector.step(action, *parts.step(action.actions))
        self._returns = [episode.episode_return for episode in found]
        for batch in uploads(collector.take(episodes, environment_steps), self._name):
            uploaded = self._adaptations.upload(self._adaptation, batch, wait_s=LONGEST_PREFER_S)
            self._adaptation = uploaded.adaptation
        if self._adaptation.state in WAITING:
            self._step()
        if self._adaptation.state in ("failed", "cancelled"):
            raise AdaptationFailed(self._adaptation)

    def _step(self) -> None:
        """Wait for a step that takes long."""
        self._adaptation = poll(
            lambda: self._adaptations.get(self._adaptation),
            lambda now: now.state not in WAITING,
            f"adaptation {self._adaptation.id}",
            None,
            POLL_S,
        )

    def _tell(self, found: Sequence[CollectedEpisode]) -> None:
        """Say how far it is, with episodes that were not brought yet."""
        if self._show is None:
            return
        now, brought = self._adaptation, self._adaptation.remote
        returns = [episode.episode_return for episode in found] or self._returns
        self._show(
            RemoteProgress(
                adaptation=now.id,
                state=now.state,
                method=str(now.method.get("name", "")),
                revision=now.revision,
                fraction=now.progress.fraction,
                episodes=(brought.episodes if brought else 0) + len(found),
                environment_steps=(brought.environment_steps if brought else 0) + sum(map(len, found)),
                mean_return=sum(returns) / len(returns) if returns else None,
                seconds=time.monotonic() - self._started_s,
            )
        )
