"""Navigation, which has no twin in Gymnasium, against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.environments import Navigation2D
from models.tasks import TaskBatch, define_task


def navigate(
    action: np.ndarray, goal: tuple[float, float], kind: str, radius: float
) -> list[tuple[float, float, float, bool]]:
    """One episode with plain numbers: x, y, reward and whether it ended, after each action."""
    x = y = 0.0
    rows = []
    for dx, dy in action:
        x += min(max(dx, -0.1), 0.1)
        y += min(max(dy, -0.1), 0.1)
        d = math.hypot(x - goal[0], y - goal[1])
        reward = {"dense": -d, "sparse": max(0.0, 1 - d / radius), "within": 1 - d if d <= radius else 0.0}[kind]
        there = abs(x - goal[0]) < 0.01 and abs(y - goal[1]) < 0.01
        rows.append((x, y, reward, there and kind != "within"))
    return rows


def test_navigation_equals_a_plain_loop_for_every_kind_of_reward() -> None:
    environment, generator = Navigation2D(), np.random.default_rng(0)
    goals = generator.uniform(-0.5, 0.5, (12, 2))
    kinds, radii = ["dense", "sparse", "sparse", "within"] * 3, [0.3, 0.2, 0.5, 0.25] * 3
    # Walk towards the goal with noise: some arrive, some only come near.
    towards = (goals / 20)[:, None] * (np.arange(100) < 20)[:, None] + generator.normal(0, 0.002, (12, 100, 2))
    tasks = TaskBatch.of(
        [
            define_task("Navigation2D-v0", {"goal_x": x, "goal_y": y, "reward": kind, "radius": radius})
            for (x, y), kind, radius in zip(goals.tolist(), kinds, radii, strict=True)
        ],
        torch.float64,
    )
    keys = torch.zeros(12, 1, dtype=torch.int64)
    state, ends, inside = environment.initial(keys, tasks.params), 0, 0
    expected = [navigate(towards[n], tuple(goals[n]), kinds[n], radii[n]) for n in range(12)]
    for t in range(100):
        action: Tensor = torch.tensor(towards[:, None, t])
        state, reward, terminated = environment.step(state, action, keys, tasks.params)
        rows = np.array([each[t] for each in expected])
        np.testing.assert_allclose(state[:, 0].numpy(), rows[:, :2], rtol=0, atol=1e-12)
        np.testing.assert_allclose(reward[:, 0].numpy(), rows[:, 2], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(terminated[:, 0].numpy(), rows[:, 3].astype(bool))
        ends, inside = ends + int(terminated.sum()), inside + int((reward > 0).sum())
    assert ends > 0
    assert inside > 0


def test_no_walk_in_navigation_is_better_than_straight_to_the_goal() -> None:
    side = [-0.5 + (i + 0.5) / 20 for i in range(20)]
    goals = [(x, y) for x in side for y in side]
    for kind, radius, horizon in (("dense", 0.2, 100), ("within", 0.2, 150), ("within", 0.3, 2)):
        tasks = TaskBatch.of(
            [
                define_task(
                    "Navigation2D-v0", {"goal_x": x, "goal_y": y, "reward": kind, "radius": radius}, horizon=horizon
                )
                for x, y in goals
            ],
            torch.float64,
        )
        left = np.maximum(0, np.abs(goals)[:, None] - 0.1 * np.arange(horizon)[:, None])
        walks = np.minimum(0.1, left) * np.sign(goals)[:, None]
        walked = [sum(row[2] for row in navigate(walks[i], goals[i], kind, radius)) for i in range(len(goals))]
        best = tasks.environment.optimal_return(tasks.params, tasks.horizon)
        assert best is not None
        np.testing.assert_allclose(best.numpy(), walked, rtol=0, atol=1e-9)
        if kind == "dense":
            assert float(best.mean()) == pytest.approx(-0.506, abs=0.002)


def test_the_best_return_is_not_known_where_arriving_ends_what_pays() -> None:
    tasks = TaskBatch.of([define_task("Navigation2D-v0", {"reward": kind}) for kind in ("dense", "sparse")])
    best = tasks.environment.optimal_return(tasks.params, tasks.horizon)
    assert best is not None
    assert best.isnan().tolist() == [False, True]


def test_standing_still_in_navigation_earns_minus_the_distance_to_the_goal() -> None:
    environment = Navigation2D()
    params = TaskBatch.of([define_task("Navigation2D-v0", {"goal_x": 0.3, "goal_y": -0.4})], torch.float64).params
    keys = torch.zeros(1, 1, dtype=torch.int64)
    state = environment.initial(keys, params)
    _, reward, terminated = environment.step(state, torch.zeros(1, 1, 2), keys, params)
    assert float(reward) == pytest.approx(-0.5, abs=1e-15)
    assert not bool(terminated)
