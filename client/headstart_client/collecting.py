"""Episodes out of what environments give, step by step: it neither acts nor steps, and waits for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from headstart_client.policies import Action
from headstart_client.rollouts import Episode
from headstart_client.stepping import Autoreset


@dataclass(frozen=True, eq=False)
class CollectedEpisode(Episode):
    """One episode of ``T`` steps in the user's own environment.

    Attributes:
        number: Of all that were begun, from 0.
        revision: Of the policy that acted first in it; a newer one may have gone on, as ``log_probs`` tell.
        policy_actions: [T, A], continuous actions as the policy drew them; ``None`` of discrete ones.
    """

    number: int
    revision: int
    policy_actions: NDArray[np.float64] | None


@dataclass
class _Slot:
    """What goes on in one sub-environment."""

    number: int
    observations: list[NDArray[np.float64]]
    actions: list[Any] = field(default_factory=list)
    policy_actions: list[NDArray[np.float64]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    revision: int = 0

    def append(self, action: Action, i: int, observation: NDArray[np.float64], reward: float) -> None:
        """Append a step: the i-th action, and what came of it."""
        if not self.rewards:
            self.revision = action.revision or 0
        self.observations.append(observation)
        self.actions.append(action.actions[i])
        self.rewards.append(reward)
        self.log_probs.append(float(action.log_probs[i]))
        if action.values is not None:
            self.values.append(float(action.values[i]))
        if action.policy_actions is not None:
            self.policy_actions.append(action.policy_actions[i])

    def whole(self, terminated: bool, truncated: bool) -> CollectedEpisode:
        """The episode, which has ended."""
        return CollectedEpisode(
            observations=np.array(self.observations),
            states=None,
            actions=np.array(self.actions),
            rewards=np.array(self.rewards),
            values=np.array(self.values),
            log_probs=np.array(self.log_probs),
            terminated=terminated,
            truncated=truncated,
            episode_return=sum(self.rewards),
            number=self.number,
            revision=self.revision,
            policy_actions=np.array(self.policy_actions) if self.policy_actions else None,
        )


@final
class Collector:
    """Collects whole episodes of M sub-environments that go on side by side.

    Episodes are counted in the order in which they begin, and asked for in that order: those that happen to be short,
    and so end first, are not preferred. What was begun beyond those that are asked for stays, for who asks for more.

    Args:
        count: M.
        autoreset: How a sub-environment begins again.
        horizon: Steps after which an episode is cut off, where the environment does not.

    Attributes:
        observations: [M, O], what to act on next.
        ended: [M], the sub-environments that must be reset before the next step.
    """

    def __init__(self, count: int, autoreset: Autoreset, horizon: int) -> None:
        self._autoreset = autoreset
        self._horizon = horizon
        self._begun = 0
        self._taken = 0
        self._complete: dict[int, CollectedEpisode] = {}
        self._slots: list[_Slot | None] = [None] * count
        self.observations: NDArray[np.float64] = np.zeros((count, 0))
        self.ended: NDArray[np.bool_] = np.ones(count, np.bool_)

    def begin(self, observations: NDArray[np.float64]) -> None:
        """Begin everywhere, from first observations [M, O]; what is under way, or has not been taken, is dropped."""
        self._complete.clear()
        self._taken = self._begun
        self.observations = _finite(observations, "an observation")
        for i in range(len(self._slots)):
            self._begin(i, observations[i])

    def restart(self, observations: NDArray[np.float64]) -> None:
        """Begin where :attr:`ended` says so; [M, O], of which only those are looked at."""
        self.observations = _finite(np.where(self.ended[:, None], observations, self.observations), "an observation")
        for i in np.flatnonzero(self.ended):
            self._begin(int(i), observations[i])

    def step(
        self,
        action: Action,
        observations: NDArray[np.float64],
        rewards: NDArray[np.float64],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        info: Mapping[str, Any],
    ) -> None:
        """Take in what the sub-environments answered to an action on :attr:`observations`.

        Args:
            action: What was done in each.
            observations: [M, O].
            rewards: [M].
            terminated: [M].
            truncated: [M].
            info: The last observations, where they begin again in the same step.

        Raises:
            ValueError: If a reward or an observation is not finite, an episode goes on beyond the horizon and cannot be
                stopped, or a sub-environment was to be reset first.
        """
        if self.ended.any():
            raise ValueError("sub-environments whose episodes have ended must be reset before the next step")
        self.observations = _finite(observations, "an observation")
        ended = (terminated | truncated).tolist()
        _finite(rewards, "a reward")
        for i, slot in enumerate(self._slots):
            if slot is None:
                # Of a sub-environment that begins again in this step: nothing was done in it.
                self._begin(i, observations[i])
                continue
            in_info = ended[i] and self._autoreset is Autoreset.SAME_STEP
            slot.append(action, i, _final(info, i) if in_info else observations[i], float(rewards[i]))
            cut = not ended[i] and len(slot.rewards) >= self._horizon
            if cut and self._autoreset is not Autoreset.DISABLED:
                raise ValueError(
                    f"an episode has come to the horizon of {self._horizon} steps, and its vector environment cannot "
                    "be told to end it: give its parts gymnasium.wrappers.TimeLimit, or it AutoresetMode.DISABLED"
                )
            if ended[i] or cut:
                self._complete[slot.number] = slot.whole(bool(terminated[i]), cut or bool(truncated[i]))
                self._end(i, observations[i])

    def ready(self, episodes: int, environment_steps: int = 0) -> tuple[list[CollectedEpisode], bool]:
        """The next episodes, as far as they are complete, and whether they are all that is asked for.

        Args:
            episodes: As many are asked for,
            environment_steps: and as many more as it takes to have so many steps.
        """
        found: list[CollectedEpisode] = []
        steps = 0
        while len(found) < episodes or steps < environment_steps:
            episode = self._complete.get(self._taken + len(found))
            if episode is None:
                return found, False
            found.append(episode)
            steps += len(episode)
        return found, True

    def take(self, episodes: int, environment_steps: int = 0) -> list[CollectedEpisode]:
        """The episodes that are :meth:`ready`, in the order in which they began; each is given once.

        Raises:
            ValueError: If they are not all that is asked for.
        """
        found, enough = self.ready(episodes, environment_steps)
        if not enough:
            raise ValueError("so many episodes are not complete yet")
        for episode in found:
            del self._complete[episode.number]
        self._taken += len(found)
        return found

    def _begin(self, i: int, observation: NDArray[np.float64]) -> None:
        self._slots[i] = _Slot(self._begun, [observation])
        self._begun += 1
        self.ended[i] = False

    def _end(self, i: int, observation: NDArray[np.float64]) -> None:
        self._slots[i] = None
        if self._autoreset is Autoreset.SAME_STEP:
            self._begin(i, observation)
        self.ended[i] = self._autoreset is Autoreset.DISABLED


def _final(info: Mapping[str, Any], i: int) -> NDArray[np.float64]:
    last = info.get("final_obs")
    if last is None or last[i] is None:
        raise ValueError("the vector environment gave no final_obs with the step in which an episode ended")
    return _finite(np.array(last[i], np.float64), "an observation")


def _finite(values: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise ValueError(f"the environment gave {what} that is not finite: {values}")
    return values
