"""A task whose environment is with a client: what is known of it are its spaces, discount and horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from gymnasium.spaces import Box, Discrete

from models.checkpoint import space_from_json, space_to_json
from models.environments.base import shown
from models.tasks import MAX_HORIZON
from models.types import InvalidValue

MAX_SIZE: Final = 10_000
"""Numbers of one observation or action, or actions to choose from."""

LARGEST: Final = float(np.finfo(np.float32).max)
"""Of the numbers that float32 can hold: what a client sends is at most so large."""


@dataclass(frozen=True)
class RemoteTask:
    """One Markov decision process of which only the episodes come here. Build it with :func:`define_remote`.

    Attributes:
        observation_space: Of the environment.
        action_space: Of the environment.
        discount: γ in (0, 1].
        horizon: Steps of an episode at most.
    """

    observation_space: Box
    action_space: Box | Discrete[Any]
    discount: float
    horizon: int

    def definition(self) -> dict[str, Any]:
        """The task as plain JSON values; spaces as in a manifest."""
        return {
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "discount": self.discount,
            "horizon": self.horizon,
        }


def define_remote(
    observation_space: Mapping[str, Any], action_space: Mapping[str, Any], discount: float, horizon: int
) -> RemoteTask:
    """A remote task that is known to be sound.

    Args:
        observation_space: As :func:`models.checkpoint.space_to_json` writes a box.
        action_space: As that writes a box or a discrete space.
        discount: γ, in (0, 1].
        horizon: 1 to :data:`models.tasks.MAX_HORIZON`.

    Raises:
        InvalidValue: If any of it is not allowed; at ``/observation_space/...`` and so on.
    """
    _check_box(observation_space, "/observation_space")
    if action_space["type"] == "box":
        _check_box(action_space, "/action_space")
    elif not 1 <= action_space["n"] <= MAX_SIZE:
        detail = f"must be a whole number from 1 to {MAX_SIZE}, not {shown(action_space['n'])}"
        raise InvalidValue("/action_space/n", detail)
    if not 0 < discount <= 1:
        raise InvalidValue("/discount", f"must be a number above 0 and at most 1, not {shown(discount)}")
    if not 1 <= horizon <= MAX_HORIZON:
        detail = f"must be a whole number of steps from 1 to {MAX_HORIZON}, not {shown(horizon)}"
        raise InvalidValue("/horizon", detail)
    observations = space_from_json(observation_space)
    assert isinstance(observations, Box)
    return RemoteTask(observations, space_from_json(action_space), discount, horizon)


def read_remote(definition: Mapping[str, Any]) -> RemoteTask:
    """The inverse of :meth:`RemoteTask.definition`; other members are passed over."""
    return define_remote(
        **{name: definition[name] for name in ("observation_space", "action_space", "discount", "horizon")}
    )


def _check_box(space: Mapping[str, Any], pointer: str) -> None:
    low, high = space["low"], space["high"]
    if not 1 <= len(low) <= MAX_SIZE:
        raise InvalidValue(f"{pointer}/low", f"must hold 1 to {MAX_SIZE} bounds, not {len(low)}")
    if len(high) != len(low):
        raise InvalidValue(f"{pointer}/high", f"must hold {len(low)} bounds as low does, not {len(high)}")
    for name, bounds in (("low", low), ("high", high)):
        _check_bounds(bounds, f"{pointer}/{name}")
    for i, (least, most) in enumerate(zip(low, high, strict=True)):
        if least is not None and most is not None and np.float32(least) > np.float32(most):
            raise InvalidValue(f"{pointer}/low/{i}", f"{shown(least)} is above high, {shown(most)}")


def _check_bounds(bounds: Sequence[float | None], pointer: str) -> None:
    for i, bound in enumerate(bounds):
        if bound is not None and abs(bound) > LARGEST:
            detail = f"must be null for no bound, or at most {LARGEST:.3g} in size, not {shown(bound)}"
            raise InvalidValue(f"{pointer}/{i}", detail)
