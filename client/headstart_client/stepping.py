"""The user's own environment, one or many at once, behind the same few verbs."""

from __future__ import annotations

from enum import Enum
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from headstart_client.spaces import Spaces, read_spaces

DEFAULT_HORIZON = 1000


class GymEnvironment(Protocol):
    """What a ``gymnasium.Env`` and a ``gymnasium.vector.VectorEnv`` have in common."""

    @property
    def observation_space(self) -> Any:
        """What it shows."""

    @property
    def action_space(self) -> Any:
        """What it takes."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""

    def step(self, action: Any, /) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take an action."""


class Autoreset(Enum):
    """How a sub-environment whose episode has ended begins the next one; the names and values are gymnasium's."""

    NEXT_STEP = "NextStep"
    """In the next step, which takes no action and gives no reward."""

    SAME_STEP = "SameStep"
    """In the same step: the last observation is in its ``info``."""

    DISABLED = "Disabled"
    """When it is told to."""


@final
class SubEnvironments:
    """An environment as one sub-environment, or a vector environment as the M that it has.

    Args:
        environment: What to step.

    Attributes:
        spaces: Of every sub-environment.
        count: M.
        autoreset: How they begin again.
        horizon: Steps after which their episodes are cut off, as far as that is known.

    Raises:
        ValueError: If its spaces are not such that a policy can act in it.
    """

    def __init__(self, environment: GymEnvironment) -> None:
        from gymnasium.vector import VectorEnv

        if not callable(getattr(environment, "step", None)):
            raise TypeError(
                f"an environment of gymnasium has a method step, which a {type(environment).__name__} has not"
            )
        self._environment: Any = environment
        self._is_vector = isinstance(environment, VectorEnv)
        one: Any = environment
        if isinstance(environment, VectorEnv):
            self.count = environment.num_envs
            self.autoreset = _autoreset(environment.metadata)
            self.spaces: Spaces = read_spaces(environment.single_observation_space, environment.single_action_space)
        else:
            self.count = 1
            self.autoreset = Autoreset.DISABLED
            self.spaces = read_spaces(one.observation_space, one.action_space)
        spec = getattr(one, "spec", None)
        self.horizon: int = getattr(spec, "max_episode_steps", None) or DEFAULT_HORIZON

    def reset(self, seed: int | None = None) -> NDArray[np.float64]:
        """Begin an episode in every sub-environment; their first observations, [M, O]."""
        observation, _ = self._environment.reset(seed=seed)
        return self._batch(observation)

    def restart(self, ended: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Begin an episode where one has ended, which says a mask [M]; observations [M, O], new ones there."""
        if not self._is_vector:
            return self.reset()
        observation, _ = self._environment.reset(options={"reset_mask": ended.copy()})
        return self._batch(observation)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Take an action in every sub-environment.

        Args:
            actions: [M] or [M, A], as the policy gave them.

        Returns:
            Observations [M, O], rewards, terminated and truncated [M], and the ``info``.
        """
        own = self.spaces.to_environment(actions)
        taken = own if self._is_vector else (int(own[0]) if self.spaces.discrete else own[0])
        observation, reward, terminated, truncated, info = self._environment.step(taken)
        return (
            self._batch(observation),
            np.array(reward, np.float64, ndmin=1),
            np.array(terminated, np.bool_, ndmin=1),
            np.array(truncated, np.bool_, ndmin=1),
            info,
        )

    def _batch(self, observation: Any) -> NDArray[np.float64]:
        # A copy: some environments write the next observation where they wrote the last.
        batch = np.array(observation, np.float64, ndmin=2)
        if batch.shape != (self.count, self.spaces.observation_size):
            raise ValueError(
                f"the environment gave observations of the shape {np.shape(observation)}, "
                f"not of its {self.count} x {self.spaces.observation_size} numbers"
            )
        return batch


def _autoreset(metadata: dict[str, Any]) -> Autoreset:
    mode = metadata.get("autoreset_mode")
    try:
        return Autoreset(getattr(mode, "value", mode))
    except ValueError:
        raise ValueError(
            f"the vector environment's metadata must say its autoreset_mode, one of "
            f"{[each.name for each in Autoreset]}; it says {mode!r}"
        ) from None
