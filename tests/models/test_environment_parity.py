"""The batched environments against Gymnasium's, step for step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
import torch

from models import random
from models.environments import ENVIRONMENTS, FunctionalEnvironment
from models.types import Params

BESIDE = 32  # Gymnasium environments that run beside one batch
FIXED = {("Acrobot-v1", "gravity"): 9.8, ("MountainCarContinuous-v0", "gravity"): 0.0025}
"""What Gymnasium writes into its equations."""
TWINS = ["Acrobot-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
NO_KEYS = torch.zeros(1, BESIDE, dtype=torch.int64)


def prepared(environment: FunctionalEnvironment, changed: dict[str, float], dtype: torch.dtype) -> Params:
    """The parameters of one task, [1, 1]."""
    return environment.prepare(
        {
            each.name: torch.full((1, 1), changed.get(each.name, each.number(each.default)), dtype=dtype)
            for each in environment.parameters
        }
    )


def make_twins(environment: FunctionalEnvironment, changed: dict[str, float], count: int) -> list[gymnasium.Env]:
    twins = [gymnasium.make(environment.id, disable_env_checker=True) for _ in range(count)]
    for i, twin in enumerate(twins):
        inner = twin.unwrapped
        for name, value in changed.items():
            setattr(inner, environment.attributes[name], value)
        if environment.id == "CartPole-v1":
            inner.total_mass = inner.masspole + inner.masscart
            inner.polemass_length = inner.masspole * inner.length
        twin.reset(seed=i)
    return twins


Chooser = Callable[[np.ndarray, np.random.Generator], int | np.ndarray]
"""An action for a state: a number, or an array of numbers."""


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
    choose: Chooser,
    steps: int,
    dtype: torch.dtype,
    *,
    changed: dict[str, float] | None = None,
    follow: bool = False,
    beside: int = BESIDE,
) -> Compared:
    """Give the same actions to both and hold observation, reward, terminated and truncated equal.

    Both start an episode in the same state, and then go each its own way; with ``follow`` the batch takes
    Gymnasium's state before every step.
    """
    changed, rounding = changed or {}, 1e-9 if dtype == torch.float64 else 1e-5
    params, twins = prepared(environment, changed, dtype), make_twins(environment, changed, beside)
    generator, seen = np.random.default_rng(0), Compared()
    exact = np.array([twin.unwrapped.state for twin in twins], np.float64)
    state, age = torch.tensor(exact, dtype=dtype)[None], np.zeros(beside, int)
    for _ in range(steps):
        actions = [choose(each, generator) for each in exact]
        ours = torch.tensor(np.array([actions]))
        ours = ours.to(dtype) if ours.is_floating_point() else ours
        state, reward, terminated = environment.step(state, ours, NO_KEYS[:, :beside], params)
        observation = environment.observation(state, None, params)[0]
        age += 1
        stepped = [twin.step(action)[:4] for twin, action in zip(twins, actions, strict=True)]
        theirs, their_reward, their_end, their_truncation = (np.array(column) for column in zip(*stepped, strict=True))
        exact = np.array([twin.unwrapped.state for twin in twins], np.float64)
        seen.farthest = max(seen.farthest, float(np.abs(state[0].double().numpy() - exact).max()))
        np.testing.assert_allclose(observation.double().numpy(), theirs, rtol=0, atol=2e-5)
        np.testing.assert_allclose(reward[0].double().numpy(), their_reward, rtol=rounding, atol=rounding)
        np.testing.assert_array_equal(terminated[0].numpy(), their_end)
        np.testing.assert_array_equal(age >= environment.default_horizon, their_truncation)
        over = their_end | their_truncation
        seen.steps, seen.episodes = seen.steps + beside, seen.episodes + int(over.sum())
        seen.terminated, seen.truncated = (
            seen.terminated + int(their_end.sum()),
            seen.truncated + int(their_truncation.sum()),
        )
        for i in np.flatnonzero(over):
            twins[i].reset()
            exact[i], age[i] = twins[i].unwrapped.state, 0
            state[0, i] = torch.tensor(exact[i], dtype=dtype)
        if follow:
            state = torch.tensor(exact, dtype=dtype)[None]
    return seen


def at_random(environment: FunctionalEnvironment) -> Chooser:
    """Actions of the whole action space, and of half as much again beyond a bounded one."""
    space = environment.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return lambda _, generator: int(generator.integers(space.n))
    return lambda _, generator: generator.uniform(1.5 * space.low, 1.5 * space.high)


def balance(state: np.ndarray, _: np.random.Generator) -> int:
    """Keeps CartPole up: push to where the pole falls, corrected for where the cart goes."""
    position, velocity, angle, angular_velocity = state
    return int(angle + 0.3 * angular_velocity + 0.03 * position + 0.06 * velocity > 0)


def swing(state: np.ndarray, _: np.random.Generator) -> int:
    """Drives MountainCar out of the valley: push along the motion."""
    return 2 if state[1] >= 0 else 0


def pump(state: np.ndarray, _: np.random.Generator) -> int:
    """Swings Acrobot up: turn the joint along its rotation."""
    return 2 if state[3] >= 0 else 0


def drive(state: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Drives MountainCarContinuous out of the valley: push along the motion, a little unevenly."""
    return np.array([math.copysign(generator.uniform(0.9, 1.1), state[1])])


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "Pendulum-v1"])
def test_whole_episodes_equal_gymnasium_in_float64(name: str) -> None:
    seen = run_beside_gymnasium(ENVIRONMENTS[name], at_random(ENVIRONMENTS[name]), 250, torch.float64)
    assert seen.steps == 8000
    assert seen.episodes >= BESIDE
    assert seen.farthest < 1e-9


@pytest.mark.parametrize("name", TWINS)
def test_single_steps_equal_gymnasium_in_float32(name: str) -> None:
    seen = run_beside_gymnasium(ENVIRONMENTS[name], at_random(ENVIRONMENTS[name]), 250, torch.float32, follow=True)
    assert seen.farthest < 2e-5


def test_an_acrobot_goes_its_own_way_for_sixty_steps_as_gymnasiums_does() -> None:
    # Two links are chaotic: a last-place difference grows four-billion-fold on the way up.
    seen = run_beside_gymnasium(ENVIRONMENTS["Acrobot-v1"], pump, 60, torch.float64)
    assert seen.farthest < 1e-9


def test_an_acrobot_that_swings_up_terminates_where_gymnasiums_does() -> None:
    seen = run_beside_gymnasium(ENVIRONMENTS["Acrobot-v1"], pump, 200, torch.float64, follow=True)
    assert seen.terminated >= BESIDE
    assert seen.farthest < 1e-12


@pytest.mark.parametrize(
    ("name", "action", "steps"),
    [("Acrobot-v1", 1, 500), ("Pendulum-v1", np.zeros(1), 200), ("MountainCarContinuous-v0", np.zeros(1), 999)],
)
def test_an_idle_episode_is_truncated_where_gymnasium_truncates_it(
    name: str, action: int | np.ndarray, steps: int
) -> None:
    seen = run_beside_gymnasium(ENVIRONMENTS[name], lambda *_: action, steps + 1, torch.float64, follow=True, beside=2)
    assert seen.truncated == 2
    assert seen.terminated == 0


def test_a_driven_continuous_car_reaches_the_goal_where_gymnasiums_does() -> None:
    # Gymnasium rounds this car's state to float32 after every step.
    seen = run_beside_gymnasium(ENVIRONMENTS["MountainCarContinuous-v0"], drive, 250, torch.float64, follow=True)
    assert seen.terminated >= BESIDE
    assert seen.farthest < 1e-7
    seen = run_beside_gymnasium(ENVIRONMENTS["MountainCarContinuous-v0"], drive, 250, torch.float64)
    assert seen.terminated >= BESIDE
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
    seen = run_beside_gymnasium(
        ENVIRONMENTS["CartPole-v1"], at_random(ENVIRONMENTS["CartPole-v1"]), 80, torch.float64, changed=changed
    )
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


@pytest.mark.parametrize(
    "changed",
    [
        {"gravity": 3.7},
        {"mass": 0.3},
        {"length": 1.8},
        {"max_speed": 3.0, "max_torque": 1.0},
        {"gravity": 12.0, "mass": 2.0, "length": 0.6, "dt": 0.02},
    ],
    ids=lambda changed: ",".join(changed),
)
def test_a_pendulum_with_other_parameters_equals_gymnasium_with_them(changed: dict[str, float]) -> None:
    pendulum = ENVIRONMENTS["Pendulum-v1"]
    seen = run_beside_gymnasium(pendulum, at_random(pendulum), 60, torch.float64, changed=changed)
    assert seen.farthest < 1e-9


@pytest.mark.parametrize(
    "changed",
    [
        {"link_length_1": 0.6},
        {"link_mass_1": 2.0, "link_mass_2": 0.5},
        {"link_com_pos_1": 0.8, "link_com_pos_2": 0.2},
        {"link_moi": 0.5},
        {"dt": 0.05},
    ],
    ids=lambda changed: ",".join(changed),
)
def test_an_acrobot_with_other_parameters_equals_gymnasium_with_them(changed: dict[str, float]) -> None:
    seen = run_beside_gymnasium(ENVIRONMENTS["Acrobot-v1"], pump, 60, torch.float64, changed=changed)
    assert seen.farthest < 1e-9


@pytest.mark.parametrize("changed", [{"power": 0.002}, {"goal_position": 0.1, "goal_velocity": 0.03}], ids=str)
def test_a_continuous_car_with_other_parameters_equals_gymnasium_with_them(changed: dict[str, float]) -> None:
    car = ENVIRONMENTS["MountainCarContinuous-v0"]
    seen = run_beside_gymnasium(car, drive, 200, torch.float64, changed=changed, follow=True)
    assert seen.episodes >= BESIDE
    assert seen.farthest < 1e-7


def test_a_steeper_valley_pulls_a_continuous_car_by_its_gravity() -> None:
    car, at = ENVIRONMENTS["MountainCarContinuous-v0"], torch.tensor([[[-0.9, 0.0]]], dtype=torch.float64)
    params, push = prepared(car, {"gravity": 0.006}, torch.float64), torch.tensor([[[0.5]]], dtype=torch.float64)
    [[[position, velocity]]] = car.transition(at, push, NO_KEYS[:, :1], params).tolist()
    assert velocity == pytest.approx(0.5 * 0.0015 - 0.006 * math.cos(-2.7), abs=1e-15)
    assert position == pytest.approx(-0.9 + velocity, abs=1e-15)


def test_an_acrobot_under_four_times_the_gravity_swings_twice_as_fast() -> None:
    # Without torque, time scales with the root of gravity: half the step gives the same angles, at twice the speed.
    acrobot, start = ENVIRONMENTS["Acrobot-v1"], torch.tensor([[[0.9, -0.4, 0.3, -0.2]]], dtype=torch.float64)
    slow, fast = (prepared(acrobot, {"gravity": g, "dt": t}, torch.float64) for g, t in ((9.8, 0.2), (39.2, 0.1)))
    twice, idle = torch.tensor([1.0, 1.0, 2.0, 2.0], dtype=torch.float64), torch.ones(1, 1, dtype=torch.int64)
    state, other = start, start * twice
    for _ in range(20):
        state = acrobot.transition(state, idle, NO_KEYS[:, :1], slow)
        other = acrobot.transition(other, idle, NO_KEYS[:, :1], fast)
        torch.testing.assert_close(other, state * twice, rtol=0, atol=1e-9)


def test_noise_on_the_torque_of_an_acrobot_is_uniform_and_adds_to_the_torque() -> None:
    acrobot = ENVIRONMENTS["Acrobot-v1"]
    keys = random.fold_in(random.key("noise"), torch.arange(4000)).reshape(1, 4000)
    params = prepared(acrobot, {"torque_noise_max": 0.5, "dt": 0.001}, torch.float64)
    quiet = prepared(acrobot, {"dt": 0.001}, torch.float64)
    at, idle = torch.zeros(1, 4000, 4, dtype=torch.float64), torch.ones(1, 4000, dtype=torch.int64)
    pushed = acrobot.transition(at[:, :1], idle[:, :1] + 1, keys[:, :1], quiet)[0, 0, 3]
    noise = acrobot.transition(at, idle, keys, params)[0, :, 3] / pushed  # of hanging links, near enough linear
    assert float(noise.abs().max()) <= 0.5 * 1.0001
    assert float(noise.mean()) == pytest.approx(0, abs=4 * 0.5 / math.sqrt(12_000))
    assert float(noise.std()) == pytest.approx(0.5 / math.sqrt(3), rel=0.05)


def test_the_angle_of_a_pendulum_is_never_wrapped_but_its_cost_is() -> None:
    pendulum, turns = ENVIRONMENTS["Pendulum-v1"], 20 * math.pi
    params = prepared(pendulum, {}, torch.float64)
    state = torch.tensor([[[turns + 0.1, 8.0]]], dtype=torch.float64)
    after, reward, _ = pendulum.step(state, torch.zeros(1, 1, 1, dtype=torch.float64), NO_KEYS[:, :1], params)
    assert float(after[0, 0, 0]) == pytest.approx(turns + 0.1 + 8.0 * 0.05, abs=1e-12)
    assert float(reward) == pytest.approx(-(0.1**2 + 0.1 * 8.0**2), abs=1e-12)


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


@pytest.mark.parametrize("name", TWINS)
def test_spaces_and_horizon_are_gymnasiums(name: str) -> None:
    twin, environment = gymnasium.make(name), ENVIRONMENTS[name]
    assert environment.observation_space == twin.observation_space
    assert environment.action_space == twin.action_space
    assert twin.spec is not None
    assert environment.default_horizon == twin.spec.max_episode_steps
    for each in environment.parameters:
        attribute = environment.attributes.get(each.name)
        assert each.default == (FIXED[name, each.name] if attribute is None else getattr(twin.unwrapped, attribute))
