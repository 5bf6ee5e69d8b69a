"""The trust-region step: its curvature against a dense matrix, its solver, and the promises of a step."""

from __future__ import annotations

import dataclasses
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
    gaussian_experience,
    gaussian_policy,
    random_params,
)
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from models import random
from models.learners.base import Diverged
from models.learners.inner import Experience
from models.learners.maml import MAML
from models.learners.meta_gradient import Trial
from models.learners.trpo import Curvature, TrustRegion, conjugate_gradient
from models.policy import Policy, PolicyConfig
from models.tasks import TaskBatch, define_task
from models.types import Params, stack_params

TRUST_REGION: dict[str, Any] = {"outer_step": "trpo", "normalise_advantages": False, "entropy_coefficient": 0.1}


def distribution(policy: Policy, params: Params, observation: Tensor) -> Any:
    """What N policies do in some states, by torch's own distributions."""
    head = policy.head(params, policy.features(params, observation))
    if policy.discrete:
        return Categorical(logits=head)
    if policy.config.log_std == "state":
        mean, log_std = head.chunk(2, -1)
    else:
        mean, log_std = head, params["log_std"].unsqueeze(1).expand_as(head)
    return Independent(Normal(mean, log_std.exp()), 1)


def divergence(policy: Policy, old: Params, new: Params, query: Experience) -> Tensor:
    """Mean KL(old || new) over real steps, [N]."""
    kl = kl_divergence(*(distribution(policy, each, query.observation) for each in (old, new)))
    return (kl * query.mask).sum(1) / query.mask.sum(1)


def discrete_case(**members: Any) -> tuple[Any, Params, Trial]:
    process = Process.random(tasks=3, states=3, actions=3, horizon=1, discount=1.0)
    learner = built("maml", process, **TRUST_REGION | members)
    params = random_params(learner)
    return learner, params, exact_trial(learner, process, params, learner.config.inner_steps)  # type: ignore[attr-defined]


def gaussian_case(log_std: Any, **members: Any) -> tuple[Any, Params, Trial]:
    learner = MAML(configured("maml", **TRUST_REGION | members), gaussian_policy(log_std, context=0))
    params = {name: 0.3 * value for name, value in random_params(learner).items()}
    policies, support = [stack_params(params, 3)], []
    for step in range(learner.config.inner_steps):
        support.append(gaussian_experience(step))
        adapted = learner.inner.descend(policies[-1], support[-1], step, create_graph=False)
        policies.append({name: value.detach() for name, value in adapted.items()})
    return learner, params, Trial(support, gaussian_experience(9), [], None, policies, None)  # type: ignore[arg-type]


CASES = {
    "discrete": discrete_case,
    "gaussian": lambda **members: gaussian_case("free", **members),
    "state gaussian": lambda **members: gaussian_case("state", **members),
}


def dense_curvature(learner: Any, params: Params, trial: Trial, damping: float) -> Tensor:
    """JᵀFJ + λ1 as a matrix: J by finite differences of adapting, F as the Hessian of the divergence."""
    names, tasks = learner.outer, len(trial.query.mask)

    def adapted(vectors: Tensor) -> Tensor:
        rows = []
        for vector in vectors:
            current = stack_params(from_vectors(vector.unsqueeze(0), params, names), 1)
            current = {name: value[0].expand(tasks, *value.shape[2:]) for name, value in current.items()}
            for step, experience in enumerate(trial.support):
                moved = learner.inner.descend(current, experience, step, create_graph=False)
                current = {name: value.detach() for name, value in moved.items()}
            rows.append(torch.cat([current[name].reshape(tasks, -1) for name in names], 1))
        return torch.stack(rows)

    centre = as_vector(params, names)
    jacobian = differences(adapted, centre).permute(1, 2, 0)  # [N, D', D]
    if learner.config.first_order:
        jacobian = torch.eye(len(centre), dtype=centre.dtype).expand(tasks, -1, -1)
    total = damping * torch.eye(len(centre), dtype=centre.dtype)
    for n in range(tasks):
        old = {name: value[n : n + 1] for name, value in trial.policies[-1].items()}
        query = trial.query.select(slice(n, n + 1))
        here = as_vector({name: value[0] for name, value in old.items()}, names)
        moved = lambda v, old=old: old | from_vectors(v.unsqueeze(0), {k: x[0] for k, x in old.items()}, names)  # noqa: E731
        kl = lambda v, old=old, query=query: divergence(learner.policy, old, moved(v), query)[0]  # noqa: B023, E731
        fisher = torch.autograd.functional.hessian(kl, here)  # type: ignore[no-untyped-call]
        total = total + jacobian[n].T @ fisher @ jacobian[n] / tasks
    return total


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "members",
    [
        {"inner_learning_rate": 0.3},
        {"inner_steps": 2, "inner_learning_rate": (0.3, 0.1)},
        {"inner_steps": 2, "inner_learning_rate": 0.3, "max_tasks_in_memory": 2},
        {"inner_steps": 2, "first_order": True},
    ],
    ids=["one step", "two falling steps", "two tasks at once", "first order"],
)
def test_its_curvature_is_that_of_the_divergence_seen_from_the_initialisation(
    members: dict[str, Any], case: str
) -> None:
    learner, params, trial = CASES[case](**members)
    curvature = Curvature(learner, trial, share=1.0, damping=0.1)
    dense = dense_curvature(learner, params, trial, damping=0.1)
    names = learner.outer
    for seed in range(2):
        v = torch.randn(len(dense), generator=torch.Generator().manual_seed(seed), dtype=dense.dtype)
        product = curvature.product(
            {n: x[0] for n, x in from_vectors(v.unsqueeze(0), params, names).items() if n in names}
        )
        torch.testing.assert_close(as_vector(product, names), dense @ v, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("share", "episodes"), [(1e-9, 1), (0.1, 1), (0.4, 2), (1.0, 5)])
def test_it_is_estimated_from_the_first_episodes_of_every_task_and_at_least_one(share: float, episodes: int) -> None:
    learner, params, trial = gaussian_case("free", inner_steps=2, inner_learning_rate=0.3)
    fewer = dataclasses.replace(
        trial,
        support=[experience.first_episodes(episodes) for experience in trial.support],
        query=trial.query.first_episodes(episodes),
    )
    assert fewer.query.episodes == episodes
    rows = trial.query.by_time(trial.query.action)[:, :, :episodes]
    assert torch.equal(fewer.query.by_time(fewer.query.action), rows)
    vector = {name: params[name] for name in learner.outer}
    some, all_of_fewer = (
        Curvature(learner, each, each_share, 0.1).product(vector) for each, each_share in ((trial, share), (fewer, 1.0))
    )
    for name, value in some.items():
        torch.testing.assert_close(value, all_of_fewer[name], rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_conjugate_gradient_solves_a_positive_definite_system_of_any_scale(scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(9, 9, generator=g, dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(9), torch.randn(9, generator=g, dtype=torch.float64) * scale
    like = {"a": torch.zeros(2, 3, dtype=torch.float64), "b": torch.zeros(3, dtype=torch.float64)}
    unpacked = lambda v: {n: x[0] for n, x in from_vectors(v.unsqueeze(0), like, ["a", "b"]).items()}  # noqa: E731
    x = conjugate_gradient(lambda v: unpacked(matrix @ as_vector(v, ["a", "b"])), unpacked(b), steps=20)
    torch.testing.assert_close(as_vector(x, ["a", "b"]), torch.linalg.solve(matrix, b), rtol=1e-4, atol=1e-4 * scale)


def test_conjugate_gradient_of_nothing_is_nothing() -> None:
    zero = {"a": torch.zeros(3)}
    assert conjugate_gradient(lambda v: v, zero, steps=5)["a"].tolist() == [0, 0, 0]


def batch(environment: str, reward: str | None = None) -> TaskBatch:
    names = {"CartPole-v1": "length", "Navigation2D-v0": "goal_x"}
    tasks = [define_task(environment, {names[environment]: 0.2 + 0.2 * n}, reward=reward, horizon=12) for n in range(3)]
    return TaskBatch.of(tasks, torch.float64)


def learner_for(tasks: TaskBatch, **members: Any) -> MAML:
    space = tasks.environment
    policy = Policy(PolicyConfig((6,)), space.observation_space, space.action_space)
    members = {"outer_step": "trpo", "episodes_per_task": 6, "inner_learning_rate": 0.3} | members
    return MAML(configured("maml", **members), policy)


KEYS = random.fold_in(random.key("trust"), torch.arange(3))


@pytest.mark.parametrize("kl_limit", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("environment", ["CartPole-v1", "Navigation2D-v0"])
def test_a_step_stays_within_the_region_and_improves_what_adapting_achieves(
    environment: str, steps: int, kl_limit: float
) -> None:
    tasks = batch(environment)
    learner = learner_for(tasks, kl_limit=kl_limit, inner_steps=steps, curvature_share=0.5)
    state = learner.initialise(0, torch.float64)
    trial = learner.meta_gradient.sample(state, tasks, KEYS)
    moved, metrics = TrustRegion(learner, learner.meta_gradient, learner.config).step(state.params, trial)

    def outcome(params: Params) -> tuple[float, float]:
        """Mean importance-weighted advantage and divergence after adapting, over tasks."""
        current = stack_params(params, 3)
        for step, experience in enumerate(trial.support):
            adapted = learner.inner.descend(current, experience, step, create_graph=False)
            current = {name: value.detach() for name, value in adapted.items()}
        query = trial.query
        ratio = (distribution(learner.policy, current, query.observation).log_prob(query.action) - query.log_prob).exp()
        gain = (ratio * query.advantage * query.mask).sum(1) / query.mask.sum(1)
        return float(gain.mean()), float(divergence(learner.policy, trial.policies[-1], current, query).mean())

    before, after = outcome(state.params), outcome(moved)
    assert after[0] > before[0]
    assert 0 < after[1] <= kl_limit * (1 + 1e-9)
    assert metrics["outer_kl"] == pytest.approx(after[1])
    assert 0 < metrics["step_scale"] <= 1
    assert metrics["gradient_norm"] > 0
    # Half of the limit and more: the quadratic model that sets the length is good for small steps.
    assert kl_limit > 0.001 or after[1] > 0.5 * kl_limit


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("baseline", ["linear", "none"])
def test_a_step_without_any_advantage_changes_nothing_and_stays_finite(baseline: str, normalise: bool) -> None:
    tasks = batch("Navigation2D-v0", reward="0 * reward")
    learner = learner_for(tasks, baseline=baseline, normalise_advantages=normalise, inner_steps=2)
    state = learner.initialise(0, torch.float64)
    after, metrics = learner.outer_step(state, tasks, KEYS)
    for name in learner.outer:
        assert torch.equal(after.params[name], state.params[name])
    assert (metrics["outer_kl"], metrics["step_scale"], metrics["gradient_norm"]) == (0, 0, 0)
    assert all(bool(torch.isfinite(value).all()) for value in after.params.values())


def test_a_step_does_not_depend_on_the_unit_of_the_reward() -> None:
    ends = []
    for factor in ("1", "0.000001"):
        tasks = batch("Navigation2D-v0", reward=f"{factor} * reward")
        learner = learner_for(
            tasks,
            baseline="none",
            normalise_advantages=False,
            inner_learning_rate=0.01 / float(factor),
            conjugate_gradient_steps=5,
        )
        after, _ = learner.outer_step(learner.initialise(0, torch.float64), tasks, KEYS)
        ends.append({name: after.params[name] for name in learner.outer})
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-6, atol=1e-9)


def test_a_gradient_that_is_not_finite_is_an_error_and_not_a_step_of_no_length() -> None:
    learner, params, trial = discrete_case()
    trial.query.advantage[0, 0] = float("nan")
    with pytest.raises(Diverged, match="NaN"):
        TrustRegion(learner, learner.meta_gradient, learner.config).step(params, trial)


def test_entropy_counts_in_what_a_step_must_improve() -> None:
    tasks = batch("Navigation2D-v0", reward="0 * reward")
    learner = learner_for(tasks, entropy_coefficient=0.1)
    state = learner.initialise(0, torch.float64)
    after, metrics = learner.outer_step(state, tasks, KEYS)
    assert metrics["step_scale"] > 0
    assert bool((after.params["log_std"] > state.params["log_std"]).all())
