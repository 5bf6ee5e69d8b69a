"""Rollouts: fresh episodes of a policy, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart_client.errors import InvalidResponse


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of ``T`` steps.

    Attributes:
        observations: [T + 1, O], before each step and after the last, in environment units.
        states: [T + 1, S], the environment's own; ``None`` of one that keeps them to itself.
        actions: [T] int64 where actions are discrete, else [T, A] float64 in environment units.
        rewards: [T], the task's.
        values: [T], what the policy expected of each observation that it acted on, in reward units.
        log_probs: [T], log-probability (density) of each action.
        terminated: Whether it ended in a terminal state.
        truncated: Whether it was cut off, at the task's horizon or by the environment.
        episode_return: Undiscounted sum of the rewards.
    """

    observations: NDArray[np.float64]
    states: NDArray[np.float64] | None
    actions: NDArray[Any]
    rewards: NDArray[np.float64]
    values: NDArray[np.float64]
    log_probs: NDArray[np.float64]
    terminated: bool
    truncated: bool
    episode_return: float

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True, eq=False)
class Rollout:
    """Fresh episodes of a policy, and what they follow from.

    Attributes:
        policy: Id of what acted.
        task: Id of the task, or its definition where it was never registered.
        seed: The same seed gives the same episodes.
        deterministic: Whether the likeliest actions were taken.
        episodes: One after another.
        raw: The whole JSON object.
    """

    policy: str
    task: str | Mapping[str, Any]
    seed: int
    deterministic: bool
    episodes: tuple[Episode, ...]
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def mean_return(self) -> float:
        """Mean undiscounted return of the episodes."""
        return float(np.mean([episode.episode_return for episode in self.episodes]))


def read_rollout(answer: Any) -> Rollout:
    """The rollout that a service answered.

    Raises:
        InvalidResponse: If it is none.
    """
    try:
        episodes = tuple(map(_episode, answer["episodes"]))
        named = {name: answer[name] for name in ("policy", "task", "seed", "deterministic")}
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidResponse(f"the answer is no rollout: {type(error).__name__}: {error}") from error
    return Rollout(**named, episodes=episodes, raw=answer)


def _episode(answer: Mapping[str, Any]) -> Episode:
    def numbers(name: str) -> NDArray[np.float64]:
        return np.asarray(answer[name], np.float64)

    return Episode(
        observations=numbers("observations"),
        states=None if answer.get("states") is None else numbers("states"),
        actions=np.asarray(answer["actions"]),
        rewards=numbers("rewards"),
        values=numbers("values"),
        log_probs=numbers("log_probs"),
        terminated=bool(answer["terminated"]),
        truncated=bool(answer["truncated"]),
        episode_return=float(answer["return"]),
    )
