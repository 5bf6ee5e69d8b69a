"""The cart and pole of Gymnasium's ``CartPole-v1``.

Source: Gymnasium, after Barto, Sutton & Anderson 1983, with the corrected equations of Florian 2007.
"""

from __future__ import annotations

import math
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

_POSITION_LIMIT = 2.4
_ANGLE_LIMIT = 12 * 2 * math.pi / 360
_START = 0.05  # every state variable starts uniform in ±0.05


def _observation_space() -> Box:
    high = np.array([_POSITION_LIMIT * 2, np.inf, _ANGLE_LIMIT * 2, np.inf], np.float32)
    return Box(-high, high, dtype=np.float32)


@final
class CartPole(FunctionalEnvironment):
    """Balance a pole on a cart by pushing the cart left (0) or right (1).

    The state is the observation: position (m), velocity (m/s), the pole's angle from upright (rad) and its
    angular velocity ω (rad/s). One Euler step of ``tau``:

        a = (F + m l ω² sin θ) / M
        α = (g sin θ - a cos θ) / (l (4/3 - m cos² θ / M)),    ẍ = a - m l α cos θ / M

    with m the pole's mass, M the mass of cart and pole, l half the pole's length, F = ±``force_mag``.
    Reward 1 a step, the last one included; an episode ends beyond ±2.4 m or ±12°.
    """

    id: str = "CartPole-v1"
    title: str = "Cart and pole"
    description: str = (
        "Balance a pole on a cart by pushing the cart left or right; Gymnasium's CartPole-v1. "
        "Reward 1 a step, until the cart is 2.4 m from the centre or the pole 12 degrees from upright."
    )
    parameters: tuple[Parameter, ...] = (
        Parameter("gravity", 9.8, 0.0, 100.0, "m/s^2", "Acceleration of gravity."),
        Parameter("masscart", 1.0, 0.01, 100.0, "kg", "Mass of the cart."),
        Parameter("masspole", 0.1, 0.001, 100.0, "kg", "Mass of the pole."),
        Parameter("length", 0.5, 0.01, 100.0, "m", "Half the length of the pole."),
        Parameter("force_mag", 10.0, -100.0, 100.0, "N", "Force of a push; below zero, the pushes are swapped."),
        Parameter("tau", 0.02, 0.0001, 0.2, "s", "Time between two states."),
    )
    observation_space: Box = _observation_space()
    action_space: Discrete[np.int64] = Discrete(2)
    default_horizon: int = 500
    attributes: Mapping[str, str] = {each.name: each.name for each in parameters}

    @override
    def prepare(self, params: Params) -> Params:
        total_mass = params["masscart"] + params["masspole"]
        limits = total_mass.new_tensor([_POSITION_LIMIT, math.inf, _ANGLE_LIMIT, math.inf])
        return params | {
            "total_mass": total_mass,
            "polemass_length": params["masspole"] * params["length"],
            "push_left": -params["force_mag"],
            "step_time": params["tau"].unsqueeze(-1),
            "limits": limits.expand(*total_mass.shape, 4),
        }

    @override
    def initial(self, rng: Tensor, params: Params) -> Tensor:
        return random.uniform(rng, 4, params["tau"].dtype) * (2 * _START) - _START

    @override
    def transition(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> Tensor:
        # Gymnasium's operations in its order: an upright pole doubles a rounding error every nine steps.
        _, velocity, angle, angular_velocity = state.unbind(-1)
        total_mass, moment = params["total_mass"], params["polemass_length"]
        sine, cosine = angle.sin(), angle.cos()
        force = torch.where(action == 1, params["force_mag"], params["push_left"])
        free = (force + moment * angular_velocity.square() * sine) / total_mass
        inertia = params["length"] * (4 / 3 - params["masspole"] * cosine.square() / total_mass)
        angular_acceleration = (params["gravity"] * sine - cosine * free) / inertia
        acceleration = free - moment * angular_acceleration * cosine / total_mass
        rate = torch.stack((velocity, acceleration, angular_velocity, angular_acceleration), -1)
        return state + params["step_time"] * rate

    @override
    def observation(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return state

    @override
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return next_state.new_ones(next_state.shape[:-1])

    @override
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return (state.abs() > params["limits"]).any(-1)
