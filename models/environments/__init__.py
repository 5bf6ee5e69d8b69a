"""The environment models a task can run in."""

from __future__ import annotations

from models.environments.base import Environment, Parameter
from models.environments.cartpole import CartPole
from models.environments.functional import FunctionalEnvironment
from models.environments.mountain_car import MountainCar
from models.environments.navigation import Navigation2D

ENVIRONMENTS: dict[str, FunctionalEnvironment] = {
    environment.id: environment for environment in (CartPole(), MountainCar(), Navigation2D())
}
"""Every environment model by its id."""

__all__ = [
    "ENVIRONMENTS",
    "CartPole",
    "Environment",
    "FunctionalEnvironment",
    "MountainCar",
    "Navigation2D",
    "Parameter",
]
