"""One task as an environment of Gymnasium's, to look at, to check, or to train something else in."""

from __future__ import annotations

from typing import Any, final

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from models import random
from models.environments.functional import FunctionalEnvironment
from models.tasks import TaskBatch
from models.types import InvalidValue, Task


def as_gymnasium(task: Task, dtype: torch.dtype = torch.float32) -> SingleEnv:
    """A task as an environment of Gymnasium's; see :class:`SingleEnv`."""
    return SingleEnv(task, dtype)


@final
class SingleEnv(gymnasium.Env[Any, Any]):
    """One episode after another of one task, with the task's own reward and horizon.

    Observations and actions are in environment units. Episodes follow from the seed of :meth:`reset`, as
    Gymnasium has it: seeded once, each further one draws on.

    Args:
        task: As :func:`models.tasks.define_task` made it.
        dtype: What states are computed in; that of training by default.

    Raises:
        InvalidValue: If the task's environment is not given by functions of its state (:mod:`.functional`).
    """

    def __init__(self, task: Task, dtype: torch.dtype = torch.float32) -> None:
        self._tasks = TaskBatch.of([task], dtype)
        if not isinstance(self._tasks.environment, FunctionalEnvironment):
            raise InvalidValue("/environment", f"{task.environment} is one of Gymnasium's: gymnasium.make makes it")
        self._environment: FunctionalEnvironment = self._tasks.environment
        self.observation_space = self._environment.observation_space
        self.action_space = self._environment.action_space
        self._horizon = task.horizon
        self._dtype = dtype
        self._state: Tensor | None = None

    @override
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; there are no options."""
        super().reset(seed=seed)
        key = torch.tensor([[int(self.np_random.integers(2**63))]])
        self._state = self._environment.initial(random.fold_in(key, 0), self._tasks.params)
        self._keys, self._age = random.fold_in(key, 1), 0
        return _shown(self._observe(self._state)), {}

    @override
    def step(
        self, action: NDArray[np.floating[Any]] | np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Act once; truncated where the task's horizon is reached.

        Raises:
            InvalidValue: If a discrete action is none of the action space's, or a vector has another shape.
            gymnasium.error.ResetNeeded: If no episode has begun, or it has ended.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() first: no episode is under way")
        act = self._action(action)
        rng, params = random.fold_in(self._keys, self._age), self._tasks.params
        state, reward, terminated = self._environment.step(self._state, act, rng, params)
        seen, sees = self._observe(self._state), self._observe(state)
        reward = self._tasks.reward(seen, act, sees, reward, terminated)
        self._age += 1
        ended, truncated = bool(terminated), self._age >= self._horizon
        self._state = None if ended or truncated else state
        return _shown(sees), float(reward), ended, truncated, {}

    def _observe(self, state: Tensor) -> Tensor:
        return self._environment.observation(state, None, self._tasks.params)

    def _action(self, action: NDArray[np.floating[Any]] | np.int64 | int) -> Tensor:
        if isinstance(self.action_space, Discrete):
            if not self.action_space.contains(action):
                raise InvalidValue("/action", f"must be a whole number from 0 to {int(self.action_space.n) - 1}")
            return torch.tensor([[int(action)]])
        vector = np.array(action, np.float64)
        if vector.shape != self.action_space.shape:
            raise InvalidValue("/action", f"must be {self.action_space.shape} numbers, not {vector.shape}")
        return torch.tensor(vector, dtype=self._dtype)[None, None]


def _shown(observation: Tensor) -> NDArray[np.float32]:
    return np.array(observation[0, 0].numpy(), np.float32)
