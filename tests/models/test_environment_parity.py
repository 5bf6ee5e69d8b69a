"""The batched environments against Gymnasium's, step for step; navigation, without a twin, against a loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from models.environments import ENVIRONMENTS, FunctionalEnvironment, Navigation2D
from models.types import Params

BESIDE = 32  # Gymnasium environments that run beside one batch
NO_KEYS = torch.zeros(1, BESIDE, dtype=torch.int64)


def prepared(environment: FunctionalEnvironment, changed: dict[str, float], dtype: torch.dtype) -> Params:
    """The parameters of one task, [1, 1]."""
    return environment.prepare(
        {
            each.name: torch.full((1, 1), changed.get(each.name, each.number(each.default)), dtype=dtype)
            for each in environment.parameters
        }
    )


def make_twins(environment: FunctionalEnvironment, changed: dict[str, float]) -> list[gymnasium.Env]:
    twins = [gymnasium.make(environment.id) for _ in range(BESIDE)]
    for i, twin in enumerate(twins):
        inner = twin.unwrapped
        for name, value in changed.items():
            setattr(inner, name, value)
        if environment.id == "CartPole-v1":
            inner.total_mass = inner.masspole + inner.masscart
            inner.polemass_length = inner.masspole * inner.length
        twin.reset(seed=i)
    return twins


@dataclass
class Compared:
    """What a comparison went through."""

    steps: int = 0
    episodes: int = 0
    terminated: int = 0
    truncated: int = 0
    farthest: float = 0.0


def run_beside_gymnasium(
    environment: FunctionalEnvironment,
    choose: Callable[[np.ndarray, np.random.Generator], int],
    steps: int,
    dtype: torch.dtype,
    *,
    changed: dict[str, float] | None = None,
    follow: bool = False,
) -> Compared:
    """Give the same actions to both and hold observation, reward, terminated and truncated equal.

    Both start an episode in the same state, and then go each its own way; with ``follow`` the batch takes
    Gymnasium's state before every step.
    """
    changed = changed or {}
    params, twins = prepared(environment, changed, dtype), make_twins(environment, changed)
    generator, seen = np.random.default_rng(0), Compared()
    exact = np.array([twin.unwrapped.state for twin in twins])
    state, age = torch.tensor(exact, dtype=dtype)[None], np.zeros(BESIDE, int)
    for _ in range(steps):
        actions = [choose(each, generator) for each in exact]
        state, reward, terminated = environment.step(state, torch.tensor([actions]), NO_KEYS, params)
        observation = environment.observation(state, None, params)[0].double().numpy()
        age += 1
        for i, twin in enumerate(twins):
            theirs, their_reward, their_end, their_truncation, _ = twin.step(actions[i])
            exact[i] = twin.unwrapped.state
            seen.farthest = max(seen.farthest, float(np.abs(observation[i] - exact[i]).max()))
            np.testing.assert_allclose(observation[i], theirs, rtol=0, atol=1e-5)
            assert float(reward[0, i]) == their_reward
            assert bool(terminated[0, i]) == their_end
            assert bool(age[i] >= environment.default_horizon) == their_truncation
            seen.steps, seen.terminated = seen.steps + 1, seen.terminated + their_end
            seen.truncated += their_truncation
            if their_end or their_truncation:
                twin.reset()
                exact[i], age[i] = twin.unwrapped.state, 0
                state[0, i] = torch.tensor(exact[i], dtype=dtype)
                seen.episodes += 1
        if follow:
            state = torch.tensor(exact, dtype=dtype)[None]
    return seen


def at_random(count: int) -> Callable[[np.ndarray, np.random.Generator], int]:
    return lambda _, generator: int(generator.integers(count))


def balance(state: np.ndarray, _: np.random.Generator) -> int:
    """Keeps CartPole up: push to where the pole falls, corrected for where the cart goes."""
    position, velocity, angle, angular_velocity = state
    return int(angle + 0.3 * angular_velocity + 0.03 * position + 0.06 * velocity > 0)


def swing(state: np.ndarray, _: np.random.Generator) -> int:
    """Drives MountainCar out of the valley: push along the motion."""
    return 2 if state[1] >= 0 else 0


@pytest.mark.parametrize(("name", "actions"), [("CartPole-v1", 2), ("MountainCar-v0", 3)])
def test_whole_episodes_equal_gymnasium_in_float64(name: str, actions: int) -> None:
    seen = run_beside_gymnasium(ENVIRONMENTS[name], at_random(actions), 250, torch.float64)
    assert seen.steps == 8000
    assert seen.episodes >= BESIDE
    assert seen.farthest < 1e-9


@pytest.mark.parametrize(("name", "actions"), [("CartPole-v1", 2), ("MountainCar-v0", 3)])
def test_single_steps_equal_gymnasium_in_float32(name: str, actions: int) -> None:
    seen = run_beside_gymnasium(ENVIRONMENTS[name], at_random(actions), 250, torch.float32, follow=True)
    assert seen.farthest < 1e-5


def test_a_balanced_cart_is_truncated_where_gymnasium_truncates_it() -> None:
    seen = run_beside_gymnasium(ENVIRONMENTS["CartPole-v1"], balance, 510, torch.float64, follow=True)
    assert seen.truncated == BESIDE
    assert seen.terminated == 0
    assert seen.farthest < 1e-14


def test_a_balanced_cart_goes_its_own_way_for_two_hundred_steps_as_gymnasiums_does() -> None:
    # A last-place difference of two sine functions grows by e^(0.0764 t): 4e6-fold in 200 steps.
    seen = run_beside_gymnasium(ENVIRONMENTS["CartPole-v1"], balance, 200, torch.float64)
    assert seen.terminated == 0
    assert seen.farthest < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_swinging_car_terminates_at_the_goal_where_gymnasium_does(dtype: torch.dtype) -> None:
    seen = run_beside_gymnasium(ENVIRONMENTS["MountainCar-v0"], swing, 250, dtype, follow=dtype.itemsize == 4)
    assert seen.terminated >= BESIDE


@pytest.mark.parametrize(
    "changed",
    [
        {"length": 1.2},
        {"masspole": 0.7},
        {"masscart": 3.0},
        {"force_mag": -10.0},
        {"gravity": 3.7},
        {"tau": 0.05},
        {"length": 0.3, "masspole": 0.25, "masscart": 0.6, "force_mag": 4.0, "gravity": 20.0, "tau": 0.01},
    ],
    ids=lambda changed: ",".join(changed),
)
def test_cartpole_with_other_parameters_equals_gymnasium_with_them(changed: dict[str, float]) -> None:
    seen = run_beside_gymnasium(ENVIRONMENTS["CartPole-v1"], at_random(2), 80, torch.float64, changed=changed)
    assert seen.terminated > 0
    assert seen.farthest < 1e-9


@pytest.mark.parametrize(
    "changed",
    [
        {"force": 0.0014},
        {"gravity": 0.0018},
        {"goal_position": 0.1},
        {"goal_velocity": 0.02},
        {"goal_velocity": 0.07},
        {"force": 0.003, "gravity": 0.002, "goal_position": 0.6, "goal_velocity": 0.01},
    ],
    ids=lambda changed: ",".join(f"{name}={value}" for name, value in changed.items()),
)
def test_mountain_car_with_other_parameters_equals_gymnasium_with_them(changed: dict[str, float]) -> None:
    seen = run_beside_gymnasium(ENVIRONMENTS["MountainCar-v0"], swing, 200, torch.float64, changed=changed)
    assert seen.episodes >= BESIDE
    assert seen.farthest < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_left_end_stops_the_car(dtype: torch.dtype) -> None:
    environment = ENVIRONMENTS["MountainCar-v0"]
    state = torch.tensor([[[-1.19, -0.05], [-1.2, 0.03], [-1.1, -0.01]]], dtype=dtype)
    action = torch.zeros(1, 3, dtype=torch.int64)
    after = environment.transition(state, action, NO_KEYS[:, :3], prepared(environment, {}, dtype))
    assert float(after[0, 0, 0]) == float(torch.tensor(-1.2, dtype=dtype))
    assert float(after[0, 0, 1]) == 0.0
    assert float(after[0, 1, 1]) > 0.0
    assert float(after[0, 2, 1]) < 0.0


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0"])
def test_spaces_and_horizon_are_gymnasiums(name: str) -> None:
    twin, environment = gymnasium.make(name), ENVIRONMENTS[name]
    assert environment.observation_space == twin.observation_space
    assert environment.action_space == twin.action_space
    assert twin.spec is not None
    assert environment.default_horizon == twin.spec.max_episode_steps
    for each in environment.parameters:
        assert getattr(twin.unwrapped, each.name) == each.default


def navigate(
    action: np.ndarray, goal: tuple[float, float], radius: float | None
) -> list[tuple[float, float, float, bool]]:
    """One episode with plain numbers: x, y, reward and whether it ended, after each action."""
    x = y = 0.0
    rows = []
    for dx, dy in action:
        x += min(max(dx, -0.1), 0.1)
        y += min(max(dy, -0.1), 0.1)
        distance = math.hypot(x - goal[0], y - goal[1])
        reward = -distance if radius is None else 1 - distance / radius if distance < radius else 0.0
        rows.append((x, y, reward, abs(x - goal[0]) < 0.01 and abs(y - goal[1]) < 0.01))
    return rows


def test_navigation_equals_a_plain_loop_for_dense_and_sparse_rewards() -> None:
    environment, generator = Navigation2D(), np.random.default_rng(0)
    goals = generator.uniform(-0.5, 0.5, (12, 2))
    radii: list[float | None] = [None, 0.2, 0.5, 1.0] * 3
    # Walk towards the goal with noise: some arrive, some only come near.
    towards = (goals / 20)[:, None] * (np.arange(100) < 20)[:, None] + generator.normal(0, 0.002, (12, 100, 2))
    params: Params = environment.prepare(
        {
            "goal_x": torch.tensor(goals[:, :1]),
            "goal_y": torch.tensor(goals[:, 1:]),
            "reward": torch.tensor([[0.0 if each is None else 1.0] for each in radii], dtype=torch.float64),
            "radius": torch.tensor([[each or 0.3] for each in radii], dtype=torch.float64),
        }
    )
    keys = torch.zeros(12, 1, dtype=torch.int64)
    state, ends, inside = environment.initial(keys, params), 0, 0
    expected = [navigate(towards[n], tuple(goals[n]), radii[n]) for n in range(12)]
    for t in range(100):
        action: Tensor = torch.tensor(towards[:, None, t])
        state, reward, terminated = environment.step(state, action, keys, params)
        rows = np.array([each[t] for each in expected])
        np.testing.assert_allclose(state[:, 0].numpy(), rows[:, :2], rtol=0, atol=1e-12)
        np.testing.assert_allclose(reward[:, 0].numpy(), rows[:, 2], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(terminated[:, 0].numpy(), rows[:, 3].astype(bool))
        ends, inside = ends + int(terminated.sum()), inside + int((reward > 0).sum())
    assert ends > 0
    assert inside > 0


def test_standing_still_in_navigation_earns_minus_the_distance_to_the_goal() -> None:
    environment = Navigation2D()
    params = prepared(environment, {"goal_x": 0.3, "goal_y": -0.4}, torch.float64)
    state = environment.initial(torch.zeros(1, 1, dtype=torch.int64), params)
    _, reward, terminated = environment.step(state, torch.zeros(1, 1, 2), NO_KEYS[:, :1], params)
    assert float(reward) == pytest.approx(-0.5, abs=1e-15)
    assert not bool(terminated)
