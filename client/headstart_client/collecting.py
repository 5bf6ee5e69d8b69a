"""Episodes out of what environments give, step by step: it neither acts nor steps, and waits for nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class _Step:
    """One step of all sub-environments."""

    observations: NDArray[np.float64]
    action: Action
    rewards: NDArray[np.float64]


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
        # The steps that episodes under way are made of, from the first that one needs; of each sub-environment, which
        # episode goes on, the step it began at, and whether it begins one in the next step.
        self._steps: list[_Step] = []
        self._first = 0
        self._number = np.zeros(count, np.int64)
        self._start = np.zeros(count, np.int64)
        self._resting = np.zeros(count, np.bool_)
        self.observations: NDArray[np.float64] = np.zeros((count, 0))
        self.ended: NDArray[np.bool_] = np.ones(count, np.bool_)

    def begin(self, observations: NDArray[np.float64]) -> None:
        """Begin everywhere, from first observations [M, O]; what is under way, or has not been taken, is dropped."""
        self._complete.clear()
        self._taken = self._begun
        self._first, self._steps = self._now, []
        self.observations = _finite(observations, "an observation")
        self._resting[:] = False
        self._begin(range(len(self.ended)))

    def restart(self, observations: NDArray[np.float64]) -> None:
        """Begin where :attr:`ended` says so; [M, O], of which only those are looked at."""
        self.observations = _finite(np.where(self.ended[:, None], observations, self.observations), "an observation")
        self._begin(np.flatnonzero(self.ended))

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
        self._steps.append(_Step(self.observations, action, _finite(rewards, "a reward")))
        self.observations = _finite(observations, "an observation")
        # In a sub-environment that begins again in this step nothing was done.
        rested = np.flatnonzero(self._resting)
        going = ~self._resting
        self._begin(rested)
        done = (terminated | truncated) & going
        cut = ~done & going & (self._now - self._start >= self._horizon)
        if cut.any() and self._autoreset is not Autoreset.DISABLED:
            raise ValueError(
                f"an episode has come to the horizon of {self._horizon} steps, and its vector environment cannot "
                "be told to end it: give its parts gymnasium.wrappers.TimeLimit, or it AutoresetMode.DISABLED"
            )
        if (over := np.flatnonzero(done | cut)).size:
            for i in over.tolist():
                last = _final(info, i) if self._autoreset is Autoreset.SAME_STEP else observations[i]
                self._close(i, last, bool(terminated[i]), bool(cut[i] or truncated[i]))
            self._end(over)

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

    @property
    def _now(self) -> int:
        """Steps since the first."""
        return self._first + len(self._steps)

    def _begin(self, where: Iterable[int]) -> None:
        for i in where:
            self._number[i], self._start[i] = self._begun, self._now
            self._resting[i] = self.ended[i] = False
            self._begun += 1

    def _end(self, where: NDArray[np.intp]) -> None:
        self._resting[where] = self._autoreset is Autoreset.NEXT_STEP
        self.ended[where] = self._autoreset is Autoreset.DISABLED
        if self._autoreset is Autoreset.SAME_STEP:
            self._begin(where)
        going = self._start[~(self._resting | self.ended)]
        past = (int(going.min()) if going.size else self._now) - self._first
        del self._steps[:past]
        self._first += past

    def _close(self, i: int, last: NDArray[np.float64], terminated: bool, truncated: bool) -> None:
        """Put an episode together."""
        steps = self._steps[int(self._start[i]) - self._first :]
        actions = [step.action for step in steps]
        rewards = [float(step.rewards[i]) for step in steps]
        drawn = [each.policy_actions[i] for each in actions if each.policy_actions is not None]
        episode = CollectedEpisode(
            observations=np.array([*(step.observations[i] for step in steps), last]),
            states=None,
            actions=np.array([each.actions[i] for each in actions]),
            rewards=np.array(rewards),
            values=np.array([each.values[i] for each in actions if each.values is not None]),
            log_probs=np.array([each.log_probs[i] for each in actions]),
            terminated=terminated,
            truncated=truncated,
            episode_return=sum(rewards),
            number=int(self._number[i]),
            revision=actions[0].revision or 0,
            policy_actions=np.array(drawn) if drawn else None,
        )
        self._complete[episode.number] = episode


def _final(info: Mapping[str, Any], i: int) -> NDArray[np.float64]:
    last = info.get("final_obs")
    if last is None or last[i] is None:
        raise ValueError("the vector environment gave no final_obs with the step in which an episode ended")
    return _finite(np.array(last[i], np.float64), "an observation")


def _finite(values: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise ValueError(f"the environment gave {what} that is not finite: {values}")
    return values
