"""Define one task, and put N of them into tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from models.environments import ENVIRONMENTS, NEEDED_EXTRAS, Environment
from models.environments.base import shown
from models.environments.bridge import find_bridged
from models.rewards import RewardFunction, compile_reward
from models.types import InvalidValue, ParameterValue, Params, Task

MAX_HORIZON: Final = 100_000
"""Longest episode a task may ask for, in steps."""


def find_environment(environment: object) -> Environment:
    """The environment model of that id: one of ``ENVIRONMENTS``, or any other of Gymnasium's through the bridge.

    Raises:
        InvalidValue: If there is none, naming those there are; if it is a module's that must not be imported; if it
            cannot be used.
    """
    if isinstance(environment, str):
        if environment in ENVIRONMENTS:
            return ENVIRONMENTS[environment]
        if environment in NEEDED_EXTRAS:
            needed = f"needs the extra headstart[{NEEDED_EXTRAS[environment]}], which is not installed"
            raise InvalidValue("/environment", f"{environment} {needed}")
        if (bridged := find_bridged(environment)) is not None:
            return bridged
    detail = (
        f"unknown environment {shown(environment)}; the environments are {', '.join(ENVIRONMENTS)}, any other of "
        "Gymnasium's, and module:Id of a module in HEADSTART_ENVIRONMENT_MODULES"
    )
    raise InvalidValue("/environment", detail)


def environment_of(task: Task) -> Environment:
    """The model that a task runs in, with the spaces that its parameters give it."""
    return find_environment(task.environment).shaped(task.parameters)


def check_episode(
    model: Environment, reward: str | None, discount: float, horizon: int | None
) -> tuple[str | None, float, int]:
    """What a task says beside its parameters: reward, discount, horizon, checked and completed.

    Raises:
        InvalidValue: At the first that is not allowed.
    """
    if reward is not None:
        reward = compile_reward(reward, model.observation_size, model.action_size).expression
    if isinstance(discount, bool) or not isinstance(discount, int | float) or not 0 < discount <= 1:
        raise InvalidValue("/discount", f"must be a number above 0 and at most 1, not {shown(discount)}")
    if horizon is None:
        horizon = model.default_horizon
    if isinstance(horizon, bool) or not isinstance(horizon, int) or not 1 <= horizon <= MAX_HORIZON:
        detail = f"must be a whole number of steps from 1 to {MAX_HORIZON}, not {shown(horizon)}"
        raise InvalidValue("/horizon", detail)
    return reward, float(discount), horizon


def define_task(
    environment: str,
    parameters: Mapping[str, ParameterValue] | None = None,
    reward: str | None = None,
    discount: float = 0.99,
    horizon: int | None = None,
) -> Task:
    """A task that is known to be sound, with everything that was left out filled in.

    Args:
        environment: An id that :func:`find_environment` knows.
        parameters: Values of some of its parameters, in their units; the others take their defaults.
        reward: An expression (:mod:`models.rewards`), or ``None`` for the environment's own reward.
        discount: γ, in (0, 1].
        horizon: Steps after which an episode is truncated, 1 to :data:`MAX_HORIZON`; by default the
            environment's own.

    Raises:
        InvalidValue: If any of it is not allowed: at ``/environment``, ``/parameters/<name>``,
            ``/reward/expression``, ``/discount`` or ``/horizon``.
    """
    model = find_environment(environment)
    given = {} if parameters is None else parameters
    for name in given:
        model.parameter(name)
    values = {each.name: each.check(given.get(each.name, each.default)) for each in model.parameters}
    reward, discount, horizon = check_episode(model.shaped(values), reward, discount, horizon)
    return Task(environment, values, reward, discount, horizon)


@final
@dataclass(frozen=True, eq=False)
class TaskBatch:
    """``N`` tasks of one environment as tensors; build it with :meth:`of`.

    Attributes:
        tasks: The tasks, in order.
        names: What to call each in a message.
        environment: The model that all of them run in.
        params: Its parameters and what it derives from them, prepared, each tensor ``[N, 1, ...]``.
        discount: γ of each task, [N].
        horizon: Steps after which an episode of each task is truncated, [N] int64.
    """

    tasks: tuple[Task, ...]
    names: tuple[str, ...]
    environment: Environment
    params: Params
    discount: Tensor
    horizon: Tensor
    _rewards: tuple[tuple[RewardFunction, Tensor], ...]

    @classmethod
    def of(
        cls,
        tasks: Iterable[Task],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        names: Sequence[str] | None = None,
    ) -> TaskBatch:
        """The batch of these tasks, as :func:`define_task` made them.

        Args:
            tasks: At least one.
            dtype: Of everything that is not a count.
            device: Where the tensors live.
            names: What to call each task in a message; by default its place in the batch.

        Raises:
            InvalidValue: If there are none, or two of them run in different environments; names both.
        """
        tasks = tuple(tasks)
        if not tasks:
            raise InvalidValue("/tasks", "there is no task: at least one is needed")
        names = tuple(f"task {i}" for i in range(len(tasks))) if names is None else tuple(names)
        model = environment_of(tasks[0])
        for task, name in zip(tasks, names, strict=True):
            other = environment_of(task)
            if other is not model and not interchangeable(model, other):
                raise InvalidValue("/tasks", _disagreement(names[0], model, name, other))
        # Whole numbers stay whole: a key of 53 bits has no place in a float32.
        params = {
            each.name: torch.tensor(
                [[each.number(task.parameters[each.name])] for task in tasks],
                dtype=torch.int64 if each.kind == "integer" else dtype,
                device=device,
            )
            for each in model.parameters
        }
        return cls(
            tasks=tasks,
            names=names,
            environment=model,
            params=model.prepare(params),
            discount=torch.tensor([task.discount for task in tasks], dtype=dtype, device=device),
            horizon=torch.tensor([task.horizon for task in tasks], dtype=torch.int64, device=device),
            _rewards=_reward_functions(model, tasks, device),
        )

    def __len__(self) -> int:
        return len(self.tasks)

    def select(self, indices: Sequence[int]) -> TaskBatch:
        """The batch of the tasks at these places, in this order."""
        return TaskBatch.of(
            [self.tasks[i] for i in indices],
            self.discount.dtype,
            self.discount.device,
            [self.names[i] for i in indices],
        )

    def describe(self, index: int) -> str:
        """The task at a place, in words: its name, environment, parameters and reward."""
        task = self.tasks[index]
        values = ", ".join(f"{name}={value}" for name, value in task.parameters.items())
        reward = "" if task.reward is None else f", reward {task.reward!r}"
        return f"{self.names[index]} ({task.environment}, {values}{reward})"

    def reward(
        self,
        observation: Tensor,
        action: Tensor,
        next_observation: Tensor,
        reward: Tensor,
        terminated: Tensor,
    ) -> Tensor:
        """The reward of each task's transitions: its expression's, or the environment's own as it came.

        Any number of axes may follow the tasks': this serves single steps and whole rollouts.

        Args:
            observation: [N, ..., O], before the action.
            action: [N, ...] int64 where actions are discrete, else [N, ..., A], in environment units.
            next_observation: [N, ..., O], after the action.
            reward: [N, ...], the environment's own.
            terminated: [N, ...] bool, whether the next state is terminal.

        Returns:
            [N, ...]; NaN and infinity are passed on.
        """
        inputs = (observation, action, next_observation, reward, terminated)
        if len(self._rewards) == 1 and len(self._rewards[0][1]) == len(self):
            return self._rewards[0][0](*inputs)
        if self._rewards:
            reward = reward.clone()
        for function, rows in self._rewards:
            reward[rows] = function(*(each[rows] for each in inputs))
        return reward


def _reward_functions(
    model: Environment, tasks: Sequence[Task], device: torch.device | str
) -> tuple[tuple[RewardFunction, Tensor], ...]:
    """Every distinct expression, compiled, with the places of the tasks that use it."""
    rows: dict[str, list[int]] = {}
    for i, task in enumerate(tasks):
        if task.reward is not None:
            rows.setdefault(task.reward, []).append(i)
    return tuple(
        (compile_reward(text, model.observation_size, model.action_size), torch.tensor(places, device=device))
        for text, places in rows.items()
    )


def interchangeable(model: Environment, other: Environment) -> bool:
    """Whether two models are one environment with the same spaces, so that their tasks fit in one batch."""
    return (
        model.id == other.id
        and model.observation_space == other.observation_space
        and model.action_space == other.action_space
    )


def _disagreement(name: str, model: Environment, other_name: str, other: Environment) -> str:
    def place(each: Environment) -> str:
        actions = f"{each.action_space.n} actions" if isinstance(each.action_space, Discrete) else "actions of "
        vector = "" if each.action_size is None else f"{each.action_size} numbers"
        return f"{each.id} (observations of {each.observation_size} numbers, {actions}{vector})"

    return f"all tasks must run in one environment: {name} in {place(model)}, but {other_name} in {place(other)}"
