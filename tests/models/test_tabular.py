"""Random tabular processes: their tables, what happens in them, and the best that can be done."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from models import random
from models.environments import ENVIRONMENTS, TabularMDP
from models.presets import PRESETS
from models.tasks import TaskBatch, define_task, environment_of
from models.types import Params

SIZES = (10, 5)


def tables(params: Params, n: int, states: int, actions: int) -> tuple[np.ndarray, np.ndarray]:
    """Chances [S, A, S] and mean rewards [S, A] of one task."""
    cumulative = params["cumulative"][n, 0].double().numpy().reshape(states, actions, states - 1)
    chance = np.diff(cumulative, prepend=0.0, append=1.0)
    return chance, params["mean"][n, 0].double().numpy().reshape(states, actions)


def batch(count: int, dtype: torch.dtype = torch.float64, **parameters: float) -> TaskBatch:
    return TaskBatch.of([define_task("TabularMDP-v0", {"instance": i, **parameters}) for i in range(count)], dtype)


def test_tables_are_flat_dirichlet_and_normal() -> None:
    params = batch(300).params
    drawn = [tables(params, n, *SIZES) for n in range(300)]
    chance, mean = np.stack([each[0] for each in drawn]), np.stack([each[1] for each in drawn])
    assert chance.min() >= 0
    np.testing.assert_allclose(chance.sum(-1), 1.0, rtol=0, atol=1e-12)
    # Of a flat Dirichlet over ten: mean 1/10, variance 9/1100, covariance -1/1100; the share above 1/2 is 2^-9.
    np.testing.assert_allclose(chance.mean((0, 1, 2)), 0.1, rtol=0, atol=4 * math.sqrt(9 / 1100 / 15_000))
    assert chance.var() == pytest.approx(9 / 1100, rel=0.03)
    covariance = np.cov(chance.reshape(-1, 10).T)[np.triu_indices(10, 1)]
    assert covariance.mean() == pytest.approx(-1 / 1100, rel=0.05)
    assert (chance > 0.5).mean() == pytest.approx(2**-9, rel=0.15)
    assert mean.mean() == pytest.approx(1.0, abs=4 / math.sqrt(15_000))
    assert mean.std() == pytest.approx(1.0, rel=0.03)
    assert abs(np.corrcoef(mean.ravel(), chance[..., 0].ravel())[0, 1]) < 4 / math.sqrt(15_000)


def test_steps_equal_a_plain_loop_over_the_tables() -> None:
    tasks = batch(4, reward_std=0.5)
    environment = tasks.environment
    assert isinstance(environment, TabularMDP)
    keys = random.fold_in(random.key("loop"), torch.arange(20)).reshape(4, 5)
    state = environment.initial(keys, tasks.params)
    generator = torch.Generator().manual_seed(0)
    for t in range(30):
        action = torch.randint(5, (4, 5), generator=generator)
        rng = random.fold_in(keys, t)
        after, reward, terminated = environment.step(state, action, rng, tasks.params)
        # The two numbers that the step draws, of the keys that it makes of its own.
        outcome = int(random.key("TabularMDP-v0", "outcome"))
        draws = random.uniform(random.fold_in(rng, outcome), 2, torch.float64).numpy()
        for n, b in itertools.product(range(4), range(5)):
            chance, mean = tables(tasks.params, n, *SIZES)
            at, act = int(state[n, b, 0]), int(action[n, b])
            following, passed = 0, chance[at, act, 0]
            while draws[n, b, 0] >= passed:
                following += 1
                passed += chance[at, act, following]
            assert int(after[n, b, 0]) == following
            noise = float(torch.special.ndtri(torch.tensor(draws[n, b, 1])))
            assert float(reward[n, b]) == pytest.approx(mean[at, act] + 0.5 * noise, abs=1e-12)
            expected = [float(s == following) for s in range(10)]
            assert environment.observation(after, None, tasks.params)[n, b].tolist() == expected
        assert not bool(terminated.any())
        state = after


def test_what_follows_and_what_is_paid_have_the_frequencies_of_the_tables() -> None:
    tasks = batch(1, torch.float32, states=4, actions=3, reward_std=2.0)
    environment = tasks.environment
    assert isinstance(environment, TabularMDP)
    chance, mean = tables(tasks.params, 0, 4, 3)
    keys = random.fold_in(random.key("often"), torch.arange(20_000)).reshape(1, -1)
    for at, act in itertools.product(range(4), range(3)):
        state = torch.tensor([float(at), 0.0]).expand(1, 20_000, 2)
        rng = random.fold_in(keys, 3 * at + act)
        after, reward, _ = environment.step(state, torch.full((1, 20_000), act), rng, tasks.params)
        share = np.bincount(after[0, :, 0].long().numpy(), minlength=4) / 20_000
        spread = np.sqrt(chance[at, act] * (1 - chance[at, act]) / 20_000)
        assert (np.abs(share - chance[at, act]) <= 4.5 * spread + 1e-4).all()
        assert float(reward.mean()) == pytest.approx(mean[at, act], abs=4.5 * 2 / math.sqrt(20_000))
        assert float(reward.std()) == pytest.approx(2.0, rel=0.03)
        apart = np.corrcoef(after[0, :, 0].numpy(), reward[0].numpy())[0, 1]
        assert abs(apart) < 4.5 / math.sqrt(20_000)


def test_one_instance_is_the_same_process_in_any_batch_and_dtype() -> None:
    exact, single = batch(3).params, batch(3, torch.float32).params
    for name in ("cumulative", "mean"):
        assert torch.equal(exact[name].float(), single[name])
        alone = TaskBatch.of([define_task("TabularMDP-v0", {"instance": 2})], torch.float64).params[name]
        assert torch.equal(alone[0], exact[name][2])


def test_the_best_return_is_that_of_the_best_of_all_policies() -> None:
    # Every policy of a process of two states and two actions over three steps: one of two actions in six places.
    tasks = TaskBatch.of(
        [
            define_task("TabularMDP-v0", {"instance": i, "states": 2, "actions": 2}, horizon=horizon)
            for i in range(5)
            for horizon in (1, 3)
        ],
        torch.float64,
    )
    best = tasks.environment.optimal_return(tasks.params, tasks.horizon)
    assert best is not None
    for n, task in enumerate(tasks.tasks):
        chance, mean = tables(tasks.params, n, 2, 2)
        worths = []
        for choices in itertools.product(range(2), repeat=2 * task.horizon):
            where, worth = np.array([1.0, 0.0]), 0.0
            for t in range(task.horizon):
                policy = choices[2 * t : 2 * t + 2]
                worth += sum(where[s] * mean[s, policy[s]] for s in range(2))
                where = sum(where[s] * chance[s, policy[s]] for s in range(2))
            worths.append(worth)
        assert float(best[n]) == pytest.approx(max(worths), abs=1e-12)


def test_the_best_return_over_ten_steps_is_well_above_that_of_acting_at_random() -> None:
    tasks = TaskBatch.of(PRESETS["tabular-mdp"].sample("test", 0, range(500)), torch.float64)
    best = tasks.environment.optimal_return(tasks.params, tasks.horizon)
    assert best is not None
    # Acting at random earns the mean of all mean rewards, 1, at each of ten steps.
    assert 20 < float(best.mean()) < 26


def test_the_sizes_decide_the_spaces() -> None:
    small = environment_of(define_task("TabularMDP-v0", {"states": 3, "actions": 2}))
    assert (small.observation_size, int(small.action_space.n)) == (3, 2)  # type: ignore[union-attr]
    assert environment_of(define_task("TabularMDP-v0", {"states": 3, "actions": 2, "instance": 9})) is small
    assert environment_of(define_task("TabularMDP-v0")) is ENVIRONMENTS["TabularMDP-v0"]
