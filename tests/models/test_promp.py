"""The proximal outer step: its penalty, how that adapts, and what it is without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_cases import (
    Process,
    as_vector,
    built,
    configured,
    differences,
    exact_trial,
    from_vectors,
    random_params,
)
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from models import random
from models.checkpoint import load_state, save_state
from models.learners.inner import Experience
from models.learners.maml import MAML
from models.learners.meta_gradient import Part, Trial
from models.learners.promp import InnerDivergence
from models.policy import Policy, PolicyConfig
from models.tasks import TaskBatch, define_task
from models.training import TrainingState
from models.types import Params, stack_params

MEMORY = "inner_kl_penalty"
ETA = torch.tensor([3.0, 0.5], dtype=torch.float64)
PROMP: dict[str, Any] = {"outer_step": "promp", "inner_steps": 2, "inner_learning_rate": 0.5}


def batch(environment: str = "Navigation2D-v0") -> TaskBatch:
    parameter = {"Navigation2D-v0": "goal_x", "CartPole-v1": "length"}[environment]
    tasks = [define_task(environment, {parameter: 0.3 + 0.2 * n}, horizon=12) for n in range(3)]
    return TaskBatch.of(tasks, torch.float64)


def learner_for(tasks: TaskBatch, **members: Any) -> MAML:
    policy = Policy(PolicyConfig((6,)), tasks.environment.observation_space, tasks.environment.action_space)
    return MAML(configured("maml", **PROMP | {"episodes_per_task": 5} | members), policy)


KEYS = random.fold_in(random.key("promp"), torch.arange(3))


def divergence(policy: Policy, old: Params, new: Params, experience: Experience) -> Tensor:
    """Mean KL(old || new) over real steps, [N], by torch's own distributions."""

    def distribution(params: Params) -> Any:
        head = policy.head(params, policy.features(params, experience.observation))
        if policy.discrete:
            return Categorical(logits=head)
        return Independent(Normal(head, params["log_std"].unsqueeze(1).expand_as(head).exp()), 1)

    kl = kl_divergence(distribution(old), distribution(new))
    return (kl * experience.mask).sum(1) / experience.mask.sum(1)


@pytest.mark.parametrize("environment", ["Navigation2D-v0", "CartPole-v1"])
def test_the_penalty_is_the_weighted_divergence_of_the_policies_before_each_step(environment: str) -> None:
    tasks = batch(environment)
    learner = learner_for(tasks)
    state = learner.initialise(0, torch.float64)
    trial = learner.meta_gradient.sample(state, tasks, KEYS)
    trial.memory = {MEMORY: ETA}
    term = InnerDivergence(learner.policy)

    visited = [{n: v.clone().requires_grad_() for n, v in policies.items()} for policies in trial.policies[:2]]
    unmoved = term.penalty(Part(slice(0, 3), {}, {}, list(visited)), trial)
    leaves = [policies[name] for policies in visited for name in learner.outer]
    assert unmoved.tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    for gradient in torch.autograd.grad(unmoved.sum(), leaves):
        assert float(gradient.abs().max()) < 1e-12

    moved = [{n: v + 0.1 * torch.cos(torch.arange(v.numel()).reshape(v.shape)) for n, v in p.items()} for p in visited]
    expected = [divergence(learner.policy, trial.policies[k], moved[k], trial.support[k]) for k in range(2)]
    penalty = term.penalty(Part(slice(0, 3), {}, {}, list(moved)), trial)
    torch.testing.assert_close(penalty, 3.0 * expected[0] + 0.5 * expected[1])
    measured = term.measure([Part(slice(i, i + 1), {}, {}, [_row(p, i) for p in moved]) for i in range(3)], trial)
    torch.testing.assert_close(measured, torch.stack(expected).mean(1).detach())
    assert float(measured.min()) > 1e-4


def _row(params: Params, task: int) -> Params:
    return {name: value[task : task + 1] for name, value in params.items()}


def test_the_gradient_of_a_later_epoch_is_that_of_the_clipped_objective_and_the_penalty() -> None:
    process = Process.random(tasks=3, states=3, actions=2, horizon=1, discount=1.0)
    learner = built("maml", process, **PROMP, clip_ratio=0.2)
    names, params = learner.outer, random_params(learner)
    trial: Trial = exact_trial(learner, process, params, 2)
    trial.memory = {MEMORY: ETA}
    moved = {
        name: value + 0.1 * torch.cos(torch.arange(value.numel())).reshape(value.shape)
        for name, value in params.items()
    }
    ours = learner.meta_gradient.gradient(moved, trial)  # type: ignore[attr-defined]

    def objective(vectors: Tensor) -> Tensor:
        values = []
        for vector in vectors:
            one = {name: value[0] for name, value in from_vectors(vector.unsqueeze(0), moved, names).items()}
            current, penalty = stack_params(one, 3), torch.zeros(3, dtype=torch.float64)
            for k, experience in enumerate(trial.support):
                penalty = penalty + ETA[k] * divergence(learner.policy, trial.policies[k], current, experience)
                adapted = learner.inner.descend(current, experience, k, create_graph=False)
                current = {name: value.detach() for name, value in adapted.items()}
            query = trial.query
            head = learner.policy.head(current, learner.policy.features(current, query.observation))
            ratio = (Categorical(logits=head).log_prob(query.action) - query.log_prob).exp()
            gain = torch.minimum(ratio * query.advantage, ratio.clamp(0.8, 1.2) * query.advantage)
            values.append((penalty - gain.mean(1)).mean())
        return torch.stack(values)

    expected = differences(objective, as_vector(moved, names))
    torch.testing.assert_close(as_vector(ours, names), expected, rtol=1e-5, atol=1e-8)


def test_a_penalty_halves_below_two_thirds_of_the_target_and_doubles_above_three_halves() -> None:
    measured = torch.tensor([0.0, 0.0066, 0.0067, 0.01, 0.0149, 0.0151, 5.0], dtype=torch.float64)
    before = {MEMORY: torch.full((7,), 0.25, dtype=torch.float64)}
    after = InnerDivergence.adapt(before, measured, target=0.01)
    assert after[MEMORY].tolist() == [0.125, 0.125, 0.25, 0.25, 0.25, 0.5, 0.5]
    assert before[MEMORY].tolist() == [0.25] * 7


def test_a_penalty_stays_finite_and_nothing_stays_nothing() -> None:
    before = {MEMORY: torch.tensor([9e5, 0.0], dtype=torch.float64)}
    assert InnerDivergence.adapt(before, torch.tensor([1.0, 1.0]).double(), 0.01)[MEMORY].tolist() == [1e6, 0.0]


@pytest.mark.parametrize("environment", ["Navigation2D-v0", "CartPole-v1"])
def test_without_a_penalty_it_is_adam_to_the_last_bit(environment: str) -> None:
    tasks = batch(environment)
    ends = []
    for members in ({"outer_step": "adam"}, {"outer_step": "promp", "inner_kl_penalty": 0.0}):
        learner = learner_for(tasks, **members, outer_epochs=3)
        state = learner.initialise(0, torch.float64)
        for iteration in range(2):
            state, _ = learner.outer_step(state, tasks, random.fold_in(KEYS, iteration))
        ends.append(state)
    for name, value in ends[0].params.items():
        assert torch.equal(value, ends[1].params[name]), name
    assert ends[1].memory[MEMORY].tolist() == [0.0, 0.0]


def test_a_penalty_keeps_the_policies_before_adapting_nearer() -> None:
    tasks = batch()
    moved = []
    for penalty in (0.0, 100.0):
        learner = learner_for(tasks, inner_kl_penalty=penalty, outer_epochs=5, outer_learning_rate=0.03)
        _, metrics = learner.outer_step(learner.initialise(0, torch.float64), tasks, KEYS)
        moved.append(metrics["inner_kl"])
    assert 0 < moved[1] < 0.3 * moved[0]


@pytest.mark.parametrize(("learning_rate", "expected"), [(1e-6, 0.05), (0.1, 0.2)], ids=["halved", "doubled"])
def test_the_penalty_of_every_inner_step_is_carried_to_the_next_outer_step_and_through_a_checkpoint(
    learning_rate: float, expected: float
) -> None:
    tasks = batch()
    learner = learner_for(tasks, inner_kl_penalty=0.1, outer_epochs=5, outer_learning_rate=learning_rate)
    state = learner.initialise(0, torch.float64)
    assert state.memory[MEMORY].tolist() == [0.1, 0.1]
    once, _ = learner.outer_step(state, tasks, KEYS)
    assert once.memory[MEMORY].tolist() == [expected, expected]
    loaded = load_state(save_state(TrainingState(once))).learner
    assert torch.equal(loaded.memory[MEMORY], once.memory[MEMORY])
    twice, again = (learner.outer_step(each, tasks, KEYS)[0] for each in (once, loaded))
    for name, value in twice.params.items():
        assert torch.equal(value, again.params[name])
    assert torch.equal(twice.memory[MEMORY], again.memory[MEMORY])
