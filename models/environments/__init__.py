"""The environment models a task can run in."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from models.environments.base import Environment, Parameter
from models.environments.cartpole import CartPole
from models.environments.functional import FunctionalEnvironment
from models.environments.locomotion import Ant, HalfCheetah, Hopper, Walker2d
from models.environments.mountain_car import MountainCar
from models.environments.navigation import Navigation2D


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


_LOCOMOTION: tuple[FunctionalEnvironment, ...] = (HalfCheetah(), Ant(), Hopper(), Walker2d())
_HAS_MUJOCO = _is_installed("mujoco-core")

ENVIRONMENTS: dict[str, FunctionalEnvironment] = {
    environment.id: environment
    for environment in (CartPole(), MountainCar(), Navigation2D(), *(_LOCOMOTION if _HAS_MUJOCO else ()))
}
"""Every environment model by its id."""

NEEDED_EXTRAS: dict[str, str] = {} if _HAS_MUJOCO else {environment.id: "mujoco" for environment in _LOCOMOTION}
"""For the id of every environment that is not there, the extra of this distribution that brings it."""

__all__ = [
    "ENVIRONMENTS",
    "NEEDED_EXTRAS",
    "Ant",
    "CartPole",
    "Environment",
    "FunctionalEnvironment",
    "HalfCheetah",
    "Hopper",
    "MountainCar",
    "Navigation2D",
    "Parameter",
    "Walker2d",
]
