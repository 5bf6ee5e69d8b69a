"""One task as an environment of Gymnasium's."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from models.environments.single import as_gymnasium
from models.tasks import define_task
from models.types import InvalidValue


def test_episodes_equal_gymnasiums_from_the_same_first_state() -> None:
    ours, theirs = as_gymnasium(define_task("Pendulum-v1"), torch.float64), gymnasium.make("Pendulum-v1")
    for seed in range(2):
        first, _ = ours.reset(seed=seed)
        theirs.reset(seed=seed)
        theirs.unwrapped.state = np.array([np.arctan2(first[1], first[0]), first[2]], np.float64)
        ours.action_space.seed(seed)
        for step in range(200):
            action = ours.action_space.sample()
            observation, reward, terminated, truncated, _ = ours.step(action)
            expected, their_reward, _, their_truncation, _ = theirs.step(action.astype(np.float64))
            # The first state was read off a float32 observation.
            np.testing.assert_allclose(observation, expected, rtol=0, atol=1e-2)
            assert reward == pytest.approx(their_reward, abs=5e-2)
            assert (terminated, truncated) == (False, their_truncation)
            assert truncated == (step == 199)


def test_it_pays_the_tasks_own_reward_and_stops_at_the_tasks_own_horizon() -> None:
    env = as_gymnasium(
        define_task("CartPole-v1", {"length": 0.7}, "10 + next_observation[0] - observation[0]", horizon=3)
    )
    before, _ = env.reset(seed=0)
    for step in range(3):
        after, reward, terminated, truncated, _ = env.step(1)
        assert reward == pytest.approx(10 + after[0] - before[0], abs=1e-6)
        assert (terminated, truncated) == (False, step == 2)
        before = after
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(1)


def test_an_action_that_is_none_is_refused() -> None:
    env = as_gymnasium(define_task("Bandit-v0", {"arms": 3}))
    assert env.action_space == gymnasium.spaces.Discrete(3)
    env.reset(seed=0)
    with pytest.raises(InvalidValue, match="whole number from 0 to 2"):
        env.step(3)
    env = as_gymnasium(define_task("Navigation2D-v0"))
    env.reset(seed=0)
    with pytest.raises(InvalidValue, match=r"must be \(2,\) numbers, not \(3,\)"):
        env.step(np.zeros(3))


def test_episodes_after_the_first_are_others_and_follow_from_its_seed() -> None:
    env = as_gymnasium(define_task("CartPole-v1"))
    first, second = env.reset(seed=4)[0], env.reset()[0]
    assert not np.array_equal(first, second)
    assert np.array_equal(env.reset(seed=4)[0], first)
    assert np.array_equal(env.reset()[0], second)
