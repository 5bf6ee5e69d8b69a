"""Task families: distributions over the parameters of one environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from models import random
from models.distributions import Arc, Choice, Distribution, distribution_to_json, holds, read_distribution
from models.environments import Environment
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

    @property
    def is_finite(self) -> bool:
        """Whether it has a few tasks only, which all of its splits share."""
        return all(isinstance(each, ParameterValue | Choice) for each in self.parameters.values())

    def holds(self, task: Task) -> bool:
        """Whether a task is within its range: of its environment and reward, each parameter one that it can draw."""
        return (task.environment, task.reward) == (self.environment, self.reward) and all(
            holds(distribution, task.parameters[name]) for name, distribution in self.parameters.items()
        )

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
