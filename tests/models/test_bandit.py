"""Bandits: what is drawn, what is paid, and what is seen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models import random
from models.environments import ENVIRONMENTS, Bandit
from models.policy import Policy, PolicyConfig
from models.presets import PRESETS
from models.rollout import collect
from models.tasks import TaskBatch, define_task, environment_of
from models.types import InvalidValue, Rollout, stack_params


def pull(tasks: TaskBatch, episodes: int) -> Rollout:
    """Episodes of a policy that is near uniform over the arms."""
    model = tasks.environment
    policy = Policy(PolicyConfig((4,)), model.observation_space, model.action_space)
    params = stack_params(policy.initialise(0), len(tasks))
    return collect(policy, params, tasks, episodes, random.fold_in(random.key("pulls"), torch.arange(len(tasks))))


def test_every_arm_pays_with_its_own_chance_whatever_made_the_policy_choose_it() -> None:
    tasks = TaskBatch.of([define_task("Bandit-v0", {"arms": 4, "instance": i}) for i in range(6)])
    rollout = pull(tasks, 2000)
    for n in range(6):
        for arm in range(4):
            paid = rollout.reward[n][rollout.action[n] == arm]
            chance = float(tasks.params["chances"][n, 0, arm])
            assert len(paid) > 4000
            assert float(paid.mean()) == pytest.approx(chance, abs=4.5 * math.sqrt(chance * (1 - chance) / len(paid)))
            assert set(paid.tolist()) <= {0.0, 1.0}


def test_the_observation_counts_pulls_and_pays_of_the_episode_so_far() -> None:
    tasks = TaskBatch.of([define_task("Bandit-v0", {"arms": 3, "instance": i}) for i in range(2)])
    rollout = pull(tasks, 5)
    for n in range(2):
        for b in range(5):
            pulls, paid = [0.0] * 3, [0.0] * 3
            for t in range(10):
                assert rollout.observation[n, t, b].tolist() == pulls + paid
                arm = int(rollout.action[n, t, b])
                pulls[arm] += 1
                paid[arm] += float(rollout.reward[n, t, b])
            assert rollout.final_observation[n, b].tolist() == pulls + paid


def chances(instances: list[int], dtype: torch.dtype, **parameters: float) -> Tensor:
    tasks = [define_task("Bandit-v0", {"instance": i, **parameters}) for i in instances]
    return TaskBatch.of(tasks, dtype).params["chances"][:, 0]


def test_chances_are_uniform_between_their_ends() -> None:
    drawn = chances(list(range(4000)), torch.float64, lowest=0.2, highest=0.6)
    assert 0.2 < float(drawn.min()) < 0.201
    assert 0.599 < float(drawn.max()) < 0.6
    assert float(drawn.mean()) == pytest.approx(0.4, abs=4 * 0.4 / math.sqrt(12 * 20_000))
    assert float(drawn.std()) == pytest.approx(0.4 / math.sqrt(12), rel=0.02)
    correlation = torch.corrcoef(drawn.T)
    assert float((correlation - torch.eye(5)).abs().max()) < 4.5 / math.sqrt(4000)


def test_one_instance_is_the_same_bandit_in_any_batch_and_dtype() -> None:
    instances = [5, 2**53 - 1, 2**53 - 2, 5]
    exact, single = chances(instances, torch.float64), chances(instances, torch.float32)
    assert torch.equal(exact[0], exact[3])
    assert not torch.equal(single[1], single[2])
    assert torch.equal(chances([2**53 - 1], torch.float64)[0], exact[1])
    assert torch.equal(exact.float(), single)


def test_the_best_return_is_the_best_arm_at_every_pull() -> None:
    tasks = TaskBatch.of(PRESETS["bandit-5"].sample("test", 0, range(20_000)), torch.float64)
    best = tasks.environment.optimal_return(tasks.params, tasks.horizon)
    assert best is not None
    assert float(best[17]) == pytest.approx(10 * max(tasks.params["chances"][17, 0].tolist()))
    # The largest of five uniform numbers has the mean 5/6 and the standard deviation 0.141.
    assert float(best.mean()) == pytest.approx(50 / 6, abs=4 * 1.41 / math.sqrt(20_000))


def test_the_number_of_arms_decides_the_spaces() -> None:
    seven = environment_of(define_task("Bandit-v0", {"arms": 7}))
    assert (seven.observation_size, int(seven.action_space.n)) == (14, 7)  # type: ignore[union-attr]
    assert environment_of(define_task("Bandit-v0", {"arms": 7, "instance": 3})) is seven
    assert environment_of(define_task("Bandit-v0")) is ENVIRONMENTS["Bandit-v0"]
    assert isinstance(seven, Bandit)
    with pytest.raises(InvalidValue, match="all tasks must run in one environment"):
        TaskBatch.of([define_task("Bandit-v0"), define_task("Bandit-v0", {"arms": 7})])
