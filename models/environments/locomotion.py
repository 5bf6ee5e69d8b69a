"""Bodies that learn to move: Gymnasium's HalfCheetah, Ant, Hopper and Walker2d, stepped by MuJoCo.

Needs the extra ``headstart[mujoco]``, which is imported when a first episode is stepped.

Source: Gymnasium's ``-v5`` environments; the rewards of task families after Finn, Abbeel & Levine 2017, section 5.3;
random body parameters after Rothfuss et al. 2019, "ProMP", and Rakelly et al. 2019, "PEARL".
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Final, final

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

if TYPE_CHECKING:
    from models.environments.physics import Physics

_SCALED: Final = ("gravity", "body_mass", "body_inertia", "dof_damping", "geom_friction")
_VELOCITY, _GOAL = 1, 2  # places in the choices of the parameter "reward"


@dataclass(frozen=True)
class Body:
    """What sets one body apart from the next.

    Attributes:
        xml: File name of the model among Gymnasium's.
        frame_skip: Steps of the engine for one action.
        step_s: Time between two states, in seconds.
        start: Positions that episodes start around.
        velocities: How many velocities there are.
        start_noise: Half the width of the uniform noise on every first position; also of first velocities, or the
            standard deviation of theirs.
        normal_velocities: Whether first velocities are normal rather than uniform.
        hidden: How many of the first positions the observation leaves out.
        speed_limit: What observed velocities are clipped to.
        contacts: How many numbers of contact forces the state and the observation have.
    """

    xml: str
    frame_skip: int
    step_s: float
    start: tuple[float, ...]
    velocities: int
    start_noise: float
    normal_velocities: bool
    hidden: int
    speed_limit: float = math.inf
    contacts: int = 0


@cache
def _physics(body: Body) -> Physics:
    # Not at the top: a quarter of a second and 30 MB, for those who step a body only.
    from models.environments.physics import Physics

    return Physics(body.xml, body.frame_skip, _SCALED, contacts=body.contacts > 0)


def _spaces(body: Body, actuators: int) -> tuple[Box, Box]:
    size = len(body.start) - body.hidden + body.velocities + body.contacts
    return Box(-np.inf, np.inf, (size,), np.float32), Box(-1.0, 1.0, (actuators,), np.float32)


def _parameters(ctrl_cost_weight: float, healthy_reward: float, *more: Parameter, goal: bool) -> tuple[Parameter, ...]:
    choices = ("forward", "velocity", "goal") if goal else ("forward", "velocity")
    what = "forward: direction times velocity; velocity: minus the distance to target_velocity"
    what += "; goal: minus the distance to the goal along both axes." if goal else "."
    return (
        Parameter("reward", "forward", choices=choices, description=f"What is rewarded. {what}"),
        Parameter("direction", 1.0, -1.0, 1.0, "", "1 to be rewarded for running forward, -1 backward."),
        Parameter("target_velocity", 1.0, -20.0, 20.0, "m/s", "Velocity to keep, where the reward is velocity."),
        *more,
        Parameter("healthy_reward", healthy_reward, -10.0, 10.0, "", "Reward of a step that ends healthy."),
        Parameter("ctrl_cost_weight", ctrl_cost_weight, 0.0, 10.0, "", "Cost of an action of length 1."),
        Parameter("gravity", 1.0, 0.0, 3.0, "", "Factor on gravity."),
        Parameter("body_mass", 1.0, 0.1, 10.0, "", "Factor on the mass of every limb."),
        Parameter("body_inertia", 1.0, 0.1, 10.0, "", "Factor on the rotational inertia of every limb."),
        Parameter("dof_damping", 1.0, 0.0, 10.0, "", "Factor on the damping of every joint."),
        Parameter("geom_friction", 1.0, 0.0, 10.0, "", "Factor on the friction of every surface, the floor's too."),
    )


class Locomotion(FunctionalEnvironment):
    """A body of limbs, joints and motors on a plane; the first axis is forward.

    A state is float64 whatever the dtype of the parameters: what :class:`models.environments.physics.Physics` says.
    The reward of a step, with v the velocity along the first axis and a the action, clipped to ±1:

        progress + healthy_reward [healthy] - ctrl_cost_weight |a|² - contact_cost_weight |f|²

    where progress is ``direction`` v, or -|v - ``target_velocity``|, or minus the distance to the goal, and f the
    contact forces, clipped to ±1, of bodies that observe them. An episode ends where the body is not healthy; what
    follows such a state is that state, so that no time goes into bodies that have fallen.

    Attributes:
        body: Its dimensions.
    """

    body: ClassVar[Body]
    attributes: Mapping[str, str] = {}  # what can be set shows in how it moves, not in how it looks

    @abstractmethod
    def healthy(self, state: Tensor) -> Tensor:
        """Whether the body is upright enough to go on, bool ``[...]``."""

    @override
    def prepare(self, params: Params) -> Params:
        return params | {"physics": torch.stack([params[name] for name in _SCALED], -1).double()}

    @override
    def initial(self, rng: Tensor, params: Params) -> Tensor:
        body, positions = self.body, len(self.body.start)
        draws = random.uniform(rng, positions + body.velocities, torch.float64) * 2 - 1
        position = body.start_noise * draws[..., :positions] + draws.new_tensor(body.start)
        velocity = body.start_noise * draws[..., positions:]
        if body.normal_velocities:
            velocity = body.start_noise * random.normal(random.fold_in(rng, 1), body.velocities, torch.float64)
        parts = [position, velocity, torch.zeros_like(velocity)]
        if body.contacts:
            parts += [position[..., :2], draws.new_zeros((*rng.shape, body.contacts))]
        return torch.cat(parts, -1)

    @override
    def transition(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> Tensor:
        if state.is_meta:  # a question about shapes, which there are no numbers to simulate for
            return torch.empty_like(state)
        inputs = (state, action.clamp(-1, 1).double(), params["physics"], self.healthy(state))
        arrays = [each.detach().cpu().numpy() for each in inputs]
        return torch.from_numpy(_physics(self.body).advance(*arrays)).to(state.device)

    @override
    def observation(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        body, positions = self.body, len(self.body.start)
        parts = [state[..., body.hidden : positions], state[..., positions : positions + body.velocities]]
        parts[1] = parts[1].clamp(-body.speed_limit, body.speed_limit)
        if body.contacts:
            parts.append(self._contact_forces(state))
        return torch.cat(parts, -1).to(params["direction"].dtype)

    @override
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        # Of a body that observes contacts, the engine's own place of the torso, as Gymnasium takes it.
        place = len(self.body.start) + 2 * self.body.velocities if self.body.contacts else 0
        velocity = (next_state[..., place] - state[..., place]) / self.body.step_s
        progress = torch.where(
            params["reward"] == _VELOCITY, -(velocity - params["target_velocity"]).abs(), params["direction"] * velocity
        )
        if self.body.contacts:
            x, y = next_state[..., place] - params["goal_x"], next_state[..., place + 1] - params["goal_y"]
            progress = torch.where(params["reward"] == _GOAL, -(x.abs() + y.abs()), progress)
            progress -= params["contact_cost_weight"] * self._contact_forces(next_state).square().sum(-1)
        cost = params["ctrl_cost_weight"] * action.clamp(-1, 1).square().sum(-1)
        reward = progress + params["healthy_reward"] * self.healthy(next_state) - cost
        return reward.to(params["direction"].dtype)

    @override
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return ~self.healthy(state)

    @override
    def pose(self, state: NDArray[np.float64], action: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        positions = len(self.body.start)
        return {"qpos": state[:, :positions], "qvel": state[:, positions : positions + self.body.velocities]}

    def _contact_forces(self, state: Tensor) -> Tensor:
        return state[..., -self.body.contacts :].clamp(-1, 1)


@final
class HalfCheetah(Locomotion):
    """Gymnasium's ``HalfCheetah-v5``: a two-legged cheetah in the plane, that nothing ends."""

    id = "HalfCheetah-v5"
    title = "Half-cheetah"
    description = (
        "Run with a two-legged cheetah in a vertical plane; Gymnasium's HalfCheetah-v5. Reward: the velocity, or how "
        "near it is to a target, less the cost of the action. Nothing ends an episode before its horizon."
    )
    body = Body("half_cheetah.xml", 5, 0.05, (0.0,) * 9, 9, 0.1, normal_velocities=True, hidden=1)
    parameters = _parameters(0.1, 0.0, goal=False)
    observation_space, action_space = _spaces(body, 6)
    default_horizon = 1000

    @override
    def healthy(self, state: Tensor) -> Tensor:
        return state.new_ones(state.shape[:-1], dtype=torch.bool)


@final
class Ant(Locomotion):
    """Gymnasium's ``Ant-v5``: four legs of two joints, until the torso is below 0.2 m or above 1 m."""

    id = "Ant-v5"
    title = "Ant"
    description = (
        "Walk with four legs of two joints each; Gymnasium's Ant-v5. Reward: the velocity along the first axis, or "
        "the nearness of a goal, and 1 while healthy, less the costs of action and contacts. Ends with the torso "
        "below 0.2 m or above 1 m."
    )
    body = Body("ant.xml", 5, 0.05, (0.0, 0.0, 0.75, 1.0) + (0.0,) * 11, 14, 0.1, True, hidden=2, contacts=78)
    parameters = _parameters(
        0.5,
        1.0,
        Parameter("goal_x", 1.0, -100.0, 100.0, "m", "The goal on the first axis, where the reward is goal."),
        Parameter("goal_y", 0.0, -100.0, 100.0, "m", "The goal on the second axis, where the reward is goal."),
        Parameter("contact_cost_weight", 0.0005, 0.0, 1.0, "", "Cost of contact forces of length 1."),
        goal=True,
    )
    observation_space, action_space = _spaces(body, 8)
    default_horizon = 1000

    @override
    def healthy(self, state: Tensor) -> Tensor:
        height = state[..., 2]
        return torch.isfinite(state[..., :29]).all(-1) & (height >= 0.2) & (height <= 1.0)


@final
class Hopper(Locomotion):
    """Gymnasium's ``Hopper-v5``: one leg in the plane, until it leans over 0.2 rad or is below 0.7 m."""

    id = "Hopper-v5"
    title = "Hopper"
    description = (
        "Hop forward on one leg in a vertical plane; Gymnasium's Hopper-v5. Reward: the velocity and 1 while healthy, "
        "less the cost of the action. Ends below 0.7 m, beyond 0.2 rad, or with any other number beyond 100."
    )
    body = Body("hopper.xml", 4, 0.008, (0.0, 1.25, 0.0, 0.0, 0.0, 0.0), 6, 0.005, False, 1, speed_limit=10.0)
    parameters = _parameters(0.001, 1.0, goal=False)
    observation_space, action_space = _spaces(body, 3)
    default_horizon = 1000

    @override
    def healthy(self, state: Tensor) -> Tensor:
        return (state[..., 1] > 0.7) & (state[..., 2].abs() < 0.2) & (state[..., 2:12].abs() < 100.0).all(-1)


@final
class Walker2d(Locomotion):
    """Gymnasium's ``Walker2d-v5``: two legs in the plane, until it leans over 1 rad or leaves 0.8 to 2 m."""

    id = "Walker2d-v5"
    title = "Walker"
    description = (
        "Walk on two legs in a vertical plane; Gymnasium's Walker2d-v5. Reward: the velocity and 1 while healthy, "
        "less the cost of the action. Ends below 0.8 m, above 2 m or beyond 1 rad."
    )
    body = Body("walker2d_v5.xml", 4, 0.008, (0.0, 1.25) + (0.0,) * 7, 9, 0.005, False, 1, speed_limit=10.0)
    parameters = _parameters(0.001, 1.0, goal=False)
    observation_space, action_space = _spaces(body, 6)
    default_horizon = 1000

    @override
    def healthy(self, state: Tensor) -> Tensor:
        return (state[..., 1] > 0.8) & (state[..., 1] < 2.0) & (state[..., 2].abs() < 1.0)
