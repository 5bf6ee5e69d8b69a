"""The environment models a task can run in."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from models.environments.acrobot import Acrobot
from models.environments.bandit import Bandit
from models.environments.base import Environment, Parameter
from models.environments.cartpole import CartPole
from models.environments.functional import FunctionalEnvironment
from models.environments.locomotion import Ant, HalfCheetah, Hopper, Walker2d
from models.environments.mountain_car import MountainCar, MountainCarContinuous
from models.environments.navigation import Navigation2D
from models.environments.pendulum import Pendulum
from models.environments.tabular import TabularMDP


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


_LOCOMOTION: tuple[FunctionalEnvironment, ...] = (Ant(), HalfCheetah(), Hopper(), Walker2d())
_HAS_MUJOCO = _is_installed("mujoco-core")

ENVIRONMENTS: dict[str, FunctionalEnvironment] = {
    environment.id: environment
    for environment in (
        Acrobot(),
        Bandit(),
        CartPole(),
        MountainCar(),
        MountainCarContinuous(),
        Navigation2D(),
        Pendulum(),
        TabularMDP(),
        *(_LOCOMOTION if _HAS_MUJOCO else ()),
    )
}
"""Every environment model by its id."""

NEEDED_EXTRAS: dict[str, str] = {} if _HAS_MUJOCO else {environment.id: "mujoco" for environment in _LOCOMOTION}
"""For the id of every environment that is not there, the extra of this distribution that brings it."""

__all__ = [
    "ENVIRONMENTS",
    "NEEDED_EXTRAS",
    "Acrobot",
    "Ant",
    "Bandit",
    "CartPole",
    "Environment",
    "FunctionalEnvironment",
    "HalfCheetah",
    "Hopper",
    "MountainCar",
    "MountainCarContinuous",
    "Navigation2D",
    "Parameter",
    "Pendulum",
    "TabularMDP",
    "Walker2d",
]
