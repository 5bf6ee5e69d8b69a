"""How a task family draws one parameter: what a distribution is, and how it is written in JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

import torch
from torch import Tensor

from models.environments import Parameter
from models.environments.base import pointer_to, shown
from models.types import InvalidValue, ParameterValue

MAX_CHOICES: Final = 1000
"""Most values that a choice may list."""
MAX_ANGLE: Final = 4 * math.pi
"""Largest angle of an arc, either way, in radians."""


@dataclass(frozen=True)
class Uniform:
    """Every value from ``low`` to ``high`` alike; of whole numbers, both ends included.

    A draw has 53 random bits, so that of more than 2⁵² whole numbers the odd ones are rarer.

    Attributes:
        low: Smallest value, in the parameter's unit.
        high: Largest value.
    """

    low: float
    high: float

    def definition(self) -> dict[str, object]:
        """As plain JSON values."""
        return {"uniform": [self.low, self.high]}

    def support(self) -> tuple[ParameterValue, ...]:
        """Values that it can take, its ends among them."""
        return self.low, self.high

    def values(self, draws: Tensor) -> list[ParameterValue]:
        """Values at uniform numbers in (0, 1), float64 [K]."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            count = self.high - self.low + 1
            return [self.low + int(place) for place in (draws * count).long().clamp(max=count - 1)]
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

    def support(self) -> tuple[ParameterValue, ...]:
        """Values that it can take, its ends among them."""
        return self.low, self.high

    def values(self, draws: Tensor) -> list[ParameterValue]:
        """Values at uniform numbers in (0, 1), float64 [K]."""
        low, high = math.log(self.low), math.log(self.high)
        return _within((low + (high - low) * draws).exp(), self.low, self.high)


@dataclass(frozen=True)
class Arc:
    """One coordinate of a point on an arc of a circle about the origin, its angle uniform.

    All arcs of a task share one draw, so that ``cos`` for one parameter and ``sin`` for another, otherwise alike,
    are the two coordinates of one point.

    Attributes:
        function: Which coordinate: ``cos`` of the angle or ``sin``, times the radius.
        radius: Of the circle, above 0, in the parameter's unit.
        start: Smallest angle, in radians.
        end: Largest angle, in radians.
    """

    function: Literal["cos", "sin"]
    radius: float
    start: float
    end: float

    def definition(self) -> dict[str, object]:
        """As plain JSON values."""
        return {self.function: [self.radius, self.start, self.end]}

    def support(self) -> tuple[float, ...]:
        """Values that it can take, its ends among them."""
        # Where the derivative vanishes: multiples of π for the cosine, of π from π/2 for the sine.
        offset = 0.0 if self.function == "cos" else math.pi / 2
        first, last = (math.ceil((self.start - offset) / math.pi), math.floor((self.end - offset) / math.pi))
        turning = [self.at(offset + k * math.pi) for k in range(first, last + 1)]
        values = [self.at(self.start), self.at(self.end), *turning]
        return min(values), max(values)

    def at(self, angle: float) -> float:
        """The coordinate at an angle in radians."""
        return self.radius * (math.cos(angle) if self.function == "cos" else math.sin(angle)) + 0.0

    def values(self, draws: Tensor) -> list[ParameterValue]:
        """Values at uniform numbers in (0, 1), float64 [K]."""
        # One by one: a library's vectorised cosine may differ from its own in the last place.
        low, high = self.support()
        angles = (self.start + (self.end - self.start) * draws).tolist()
        return [min(max(self.at(angle), low), high) for angle in angles]


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

    def support(self) -> tuple[ParameterValue, ...]:
        """Values that it can take: all of them."""
        return self.options

    def values(self, draws: Tensor) -> list[ParameterValue]:
        """Values at uniform numbers in (0, 1), float64 [K]."""
        return [self.options[int(place)] for place in (draws * len(self.options)).long()]


Distribution = Uniform | LogUniform | Arc | Choice | ParameterValue
"""How a family sets one parameter; a number or a word is the same in all its tasks."""


def _within(values: Tensor, low: float, high: float) -> list[ParameterValue]:
    # Rounding may put a value one step past an end, where the parameter's own range may end too.
    return [float(value) for value in torch.clamp(values, low, high)]


def holds(distribution: Distribution, value: ParameterValue) -> bool:
    """Whether a value is one that it can draw; of the two coordinates of an arc, each by itself."""
    if isinstance(distribution, ParameterValue):
        return value == distribution
    if isinstance(distribution, Choice):
        return value in distribution.options
    ends = [each for each in distribution.support() if not isinstance(each, str)]
    return not isinstance(value, str) and min(ends) <= value <= max(ends)


def distribution_to_json(distribution: Distribution) -> object:
    """A distribution, or a constant, as plain JSON values."""
    return distribution if isinstance(distribution, ParameterValue) else distribution.definition()


def read_distribution(parameter: Parameter, value: object) -> Distribution:
    """One parameter's distribution from JSON, from an object, or a constant.

    Raises:
        InvalidValue: If it is none, or could draw a value that the parameter does not take; below
            ``/parameters/<name>``.
    """
    if isinstance(value, Uniform | LogUniform | Arc | Choice):
        value = value.definition()
    if not isinstance(value, Mapping):
        return parameter.check(value)
    at = pointer_to("parameters", parameter.name)
    kinds = [kind for kind in ("uniform", "loguniform", "cos", "sin", "choice") if kind in value]
    if len(kinds) != 1 or len(value) != 1:
        shapes = (
            '{"uniform": [low, high]}, {"loguniform": [low, high]}, {"choice": [value, ...]}, '
            'or {"cos": [radius, from, to]} and {"sin": [radius, from, to]}'
        )
        raise InvalidValue(at, f"{parameter.name} must be a value, {shapes}")
    kind = kinds[0]
    at, arguments = f"{at}/{kind}", value[kind]
    if not isinstance(arguments, list | tuple):
        raise InvalidValue(at, f"must be a list, not {shown(arguments)}")
    if kind == "choice":
        if not 1 <= len(arguments) <= MAX_CHOICES:
            raise InvalidValue(at, f"must list 1 to {MAX_CHOICES} values, not {len(arguments)}")
        return Choice(tuple(parameter.check(each, f"{at}/{i}") for i, each in enumerate(arguments)))
    if not parameter.numeric:
        raise InvalidValue(at, f"{parameter.name} is {parameter.allowed}, which has no range: use choice")
    if parameter.kind == "integer" and kind != "uniform":
        raise InvalidValue(at, f"{parameter.name} is {parameter.allowed}: use uniform or choice")
    read = _read_arc if kind in ("cos", "sin") else _read_interval
    return read(parameter, kind, arguments, at)


def _number(parameter: Parameter, value: object, at: str) -> float:
    return cast(float, parameter.check(value, at))


def _read_interval(parameter: Parameter, kind: str, arguments: Sequence[object], at: str) -> Uniform | LogUniform:
    if len(arguments) != 2:
        raise InvalidValue(at, f"must be [low, high], not {len(arguments)} values")
    low, high = (_number(parameter, each, f"{at}/{i}") for i, each in enumerate(arguments))
    if low > high:
        raise InvalidValue(at, f"low {low:g} is above high {high:g}")
    if kind == "uniform":
        return Uniform(low, high)
    if low <= 0:
        raise InvalidValue(f"{at}/0", f"low must be above 0 for a logarithm, not {low:g}")
    return LogUniform(low, high)


def _read_arc(parameter: Parameter, kind: str, arguments: Sequence[object], at: str) -> Arc:
    if len(arguments) != 3:
        raise InvalidValue(at, f"must be [radius, from, to], not {len(arguments)} values")
    radius = _number(Parameter("radius", 1.0, 1e-9, 1e9), arguments[0], f"{at}/0")
    angle = Parameter("angle", 0.0, -MAX_ANGLE, MAX_ANGLE, "rad")
    start, end = (_number(angle, each, f"{at}/{i}") for i, each in enumerate(arguments[1:], 1))
    if start > end:
        raise InvalidValue(at, f"from {start:g} is above to {end:g}")
    arc = Arc("cos" if kind == "cos" else "sin", radius, start, end)
    for value in arc.support():
        parameter.check(value, at)
    return arc
