"""Task families: distributions over the parameters of one environment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from models import random
from models.distributions import Arc, Choice, Distribution, LogUniform, Uniform, distribution_to_json, read_distribution
from models.environments import ENVIRONMENTS, Environment
from models.environments.base import pointer_to, shown
from models.tasks import check_episode, find_environment, interchangeable
from models.types import InvalidValue, ParameterValue, Task

SPLITS: Final = ("train", "validation", "test")
"""The disjoint streams of tasks of a family."""
_ARCS: Final = "arcs"
"""Stands in for a parameter's name in the keys of arcs, which share one draw."""


@dataclass(frozen=True)
class TaskFamily:
    """A distribution over tasks that share their spaces. Build it with :func:`define_family`.

    Attributes:
        name: Its name; part of what seeds its tasks.
        environment: Id of the environment model.
        parameters: How each of the environment's parameters is set, all of them named.
        reward: An expression (:mod:`models.rewards`) or ``None`` for the environment's own reward.
        discount: γ in (0, 1].
        horizon: Steps after which an episode is truncated.
    """

    name: str
    environment: str
    parameters: Mapping[str, Distribution]
    reward: str | None
    discount: float
    horizon: int

    def definition(self) -> dict[str, object]:
        """The family as plain JSON values, the same for equal families."""
        return {
            "name": self.name,
            "environment": self.environment,
            "parameters": {name: distribution_to_json(each) for name, each in sorted(self.parameters.items())},
            "reward": None if self.reward is None else {"expression": self.reward},
            "discount": self.discount,
            "horizon": self.horizon,
        }

    def sample(self, split: str, seed: int, indices: Sequence[int]) -> list[Task]:
        """The tasks at these places of one endless list.

        Each parameter of a task is drawn with a key made of (family name, split, seed, parameter name,
        index) and nothing else: neither the other indices nor the other parameters change it, and of the
        family's definition only that parameter's own distribution does. Arcs have one key in common.

        Args:
            split: One of :data:`SPLITS`; each has tasks of its own.
            seed: Chooses the list, 0 to 2⁶³ - 1.
            indices: Places in it, each 0 to 2⁶³ - 1.

        Raises:
            InvalidValue: At ``/split``, ``/seed`` or ``/indices``.
        """
        if split not in SPLITS:
            raise InvalidValue("/split", f"must be one of {', '.join(SPLITS)}, not {shown(split)}")
        for pointer, number in (("/seed", seed), *(("/indices", index) for index in indices)):
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63:
                raise InvalidValue(pointer, f"must be a whole number from 0 to 2^63 - 1, not {shown(number)}")
        places = torch.tensor(indices, dtype=torch.int64)
        columns: dict[str, list[ParameterValue]] = {}
        for name, distribution in self.parameters.items():
            if isinstance(distribution, ParameterValue):
                columns[name] = [distribution] * len(indices)
                continue
            stream = _ARCS if isinstance(distribution, Arc) else name
            keys = random.fold_in(random.key("family", self.name, split, seed, stream), places)
            columns[name] = distribution.values(random.uniform(keys, 1, torch.float64).squeeze(-1))
        return [
            Task(
                self.environment,
                {name: column[i] for name, column in columns.items()},
                self.reward,
                self.discount,
                self.horizon,
            )
            for i in range(len(indices))
        ]


def define_family(
    name: str,
    environment: str,
    parameters: Mapping[str, object] | None = None,
    reward: str | None = None,
    discount: float = 0.99,
    horizon: int | None = None,
) -> TaskFamily:
    """A task family that is known to be sound: :func:`define_task` would accept every task it can draw.

    Args:
        name: Its name; two families of different names draw different tasks.
        environment: An id that :func:`models.tasks.find_environment` knows.
        parameters: For some of its parameters a constant, a distribution (:mod:`models.distributions`) or the
            JSON of one: ``{"uniform": [low, high]}``, ``{"loguniform": [low, high]}``,
            ``{"choice": [value, ...]}``, ``{"cos": [radius, from, to]}``, ``{"sin": [radius, from, to]}``.
            The others take their defaults.
        reward: As of a task.
        discount: As of a task.
        horizon: As of a task.

    Raises:
        InvalidValue: As :func:`define_task`, with pointers into distributions:
        ``/parameters/length/uniform/1``.
    """
    if not isinstance(name, str) or not name:
        raise InvalidValue("/name", f"must be a text that is not empty, not {shown(name)}")
    model = find_environment(environment)
    given = {} if parameters is None else parameters
    for parameter in given:
        model.parameter(parameter)
    distributions = {
        each.name: read_distribution(each, given.get(each.name, each.default)) for each in model.parameters
    }
    reward, discount, horizon = check_episode(_shared_model(model, distributions), reward, discount, horizon)
    return TaskFamily(name, environment, distributions, reward, discount, horizon)


def _shared_model(model: Environment, distributions: Mapping[str, Distribution]) -> Environment:
    """The model with the spaces of every task of a family.

    Raises:
        InvalidValue: If a distribution gives its tasks different spaces.
    """
    supports = {
        name: (each,) if isinstance(each, ParameterValue) else each.support() for name, each in distributions.items()
    }
    first = {name: support[0] for name, support in supports.items()}
    shaped = model.shaped(first)
    for name, support in supports.items():
        if model.parameter(name).kind == "number":  # how many of something there are is no fraction
            continue
        for value in support[1:]:
            if not interchangeable(model.shaped(first | {name: value}), shaped):
                detail = f"{name} decides the spaces, which all tasks of a family share: give it one value"
                raise InvalidValue(pointer_to("parameters", name), detail)
    return shaped


_PRESETS = (
    define_family(
        "bandit-5",
        "Bandit-v0",
        {"arms": 5, "instance": Uniform(0, 2**53 - 1)},
        discount=1.0,
        horizon=10,
    ),
    define_family(
        "cartpole-physics",
        "CartPole-v1",
        {
            "length": Uniform(0.25, 1.0),
            "masscart": Uniform(0.5, 2.0),
            "masspole": Uniform(0.05, 0.3),
            "gravity": Uniform(8.0, 12.0),
            "force_mag": Uniform(7.0, 15.0),
        },
        horizon=200,
    ),
    define_family(
        "cartpole-reversed",
        "CartPole-v1",
        {"force_mag": Choice((10.0, -10.0)), "length": Uniform(0.3, 0.8)},
        horizon=200,
    ),
    define_family(
        "acrobot-lengths",
        "Acrobot-v1",
        {
            "link_length_1": Uniform(0.8, 1.2),
            "link_mass_1": Uniform(0.8, 1.2),
            "link_mass_2": Uniform(0.8, 1.2),
            "link_com_pos_2": Uniform(0.4, 0.6),
        },
        horizon=300,
    ),
    define_family(
        "mountaincar-continuous-hills",
        "MountainCarContinuous-v0",
        {"power": Uniform(0.0012, 0.0018), "gravity": Uniform(0.002, 0.0028)},
        horizon=200,
    ),
    define_family(
        "mountaincar-hills",
        "MountainCar-v0",
        {"force": Uniform(0.001, 0.0015), "gravity": Uniform(0.002, 0.0028)},
        horizon=200,
    ),
    define_family(
        "navigation-2d",
        "Navigation2D-v0",
        {"goal_x": Uniform(-0.5, 0.5), "goal_y": Uniform(-0.5, 0.5), "reward": "dense"},
        horizon=100,
    ),
    define_family(
        "navigation-2d-sparse",
        "Navigation2D-v0",
        {
            "goal_x": Arc("cos", 1.0, 0.0, math.pi),
            "goal_y": Arc("sin", 1.0, 0.0, math.pi),
            "reward": "within",
            "radius": 0.2,
        },
        horizon=20,
    ),
    define_family(
        "pendulum-mass-length",
        "Pendulum-v1",
        {"mass": Uniform(0.6, 1.4), "length": Uniform(0.6, 1.4)},
        horizon=200,
    ),
    define_family(
        "tabular-mdp",
        "TabularMDP-v0",
        {"states": 10, "actions": 5, "instance": Uniform(0, 2**53 - 1)},
        discount=1.0,
        horizon=10,
    ),
)
_BODY: Final = {
    "body_mass": LogUniform(1.5**-3, 1.5**3),
    "body_inertia": LogUniform(1.5**-3, 1.5**3),
    "dof_damping": LogUniform(1.3**-3, 1.3**3),
    "geom_friction": LogUniform(1.5**-3, 1.5**3),
}
_DIRECTION: Final = Choice((1.0, -1.0))
_LOCOMOTION: Final = (
    (
        "halfcheetah-velocity",
        "HalfCheetah-v5",
        {"reward": "velocity", "target_velocity": Uniform(0.0, 2.0), "ctrl_cost_weight": 0.05},
        100,
    ),
    ("halfcheetah-direction", "HalfCheetah-v5", {"direction": _DIRECTION, "ctrl_cost_weight": 0.05}, 100),
    (
        "ant-direction",
        "Ant-v5",
        {"direction": _DIRECTION, "healthy_reward": 0.05, "ctrl_cost_weight": 0.005},
        200,
    ),
    (
        "ant-goal",
        "Ant-v5",
        {
            "reward": "goal",
            "goal_x": Uniform(-3.0, 3.0),
            "goal_y": Uniform(-3.0, 3.0),
            "healthy_reward": 4.05,
            "ctrl_cost_weight": 0.005,
        },
        200,
    ),
    ("hopper-params", "Hopper-v5", _BODY, 200),
    ("walker2d-params", "Walker2d-v5", _BODY, 200),
)
PRESETS: dict[str, TaskFamily] = {
    family.name: family
    for family in (
        *_PRESETS,
        *(
            define_family(name, environment, parameters, horizon=horizon)
            for name, environment, parameters, horizon in _LOCOMOTION
            if environment in ENVIRONMENTS
        ),
    )
}
"""The families that a new installation starts with, by name; those of locomotion where MuJoCo is installed.

In ``cartpole-reversed`` the same push moves the cart left in one task and right in the next, so that no
single policy solves all of it. In both families of hills pushing along the motion reaches the goal within
the horizon in every task; every pendulum can be swung up, and nearly every acrobot by turning its joint along
its rotation. The goals of ``navigation-2d-sparse`` are the upper half of the circle of radius 1, rewarded
within 0.2, for 20 steps, as the sparse point robot's of Rakelly et al. 2019, section 6.3.

The cheetah's and the ant's reward weights, target velocities and goals are those of the code of Finn, Abbeel & Levine
2017 (github.com/cbfinn/maml_rl), on Gymnasium's bodies; there the healthy reward of ``ant-goal``, which keeps an ant
far from its goal from wanting to fall over, is the sum of 4 and 0.05. The ranges of body parameters are those of
Rothfuss et al. 2019 and Rakelly et al. 2019, who draw a factor for every limb, where here one scales all limbs alike.
"""
