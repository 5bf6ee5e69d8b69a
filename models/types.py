"""The words of the core: a task, the parameters of many policies, a batch of episodes.

Shape letters, used in every docstring: ``N`` tasks, ``B`` episodes per task, ``T`` steps, ``O`` observation
size, ``A`` action size (a discrete action has none: its axis is absent). Tensors are task-major, ``[N, T, B, ...]``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Params = dict[str, Tensor]
"""Named tensors of one policy, or of ``N`` policies when every tensor has a leading ``N``."""

ParameterValue = float | int | bool | str
"""Value of one environment parameter in a task."""


class InvalidValue(ValueError):
    """A value that the core cannot accept.

    Attributes:
        pointer: JSON pointer to the offending member, relative to the object that was checked: ``/parameters/length``.
        detail: What is wrong and what would be right, for a person.
    """

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(f"{pointer}: {detail}" if pointer else detail)
        self.pointer = pointer
        self.detail = detail


class ShapeError(ValueError):
    """Tensors whose shapes do not fit together."""


@dataclass(frozen=True)
class Task:
    """One Markov decision process. Build it with :func:`models.tasks.define_task`, which checks and completes it.

    Attributes:
        environment: Id of the environment model (:func:`models.tasks.find_environment`).
        parameters: Every parameter of that environment, defaults filled in, in its own units.
        reward: An expression (:mod:`models.rewards`) or ``None`` for the environment's own reward.
        discount: γ in (0, 1].
        horizon: Steps after which an episode is truncated, at least 1.
    """

    environment: str
    parameters: Mapping[str, ParameterValue]
    reward: str | None
    discount: float
    horizon: int

    def definition(self) -> dict[str, Any]:
        """The task as plain JSON values, the same for equal tasks."""
        return {
            "environment": self.environment,
            "parameters": dict(sorted(self.parameters.items())),
            "reward": None if self.reward is None else {"expression": self.reward},
            "discount": self.discount,
            "horizon": self.horizon,
        }


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256_of(value: object) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class Rollout:
    """Episodes of ``N`` policies in their ``N`` tasks, padded to the longest episode.

    Attributes:
        observation: [N, T, B, O], before each action, in environment units.
        action: [N, T, B] int64 for discrete actions, else [N, T, B, A] in policy units (before clipping or scaling).
        reward: [N, T, B], zero after an episode's end.
        mask: [N, T, B], 1.0 up to and including an episode's last step, then 0.0.
        log_prob: [N, T, B], of the action under the policy that took it, summed over action dimensions.
        terminated: [N, B] bool: the episode ended in a terminal state (False: it was cut off at the horizon).
        final_observation: [N, B, O], the observation after each episode's last step.
        trace: What each hidden layer of the policies gave, [N, T, B, H_i], where that was kept.
        begun: The key that each episode began with, [N, B] int64, where states were to be kept.
        state: The environment's own states, [N, T + 1, B, S], where they were kept; after an episode's end its last.
        environment_steps: Real steps of all episodes.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    log_prob: Tensor
    terminated: Tensor
    final_observation: Tensor
    trace: tuple[Tensor, ...] | None = None
    begun: Tensor | None = None
    state: Tensor | None = None
    environment_steps: int = field(init=False)

    def __post_init__(self) -> None:
        """Check that the leading axes agree and count the real steps."""
        axes = self.reward.shape
        if len(axes) != 3:
            raise ShapeError(f"reward must be [N, T, B], not {tuple(axes)}")
        for name in ("observation", "action", "mask", "log_prob"):
            if getattr(self, name).shape[:3] != axes:
                raise ShapeError(f"{name} is {tuple(getattr(self, name).shape)}, but reward is {tuple(axes)}")
        object.__setattr__(self, "environment_steps", int(self.mask.count_nonzero()))

    @property
    def steps(self) -> int:
        """T, the length of the longest episode."""
        return self.reward.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Steps of every episode, [N, B] int64."""
        return self.mask.count_nonzero(1)

    @property
    def episode_return(self) -> Tensor:
        """Undiscounted return of every episode, [N, B]."""
        return self.reward.sum(1)

    @property
    def mean_return(self) -> Tensor:
        """Mean undiscounted return of every task, [N]."""
        return self.episode_return.mean(1)


def stack_params(params: Params, count: int) -> Params:
    """The same parameters for ``count`` tasks: a view with a leading axis, no copy."""
    return {name: value.expand(count, *value.shape) for name, value in params.items()}


def all_finite(params: Mapping[str, Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity."""
    return all(bool(torch.isfinite(value).all()) for value in params.values())
