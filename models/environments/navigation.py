"""A point in the plane that has to find a goal it is not told.

Source: Finn, Abbeel & Levine 2017, "Model-agnostic meta-learning", section 5.3; the reward ``within`` is that of
the sparse point robot of Rakelly et al. 2019, "Efficient off-policy meta-reinforcement learning", section 6.3, whose
goals lie on a half circle.
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
_DENSE, _SPARSE, _WITHIN = range(3)  # places in the choices of the reward


@final
class Navigation2D(FunctionalEnvironment):
    """Walk from the origin to a goal, the action being the velocity, clipped to ±0.1 on each axis.

    The state is the observation: the position, which does not say where the goal is. With d the distance
    to the goal after the move, the reward is

    - ``dense``: -d;
    - ``sparse``: max(0, 1 - d / ``radius``), so that nothing is felt outside the radius;
    - ``within``: 1 - d where d is at most ``radius``, else 0.

    An episode ends where |dx| and |dy| are both below 0.01; with ``within`` it goes on, since who is paid for
    being at the goal should not lose by arriving.

    What a policy's own units are is the policy's affair, its ``action_scaling``: with ``scale`` it acts in [-1, 1],
    which is mapped onto ±0.1, as in the code of the first paper; with ``clip`` it acts in these units, and what lies
    beyond ±0.1 is cut off, as in other implementations. Results of the two do not compare.
    """

    id: str = "Navigation2D-v0"
    title: str = "Navigation in the plane"
    description: str = (
        "Walk from the origin to a goal that the observation does not show. Dense reward: minus the distance "
        "to the goal; sparse: 1 at the goal, falling to 0 at the radius; within: 1 minus the distance inside the "
        "radius, else 0. Ends within 0.01 on both axes, unless the reward is within."
    )
    parameters: tuple[Parameter, ...] = (
        Parameter("goal_x", 0.5, -10.0, 10.0, "m", "The goal's position on the first axis."),
        Parameter("goal_y", 0.5, -10.0, 10.0, "m", "The goal's position on the second axis."),
        Parameter("reward", "dense", choices=("dense", "sparse", "within"), description="How distance is rewarded."),
        Parameter("radius", 0.2, 0.01, 100.0, "m", "Distance at which a reward that is not dense begins."),
    )
    observation_space: Box = Box(-np.inf, np.inf, (2,), np.float32)
    action_space: Box = Box(-_MAX_SPEED, _MAX_SPEED, (2,), np.float32)
    default_horizon: int = 100

    @override
    def prepare(self, params: Params) -> Params:
        # Every reward is offset + slope d up to a reach, and nothing beyond: a batch may mix them without a branch.
        kind, radius = params["reward"], params["radius"]
        zero, one = torch.zeros_like(radius), torch.ones_like(radius)
        return params | {
            "goal": torch.stack((params["goal_x"], params["goal_y"]), -1),
            "offset": torch.where(kind == _DENSE, zero, one),
            "slope": torch.where(kind == _SPARSE, -1 / radius, -one),
            "reach": torch.where(kind == _DENSE, one * math.inf, radius),
            "arrival": torch.where(kind == _WITHIN, zero, one * _REACHED).unsqueeze(-1),
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
        return _paid(distance, params)

    @override
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return ((state - params["goal"]).abs() < params["arrival"]).all(-1)

    @override
    def optimal_return(self, params: Params, horizon: Tensor) -> Tensor | None:
        """That of walking straight at full speed on both axes, then standing still.

        NaN where the reward is ``sparse``: there an episode ends where it pays most, and the best stops short of it.
        """
        away = params["goal"].abs().double()
        exact = {name: params[name].double() for name in ("offset", "slope", "reach")}
        total, steps = torch.zeros_like(exact["reach"]), horizon.unsqueeze(1)
        # The farthest goal is a hundred steps away; after that, every step is paid alike.
        last = math.ceil(self.parameter("goal_x").high / _MAX_SPEED)
        for step in range(1, last + 1):
            left = (away - step * _MAX_SPEED).clamp(min=0)
            paid = _paid(torch.linalg.vector_norm(left, dim=-1), exact)
            total = total + torch.where(step <= steps, paid, 0.0)
        total = total + (steps - last).clamp(min=0) * exact["offset"]
        unknown = params["reward"] == _SPARSE
        return torch.where(unknown, math.nan, total).squeeze(1).to(params["radius"].dtype)


def _paid(distance: Tensor, params: Params) -> Tensor:
    paid = torch.addcmul(params["offset"], params["slope"], distance)
    return torch.where(distance <= params["reach"], paid, 0.0)
