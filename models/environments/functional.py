"""Environments whose dynamics are functions of states, in torch over leading batch axes.

The functions are those of ``gymnasium.experimental.functional.FuncEnv``, so that the dynamics and the reward of a task
are separate and replaceable.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from models.environments.base import Environment, Scene, Simulation
from models.types import Params, Rollout, Task

if TYPE_CHECKING:
    from models.tasks import TaskBatch


class FunctionalEnvironment(Environment):
    """An environment that is given by functions of its state.

    State is a float tensor ``[..., S]`` and keys (:mod:`models.random`) are int64 ``[...]``. Parameters are
    tensors of one shape that broadcasts against the leading axes, ``[N, 1]`` for states ``[N, B, S]``; a
    categorical one is the index of its choice, and a whole number is int64. Dtype and device are those of the
    parameters that are not whole numbers, of which there is at least one; a state may be of a more precise
    dtype, what is observed and rewarded is not. Actions are in
    environment units: int64 ``[...]`` where the action space is discrete, else ``[..., A]``, clipped to the
    action space by the environment.

    Attributes:
        attributes: What Gymnasium's environment of the same id calls each parameter that it has as an attribute;
            ``None`` where there is no such environment to draw.

    Every method but :meth:`prepare` takes parameters that went through :meth:`prepare` once, so that
    what depends on the parameters alone is not worked out again at every step.
    """

    attributes: Mapping[str, str] | None = None

    @property
    @final
    @override
    def renders(self) -> bool:
        return self.attributes is not None

    @abstractmethod
    def initial(self, rng: Tensor, params: Params) -> Tensor:
        """First states of episodes, ``[*rng.shape, S]``; each depends on its own key and parameters only."""

    @abstractmethod
    def transition(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> Tensor:
        """The states that follow, ``[..., S]``.

        The keys also seeded the policy's noise: what draws here folds a number of its own into them first. What a
        reward depends on is kept in the state, since rewards are worked out later, without a key.
        """

    @abstractmethod
    def observation(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        """What a policy sees of the states, ``[..., O]``; ``rng`` may be ``None`` where it draws nothing."""

    @abstractmethod
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        """The environment's own reward of each transition, ``[...]``; ``rng`` as in :meth:`observation`."""

    @abstractmethod
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        """Whether an episode ends in each state, bool ``[...]``; a horizon is the task's, not a state's."""

    def step(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> tuple[Tensor, Tensor, Tensor]:
        """Next state, reward and whether the next state is terminal."""
        next_state = self.transition(state, action, rng, params)
        reward = self.reward(state, action, next_state, rng, params)
        return next_state, reward, self.terminal(next_state, rng, params)

    def pose(self, state: NDArray[np.float64], action: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Attributes of Gymnasium's environment by which it draws states.

        Args:
            state: [F, S].
            action: What led to each, in environment units, [F] or [F, A]; zero for the first of an episode.

        Returns:
            A value for each state, [F, ...].
        """
        del action
        return {"state": state}

    @final
    @override
    def scene(self, task: Task, rollout: Rollout, action: Tensor) -> Scene:
        assert self.attributes is not None
        assert rollout.state is not None
        lengths = rollout.lengths[0].tolist()
        led = torch.cat((torch.zeros_like(action[0, :1]), action[0]))
        states, actions = (
            torch.cat([each[: length + 1, b] for b, length in enumerate(lengths)]).double().cpu().numpy()
            for each in (rollout.state[0], led)
        )
        pose = self.pose(states, actions)
        settings = {theirs: task.parameters[ours] for ours, theirs in self.attributes.items()}
        configuration = {"module": None, "name": self.id, "arguments": dict[str, object]()}
        return Scene(configuration, settings, tuple(pose), tuple(pose.values()))

    @final
    @override
    def simulate(self, rng: Tensor, tasks: TaskBatch) -> FunctionalSimulation:
        return FunctionalSimulation(self, rng, tasks.params)


@final
class FunctionalSimulation(Simulation):
    """Episodes whose states are kept, so that the rewards of all steps are computed in one go.

    Args:
        environment: The functions.
        rng: A key for each episode, [N, B].
        params: Prepared parameters, each [N, 1, ...].
    """

    def __init__(self, environment: FunctionalEnvironment, rng: Tensor, params: Params) -> None:
        self._environment = environment
        self._params = params
        self._states = [environment.initial(rng, params)]
        self._ends: dict[int, Tensor] = {}
        self.first_observation = environment.observation(self._states[0], None, params)

    @override
    def step(self, action: Tensor, rng: Tensor, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        environment, state = self._environment, self._states[-1]
        moved = environment.transition(state, action, rng, self._params)
        # A finished episode stands still: its last state stays for the bootstrap, and nothing can overflow.
        state = torch.where(alive.unsqueeze(-1), moved, state)
        self._states.append(state)
        terminal = environment.terminal(state, rng, self._params)
        return environment.observation(state, None, self._params), terminal, terminal

    @override
    def rewards(self, action: Tensor) -> Tensor:
        steps = action.shape[1]
        state = torch.stack(self._states[: steps + 1], 1)
        before, after = state[:, :-1], state[:, 1:]
        if self._ends:
            after = torch.stack([self._ends.get(t, self._states[t]) for t in range(1, steps + 1)], 1)
        per_step = {name: value.unsqueeze(1) for name, value in self._params.items()}
        return self._environment.reward(before, action, after, None, per_step)

    @override
    def states(self, steps: int) -> Tensor:
        return torch.stack(self._states[: steps + 1], 1)

    @override
    def renew(self, rng: Tensor, over: Tensor) -> Tensor:
        first = self._environment.initial(rng, self._params)
        self._ends[len(self._states) - 1] = self._states[-1]
        self._states[-1] = torch.where(over.unsqueeze(-1), first, self._states[-1])
        return self._environment.observation(self._states[-1], None, self._params)

    @override
    def forget(self) -> None:
        self._states = self._states[-1:]
        self._ends = {}

    @override
    def end(self, whole: bool) -> None:
        pass
