"""The environment models a task can run in."""

from __future__ import annotations

from models.environments.acrobot import Acrobot
from models.environments.bandit import Bandit
from models.environments.base import Environment, Parameter
from models.environments.cartpole import CartPole
from models.environments.functional import FunctionalEnvironment
from models.environments.mountain_car import MountainCar
from models.environments.mountain_car_continuous import MountainCarContinuous
from models.environments.navigation import Navigation2D
from models.environments.pendulum import Pendulum
from models.environments.tabular import TabularMDP

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
    )
}
"""Every environment model by its id."""

__all__ = [
    "ENVIRONMENTS",
    "Acrobot",
    "Bandit",
    "CartPole",
    "Environment",
    "FunctionalEnvironment",
    "MountainCar",
    "MountainCarContinuous",
    "Navigation2D",
    "Parameter",
    "Pendulum",
    "TabularMDP",
]
