"""The underpowered car of Gymnasium's ``MountainCarContinuous-v0``, which pays for its fuel.

Source: Moore 1990, "Efficient memory-based learning for robot control", as Gymnasium integrates it.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor
from typing_extensions import override

from models import random
from models.environments.base import Parameter
from models.environments.functional import FunctionalEnvironment
from models.types import Params

_LEFT, _RIGHT = -1.2, 0.6
_MAX_SPEED = 0.07
_START_LOW, _START_HIGH = -0.6, -0.4


@final
class MountainCarContinuous(FunctionalEnvironment):
    """Drive out of a valley with a motor too weak for the slope, the action being how hard it pushes.

    The state is the observation: position and velocity, in units of the track and track units a step.

        v' = clip(v + clip(u, ±1) power - cos(3 x) gravity, ±0.07),    x' = clip(x + v', -1.2, 0.6)

    and the left end stops the car. The reward is -0.1 u² a step, and 100 on arrival: at or beyond the goal
    position with at least the goal velocity, which ends the episode.
    """

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
    observation_space: Box = Box(
        np.array([_LEFT, -_MAX_SPEED], np.float32),
        np.array([_RIGHT, _MAX_SPEED], np.float32),
        dtype=np.float32,
    )
    action_space: Box = Box(-1.0, 1.0, (1,), np.float32)
    default_horizon: int = 999

    @override
    def prepare(self, params: Params) -> Params:
        goal = torch.stack((params["goal_position"], params["goal_velocity"]), -1)
        return params | {"slope": -params["gravity"], "goal": goal}

    @override
    def initial(self, rng: Tensor, params: Params) -> Tensor:
        position = random.uniform(rng, 1, params["power"].dtype) * (_START_HIGH - _START_LOW) + _START_LOW
        return torch.cat((position, torch.zeros_like(position)), -1)

    @override
    def transition(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> Tensor:
        position, velocity = state.unbind(-1)
        push = action.squeeze(-1).clamp(-1, 1) * params["power"]
        change = torch.addcmul(push, (position * 3).cos(), params["slope"])
        velocity = (velocity + change).clamp(-_MAX_SPEED, _MAX_SPEED)
        position = (position + velocity).clamp(_LEFT, _RIGHT)
        velocity = torch.where(position <= _LEFT, velocity.clamp(min=0), velocity)
        return torch.stack((position, velocity), -1)

    @override
    def observation(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return state

    @override
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        # As in Gymnasium, what is asked for beyond a full push costs too, though it moves nothing.
        arrived = self.terminal(next_state, rng, params).to(next_state.dtype)
        return 100 * arrived - 0.1 * action.squeeze(-1).square()

    @override
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return (state >= params["goal"]).all(-1)
