"""The bodies of MuJoCo beside Gymnasium's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

mujoco = pytest.importorskip("mujoco", reason="MuJoCo is not installed: it comes with headstart[mujoco]")

from models import random  # noqa: E402
from models.environments import ENVIRONMENTS  # noqa: E402
from models.environments.locomotion import _SCALED, Ant, HalfCheetah, Locomotion, _physics  # noqa: E402
from models.policy import Policy, PolicyConfig  # noqa: E402
from models.presets import PRESETS  # noqa: E402
from models.rollout import collect  # noqa: E402
from models.tasks import TaskBatch, define_task  # noqa: E402
from models.types import InvalidValue, Params, stack_params  # noqa: E402

BODIES = [each for each in ENVIRONMENTS.values() if isinstance(each, Locomotion)]
bodies = pytest.mark.parametrize("environment", BODIES, ids=lambda each: each.id)
LOOKS = ("mat_", "tex_", "name", "geom_matid")  # what a model has to be looked at, and where names lie
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def prepared(environment: Locomotion, dtype: torch.dtype = torch.float64, **changed: float) -> Params:
    """The parameters of one task, [1, 1]."""
    values = {each.name: changed.get(each.name, each.number(each.default)) for each in environment.parameters}
    return environment.prepare({name: torch.full((1, 1), value, dtype=dtype) for name, value in values.items()})


def keys(tasks: int, episodes: int, seed: int = 0) -> Tensor:
    return random.fold_in(random.key(seed), torch.arange(tasks * episodes)).reshape(tasks, episodes)


def twin_of(environment: Locomotion) -> gymnasium.Env:
    _physics(environment.body)  # before Gymnasium compiles: MuJoCo writes no file of warnings here
    return gymnasium.make(environment.id, disable_env_checker=True).unwrapped


def put(twin: gymnasium.Env, state: Tensor) -> None:
    """Gymnasium's environment as it is after a reset to these positions and velocities."""
    positions, velocities = twin.model.nq, twin.model.nv
    mujoco.mj_resetData(twin.model, twin.data)
    twin.set_state(state[:positions].numpy(), state[positions : positions + velocities].numpy())


def ends_beside(environment: Locomotion, params: Params, twins: list[gymnasium.Env], state: Tensor) -> int:
    """Step 120 times beside Gymnasium, which is set where an episode begins and never again; how many ended."""
    generator, rng, ends = np.random.default_rng(0), keys(1, len(twins)), 0
    for twin, each in zip(twins, state[0], strict=True):
        put(twin, each)
    for t in range(120):
        action = torch.from_numpy(generator.uniform(-1, 1, (1, len(twins), *environment.action_space.shape)))
        state, reward, terminal = environment.step(state, action, rng, params)
        observation = environment.observation(state, None, params)
        fresh = environment.initial(keys(1, len(twins), t), params)
        for b, twin in enumerate(twins):
            seen, rewarded, terminated, _, _ = twin.step(action[0, b].numpy())
            np.testing.assert_allclose(observation[0, b].numpy(), seen, rtol=0, atol=1e-9)
            np.testing.assert_allclose(float(reward[0, b]), rewarded, rtol=0, atol=1e-9)
            assert bool(terminal[0, b]) == terminated
            if terminated:
                ends += 1
                state[0, b] = fresh[0, b]
                put(twin, fresh[0, b])
    return ends


@bodies
def test_every_step_is_gymnasiums(environment: Locomotion) -> None:
    params = prepared(environment)
    state = environment.initial(keys(1, 3), params)
    twins = [twin_of(environment) for _ in range(3)]
    for b, twin in enumerate(twins):
        put(twin, state[0, b])
        np.testing.assert_array_equal(environment.observation(state, None, params)[0, b], twin._get_obs())
    ends = ends_beside(environment, params, twins, state)
    assert ends > 0 or environment.id in ("HalfCheetah-v5", "Ant-v5")


@bodies
def test_every_step_with_other_physics_is_gymnasiums_with_that_model(environment: Locomotion) -> None:
    factors = {"gravity": 0.5, "body_mass": 1.5, "body_inertia": 0.75, "dof_damping": 2.0, "geom_friction": 0.25}
    params = prepared(environment, **factors)
    state = environment.initial(keys(1, 2), params)
    twins = [twin_of(environment) for _ in state[0]]
    for twin in twins:
        model = twin.model
        model.opt.gravity[:] *= factors["gravity"]
        for name in ("body_mass", "body_inertia", "dof_damping", "geom_friction"):
            getattr(model, name)[:] *= factors[name]
        mujoco.mj_setConst(model, mujoco.MjData(model))
    ends_beside(environment, params, twins, state)


def test_an_ant_that_crouches_or_leaps_ends_as_gymnasiums_does() -> None:
    environment = Ant()
    params = prepared(environment)
    state = environment.initial(keys(1, 3), params)
    state[..., 2] = torch.tensor([0.3, 0.9, 0.9])
    state[..., 17] = torch.tensor([-3.0, 3.0, 1.0])
    twins = [twin_of(environment) for _ in state[0]]
    assert ends_beside(environment, params, twins, state) > 0


@bodies
def test_what_follows_a_terminal_state_is_that_state(environment: Locomotion) -> None:
    params = prepared(environment)
    state = environment.initial(keys(1, 3), params)
    state[0, 1, 2 if environment.body.contacts else 1] = -5.0
    fallen = environment.terminal(state, None, params)
    assert fallen.tolist() == [[False, environment.id != "HalfCheetah-v5", False]]
    after = environment.transition(state, torch.ones(1, 3, *environment.action_space.shape), keys(1, 3), params)
    assert torch.equal((after == state).all(-1), fallen)
    beside = environment.transition(state[:, 2:], torch.ones(1, 1, *environment.action_space.shape), keys(1, 1), params)
    assert torch.equal(after[:, 2:], beside)


@bodies
def test_spaces_horizon_and_model_are_gymnasiums(environment: Locomotion) -> None:
    twin = gymnasium.make(environment.id)
    assert environment.observation_space.shape == twin.observation_space.shape
    assert environment.action_space == twin.action_space
    assert twin.spec is not None
    assert environment.default_horizon == twin.spec.max_episode_steps
    theirs, ours = twin.unwrapped.model, _physics(environment.body).model((1.0,) * len(_SCALED))
    compared = 0
    for name in dir(theirs):
        value = None if name.startswith(("_", *LOOKS)) else getattr(theirs, name)
        if isinstance(value, np.ndarray) and value.dtype.kind in "fi" and not name.startswith("name_"):
            np.testing.assert_array_equal(getattr(ours, name), value, err_msg=name)
            compared += 1
    assert compared > 100
    assert environment.body.step_s == pytest.approx(twin.unwrapped.dt, rel=1e-15)
    for name in ("healthy_reward", "ctrl_cost_weight", "contact_cost_weight"):
        if hasattr(twin.unwrapped, f"_{name}"):
            assert environment.parameter(name).default == getattr(twin.unwrapped, f"_{name}")


@bodies
def test_first_states_are_distributed_as_gymnasiums(environment: Locomotion) -> None:
    ours = environment.observation(
        environment.initial(keys(1, 4000), prepared(environment)), None, prepared(environment)
    )
    twin = gymnasium.make(environment.id).unwrapped
    theirs = np.stack([twin.reset(seed=seed)[0] for seed in range(400)])
    for i in range(len(environment.body.start) - environment.body.hidden + environment.body.velocities):
        a, b = np.sort(ours[0, :, i].numpy()), np.sort(theirs[:, i])
        points = np.concatenate((a, b))
        distance = np.abs(np.searchsorted(a, points, "right") / len(a) - np.searchsorted(b, points, "right") / len(b))
        # Two-sample Kolmogorov-Smirnov: chance one in ten thousand for each of 80 numbers.
        assert distance.max() < 2.23 * np.sqrt(1 / len(a) + 1 / len(b)), i
    rest = theirs[:, i + 1 :]
    np.testing.assert_array_equal(ours[0, :400, i + 1 :].numpy(), rest)


def test_first_positions_and_velocities_are_independent() -> None:
    state = HalfCheetah().initial(keys(1, 20_000), prepared(HalfCheetah()))[0, :, :18]
    correlation = torch.corrcoef(state.T) - torch.eye(18)
    assert float(correlation.abs().max()) < 5 / 20_000**0.5


def test_rewards_of_velocity_direction_and_goal_are_those_of_their_definitions() -> None:
    environment = Ant()
    before = environment.initial(keys(1, 1), prepared(environment))
    action = torch.full((1, 1, 8), 2.0, dtype=torch.float64)  # clipped: its cost is that of ones, 8
    after = environment.transition(before, action, keys(1, 1), prepared(environment))
    x, y = float(after[0, 0, 43]), float(after[0, 0, 44])
    velocity = (x - float(before[0, 0, 43])) / 0.05
    force = float(after[0, 0, 45:].clamp(-1, 1).square().sum())
    for changed, progress in (
        ({"direction": -1.0}, -velocity),
        ({"reward": 1.0, "target_velocity": 3.0}, -abs(velocity - 3.0)),
        ({"reward": 2.0, "goal_x": 2.0, "goal_y": -1.5}, -abs(x - 2.0) - abs(y + 1.5)),
    ):
        params = prepared(environment, healthy_reward=4.0, contact_cost_weight=0.25, **changed)
        reward = environment.reward(before, action, after, None, params)
        assert float(reward) == pytest.approx(progress + 4.0 - 0.5 * 8 - 0.25 * force, abs=1e-12)


@bodies
@pytest.mark.usefixtures("two_threads")
def test_an_episode_alone_equals_itself_among_four_hundred_bit_for_bit(environment: Locomotion) -> None:
    family = next(family for family in PRESETS.values() if family.environment == environment.id)
    scales = torch.rand(20, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    raw = TaskBatch.of(family.sample("train", 0, range(20))).params | {"body_mass": scales}
    raw = {each.name: raw[each.name] for each in environment.parameters}
    action = torch.rand(3, 20, 20, *environment.action_space.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    many = environment.initial(keys(20, 20), environment.prepare(raw))
    one_params = environment.prepare({name: value[7:8] for name, value in raw.items()})
    one = environment.initial(keys(20, 20)[7:8, 3:4], one_params)
    for t in range(3):
        many = environment.transition(many, action[t], keys(20, 20), environment.prepare(raw))
        torch.set_num_threads(1)
        one = environment.transition(one, action[t, 7:8, 3:4], keys(1, 1), one_params)
        torch.set_num_threads(2)
        assert torch.equal(one[0, 0], many[7, 3])


@bodies
def test_two_threads_that_step_the_same_tasks_do_not_disturb_each_other(environment: Locomotion) -> None:
    params = prepared(environment)

    def last(seed: int) -> Tensor:
        state = environment.initial(keys(1, 4, seed), params)
        action = torch.ones(1, 4, *environment.action_space.shape)
        for _ in range(10):
            state = environment.transition(state, action, keys(1, 4), params)
        return state

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(last, [1, 2, 3, 4]))
    for seed, state in enumerate(together, 1):
        assert torch.equal(state, last(seed))


@pytest.mark.parametrize("environment", [each for each in BODIES if each.id != "Hopper-v5"], ids=lambda each: each.id)
def test_a_body_that_flies_apart_is_put_back_and_leaves_no_file_behind(
    environment: Locomotion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = prepared(environment)
    state = environment.initial(keys(1, 2), params)
    state[0, 0, len(environment.body.start)] = 1e12
    action = torch.zeros(1, 2, *environment.action_space.shape)
    after = environment.transition(state, action, keys(1, 2), params)
    assert bool(torch.isfinite(after).all())
    assert float(after[0, 0].abs().max()) < 100
    beside = environment.transition(state[:, 1:], action[:, 1:], keys(1, 1), params)
    assert torch.equal(after[:, 1:], beside)
    assert not list(tmp_path.iterdir())


@bodies
def test_no_gradient_gets_into_a_state(environment: Locomotion) -> None:
    params = prepared(environment)
    state = environment.initial(keys(1, 2), params)
    action = torch.zeros(1, 2, *environment.action_space.shape, requires_grad=True)
    after = environment.transition(state, action, keys(1, 2), params)
    assert not after.requires_grad
    assert not environment.observation(after, None, params).requires_grad


def test_a_rollout_in_single_precision_keeps_its_states_in_double() -> None:
    tasks = TaskBatch.of(PRESETS["hopper-params"].sample("train", 0, range(3)))
    model = tasks.environment
    policy = Policy(PolicyConfig(hidden=(8,)), model.observation_space, model.action_space)
    params = stack_params(policy.initialise(0), 3)
    rollouts = [collect(policy, params, tasks, 5, keys(3, 1)[:, 0]) for _ in range(2)]
    assert torch.equal(rollouts[0].observation, rollouts[1].observation)
    assert torch.equal(rollouts[0].reward, rollouts[1].reward)
    assert rollouts[0].observation.dtype == rollouts[0].reward.dtype == torch.float32
    assert bool(rollouts[0].terminated.all())  # an untrained hopper falls
    assert float(rollouts[0].episode_return.min()) > 0
    assert model.initial(keys(3, 1), tasks.params).dtype == torch.float64


def test_physics_outside_its_range_is_refused_by_name() -> None:
    with pytest.raises(InvalidValue, match=r"body_mass must be a number from 0\.1 to 10") as refused:
        define_task("Hopper-v5", {"body_mass": 0.0})
    assert refused.value.pointer == "/parameters/body_mass"
    with pytest.raises(InvalidValue, match="reward must be one of forward, velocity"):
        define_task("HalfCheetah-v5", {"reward": "goal"})


def test_without_mujoco_the_core_works_and_a_body_says_which_extra_it_needs() -> None:
    program = """
import importlib.metadata, sys
sys.modules["mujoco"] = None
version = importlib.metadata.version
def absent(name):
    if name == "mujoco-core":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = absent
from models.presets import PRESETS
from models.tasks import find_environment
try:
    find_environment("HalfCheetah-v5")
except ValueError as refused:
    print(sorted(PRESETS), refused)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "ant-goal" not in run.stdout
    assert "navigation-2d" in run.stdout
    assert "HalfCheetah-v5 needs the extra headstart[mujoco]" in run.stdout
