"""What an environment model is: a schema of parameters, spaces, and episodes that can be stepped."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Tensor

from models.types import InvalidValue, ParameterValue, Params, Rollout, Task

if TYPE_CHECKING:
    from models.tasks import TaskBatch

_HUGE: Final = sys.float_info.max

MAX_TEXT: Final = 1000
"""Most characters of a parameter that is a text."""


def shown(value: object) -> str:
    """A value as an error message may show it: short, whatever was sent."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    return f"a {type(value).__name__}"


def pointer_to(*members: str) -> str:
    """The JSON pointer (RFC 6901) through these member names."""
    return "".join("/" + member.replace("~", "~0").replace("/", "~1") for member in members)


@dataclass(frozen=True)
class Parameter:
    """One parameter of an environment: a number in a closed range, a truth value, a text, or one of a few words.

    Attributes:
        name: Its name in task definitions.
        default: The value a task has that does not say.
        low: Smallest number, in ``unit``; of no use to other kinds.
        high: Largest number, in ``unit``; of no use to other kinds.
        unit: Unit of the number; empty where it has none.
        description: What it means, for a person.
        choices: The words that a text is one of; empty where any will do.
        kind: What its values are; an ``integer`` is a number without a fraction.
    """

    name: str
    default: ParameterValue
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    description: str = ""
    choices: tuple[str, ...] = ()
    kind: Literal["number", "integer", "boolean", "text"] = "number"

    def __post_init__(self) -> None:
        """A parameter with choices is a text."""
        if self.choices:
            object.__setattr__(self, "kind", "text")

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers."""
        return self.kind in ("number", "integer")

    @property
    def allowed(self) -> str:
        """The values it takes, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind == "boolean":
            return "true or false"
        if self.kind == "text":
            return f"a text of at most {MAX_TEXT} characters"
        unit = f" {self.unit}" if self.unit else ""
        whole = "a whole number" if self.kind == "integer" else "a number"
        return f"{whole} from {self.low:g} to {self.high:g}{unit}"

    def check(self, value: object, pointer: str | None = None) -> ParameterValue:
        """The value as a task holds it: a number as a float, zero unsigned, so that equal tasks read alike.

        Raises:
            InvalidValue: If it is not allowed; at ``pointer``, by default ``/parameters/<name>``.
        """
        if isinstance(value, str):
            if self.kind == "text" and (value in self.choices or not self.choices) and len(value) <= MAX_TEXT:
                return value
        elif isinstance(value, bool):
            if self.kind == "boolean":
                return value
        # The comparison comes before float(), which a huge integer would overflow; NaN and infinity fail it.
        elif (
            isinstance(value, int | float) and self.numeric and max(self.low, -_HUGE) <= value <= min(self.high, _HUGE)
        ):
            if self.kind == "number":
                return float(value) + 0.0
            if value == int(value):
                return int(value)
        where = pointer_to("parameters", self.name) if pointer is None else pointer
        raise InvalidValue(where, f"{self.name} must be {self.allowed}, not {shown(value)}")

    def number(self, value: ParameterValue) -> float:
        """A checked value as dynamics see it: a choice is its index, a truth value 0 or 1, any other text 0."""
        if isinstance(value, str):
            return float(self.choices.index(value)) if self.choices else 0.0
        return float(value)


class Simulation(ABC):
    """Episodes under way: ``B`` of each of ``N`` tasks, begun and stepped together.

    Attributes:
        first_observation: What a policy sees before its first actions, [N, B, O].
    """

    first_observation: Tensor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.end(whole=kind is None)

    @abstractmethod
    def step(self, action: Tensor, rng: Tensor, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Act in the episodes that are alive; the others stand still.

        Args:
            action: In environment units, [N, B] int64 where actions are discrete, else [N, B, A].
            rng: A key for each, [N, B] int64.
            alive: Which episodes are not over, [N, B] bool.

        Returns:
            What the policy sees next, [N, B, O]; whether that is in a terminal state, [N, B] bool; whether the episode
            is over, in a terminal state or because the environment cut it off, [N, B] bool. Of episodes that are not
            alive, the last observation again; the rest says nothing.
        """

    @abstractmethod
    def rewards(self, action: Tensor) -> Tensor:
        """The environment's own rewards of the first ``T`` steps, [N, T, B]; after an episode's end anything.

        Args:
            action: What was passed to the first ``T`` steps, [N, T, B] or [N, T, B, A].
        """

    @abstractmethod
    def states(self, steps: int) -> Tensor | None:
        """The states before the first so many steps and after the last, [N, steps + 1, B, S].

        Returns:
            ``None`` where they are somebody else's secret.
        """

    @abstractmethod
    def renew(self, rng: Tensor, over: Tensor) -> Tensor:
        """Begin a new episode in the place of each that is over.

        Rewards of the step before are still those of the episodes that ended with it.

        Args:
            rng: A key for each new episode, [N, B] int64, as those the first ones began with.
            over: Which to begin anew, [N, B] bool, at least one.

        Returns:
            What the policy sees now, [N, B, O]: first observations of the new episodes, the same again of the others.
        """

    @abstractmethod
    def forget(self) -> None:
        """Forget the steps made so far: :meth:`rewards` counts from here."""

    @abstractmethod
    def end(self, whole: bool) -> None:
        """Give back what stepping needed; :meth:`rewards` still answers.

        Args:
            whole: Whether no step was cut short.
        """


@dataclass(frozen=True)
class Scene:
    """What a process needs to draw episodes of one task, one after another (:func:`models.bridge.filming.film`).

    Attributes:
        configuration: What it makes Gymnasium's environment of.
        attributes: What that is given first.
        columns: Names of its attributes that have a value for each frame; ``None`` where the episodes are played again.
        arrays: Those values; or a seed for each episode, and the actions of all.
    """

    configuration: Mapping[str, Any]
    attributes: Mapping[str, ParameterValue]
    columns: tuple[str, ...] | None
    arrays: tuple[NDArray[Any], ...]


class Environment(ABC):
    """A model of dynamics, without a task: what is left of the decision process is a task's parameters.

    Attributes:
        id: Its name in task definitions; Gymnasium's id where Gymnasium has the same environment.
        title: What to call it, for a person.
        description: What it is and where it comes from, for a person.
        parameters: The parameters of its dynamics.
        observation_space: Shape and bounds of one observation.
        action_space: The actions it takes.
        default_horizon: Steps after which an episode is truncated, where a task does not say.
    """

    id: str
    title: str
    description: str
    parameters: tuple[Parameter, ...]
    observation_space: Box
    action_space: Box | Discrete[np.int64]
    default_horizon: int

    @property
    @abstractmethod
    def renders(self) -> bool:
        """Whether Gymnasium has a renderer for it."""

    @property
    def observation_size(self) -> int:
        """``O``, the numbers in one observation."""
        return int(self.observation_space.shape[0])

    @property
    def action_size(self) -> int | None:
        """``A``, the numbers in one action; ``None`` where actions are discrete."""
        return int(self.action_space.shape[0]) if isinstance(self.action_space, Box) else None

    def parameter(self, name: str) -> Parameter:
        """The parameter of that name.

        Raises:
            InvalidValue: If there is none; names those there are.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        known = ", ".join(parameter.name for parameter in self.parameters)
        detail = f"{self.id} has no parameter {shown(name)}; its parameters are {known}"
        raise InvalidValue(pointer_to("parameters", str(name)), detail)

    def shaped(self, parameters: Mapping[str, ParameterValue]) -> Environment:
        """The model with the spaces that a task's parameters give it.

        Itself, unless parameters decide how many numbers an observation has or which actions there are. Equal
        parameters give the same object.
        """
        del parameters
        return self

    def prepare(self, params: Params) -> Params:
        """The parameters and, under further names, what the dynamics derive from them alone.

        Every derived tensor starts with the parameters' axes, so that a caller may insert one after the
        tasks' axis in all of them alike, to have ``[N, 1, 1, ...]`` against states ``[N, T, B, S]``.
        """
        return params

    def optimal_return(self, params: Params, horizon: Tensor) -> Tensor | None:
        """What the best policy that knows a task's parameters can expect, where that can be worked out.

        Args:
            params: Prepared parameters of N tasks, each [N, 1, ...].
            horizon: Steps of an episode of each task, [N] int64.

        Returns:
            Expected undiscounted return of the environment's own reward within the horizon, [N]; NaN for tasks,
            ``None`` for environments, of which it is not known.
        """
        del params, horizon
        return None

    @abstractmethod
    def scene(self, task: Task, rollout: Rollout, action: Tensor) -> Scene:
        """How Gymnasium's renderer is to draw the episodes of the only task of a rollout that kept its states.

        Args:
            task: The task.
            rollout: Its episodes, N = 1.
            action: The actions in environment units, [1, T, B] or [1, T, B, A].
        """

    @abstractmethod
    def simulate(self, rng: Tensor, tasks: TaskBatch) -> Simulation:
        """Begin episodes of tasks that run in this environment.

        Args:
            rng: A key for each episode, [N, B] int64: how it begins depends on that and its task alone.
            tasks: The N tasks.
        """
