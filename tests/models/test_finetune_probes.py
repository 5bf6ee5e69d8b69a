from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from probes import PROBES, probe_environments

from models import random
from models.finetune import DQNConfig, MethodConfig, PPOConfig, SACConfig, finetune
from models.policy import Policy, PolicyConfig
from models.tasks import TaskBatch, define_task
from models.types import Params, stack_params

SETTINGS: dict[str, MethodConfig] = {
    "ppo": PPOConfig(environment_steps=4_000, learning_rate=1e-2, epochs=10, evaluation_episodes=2),
    "dqn": DQNConfig(
        environment_steps=3_000,
        learning_rate=5e-3,
        warm_up_steps=64,
        target_rate=0.5,
        exploration_fraction=1.0,
        final_exploration=0.5,
        evaluation_episodes=2,
    ),
    "sac": SACConfig(
        environment_steps=1_200,
        learning_rate=5e-3,
        warm_up_steps=64,
        target_rate=0.05,
        temperature=0.01,
        tune_temperature=False,
        evaluation_episodes=2,
    ),
}


@pytest.fixture(autouse=True)
def probes() -> Iterator[None]:
    with probe_environments():
        yield


def learned(method: MethodConfig, environment: str, probe: str, **policy: Any) -> tuple[Policy, Params]:
    """The policy that a method makes of a new one, and its architecture."""
    about = PROBES[probe]
    task = define_task(environment, discount=about.discount, horizon=about.horizon)
    tasks = TaskBatch.of([task])
    architecture = Policy(
        PolicyConfig(hidden=(16,), initial_log_std=-1.0, **policy),
        tasks.environment.observation_space,
        tasks.environment.action_space,
    )
    params = stack_params(architecture.initialise(0), 1)
    *_, last = finetune(method, architecture, params, tasks, random.key(0).reshape(1))
    return architecture, last.policies()


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize(("name", "numbers"), [("ppo", False), ("ppo", True), ("dqn", False), ("sac", True)], ids=str)
def test_the_value_and_the_actions_of_a_probe_are_learned(name: str, numbers: bool, probe: str) -> None:
    about = PROBES[probe]
    policy, params = learned(SETTINGS[name], f"{probe}, with numbers" if numbers else probe, probe)
    for (clock, sign), value in about.values.items():
        features = policy.features(params, torch.tensor([[[clock / 4, float(sign), 0.0]]]))
        assert float(policy.value(params, features)) == pytest.approx(value, abs=0.15)
        if about.acts and not clock:
            action = float(policy.to_environment(policy.choose(policy.head(params, features), None)))
            assert action == pytest.approx(0.5 * sign, abs=0.15) if numbers else action == (sign > 0)
