"""The underpowered pendulum of Gymnasium's ``Pendulum-v1``.

Source: Gymnasium, ``gymnasium/envs/classic_control/pendulum.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from models import random
from models.environments.base import Parameter
from models.environments.functional import FunctionalEnvironment
from models.types import Params

_MAX_SPEED = 8.0
_MAX_TORQUE = 2.0
_START_SPEED = 1.0


@final
class Pendulum(FunctionalEnvironment):
    """Swing a rod up and hold it there, with a motor at its end that is too weak to lift it.

    The state is the angle θ from upright (rad, never wrapped) and the angular velocity ω (rad/s); the
    observation is (cos θ, sin θ, ω); the action is the torque u (N m). For a rod of mass m and length l:

        ω' = clip(ω + (3 g sin θ / (2 l) + 3 u / (m l²)) dt, ±max_speed),    θ' = θ + ω' dt

    The reward is minus (θ² + 0.1 ω² + 0.001 u²) of the state *before* the step, with θ wrapped into ±π.
    Nothing ends an episode. The spaces are those of the default limits: a task can lower them.
    """

    id: str = "Pendulum-v1"
    title: str = "Pendulum"
    description: str = (
        "Swing a rod up and hold it upright with a motor that is too weak to lift it; Gymnasium's Pendulum-v1. "
        "Reward: minus the squared angle from upright, a tenth of the squared speed and a thousandth of the "
        "squared torque."
    )
    parameters: tuple[Parameter, ...] = (
        Parameter("gravity", 10.0, 0.0, 100.0, "m/s^2", "Acceleration of gravity."),
        Parameter("mass", 1.0, 0.01, 100.0, "kg", "Mass of the rod."),
        Parameter("length", 1.0, 0.01, 100.0, "m", "Length of the rod."),
        Parameter("dt", 0.05, 0.0001, 0.2, "s", "Time between two states."),
        Parameter("max_speed", _MAX_SPEED, 0.01, _MAX_SPEED, "rad/s", "Fastest rotation either way."),
        Parameter("max_torque", _MAX_TORQUE, 0.0, _MAX_TORQUE, "N m", "Largest torque that the motor gives."),
    )
    observation_space: Box = Box(
        np.array([-1.0, -1.0, -_MAX_SPEED], np.float32),
        np.array([1.0, 1.0, _MAX_SPEED], np.float32),
        dtype=np.float32,
    )
    action_space: Box = Box(-_MAX_TORQUE, _MAX_TORQUE, (1,), np.float32)
    default_horizon: int = 200
    attributes: Mapping[str, str] = {
        "gravity": "g",
        "mass": "m",
        "length": "l",
        "dt": "dt",
        "max_speed": "max_speed",
        "max_torque": "max_torque",
    }

    @override
    def prepare(self, params: Params) -> Params:
        return params | {
            "fall": 3 * params["gravity"] / (2 * params["length"]),
            "inverse_inertia": 3 / (params["mass"] * params["length"].square()),
        }

    @override
    def initial(self, rng: Tensor, params: Params) -> Tensor:
        draws = random.uniform(rng, 2, params["dt"].dtype) * 2 - 1
        return draws * draws.new_tensor([math.pi, _START_SPEED])

    @override
    def transition(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> Tensor:
        angle, speed = state.unbind(-1)
        acceleration = params["fall"] * angle.sin() + params["inverse_inertia"] * _torque(action, params)
        speed = (speed + acceleration * params["dt"]).clamp(-params["max_speed"], params["max_speed"])
        return torch.stack((angle + speed * params["dt"], speed), -1)

    @override
    def observation(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        angle, speed = state.unbind(-1)
        return torch.stack((angle.cos(), angle.sin(), speed), -1)

    @override
    def pose(self, state: NDArray[np.float64], action: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {"state": state, "last_u": action[:, 0]}  # it draws the torque too

    @override
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        angle, speed = state.unbind(-1)
        angle = (angle + math.pi) % (2 * math.pi) - math.pi
        return -(angle.square() + 0.1 * speed.square() + 0.001 * _torque(action, params).square())

    @override
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)


def _torque(action: Tensor, params: Params) -> Tensor:
    return action.squeeze(-1).clamp(-params["max_torque"], params["max_torque"])
