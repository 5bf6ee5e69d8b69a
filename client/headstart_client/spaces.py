"""What an environment of gymnasium shows and takes, as far as a policy of the service can see and do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spaces:
    """Vectors of numbers to act on; and as actions one of some, or vectors of numbers.

    Attributes:
        observation_space: As the service takes it: ``{"type": "box", "low": [...], "high": [...]}``.
        action_space: Likewise, or ``{"type": "discrete", "n": 2}``.
        action_type: What the environment calls a number of an action: ``int64``, ``float32``.
    """

    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    action_type: np.dtype[Any]

    @property
    def discrete(self) -> bool:
        """Whether an action is one of some."""
        return bool(self.action_space["type"] == "discrete")

    @property
    def observation_size(self) -> int:
        """O."""
        return len(self.observation_space["low"])

    @property
    def action_size(self) -> int:
        """A; 1 where actions are discrete."""
        return 1 if self.discrete else len(self.action_space["low"])

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions of a policy, [M] or [M, A], in the environment's own type of number."""
        return actions.astype(self.action_type)


def read_spaces(observation_space: Any, action_space: Any) -> Spaces:
    """The spaces of one environment.

    Args:
        observation_space: A ``gymnasium.spaces.Box`` with one axis.
        action_space: A ``Box`` with one axis, of floating point numbers, or a ``Discrete`` that starts at 0.

    Raises:
        ValueError: If they are something else; nothing is flattened or shifted unasked.
    """
    from gymnasium.spaces import Box, Discrete

    if not isinstance(observation_space, Box):
        raise ValueError(
            f"observations must be of a Box, not of {observation_space}: "
            "gymnasium.wrappers.FlattenObservation makes one"
        )
    if len(observation_space.shape) != 1:
        raise ValueError(
            f"observations must have one axis, not the shape {observation_space.shape}: "
            "gymnasium.wrappers.FlattenObservation gives them one"
        )
    if isinstance(action_space, Discrete):
        if action_space.start != 0:
            raise ValueError(
                f"discrete actions must start at 0, not at {action_space.start}: "
                "gymnasium.wrappers.TransformAction shifts them"
            )
        actions: dict[str, Any] = {"type": "discrete", "n": int(action_space.n)}
    elif not isinstance(action_space, Box):
        raise ValueError(f"actions must be of a Discrete or a Box, not of {action_space}")
    elif len(action_space.shape) != 1 or not np.issubdtype(action_space.dtype, np.floating):
        raise ValueError(
            f"actions of a Box must be floating point numbers on one axis, not {action_space.dtype} of the shape "
            f"{action_space.shape}: gymnasium.wrappers.TransformAction converts them"
        )
    else:
        actions = _box(action_space)
    return Spaces(_box(observation_space), actions, np.dtype(action_space.dtype))


def _box(space: Any) -> dict[str, Any]:
    return {"type": "box", "low": _bounds(space.low), "high": _bounds(space.high)}


def _bounds(values: NDArray[Any]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
