"""The methods, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.adaptation import MAX_ACTIVATIONS_PER_TASK, MAX_STEPS_PER_TASK, require_memory
from models.finetune.base import FineTuner
from models.finetune.dqn import DQN, DQNConfig
from models.finetune.ppo import PPO, PPOConfig
from models.finetune.sac import SAC, SACConfig
from models.policy import Policy
from models.types import InvalidValue

MethodConfig = PPOConfig | DQNConfig | SACConfig
"""Any method's config, told apart by ``name``."""

CONFIGS: dict[str, type[MethodConfig]] = {config.name: config for config in (PPOConfig, DQNConfig, SACConfig)}
"""Config classes by the ``name`` in them."""

METHODS: dict[str, Callable[..., FineTuner[Any]]] = {"ppo": PPO, "dqn": DQN, "sac": SAC}
"""Method classes by the ``name`` in their config."""


def require_fit(config: MethodConfig, policy: Policy, horizon: int) -> None:
    """Refuse a method that does not fit the actions of a task, or whose rounds would not fit in memory.

    Args:
        config: Method and hyperparameters.
        policy: The architecture.
        horizon: Steps of the task's episodes.

    Raises:
        InvalidValue: At ``/method/...``.
    """
    if isinstance(config, DQNConfig) and not policy.discrete:
        detail = "dqn chooses among discrete actions, and the task's are numbers; use sac or ppo"
        raise InvalidValue("/method/name", detail)
    if isinstance(config, SACConfig) and policy.discrete:
        raise InvalidValue(
            "/method/name", "sac needs actions that are numbers, and the task's are discrete; use dqn or ppo"
        )
    units = sum(policy.config.hidden)
    require_memory(config.evaluation_episodes, horizon, "/method/evaluation_episodes")
    require_memory(config.parallel_episodes, config.steps, "/method/parallel_episodes", units)
    if not isinstance(config, PPOConfig):
        require_memory(config.batch_size, config.updates, "/method/batch_size")
        limit = MAX_ACTIVATIONS_PER_TASK // max(units, config.n_steps)
        if config.batch_size > limit:
            raise InvalidValue("/method/batch_size", f"{config.batch_size} samples are too many; at most {limit} fit")
        numbers = config.buffer_size * (2 * policy.observation_size + policy.action_size)
        if numbers > 100 * MAX_STEPS_PER_TASK:
            limit = 100 * MAX_STEPS_PER_TASK // (2 * policy.observation_size + policy.action_size)
            raise InvalidValue("/method/buffer_size", f"{config.buffer_size} steps are too many; at most {limit} fit")
