"""The task families that a new installation starts with, and the settings that are known to learn them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from models.distributions import Arc, Choice, LogUniform, Uniform
from models.environments import ENVIRONMENTS
from models.families import TaskFamily, define_family
from models.learners import LearnerConfig, MAMLConfig
from models.learners.meta_sgd import MetaSGDConfig
from models.policy import PolicyConfig

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


@dataclass(frozen=True)
class Recommended:
    """What a run on a family takes where it does not say otherwise.

    Attributes:
        learner: The learner and its hyperparameters.
        policy: The architecture.
    """

    learner: LearnerConfig = field(default_factory=MAMLConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)


# With the noise of a standard deviation of 1, actions of at most 1 are mostly at their bounds, and little is learned.
_HALFCHEETAH: Final = PolicyConfig(hidden=(64, 64), initial_log_std=-0.5, normalise_observations=True)
RECOMMENDED: Final[dict[str, Recommended]] = {
    "navigation-2d": Recommended(
        MetaSGDConfig(
            rates="layer",
            inner_steps=3,
            inner_learning_rate=(0.3, 0.15, 0.1),
            intermediate_weight=1.0,
            outer_learning_rate=6e-3,
            outer_epochs=3,
        ),
        PolicyConfig(hidden=(100, 100), initial_log_std=-1.0),
    ),
    "cartpole-reversed": Recommended(MAMLConfig(inner_learning_rate=1.0)),
    "cartpole-physics": Recommended(MAMLConfig(inner_learning_rate=0.5)),
    # A car's velocity is a hundredth of its position: as it comes, the policy hardly sees it.
    "mountaincar-hills": Recommended(MAMLConfig(inner_learning_rate=0.3), PolicyConfig(normalise_observations=True)),
    "mountaincar-continuous-hills": Recommended(MAMLConfig(), PolicyConfig(normalise_observations=True)),
    "halfcheetah-velocity": Recommended(MAMLConfig(), _HALFCHEETAH),
    "halfcheetah-direction": Recommended(
        MAMLConfig(baseline="value", gae_decay=0.95, outer_learning_rate=1e-3), _HALFCHEETAH
    ),
}
"""By the name of a preset family: settings chosen by measuring; ``docs/benchmarks.md`` has what they reach."""
