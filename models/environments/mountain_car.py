"""The underpowered car of Gymnasium's ``MountainCar-v0`` and ``MountainCarContinuous-v0``, which pays for its fuel.

Source: Moore 1990, "Efficient memory-based learning for robot control", as Gymnasium integrates it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import final

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from typing_extensions import override

from models import random
from models.environments.base import Parameter
from models.environments.functional import FunctionalEnvironment
from models.types import Params

_LEFT, _RIGHT = -1.2, 0.6
_MAX_SPEED = 0.07
_START_LOW, _START_HIGH = -0.6, -0.4


class Valley(FunctionalEnvironment):
    """What both cars share: a valley, and a motor too weak for its slope.

    The state is the observation: position and velocity, in units of the track and track units a step. With p the
    acceleration by the motor,

        v' = clip(v + p - cos(3 x) gravity, ±0.07),    x' = clip(x + v', -1.2, 0.6)

    and the left end stops the car. An episode ends at or beyond the goal position with at least the goal velocity.
    """

    observation_space: Box = Box(
        np.array([_LEFT, -_MAX_SPEED], np.float32),
        np.array([_RIGHT, _MAX_SPEED], np.float32),
        dtype=np.float32,
    )

    @final
    @override
    def prepare(self, params: Params) -> Params:
        goal = torch.stack((params["goal_position"], params["goal_velocity"]), -1)
        return params | {"slope": -params["gravity"], "goal": goal}

    @final
    @override
    def initial(self, rng: Tensor, params: Params) -> Tensor:
        position = random.uniform(rng, 1, params["gravity"].dtype) * (_START_HIGH - _START_LOW) + _START_LOW
        return torch.cat((position, torch.zeros_like(position)), -1)

    @abstractmethod
    def push(self, action: Tensor, params: Params) -> Tensor:
        """Acceleration by the motor."""

    @final
    @override
    def transition(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> Tensor:
        position, velocity = state.unbind(-1)
        change = torch.addcmul(self.push(action, params), (position * 3).cos(), params["slope"])
        velocity = (velocity + change).clamp(-_MAX_SPEED, _MAX_SPEED)
        position = (position + velocity).clamp(_LEFT, _RIGHT)
        velocity = torch.where(position <= _LEFT, velocity.clamp(min=0), velocity)
        return torch.stack((position, velocity), -1)

    @final
    @override
    def observation(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return state

    @final
    @override
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return (state >= params["goal"]).all(-1)


@final
class MountainCar(Valley):
    """Push left (0), not at all (1) or right (2), by ``force``; reward -1 a step until the goal."""

    id: str = "MountainCar-v0"
    title: str = "Mountain car"
    description: str = (
        "Drive out of a valley by swinging to and fro, the motor being weaker than the slope; Gymnasium's "
        "MountainCar-v0. Reward -1 a step until the goal."
    )
    parameters: tuple[Parameter, ...] = (
        Parameter("force", 0.001, 0.0, 0.01, "per step^2", "Acceleration by the motor."),
        Parameter("gravity", 0.0025, 0.0, 0.025, "per step^2", "Acceleration by the slope where it is steepest."),
        Parameter("goal_position", 0.5, -0.4, 0.6, "", "Position from which the goal is reached."),
        Parameter("goal_velocity", 0.0, -0.07, 0.07, "per step", "Least velocity to reach the goal with."),
    )
    action_space: Discrete[np.int64] = Discrete(3)
    default_horizon: int = 200
    attributes: Mapping[str, str] = {each.name: each.name for each in parameters}

    @override
    def push(self, action: Tensor, params: Params) -> Tensor:
        return (action - 1) * params["force"]

    @override
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return next_state.new_full(next_state.shape[:-1], -1.0)


@final
class MountainCarContinuous(Valley):
    """Push by ``power`` times the action, clipped to ±1; reward -0.1 u² a step for the action u, and 100 on arrival."""

    id: str = "MountainCarContinuous-v0"
    title: str = "Mountain car, continuous"
    description: str = (
        "Drive out of a valley by swinging to and fro, the motor being weaker than the slope; Gymnasium's "
        "MountainCarContinuous-v0. Reward 100 at the goal, minus a tenth of the squared push at every step."
    )
    parameters: tuple[Parameter, ...] = (
        Parameter("power", 0.0015, 0.0, 0.01, "per step^2", "Acceleration by the motor at full push."),
        Parameter("gravity", 0.0025, 0.0, 0.025, "per step^2", "Acceleration by the slope where it is steepest."),
        Parameter("goal_position", 0.45, -0.4, 0.6, "", "Position from which the goal is reached."),
        Parameter("goal_velocity", 0.0, -0.07, 0.07, "per step", "Least velocity to reach the goal with."),
    )
    action_space: Box = Box(-1.0, 1.0, (1,), np.float32)
    default_horizon: int = 999
    attributes: Mapping[str, str] = {each.name: each.name for each in parameters if each.name != "gravity"}

    @override
    def push(self, action: Tensor, params: Params) -> Tensor:
        return action.squeeze(-1).clamp(-1, 1) * params["power"]

    @override
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        # As in Gymnasium, what is asked for beyond a full push costs too, though it moves nothing.
        arrived = self.terminal(next_state, rng, params).to(next_state.dtype)
        return 100 * arrived - 0.1 * action.squeeze(-1).square()
