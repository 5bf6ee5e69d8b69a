"""The meta-gradient of every learner that has one, against finite differences of what it claims to climb."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from small_cases import (
    ACTIONS,
    EPISODES,
    TASKS,
    TIME,
    Process,
    as_vector,
    built,
    configured,
    differences,
    exact_trial,
    from_vectors,
    gaussian_experience,
    gaussian_policy,
    outer_loop,
    random_params,
    rate_of,
    true_objective,
)
from torch import Tensor

from models.learners import LEARNERS
from models.learners.inner import Experience
from models.learners.meta_gradient import Trial
from models.types import Params, stack_params

WITHOUT_GRADIENT = {"reptile"}
"""Learners that follow no gradient of an objective; they have tests of their own."""

BASE = {
    "inner_learning_rate": 0.7,
    "normalise_advantages": False,
    "clip_ratio": None,
    "exploration_coefficient": 0.0,  # the credit of sampled episodes is checked where these are listed
}
VARIANTS: dict[str, dict[str, Any]] = {
    "one step": {},
    "two steps": {"inner_steps": 2},
    "three falling steps": {"inner_steps": 3, "inner_learning_rate": (0.9, 0.5, 0.2)},
    "every step counts": {"inner_steps": 3, "inner_learning_rate": (0.9, 0.5, 0.2), "intermediate_weight": 0.5},
    "entropy": {"inner_steps": 2, "entropy_coefficient": 0.3},
    "clipped": {"inner_steps": 2, "clip_ratio": 0.2},
    "layer rates": {"inner_steps": 2, "rates": "layer"},
    "proximal": {"inner_steps": 2, "outer_step": "promp", "inner_kl_penalty": 10.0},
    "trust region": {"inner_steps": 2, "outer_step": "trpo"},
    "plain dice": {"inner_steps": 2, "variance_reduction": False},
}
PROCESS = Process.random(tasks=3, states=3, actions=2, horizon=1, discount=0.9)


def cases() -> list[Any]:
    """Every learner with every variant that makes a difference to it."""
    found: dict[object, Any] = {}
    for name in LEARNERS:
        for variant, members in VARIANTS.items():
            config = configured(name, **BASE | members)
            if name not in WITHOUT_GRADIENT and config not in found:
                found[config] = pytest.param(name, BASE | members, id=f"{name}, {variant}")
    return list(found.values())


def true_gradient(
    learner: Any, process: Process, params: Params, steps: int, intermediate_weight: float = 0.0
) -> Tensor:
    """Finite differences of the mean over tasks of the true objective, for every number that the outer step moves."""
    tasks = torch.arange(len(process.reward))

    def objective(vectors: Tensor) -> Tensor:
        each = from_vectors(vectors.repeat_interleave(len(tasks), 0), params, learner.outer)
        chosen = process.select(tasks.repeat(len(vectors)))
        values = true_objective(learner, chosen, each, steps)
        if intermediate_weight:
            for fewer in range(1, steps):
                values = values + intermediate_weight * true_objective(learner, chosen, each, fewer)
        return values.detach().reshape(len(vectors), -1).mean(1)

    return differences(objective, as_vector(params, learner.outer))


@pytest.mark.parametrize(("name", "members"), cases())
def test_the_meta_gradient_is_that_of_the_true_return_after_exact_inner_steps(
    name: str, members: dict[str, Any]
) -> None:
    learner = built(name, PROCESS, **members)
    outer, steps = outer_loop(learner)
    params = random_params(learner)
    ours = outer.gradient(params, exact_trial(learner, PROCESS, params, steps))
    assert set(ours) == set(learner.outer)
    expected = true_gradient(learner, PROCESS, params, steps, members.get("intermediate_weight", 0.0) if steps else 0.0)
    torch.testing.assert_close(-as_vector(ours, learner.outer), expected, rtol=1e-6, atol=1e-9)
    assert all(bool(g.any()) for g in ours.values())


@pytest.mark.parametrize("name", [name for name in LEARNERS if name not in WITHOUT_GRADIENT])
def test_first_order_takes_the_inner_gradients_for_constants(name: str) -> None:
    members = BASE | {"inner_steps": 2, "inner_learning_rate": (0.9, 0.5), "entropy_coefficient": 0.3}
    learner = built(name, PROCESS, first_order=True, **members)
    outer, steps = outer_loop(learner)
    params = random_params(learner)
    ours = outer.gradient(params, exact_trial(learner, PROCESS, params, steps))
    leaves = {n: params[n].clone().requires_grad_() for n in learner.outer}
    copies = stack_params(params | leaves, len(PROCESS.reward))
    value = true_objective(learner, PROCESS, copies, steps, detach=True).mean()
    for n, g in zip(leaves, torch.autograd.grad(value, list(leaves.values()), materialize_grads=True), strict=True):
        torch.testing.assert_close(-ours[n], g)


LONGER = Process.random(tasks=2, states=2, actions=2, horizon=3, discount=0.8)


@pytest.mark.parametrize("variance_reduction", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_meta_gradient_of_dice_is_exact_over_many_decisions(steps: int, variance_reduction: bool) -> None:
    learner = built("dice", LONGER, **BASE | {"inner_steps": steps, "variance_reduction": variance_reduction})
    params = random_params(learner)
    ours = learner.meta_gradient.gradient(params, exact_trial(learner, LONGER, params, steps))  # type: ignore[attr-defined]
    expected = true_gradient(learner, LONGER, params, steps)
    torch.testing.assert_close(-as_vector(ours, learner.outer), expected, rtol=1e-6, atol=1e-9)


def test_the_likelihood_ratio_is_exact_over_one_decision_only() -> None:
    learner = built("maml", LONGER, **BASE)
    params = random_params(learner)
    ours = learner.meta_gradient.gradient(params, exact_trial(learner, LONGER, params, 1))  # type: ignore[attr-defined]
    expected = true_gradient(learner, LONGER, params, 1)
    assert float((as_vector(ours, learner.outer) + expected).norm() / expected.norm()) > 0.05


# Continuous actions cannot be listed: the estimator itself is written out again, task by task and row by row.


def gaussian(p: Params, x: Tensor, log_std: str) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation in one state."""
    for layer in range(2):
        z = x @ p[f"trunk.{layer}.weight"] + p[f"trunk.{layer}.bias"]
        x = torch.tanh(z + p["context"] @ p["trunk.0.context"] if layer == 0 and "context" in p else z)
    head = x @ p["policy.weight"] + p["policy.bias"]
    return (head, p["log_std"]) if log_std == "free" else (head[:ACTIONS], head[ACTIONS:])


def loop_loss(learner: Any, p: Params, e: Experience, task: int, objective: str) -> Tensor:
    """One task's loss, a mean over its real steps."""
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for episode in range(EPISODES):
        log_weight = torch.zeros((), dtype=torch.float64)
        for row in range(episode, TIME * EPISODES, EPISODES):
            if e.mask[task, row] == 0:
                break
            mean, log_std = gaussian(p, e.observation[task, row], learner.policy.config.log_std)
            z = (e.action[task, row] - mean) / log_std.exp()
            log_prob = (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum()
            before, log_weight = log_weight, log_weight + log_prob - e.log_prob[task, row]
            if objective == "ratio":
                gain = torch.exp(log_weight - before) * e.advantage[task, row]
            elif objective == "dice":
                gain = torch.exp(log_weight) * e.reward[task, row]
            else:
                gain = (log_weight.exp() - before.exp()) * e.advantage[task, row] * e.discount[task, row]
            entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
            total = total - gain - learner.config.entropy_coefficient * entropy
            count += 1
    return total / count


def loop_gradient(learner: Any, params: Params, support: list[Experience], query: Experience, objective: str) -> Params:
    """The meta-gradient, one task after the other."""
    mean = {name: torch.zeros_like(params[name]) for name in learner.outer}
    for task in range(TASKS):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        adapted = leaves
        for step, experience in enumerate(support):
            moving = {name: adapted[name] for name in learner.inner.adapts}
            loss = loop_loss(learner, adapted, experience, task, objective)
            gradients = torch.autograd.grad(loss, list(moving.values()), create_graph=True)
            rates = {n: rate_of(learner, {k: v.unsqueeze(0) for k, v in leaves.items()}, n, step) for n in moving}
            rates = {n: r[0] if isinstance(r, Tensor) else r for n, r in rates.items()}
            adapted = adapted | {n: x - rates[n] * g for (n, x), g in zip(moving.items(), gradients, strict=True)}
        loss = loop_loss(learner, adapted, query, task, "ratio")
        outer = [leaves[name] for name in learner.outer]
        for name, g in zip(learner.outer, torch.autograd.grad(loss, outer, materialize_grads=True), strict=True):
            mean[name] += g / TASKS
    return mean


@pytest.mark.parametrize("log_std", ["free", "state"])
@pytest.mark.parametrize(
    ("name", "members"),
    [(name, {}) for name in LEARNERS if name not in WITHOUT_GRADIENT]
    + [("dice", {"variance_reduction": False}), ("meta-sgd", {"rates": "layer"})],
)
def test_with_continuous_actions_the_meta_gradient_is_that_of_a_plain_loop(
    name: str, members: dict[str, Any], log_std: Literal["free", "state"]
) -> None:
    members = BASE | {"inner_steps": 2, "inner_learning_rate": (0.1, 0.05), "entropy_coefficient": 0.2} | members
    policy = gaussian_policy(log_std, context=2 if name == "cavia" else 0)
    learner = LEARNERS[name](configured(name, **members), policy)
    outer, steps = outer_loop(learner)
    params = {n: 0.3 * v if n != "context" else v for n, v in random_params(learner).items()}
    support, query = [gaussian_experience(step) for step in range(steps)], gaussian_experience(9)
    ours = outer.gradient(params, Trial(support, query, [], None, [], None))  # type: ignore[arg-type]
    objective = ("loaded" if learner.config.variance_reduction else "dice") if name == "dice" else "ratio"
    slow = loop_gradient(learner, params, support, query, objective)
    for n in learner.outer:
        torch.testing.assert_close(ours[n], slow[n], rtol=1e-9, atol=1e-12, msg=lambda m, n=n: f"{n}: {m}")
        assert bool(ours[n].any())
