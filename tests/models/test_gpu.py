"""The core on a graphics card against the processor, in float64, so that no sampled action tips over."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest
import torch
from torch import Tensor

from models import random
from models.adaptation import InnerLoop, adapt
from models.checkpoint import load_state, pack, save_state, unpack
from models.device import resolve_device
from models.environments import ENVIRONMENTS
from models.learners import LEARNERS, LearnerConfig
from models.policy import Policy, PolicyConfig
from models.rollout import collect
from models.tasks import TaskBatch, define_task, environment_of
from models.training import TrainingState
from models.types import Params, stack_params

GPU = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine")

LEARNER_CONFIGS = {config.name: config for config in typing.get_args(LearnerConfig) or (LearnerConfig,)}
TASKS = 3
every_learner = pytest.mark.parametrize("name", LEARNERS)
discrete_and_continuous = pytest.mark.parametrize("environment", ["CartPole-v1", "Navigation2D-v0"])


def placed(value: Any, device: str) -> Any:
    """A value with all its tensors on a device: a tensor, or a dict or dataclass of them."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: placed(each, device) for name, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: placed(getattr(value, each.name), device) for each in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


def batch(environment: str, device: str) -> TaskBatch:
    tasks = [define_task(environment, horizon=8, discount=1.0 - 0.01 * n) for n in range(TASKS)]
    return TaskBatch.of(tasks, torch.float64, device)


def policy_for(environment: str, config: PolicyConfig | None = None) -> Policy:
    model = environment_of(define_task(environment))
    default = PolicyConfig((6, 4), normalise_observations=True, layer_norm=True)
    return Policy(config or default, model.observation_space, model.action_space)


def keys(device: str) -> Tensor:
    return random.fold_in(random.key("test", device=device), torch.arange(TASKS, device=device))


def assert_same(ours: Params, theirs: Params) -> None:
    """Equal to what float64 sums in another order can differ by, after a division by an advantage's deviation."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.device.type == GPU, name
        torch.testing.assert_close(value.cpu(), theirs[name], rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def learner_for(name: str, environment: str, **config: Any) -> Any:
    policy = policy_for(environment, PolicyConfig((6,), context_size=3) if name == "cavia" else None)
    return LEARNERS[name](LEARNER_CONFIGS[name](episodes_per_task=3, **config), policy)


def test_any_device_means_the_graphics_card_where_there_is_one() -> None:
    assert resolve_device("auto").type == resolve_device("cuda").type == GPU


def test_keyed_random_numbers_are_the_same_on_both() -> None:
    stream = random.fold_in(keys(GPU).unsqueeze(1), torch.arange(1000, device=GPU))
    on_cpu = random.fold_in(keys("cpu").unsqueeze(1), torch.arange(1000))
    assert torch.equal(stream.cpu(), on_cpu)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(random.uniform(stream, 5, dtype).cpu(), random.uniform(on_cpu, 5, dtype))
        torch.testing.assert_close(random.normal(stream, 5, dtype).cpu(), random.normal(on_cpu, 5, dtype))


def test_a_seed_means_one_new_policy_on_both() -> None:
    policy = policy_for("CartPole-v1", PolicyConfig(initialisation="orthogonal"))
    on_gpu = policy.initialise(0, device=GPU)
    for name, value in policy.initialise(0).items():
        assert on_gpu[name].device.type == GPU
        assert torch.equal(on_gpu[name].cpu(), value)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_rollout_is_the_same_on_both(environment: str) -> None:
    policy = policy_for(environment)
    one = policy.initialise(0, torch.float64)
    on_cpu = collect(policy, stack_params(one, TASKS), batch(environment, "cpu"), 4, keys("cpu"))
    on_gpu = collect(policy, stack_params(placed(one, GPU), TASKS), batch(environment, GPU), 4, keys(GPU))
    names = ("observation", "reward", "mask", "log_prob", "final_observation")
    assert_same(*({name: getattr(each, name) for name in names} for each in (on_gpu, on_cpu)))


@discrete_and_continuous
@every_learner
def test_an_outer_step_is_the_same_on_both(name: str, environment: str) -> None:
    learner = learner_for(name, environment)
    state = learner.initialise(0, torch.float64)
    after, metrics = learner.outer_step(state, batch(environment, "cpu"), keys("cpu"))
    gpu_after, gpu_metrics = learner.outer_step(placed(state, GPU), batch(environment, GPU), keys(GPU))
    assert_same(gpu_after.params, after.params)
    # Adam's moments after one step are the meta-gradient and its square.
    assert_same(gpu_after.optimiser.mean, after.optimiser.mean)
    assert gpu_metrics == pytest.approx(metrics, rel=1e-6)


@discrete_and_continuous
@every_learner
def test_adapting_is_the_same_on_both(name: str, environment: str) -> None:
    learner = learner_for(name, environment)
    params = learner.initialise(0, torch.float64).params
    method = InnerLoop(steps=2, episodes=3, evaluation_episodes=2)
    on_cpu = adapt(learner, params, batch(environment, "cpu"), method, seed=1)
    on_gpu = adapt(learner, placed(params, GPU), batch(environment, GPU), method, seed=1)
    assert_same(on_gpu.params, on_cpu.params)
    for ours, theirs in zip(on_gpu.curve, on_cpu.curve, strict=True):
        torch.testing.assert_close(ours.mean_return.cpu(), theirs.mean_return)
        assert ours.environment_steps.tolist() == theirs.environment_steps.tolist()


@every_learner
def test_versions_and_training_states_do_not_tell_where_they_were_computed(name: str) -> None:
    learner = learner_for(name, "CartPole-v1")
    state = learner.initialise(0)
    on_gpu = placed(state, GPU)
    assert save_state(TrainingState(on_gpu)) == save_state(TrainingState(state))
    files = pack(learner.config, learner.policy, on_gpu.params, {})
    assert files == pack(learner.config, learner.policy, state.params, {})
    for loaded in (unpack(*files).params, load_state(save_state(TrainingState(on_gpu))).learner.params):
        for tensor, value in loaded.items():
            assert torch.equal(value, state.params[tensor])
