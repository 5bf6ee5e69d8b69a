"""A point in the plane that has to find a goal it is not told.

Source: Finn, Abbeel & Levine 2017, "Model-agnostic meta-learning", section 5.3.
"""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor
from typing_extensions import override

from models.environments.base import Parameter
from models.environments.functional import FunctionalEnvironment
from models.types import Params

_MAX_SPEED = 0.1
_REACHED = 0.01


@final
class Navigation2D(FunctionalEnvironment):
    """Walk from the origin to a goal, the action being the velocity, clipped to ±0.1 on each axis.

    The state is the observation: the position, which does not say where the goal is. With d the distance
    to the goal after the move, the reward is -d (``dense``) or max(0, 1 - d / ``radius``) (``sparse``:
    nothing is felt outside the radius). An episode ends where |dx| and |dy| are both below 0.01.
    """

    id: str = "Navigation2D-v0"
    title: str = "Navigation in the plane"
    description: str = (
        "Walk from the origin to a goal that the observation does not show. Dense reward: minus the distance "
        "to the goal; sparse: 1 at the goal, falling to 0 at the radius. Ends within 0.01 on both axes."
    )
    parameters: tuple[Parameter, ...] = (
        Parameter("goal_x", 0.5, -10.0, 10.0, "m", "The goal's position on the first axis."),
        Parameter("goal_y", 0.5, -10.0, 10.0, "m", "The goal's position on the second axis."),
        Parameter("reward", "dense", choices=("dense", "sparse"), description="How the distance is rewarded."),
        Parameter("radius", 0.2, 0.01, 100.0, "m", "Distance at which the sparse reward begins; no use if dense."),
    )
    observation_space: Box = Box(-np.inf, np.inf, (2,), np.float32)
    action_space: Box = Box(-_MAX_SPEED, _MAX_SPEED, (2,), np.float32)
    default_horizon: int = 100

    @override
    def prepare(self, params: Params) -> Params:
        # Both rewards are max(floor, offset + slope d), so that a batch may mix them without a branch.
        sparse, radius = params["reward"] == 1, params["radius"]
        return params | {
            "goal": torch.stack((params["goal_x"], params["goal_y"]), -1),
            "offset": sparse.to(radius.dtype),
            "slope": torch.where(sparse, -1 / radius, -torch.ones_like(radius)),
            "floor": torch.where(sparse, torch.zeros_like(radius), torch.full_like(radius, -math.inf)),
        }

    @override
    def initial(self, rng: Tensor, params: Params) -> Tensor:
        return params["goal"].new_zeros((*rng.shape, 2))

    @override
    def transition(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> Tensor:
        return state + action.clamp(-_MAX_SPEED, _MAX_SPEED)

    @override
    def observation(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return state

    @override
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        distance = torch.linalg.vector_norm(next_state - params["goal"], dim=-1)
        return torch.addcmul(params["offset"], params["slope"], distance).maximum(params["floor"])

    @override
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return ((state - params["goal"]).abs() < _REACHED).all(-1)
