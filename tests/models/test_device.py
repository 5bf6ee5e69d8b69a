"""Which device a choice means, and, on any machine, that the core makes no tensor on a device it was not given.

While torch's default device is `meta`, a tensor made without saying where has no numbers, and refuses to mix with the
processor's.
"""

from __future__ import annotations

import typing

import pytest
import torch
from torch import Tensor

from models import random
from models.device import resolve_device
from models.environments import ENVIRONMENTS
from models.learners import LEARNERS, LearnerConfig
from models.policy import Policy, PolicyConfig
from models.rollout import collect
from models.tasks import TaskBatch, define_task, environment_of
from models.types import InvalidValue, stack_params

LEARNER_CONFIGS = {config.name: config for config in typing.get_args(LearnerConfig) or (LearnerConfig,)}
# Every optional tensor, for discrete and for continuous actions.
EVERYTHING = PolicyConfig((4,), normalise_observations=True, context_size=2, layer_norm=True)
BY_STATE = PolicyConfig((4,), log_std="state", initialisation="orthogonal")


def batch(environment: str, horizon: int = 6) -> TaskBatch:
    return TaskBatch.of([define_task(environment, horizon=horizon)] * 3, torch.float64)


def policy_for(tasks: TaskBatch, config: PolicyConfig) -> Policy:
    model = environment_of(tasks.tasks[0])
    return Policy(config, model.observation_space, model.action_space)


def keys(count: int) -> Tensor:
    return random.fold_in(random.key("test"), torch.arange(count))


def test_a_choice_of_device_is_the_processor_or_what_the_machine_has() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_that_is_not_there_or_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidValue, match="no CUDA device on this machine") as refused:
        resolve_device("cuda")
    assert refused.value.pointer == "/device"
    with pytest.raises(InvalidValue, match="must be one of auto, cpu, cuda"):
        resolve_device("tpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_rollout_makes_its_tensors_where_its_inputs_are(environment: str) -> None:
    tasks = batch(environment)
    policy = policy_for(tasks, EVERYTHING)
    params = stack_params(policy.initialise(0, torch.float64), 3)
    expected = collect(policy, params, tasks, 2, keys(3))
    of_keys, policy = keys(3), policy_for(tasks, EVERYTHING)
    with torch.device("meta"):
        rollout = collect(policy, params, tasks, 2, of_keys)
    assert torch.equal(rollout.observation, expected.observation)


@pytest.mark.parametrize("environment", ["CartPole-v1", "Navigation2D-v0"])
@pytest.mark.parametrize("learner", LEARNERS)
def test_an_outer_step_makes_its_tensors_where_its_inputs_are(learner: str, environment: str) -> None:
    tasks, of_keys = batch(environment), keys(3)
    config = LEARNER_CONFIGS[learner](episodes_per_task=2)
    architecture = PolicyConfig((4,), normalise_observations=True, context_size=2 if learner == "cavia" else 0)
    built = LEARNERS[learner](config, policy_for(tasks, architecture))
    state = built.initialise(0, torch.float64)
    with torch.device("meta"):
        after, _ = built.outer_step(state, tasks, of_keys)
    assert {value.device.type for value in after.params.values()} == {"cpu"}


@pytest.mark.parametrize(
    ("environment", "config"),
    [("CartPole-v1", EVERYTHING), ("Navigation2D-v0", EVERYTHING), ("Navigation2D-v0", BY_STATE)],
)
def test_a_policy_computes_where_its_parameters_are(environment: str, config: PolicyConfig) -> None:
    policy = policy_for(batch(environment), config)
    params = stack_params(policy.initialise(0, device="meta"), 2)
    observation = torch.empty(2, 5, policy.observation_size, device="meta")
    noise = policy.noise(params, torch.empty(2, 5, dtype=torch.int64, device="meta"))
    features = policy.features(params, observation)
    head = policy.head(params, features)
    action = policy.choose(head, noise)
    results = [
        policy.value(params, features),
        policy.log_prob(params, head, action),
        policy.entropy(params, head),
        policy.divergence(params, head, params, head),
    ]
    assert policy.to_environment(action).device.type == "meta"
    for result in results:
        assert (result.device.type, result.shape) == ("meta", (2, 5))
