"""Task families: distributions over the parameters of one environment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from models import random
from models.environments import Parameter
from models.environments.base import pointer_to, shown
from models.tasks import check_episode, find_environment
from models.types import InvalidValue, ParameterValue, Task

SPLITS: Final = ("train", "validation", "test")
"""The disjoint streams of tasks of a family."""
MAX_CHOICES: Final = 1000
"""Most values that a choice may list."""


@dataclass(frozen=True)
class Uniform:
    """Every value from ``low`` to ``high`` alike.

    Attributes:
        low: Smallest value, in the parameter's unit.
        high: Largest value.
    """

    low: float
    high: float

    def definition(self) -> dict[str, object]:
        """As plain JSON values."""
        return {"uniform": [self.low, self.high]}

    def values(self, draws: Tensor) -> list[ParameterValue]:
        """Values at uniform numbers in (0, 1), float64 [K]."""
        return _within(self.low + (self.high - self.low) * draws, self.low, self.high)


@dataclass(frozen=True)
class LogUniform:
    """Every ratio alike: the logarithm is uniform.

    Attributes:
        low: Smallest value, above 0, in the parameter's unit.
        high: Largest value.
    """

    low: float
    high: float

    def definition(self) -> dict[str, object]:
        """As plain JSON values."""
        return {"loguniform": [self.low, self.high]}

    def values(self, draws: Tensor) -> list[ParameterValue]:
        """Values at uniform numbers in (0, 1), float64 [K]."""
        low, high = math.log(self.low), math.log(self.high)
        return _within((low + (high - low) * draws).exp(), self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """One of a few values with equal chance; a value listed twice has twice the chance.

    Attributes:
        options: The values, at least one.
    """

    options: tuple[ParameterValue, ...]

    def definition(self) -> dict[str, object]:
        """As plain JSON values."""
        return {"choice": list(self.options)}

    def values(self, draws: Tensor) -> list[ParameterValue]:
        """Values at uniform numbers in (0, 1), float64 [K]."""
        return [self.options[int(place)] for place in (draws * len(self.options)).long()]


Distribution = Uniform | LogUniform | Choice | ParameterValue
"""How a family sets one parameter; a number or a word is the same in all its tasks."""


def _within(values: Tensor, low: float, high: float) -> list[ParameterValue]:
    # Rounding may put a value one step past an end, where the parameter's own range may end too.
    return [float(value) for value in values.clamp(low, high)]


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
            "parameters": {name: _definition(each) for name, each in sorted(self.parameters.items())},
            "reward": None if self.reward is None else {"expression": self.reward},
            "discount": self.discount,
            "horizon": self.horizon,
        }

    def sample(self, split: str, seed: int, indices: Sequence[int]) -> list[Task]:
        """The tasks at these places of one endless list.

        Each parameter of a task is drawn with a key made of (family name, split, seed, parameter name,
        index) and nothing else: neither the other indices nor the other parameters change it, and of the
        family's definition only that parameter's own distribution does.

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
        columns: list[list[ParameterValue]] = []
        for name, distribution in self.parameters.items():
            if isinstance(distribution, ParameterValue):
                columns.append([distribution] * len(indices))
                continue
            keys = random.fold_in(random.key("family", self.name, split, seed, name), places)
            columns.append(distribution.values(random.uniform(keys, 1, torch.float64).squeeze(-1)))
        return [
            Task(
                self.environment,
                dict(zip(self.parameters, row, strict=True)),
                self.reward,
                self.discount,
                self.horizon,
            )
            for row in zip(*columns, strict=True)
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
        parameters: For some of its parameters a constant, a :class:`Uniform`, :class:`LogUniform` or
            :class:`Choice`, or the JSON of one: ``{"uniform": [low, high]}``,
            ``{"loguniform": [low, high]}``, ``{"choice": [value, ...]}``. The others take their defaults.
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
        each.name: _read_distribution(each, given.get(each.name, each.default)) for each in model.parameters
    }
    reward, discount, horizon = check_episode(model, reward, discount, horizon)
    return TaskFamily(name, environment, distributions, reward, discount, horizon)


def _definition(distribution: Distribution) -> object:
    return distribution if isinstance(distribution, ParameterValue) else distribution.definition()


def _read_distribution(parameter: Parameter, value: object) -> Distribution:
    """One parameter's distribution from JSON, from an object, or a constant."""
    if isinstance(value, Uniform | LogUniform | Choice):
        value = value.definition()
    if not isinstance(value, Mapping):
        return parameter.check(value)
    at = pointer_to("parameters", parameter.name)
    kinds = [kind for kind in ("uniform", "loguniform", "choice") if kind in value]
    if len(kinds) != 1 or len(value) != 1:
        shapes = '{"uniform": [low, high]}, {"loguniform": [low, high]} or {"choice": [value, ...]}'
        raise InvalidValue(at, f"{parameter.name} must be a value, {shapes}")
    at, arguments = f"{at}/{kinds[0]}", value[kinds[0]]
    if not isinstance(arguments, list | tuple):
        raise InvalidValue(at, f"must be a list, not {shown(arguments)}")
    if kinds[0] == "choice":
        if not 1 <= len(arguments) <= MAX_CHOICES:
            raise InvalidValue(at, f"must list 1 to {MAX_CHOICES} values, not {len(arguments)}")
        return Choice(tuple(parameter.check(each, f"{at}/{i}") for i, each in enumerate(arguments)))
    return _read_interval(parameter, kinds[0], arguments, at)


def _read_interval(parameter: Parameter, kind: str, arguments: Sequence[object], at: str) -> Uniform | LogUniform:
    if not parameter.numeric:
        raise InvalidValue(at, f"{parameter.name} is {parameter.allowed}, which has no range: use choice")
    if len(arguments) != 2:
        raise InvalidValue(at, f"must be [low, high], not {len(arguments)} values")
    low, high = (float(parameter.check(each, f"{at}/{i}")) for i, each in enumerate(arguments))
    if low > high:
        raise InvalidValue(at, f"low {low:g} is above high {high:g}")
    if kind == "uniform":
        return Uniform(low, high)
    if low <= 0:
        raise InvalidValue(f"{at}/0", f"low must be above 0 for a logarithm, not {low:g}")
    return LogUniform(low, high)


_PRESETS = (
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
)
PRESETS: dict[str, TaskFamily] = {family.name: family for family in _PRESETS}
"""The families that a new installation starts with, by name.

In ``cartpole-reversed`` the same push moves the cart left in one task and right in the next, so that no
single policy solves all of it. In ``mountaincar-hills`` pushing along the motion reaches the goal within
the horizon in every task.
"""
