"""What holds for every environment, whatever it models."""

from __future__ import annotations

import dataclasses
import math

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from models import random
from models.environments import ENVIRONMENTS, FunctionalEnvironment, Parameter
from models.environments.locomotion import Locomotion
from models.environments.single import as_gymnasium
from models.policy import Policy, PolicyConfig
from models.rollout import collect
from models.tasks import TaskBatch, define_task
from models.types import InvalidValue, Params, stack_params

environments = pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def spread_params(environment: FunctionalEnvironment, tasks: int, dtype: torch.dtype) -> Params:
    """Prepared parameters [N, 1]: the defaults, each number of each task a little different from the next.

    Whole numbers that decide the spaces are left alone.
    """
    params, defaults = {}, {each.name: each.default for each in environment.parameters}
    for i, each in enumerate(environment.parameters):
        number = torch.full((tasks, 1), each.number(each.default), dtype=torch.float64)
        if each.kind == "integer":
            other = environment.shaped(defaults | {each.name: int(each.low)})
            steps = torch.arange(tasks).unsqueeze(1) if other is environment else 0
            params[each.name] = number.long() + steps
        elif each.choices:
            params[each.name] = number.to(dtype)
        else:
            draws = torch.rand(tasks, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
            params[each.name] = (number * (1 + 0.1 * draws)).to(dtype)
    return environment.prepare(params)


def random_actions(environment: FunctionalEnvironment, keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Actions for every key; continuous ones reach beyond the action space, which they mostly lie in."""
    if isinstance(environment.action_space, gymnasium.spaces.Discrete):
        return (random.uniform(keys, 1)[..., 0] * int(environment.action_space.n)).long()
    assert environment.action_size is not None
    assert environment.action_space.is_bounded()
    return random.normal(keys, environment.action_size, dtype) * torch.tensor(environment.action_space.high).to(dtype)


def unroll(environment: FunctionalEnvironment, params: Params, keys: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """States [steps + 1, N, B, S] of episodes that are not stopped by their ends."""
    states = [environment.initial(keys, params)]
    for t in range(steps):
        rng = random.fold_in(keys, t)
        action = random_actions(environment, rng, dtype)
        states.append(environment.transition(states[-1], action, rng, params))
    return torch.stack(states)


@environments
@dtypes
def test_shapes_and_dtypes_follow_the_keys_and_the_parameters(
    environment: FunctionalEnvironment, dtype: torch.dtype
) -> None:
    params = spread_params(environment, 3, dtype)
    keys = random.fold_in(random.key(1), torch.arange(15)).reshape(3, 5)
    state = environment.initial(keys, params)
    action = random_actions(environment, keys, dtype)
    next_state, reward, terminated = environment.step(state, action, keys, params)
    assert state.shape == next_state.shape
    assert state.shape[:-1] == (3, 5)
    # A state may be more precise than what a policy sees of it.
    assert state.dtype == next_state.dtype in (dtype, torch.float64)
    observation = environment.observation(next_state, None, params)
    assert observation.dtype == reward.dtype == dtype
    assert observation.shape == (3, 5, environment.observation_size)
    assert reward.shape == terminated.shape == (3, 5)
    assert terminated.dtype == torch.bool


@environments
def test_a_fused_step_equals_its_parts(environment: FunctionalEnvironment) -> None:
    params = spread_params(environment, 3, torch.float64)
    keys = random.fold_in(random.key(2), torch.arange(15)).reshape(3, 5)
    state = environment.initial(keys, params)
    for t in range(50):
        rng = random.fold_in(keys, t)
        action = random_actions(environment, rng, torch.float64)
        next_state, reward, terminated = environment.step(state, action, rng, params)
        assert torch.equal(next_state, environment.transition(state, action, rng, params))
        assert torch.equal(reward, environment.reward(state, action, next_state, rng, params))
        assert torch.equal(terminated, environment.terminal(next_state, rng, params))
        state = next_state


@environments
@dtypes
def test_an_episode_alone_equals_the_same_episode_among_four_hundred(
    environment: FunctionalEnvironment, dtype: torch.dtype
) -> None:
    params = spread_params(environment, 20, dtype)
    keys = random.fold_in(random.key(3), torch.arange(400)).reshape(20, 20)
    together = unroll(environment, params, keys, 30, dtype)
    for n, b in [(0, 0), (7, 13), (19, 19)]:
        raw = {each.name: params[each.name][n : n + 1] for each in environment.parameters}
        alone = unroll(environment, environment.prepare(raw), keys[n : n + 1, b : b + 1], 30, dtype)
        torch.testing.assert_close(
            alone[:, 0, 0], together[:, n, b], rtol=0, atol=1e-12 if dtype.itemsize == 8 else 1e-5
        )


@environments
def test_rewards_and_ends_of_a_whole_rollout_equal_those_of_its_steps(environment: FunctionalEnvironment) -> None:
    params = spread_params(environment, 3, torch.float64)
    keys = random.fold_in(random.key(4), torch.arange(12)).reshape(3, 4)
    states = unroll(environment, params, keys, 40, torch.float64)
    actions = torch.stack([random_actions(environment, random.fold_in(keys, t), torch.float64) for t in range(40)], 1)
    major = states.transpose(0, 1)
    spread = {name: value.unsqueeze(1) for name, value in params.items()}
    rewards = environment.reward(major[:, :-1], actions, major[:, 1:], None, spread)
    ends = environment.terminal(major, None, spread)
    for t in range(40):
        one = environment.reward(states[t], actions[:, t], states[t + 1], None, params)
        assert torch.equal(rewards[:, t], one)
        assert torch.equal(ends[:, t], environment.terminal(states[t], None, params))


@pytest.mark.parametrize(
    "environment",
    # Of what Gymnasium too draws by other laws than one uniform for each variable, test_locomotion.py compares them.
    [each for each in ENVIRONMENTS.values() if not isinstance(each, Locomotion)],
    ids=lambda each: each.id,
)
def test_first_states_differ_only_where_the_environment_draws_them(environment: FunctionalEnvironment) -> None:
    params = spread_params(environment, 1, torch.float64)
    keys = random.fold_in(random.key(5), torch.arange(4000)).reshape(1, 4000)
    first = environment.initial(keys, params)[0]
    low, high = {
        "Acrobot-v1": ([-0.1] * 4, [0.1] * 4),
        "Bandit-v0": ([0.0] * 10, [0.0] * 10),
        "CartPole-v1": ([-0.05] * 4, [0.05] * 4),
        "MountainCar-v0": ([-0.6, 0.0], [-0.4, 0.0]),
        "MountainCarContinuous-v0": ([-0.6, 0.0], [-0.4, 0.0]),
        "Navigation2D-v0": ([0.0, 0.0], [0.0, 0.0]),
        "Pendulum-v1": ([-math.pi, -1.0], [math.pi, 1.0]),
        "TabularMDP-v0": ([0.0, 0.0], [0.0, 0.0]),
    }[environment.id]
    bounds = torch.tensor([low, high], dtype=torch.float64)
    assert bool((first >= bounds[0]).all())
    assert bool((first <= bounds[1]).all())
    # The mean of 4000 uniform numbers in ±w spreads by w / sqrt(12000): five of those.
    half = (bounds[1] - bounds[0]) / 2
    assert bool(((first.mean(0) - bounds.mean(0)).abs() <= 5 * half / math.sqrt(12_000)).all())
    torch.testing.assert_close(first.std(0), half / math.sqrt(3), rtol=0.05, atol=1e-12)


@environments
def test_every_parameter_is_described_and_accepts_its_own_default_and_ends(environment: FunctionalEnvironment) -> None:
    assert environment.title
    assert environment.description
    names = [each.name for each in environment.parameters]
    assert len(set(names)) == len(names)
    for each in environment.parameters:
        assert each.description
        assert environment.parameter(each.name) is each
        for value in each.choices or (each.default, each.low, each.high):
            assert each.check(value) == value


@environments
def test_dynamics_stay_finite_for_ten_steps_at_the_ends_of_every_range(environment: FunctionalEnvironment) -> None:
    for each in environment.parameters:
        for value in each.choices or (each.low, each.high):
            tasks = TaskBatch.of([define_task(environment.id, {each.name: value})])
            assert isinstance(tasks.environment, FunctionalEnvironment)
            keys = random.fold_in(random.key(6), torch.arange(8)).reshape(1, 8)
            states = unroll(tasks.environment, tasks.params, keys, 10, torch.float32)
            assert bool(torch.isfinite(states).all()), f"{each.name} = {value}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "not 0.0"),
        (True, "not True"),
        (None, "not None"),
        ("1", "not '1'"),
        (math.nan, "not nan"),
        (math.inf, "not inf"),
        (-math.inf, "not -inf"),
        pytest.param(10**5000, "not an integer of 16610 bits", id="huge"),
        ([1.0], "not a list"),
        pytest.param("x" * 10**6, "...'", id="long"),
    ],
)
def test_a_number_outside_its_range_is_refused_with_the_range(value: object, shown: str) -> None:
    length = Parameter("length", 0.5, 0.01, 10.0, "m")
    with pytest.raises(InvalidValue, match=r"length must be a number from 0\.01 to 10 m") as refused:
        length.check(value)
    assert refused.value.pointer == "/parameters/length"
    assert refused.value.detail.endswith(shown)
    assert len(refused.value.detail) < 120


def test_numbers_become_floats_and_there_is_one_zero() -> None:
    force = Parameter("force_mag", 10.0, -100.0, 100.0, "N")
    assert repr(force.check(7)) == "7.0"
    assert repr(force.check(-0.0)) == "0.0"


def test_a_categorical_parameter_takes_its_choices_only() -> None:
    reward = Parameter("reward", "dense", choices=("dense", "sparse"))
    assert reward.check("sparse") == "sparse"
    assert reward.number("sparse") == 1.0
    for value in ("Dense", 0, None, ["dense"]):
        with pytest.raises(InvalidValue, match="reward must be one of dense, sparse"):
            reward.check(value)


def test_an_unknown_parameter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidValue, match="its parameters are force, gravity, goal_position") as refused:
        ENVIRONMENTS["MountainCar-v0"].parameter("a/b~c")
    assert refused.value.pointer == "/parameters/a~1b~0c"


@environments
def test_everything_stays_on_the_device_of_the_parameters(environment: FunctionalEnvironment) -> None:
    # The meta device computes shapes only, and refuses to mix with the processor's tensors: any machine has it.
    raw = {
        each.name: torch.empty(2, 1, device="meta", dtype=torch.int64 if each.kind == "integer" else torch.float32)
        for each in environment.parameters
    }
    params, keys = environment.prepare(raw), torch.empty(2, 3, dtype=torch.int64, device="meta")
    kind = torch.float32 if environment.action_size else torch.int64
    action = torch.empty(2, 3, *environment.action_space.shape, dtype=kind, device="meta")
    state = environment.initial(keys, params)
    for tensor in (state, *environment.step(state, action, keys, params), *params.values()):
        assert tensor.device.type == "meta"


# What Gymnasium recommends, where its own environments do otherwise or there is nothing to render.
@pytest.mark.filterwarnings(
    "ignore:.*Box observation space (minimum|maximum) value is",
    "ignore:.*we recommend using a symmetric and normalized space",
    "ignore:.*Not able to test alternative render modes",
)
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_gymnasium_finds_no_fault_with_a_task_as_one_of_its_environments(name: str) -> None:
    check_env(as_gymnasium(define_task(name)))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_same_seed_gives_the_same_episodes(name: str) -> None:
    def episodes() -> list[tuple[list[float], float, bool]]:
        env, seen = as_gymnasium(define_task(name, horizon=12)), []
        env.action_space.seed(1)
        observation, _ = env.reset(seed=7)
        for _ in range(40):
            seen.append((observation.tolist(), 0.0, False))
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            seen.append((observation.tolist(), reward, terminated))
            if terminated or truncated:
                observation, _ = env.reset()
        return seen

    assert episodes() == episodes()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_gradients_never_leak_into_what_is_collected(name: str) -> None:
    tasks = TaskBatch.of([define_task(name, horizon=15)] * 3)
    for value in tasks.params.values():
        value.requires_grad_(value.is_floating_point())
    model = tasks.environment
    policy = Policy(PolicyConfig((4,)), model.observation_space, model.action_space)
    params = {key: value.requires_grad_() for key, value in stack_params(policy.initialise(0), 3).items()}
    rollout = collect(policy, params, tasks, 2, random.fold_in(random.key(8), torch.arange(3)))
    for field in dataclasses.fields(rollout):
        value = getattr(rollout, field.name)
        assert not isinstance(value, Tensor) or not value.requires_grad, field.name
