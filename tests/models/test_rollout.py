from __future__ import annotations

import pytest
import torch

from models import random
from models.environments import ENVIRONMENTS
from models.environments.locomotion import Locomotion
from models.policy import Policy, PolicyConfig
from models.rollout import NonFiniteReward, collect
from models.tasks import TaskBatch, define_task
from models.types import Params, stack_params


def policy_for(environment: str) -> Policy:
    model = ENVIRONMENTS[environment]
    return Policy(PolicyConfig(hidden=(8,)), model.observation_space, model.action_space)


def random_params(policy: Policy, count: int, seed: int = 0) -> Params:
    g = torch.Generator().manual_seed(seed)
    shapes = policy.shapes().items()
    return {name: torch.randn(count, *shape, generator=g, dtype=torch.float64) for name, shape in shapes}


def keys(count: int) -> torch.Tensor:
    return random.fold_in(random.key("test"), torch.arange(count))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_rollout_equals_stepping_each_episode_alone_in_plain_python(environment: str) -> None:
    policy, model = policy_for(environment), ENVIRONMENTS[environment]
    # A body that strikes the ground multiplies a rounding error with every step.
    horizons = (8, 5) if isinstance(model, Locomotion) else (40, 25)
    tasks = TaskBatch.of([define_task(environment, horizon=h) for h in horizons], torch.float64)
    params = random_params(policy, 2)
    rollout = collect(policy, params, tasks, 3, keys(2))
    for n in range(2):
        one, alone = tasks.select([n]), {name: value[n : n + 1] for name, value in params.items()}
        for b in range(3):
            key = random.fold_in(keys(2)[n].reshape(1, 1), b)
            state = model.initial(random.fold_in(key, 0), one.params)
            for t in range(one.tasks[0].horizon):
                observation = model.observation(state, None, one.params)
                torch.testing.assert_close(rollout.observation[n, t, b], observation[0, 0])
                step_key = random.fold_in(random.fold_in(key, 1), t)
                head = policy.head(alone, policy.features(alone, observation))
                action = policy.choose(head, policy.noise(alone, step_key))
                torch.testing.assert_close(rollout.action[n, t, b], action[0, 0])
                torch.testing.assert_close(rollout.log_prob[n, t, b], policy.log_prob(alone, head, action)[0, 0])
                state, reward, terminated = model.step(state, policy.to_environment(action), step_key, one.params)
                torch.testing.assert_close(rollout.reward[n, t, b], reward[0, 0])
                assert rollout.mask[n, t, b] == 1
                if terminated:
                    break
            assert float(rollout.mask[n, :, b].sum()) == t + 1
            assert float(rollout.reward[n, t + 1 :, b].abs().sum()) == 0
            assert bool(rollout.terminated[n, b]) == bool(terminated)
            torch.testing.assert_close(
                rollout.final_observation[n, b], model.observation(state, None, one.params)[0, 0]
            )


def test_an_episode_is_the_same_alone_and_among_many() -> None:
    policy = policy_for("CartPole-v1")
    tasks = TaskBatch.of([define_task("CartPole-v1", {"length": 0.2 + 0.1 * i}) for i in range(10)], torch.float64)
    params = random_params(policy, 10)
    many = collect(policy, params, tasks, 40, keys(10))
    one = {name: value[7:8] for name, value in params.items()}
    few = collect(policy, one, tasks.select([7]), 2, keys(10)[7:8])
    torch.testing.assert_close(many.episode_return[7, :2], few.episode_return[0])
    steps = few.observation.shape[1]
    torch.testing.assert_close(many.observation[7, :steps, :2], few.observation[0])


def test_tasks_may_have_different_horizons_and_rewards() -> None:
    policy = policy_for("MountainCar-v0")
    definitions = [
        define_task("MountainCar-v0", horizon=5),
        define_task("MountainCar-v0", reward="2 + 0*reward", horizon=9),
    ]
    rollout = collect(policy, random_params(policy, 2), TaskBatch.of(definitions, torch.float64), 4, keys(2))
    assert rollout.mean_return.tolist() == [-5, 18]
    assert rollout.environment_steps == 4 * (5 + 9)


def test_the_most_likely_actions_need_no_random_numbers() -> None:
    policy = policy_for("Navigation2D-v0")
    tasks = TaskBatch.of([define_task("Navigation2D-v0")], torch.float64)
    rollout = collect(policy, random_params(policy, 1), tasks, 2, keys(1), deterministic=True)
    assert torch.equal(rollout.action[:, :, 0], rollout.action[:, :, 1])


def test_a_reward_that_is_not_finite_names_the_task_the_expression_and_the_step() -> None:
    policy = policy_for("CartPole-v1")
    tasks = TaskBatch.of(
        [define_task("CartPole-v1"), define_task("CartPole-v1", reward="log(observation[0] - 5)")],
        names=["good", "bad"],
    )
    params = stack_params(policy.initialise(0), 2)
    with pytest.raises(NonFiniteReward, match=r"reward became NaN or infinite in bad .*log.*step 0"):
        collect(policy, params, tasks, 2, keys(2))
