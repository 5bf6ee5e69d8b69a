"""Episodes that go on: as one ends another begins, so that any number of steps can be taken at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from models import random
from models.policy import Policy
from models.rollout import require_finite
from models.tasks import TaskBatch
from models.types import Params

_BEGIN: Final = 0
_STEP: Final = 1
_NOISE: Final = 2

Act = Callable[[Tensor, int], Tensor]
"""Actions in policy units, [N, B] or [N, B, A], for observations [N, B, O] at step t of a segment."""


@dataclass(frozen=True)
class Segment:
    """``T`` consecutive steps of the ``B`` places of ``N`` tasks; episodes may end and begin within.

    Attributes:
        observation: Before each action, [N, T, B, O].
        action: In policy units, [N, T, B] int64 or [N, T, B, A].
        reward: [N, T, B].
        next_observation: After each action, of the same episode, [N, T, B, O].
        terminated: Whether the step ended its episode in a terminal state, [N, T, B] bool.
        truncated: Whether it was the last within the task's horizon, or the environment cut the episode off there, and
            did not terminate it, [N, T, B] bool.
        finished: Episodes that ended, [N] int64.
        finished_return: Sum of their undiscounted returns, [N].
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminated: Tensor
    truncated: Tensor
    finished: Tensor
    finished_return: Tensor


@final
class Stream:
    """``B`` episodes at a time of each of ``N`` tasks, without an end. Use it as a context.

    What happens at a place depends on its key, the time, the actions and its task alone, not on what runs beside it.

    Args:
        policy: Whose actions they are.
        tasks: N tasks.
        episodes: B.
        keys: [N] int64, one stream of random numbers for each task.
        state: Where to go on: what :meth:`state` gave. The actions of the episodes under way are taken once more.
    """

    def __init__(
        self, policy: Policy, tasks: TaskBatch, episodes: int, keys: Tensor, state: Params | None = None
    ) -> None:
        self._policy = policy
        self._tasks = tasks
        places = random.fold_in(keys.unsqueeze(1), torch.arange(episodes, device=keys.device))
        self._keys = {purpose: random.fold_in(places, purpose) for purpose in (_BEGIN, _STEP, _NOISE)}
        self._horizon = tasks.horizon.unsqueeze(1)
        self._all = torch.ones_like(places, dtype=torch.bool)
        self._actions: list[Tensor] = []
        if state is None:
            self.time = 0
            self._age = torch.zeros_like(places)
            self._return = torch.zeros_like(places, dtype=tasks.discount.dtype)
        else:
            self.time = int(state["time"])
            self._age, self._return = state["age"].clone(), state["return"].clone()
        begun = random.fold_in(self._keys[_BEGIN], self.time - self._age)
        self._simulation = tasks.environment.simulate(begun, tasks)
        self.observation = self._simulation.first_observation
        if state is not None:
            self._replay(state["actions"])

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._simulation.end(whole=kind is None)

    def noise(self, params: Params, steps: int) -> Tensor:
        """The policies' noise of the next so many steps, [N, T, B, A] (:meth:`models.policy.Policy.noise`)."""
        return self._policy.noise(params, self.keys(steps))

    def keys(self, steps: int) -> Tensor:
        """Keys for what an actor draws in the next so many steps, [N, T, B]."""
        return self._at(_NOISE, steps)

    @torch.no_grad()
    def advance(self, steps: int, act: Act) -> Segment:
        """Take so many steps.

        Raises:
            NonFiniteReward: If a task's reward or dynamics gave NaN or infinity.
            EnvironmentFailed: If a bridged environment failed.
        """
        rng = self._at(_STEP, steps)
        taken = []
        for t in range(steps):
            observation = self.observation
            action = act(observation, t)
            performed = self._policy.to_environment(action)
            self.observation, terminal, over = self._simulation.step(performed, rng[:, t], self._all)
            self.time += 1
            self._age = self._age + 1
            end = over | (self._age >= self._horizon)
            taken.append((observation, self.observation, action, performed, terminal, end))
            if bool(end.any()):
                begun = random.fold_in(self._keys[_BEGIN], self.time)
                self.observation = self._simulation.renew(begun, end)
                self._age = self._age.masked_fill(end, 0)
        self._remember([step[3] for step in taken])
        return self._assemble(*(torch.stack(column, 1) for column in zip(*taken, strict=True)))

    def state(self) -> Params:
        """What is needed to go on from here: tensors that change no more, all but ``time`` [N, ...]."""
        longest = len(self._actions)
        like = self._policy.to_environment(self._none())
        actions = torch.stack(self._actions, 1) if longest else like.new_empty(len(self._tasks), 0, *like.shape[1:])
        time = torch.tensor([self.time])
        return {"time": time, "age": self._age, "return": self._return, "actions": actions}

    def _none(self) -> Tensor:
        """An action of every place, of the right shape and type."""
        if self._policy.discrete:
            return torch.zeros_like(self._age)
        return self._return.new_zeros(*self._age.shape, self._policy.action_size)

    def _at(self, purpose: int, steps: int) -> Tensor:
        times = torch.arange(self.time, self.time + steps, device=self._age.device)
        return random.fold_in(self._keys[purpose].unsqueeze(1), times.reshape(1, -1, 1))

    def _remember(self, performed: list[Tensor]) -> None:
        """Keep the actions of the episodes under way."""
        longest = int(self._age.max())
        self._actions = (self._actions + performed)[-longest:] if longest else []

    @torch.no_grad()
    def _replay(self, actions: Tensor) -> None:
        """Bring the episodes under way to where they were."""
        self._actions = list(actions.unbind(1))
        first = len(self._actions) - self._age
        begun = self.time - self._age
        for t in range(len(self._actions)):
            place = (first + t).clamp(max=len(self._actions) - 1)
            place = place.reshape(place.shape[0], 1, place.shape[1], *[1] * (actions.dim() - 3))
            action = actions.take_along_dim(place, 1)[:, 0]
            rng = random.fold_in(self._keys[_STEP], begun + t)
            self.observation = self._simulation.step(action, rng, t < self._age)[0]
        self._simulation.forget()

    def _assemble(
        self,
        observation: Tensor,
        next_observation: Tensor,
        action: Tensor,
        performed: Tensor,
        terminated: Tensor,
        end: Tensor,
    ) -> Segment:
        reward = self._simulation.rewards(performed)
        self._simulation.forget()
        reward = self._tasks.reward(observation, performed, next_observation, reward, terminated)
        require_finite(self._tasks, reward, next_observation)
        total = reward.cumsum(1) + self._return.unsqueeze(1)
        # Returns of the episodes that ended at a place, one after another, are what had come together by the last end.
        closed = torch.where(end, total, -torch.inf)
        last = torch.where(end, torch.arange(1, end.shape[1] + 1, device=end.device).reshape(1, -1, 1), 0).amax(1)
        by_last = closed.take_along_dim((last - 1).clamp(min=0).unsqueeze(1), 1)[:, 0]
        finished_return = torch.where(last > 0, by_last, torch.zeros_like(by_last))
        self._return = total[:, -1] - finished_return
        return Segment(
            observation=observation,
            action=action,
            reward=reward,
            next_observation=next_observation,
            terminated=terminated,
            truncated=end & ~terminated,
            finished=end.sum((1, 2)),
            finished_return=finished_return.sum(1),
        )
