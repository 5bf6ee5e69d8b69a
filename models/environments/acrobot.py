"""The two-link robot of Gymnasium's ``Acrobot-v1``.

Source: Sutton & Barto 1998, section 11.3, as Gymnasium integrates it (its ``book`` dynamics).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, final

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from typing_extensions import override

from models import random
from models.environments.base import Parameter
from models.environments.functional import FunctionalEnvironment
from models.types import Params

_MAX_SPEEDS = (4 * math.pi, 9 * math.pi)
_START = 0.1  # every state variable starts uniform in ±0.1
_TORQUE_NOISE: Final = int(random.key("Acrobot-v1", "torque noise"))


def _observation_space() -> Box:
    high = np.array([1.0, 1.0, 1.0, 1.0, *_MAX_SPEEDS], np.float32)
    return Box(-high, high, dtype=np.float32)


@final
class Acrobot(FunctionalEnvironment):
    """Swing the tip of two hanging links above a line, by a torque of -1, 0 or 1 N m (0, 1, 2) at their joint.

    The state is the first link's angle θ₁ from hanging down, the second's θ₂ from the first (rad, in ±π) and
    their angular velocities (rad/s, within ±4π and ±9π); the observation is (cos θ₁, sin θ₁, cos θ₂, sin θ₂,
    θ₁', θ₂'). One step is one fourth-order Runge-Kutta step of ``dt``. Reward -1 a step, 0 for the one that
    ends the episode by reaching

        -cos θ₁ - cos(θ₁ + θ₂) > 1

    which is the height of links of length 1, whatever their lengths, as in Gymnasium. The second link's
    length has no part in the dynamics, so it is no parameter: its centre of mass is what counts.
    """

    id: str = "Acrobot-v1"
    title: str = "Acrobot"
    description: str = (
        "Swing the tip of two hanging links above a line by a torque at the joint between them; Gymnasium's "
        "Acrobot-v1. Reward -1 a step until the tip is there."
    )
    parameters: tuple[Parameter, ...] = (
        Parameter("gravity", 9.8, 0.0, 100.0, "m/s^2", "Acceleration of gravity."),
        Parameter("link_length_1", 1.0, 0.2, 5.0, "m", "Length of the first link."),
        Parameter("link_mass_1", 1.0, 0.1, 10.0, "kg", "Mass of the first link."),
        Parameter("link_mass_2", 1.0, 0.1, 10.0, "kg", "Mass of the second link."),
        Parameter("link_com_pos_1", 0.5, 0.05, 5.0, "m", "From the first link's start to its centre of mass."),
        Parameter("link_com_pos_2", 0.5, 0.05, 5.0, "m", "From the second link's start to its centre of mass."),
        Parameter("link_moi", 1.0, 0.1, 10.0, "kg m^2", "Moment of inertia of each link about its centre of mass."),
        Parameter("torque_noise_max", 0.0, 0.0, 10.0, "N m", "Noise on the torque: uniform within plus or minus this."),
        Parameter("dt", 0.2, 0.001, 0.2, "s", "Time between two states."),
    )
    observation_space: Box = _observation_space()
    action_space: Discrete[np.int64] = Discrete(3)
    default_horizon: int = 500
    attributes: Mapping[str, str] = {
        **{each.name: each.name.upper() for each in parameters if each.name.startswith("link")},
        "torque_noise_max": "torque_noise_max",
        "dt": "dt",
    }

    @override
    def prepare(self, params: Params) -> Params:
        mass_1, mass_2 = params["link_mass_1"], params["link_mass_2"]
        length, inertia, gravity = params["link_length_1"], params["link_moi"], params["gravity"]
        com_1, com_2 = params["link_com_pos_1"], params["link_com_pos_2"]
        speeds = gravity.new_tensor(_MAX_SPEEDS)
        return params | {
            "inertia_1": mass_1 * com_1.square() + mass_2 * (length.square() + com_2.square()) + 2 * inertia,
            "inertia_2": mass_2 * com_2.square() + inertia,
            "coupling": mass_2 * length * com_2,
            "weight_1": (mass_1 * com_1 + mass_2 * length) * gravity,
            "weight_2": mass_2 * com_2 * gravity,
            "step_time": params["dt"].unsqueeze(-1),
            "max_speeds": speeds.expand(*gravity.shape, 2),
        }

    @override
    def initial(self, rng: Tensor, params: Params) -> Tensor:
        return random.uniform(rng, 4, params["dt"].dtype) * (2 * _START) - _START

    @override
    def transition(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> Tensor:
        noise = random.uniform(random.fold_in(rng, _TORQUE_NOISE), 1, state.dtype).squeeze(-1) * 2 - 1
        torque = action - 1 + noise * params["torque_noise_max"]
        step = params["step_time"]
        rate_1 = _rate(state, torque, params)
        rate_2 = _rate(state + step / 2 * rate_1, torque, params)
        rate_3 = _rate(state + step / 2 * rate_2, torque, params)
        rate_4 = _rate(state + step * rate_3, torque, params)
        moved = state + step / 6 * (rate_1 + 2 * rate_2 + 2 * rate_3 + rate_4)
        angles, speeds = moved[..., :2], moved[..., 2:]
        # Turns are taken off until the angle is within ±π; an angle that is there already is left untouched.
        turns = ((angles.abs() - math.pi) / (2 * math.pi)).ceil().clamp(min=0) * angles.sign()
        limits = params["max_speeds"]
        return torch.cat((angles - 2 * math.pi * turns, speeds.clamp(-limits, limits)), -1)

    @override
    def observation(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        angles, speeds = state[..., :2], state[..., 2:]
        # cos θ₁, sin θ₁, cos θ₂, sin θ₂
        directions = torch.stack((angles.cos(), angles.sin()), -1).flatten(-2)
        return torch.cat((directions, speeds), -1)

    @override
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return self.terminal(next_state, rng, params).to(next_state.dtype) - 1

    @override
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        angle_1, angle_2 = state[..., 0], state[..., 1]
        return -angle_1.cos() - (angle_1 + angle_2).cos() > 1


def _rate(state: Tensor, torque: Tensor, params: Params) -> Tensor:
    """Time derivative of the state under a torque, [..., 4]."""
    angle_1, angle_2, speed_1, speed_2 = state.unbind(-1)
    coupling = params["coupling"]
    lever, twist = coupling * angle_2.cos(), coupling * angle_2.sin()
    d_1, d_2 = params["inertia_1"] + 2 * lever, params["inertia_2"] + lever
    phi_2 = params["weight_2"] * (angle_1 + angle_2).sin()
    phi_1 = params["weight_1"] * angle_1.sin() + phi_2 - twist * speed_2 * (speed_2 + 2 * speed_1)
    ratio = d_2 / d_1
    push = torque + ratio * phi_1 - twist * speed_1.square() - phi_2
    acceleration_2 = push / (params["inertia_2"] - d_2 * ratio)
    acceleration_1 = -(d_2 * acceleration_2 + phi_1) / d_1
    return torch.stack((speed_1, speed_2, acceleration_1, acceleration_2), -1)
