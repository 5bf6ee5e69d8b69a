"""The meta-gradient, checked by finite differences of the true objective, by a plain loop, and against first order."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from models.learners import inner
from models.learners.inner import Experience
from models.learners.maml import MAML, MAMLConfig
from models.learners.meta_gradient import Trial
from models.policy import Policy, PolicyConfig
from models.types import Params, stack_params

CONFIG = MAMLConfig(inner_learning_rate=0.7, normalise_advantages=False, clip_ratio=None)
STATES, ACTIONS, TASKS = 3, 2, 4


def policy(hidden: tuple[int, ...] = (4,)) -> Policy:
    space = Box(-np.inf, np.inf, (STATES,), np.float32)
    return Policy(PolicyConfig(hidden=hidden), space, Discrete(ACTIONS))


def starting_params(architecture: Policy, seed: int = 0) -> Params:
    params = architecture.initialise(seed, torch.float64)
    # A near-uniform head would make first and second order nearly equal.
    return params | {"policy.weight": params["policy.weight"] * 100}


def as_vector(params: Params, names: list[str]) -> Tensor:
    return torch.cat([params[name].reshape(-1) for name in names])


def as_params(vector: Tensor, like: Params, names: list[str]) -> Params:
    pieces = vector.split([like[name].numel() for name in names])
    return dict(like) | {name: p.reshape(like[name].shape) for name, p in zip(names, pieces, strict=True)}


# A decision process whose every trajectory can be listed: one decision in each of three equally likely states.
REWARDS = torch.tensor(
    [
        [[1.0, -0.5], [0.3, 0.9], [0.0, 0.2]],
        [[-1.0, 0.5], [0.1, 0.4], [2.0, -1.0]],
        [[0.2, 0.1], [-0.3, 1.5], [0.7, 0.0]],
        [[0.0, 1.0], [1.0, 0.0], [-0.4, 0.6]],
    ],
    dtype=torch.float64,
)
LISTED = list(itertools.product(range(STATES), range(ACTIONS)))
OBSERVATIONS = torch.eye(STATES, dtype=torch.float64)[[s for s, _ in LISTED]]
CHOICES = torch.tensor([a for _, a in LISTED])


def expected_return(params: Params, rewards: Tensor) -> Tensor:
    """J(θ) of one task by summing over states and actions; two layers written out, nothing of the library."""
    hidden = torch.tanh(torch.eye(STATES, dtype=torch.float64) @ params["trunk.0.weight"] + params["trunk.0.bias"])
    probability = torch.softmax(hidden @ params["policy.weight"] + params["policy.bias"], -1)
    return (probability * rewards).sum() / STATES


def adapted_return(vector: Tensor, like: Params, names: list[str], rewards: Tensor, steps: int) -> Tensor:
    """J(θ') after exact gradient steps on J."""
    for _ in range(steps):
        leaf = vector.detach().requires_grad_()
        gradient = torch.autograd.grad(expected_return(as_params(leaf, like, names), rewards), leaf)[0]
        vector = vector.detach() + CONFIG.inner_learning_rate * gradient
    return expected_return(as_params(vector, like, names), rewards)


def enumerate_experience(learner: MAML, params: Params) -> Experience:
    """Every (state, action) once for each task, weighted by its probability under the tasks' policies."""
    observation = OBSERVATIONS.expand(TASKS, *OBSERVATIONS.shape)
    action = CHOICES.expand(TASKS, -1)
    with torch.no_grad():
        head = learner.policy.head(params, learner.policy.features(params, observation))
        log_prob = learner.policy.log_prob(params, head, action)
    advantage = REWARDS[:, [s for s, _ in LISTED], [a for _, a in LISTED]]
    weight = log_prob.exp() / STATES
    return Experience(observation, action, log_prob, advantage, advantage, weight, torch.ones_like(weight), len(LISTED))


def meta_gradient(learner: MAML, params: Params, support: list[Experience], query: Experience) -> Params:
    return learner.meta_gradient.gradient(params, Trial(support, query, [], None, [], None))  # type: ignore[arg-type]


def descend(learner: MAML, params: Params, experience: Experience) -> Params:
    adapted = learner.inner.descend(params, experience, 0, create_graph=False)
    return {name: value.detach() for name, value in adapted.items()}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_meta_gradient_equals_finite_differences_of_the_true_expected_return(steps: int) -> None:
    learner = MAML(CONFIG, policy())
    params, names = (
        starting_params(learner.policy),
        [n for n in learner.policy.trainable() if "value" not in n],
    )
    current, support = stack_params(params, TASKS), []
    for _ in range(steps):
        support.append(enumerate_experience(learner, current))
        current = descend(learner, current, support[-1])
    query = enumerate_experience(learner, current)
    ours = as_vector(meta_gradient(learner, params, support, query), names)

    centre, width = as_vector(params, names), 1e-5
    objective = lambda v: sum(adapted_return(v, params, names, r, steps) for r in REWARDS) / TASKS  # noqa: E731
    differences = torch.stack(
        [
            (objective(centre + width * e) - objective(centre - width * e)) / (2 * width)
            for e in torch.eye(len(centre)).double()
        ]
    )
    torch.testing.assert_close(-ours, differences, rtol=1e-6, atol=1e-9)


def random_experience(seed: int, rows: int = 30) -> Experience:
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    mask = (torch.rand(TASKS, rows, generator=g) > 0.2).double()
    action = torch.randint(0, ACTIONS, (TASKS, rows), generator=g)
    log_prob, advantage = -0.7 + 0.1 * normal(TASKS, rows), normal(TASKS, rows)
    return Experience(
        normal(TASKS, rows, STATES), action, log_prob, advantage, advantage, mask, torch.ones_like(mask), rows
    )


def loop_meta_gradient(params: Params, names: list[str], support: list[Experience], query: Experience) -> Params:
    """The same meta-gradient, one task after the other, with a layer loop of its own and no batching."""

    def loss(p: Params, e: Experience, task: int) -> Tensor:
        total, count = torch.zeros((), dtype=torch.float64), 0.0
        for row in range(e.mask.shape[1]):
            x = e.observation[task, row]
            for layer in range(2):
                x = torch.tanh(x @ p[f"trunk.{layer}.weight"] + p[f"trunk.{layer}.bias"])
            logits = x @ p["policy.weight"] + p["policy.bias"]
            log_prob = torch.log_softmax(logits, 0)[e.action[task, row]]
            weight = float(e.mask[task, row])
            total = total - weight * torch.exp(log_prob - e.log_prob[task, row]) * e.advantage[task, row]
            count += weight
        return total / count

    mean = {name: torch.zeros_like(params[name]) for name in names}
    for task in range(TASKS):
        leaves = {name: params[name].clone().requires_grad_() for name in names}
        adapted = dict(leaves)
        for experience in support:
            inner = torch.autograd.grad(loss(adapted, experience, task), list(adapted.values()), create_graph=True)
            adapted = {n: v - CONFIG.inner_learning_rate * g for (n, v), g in zip(adapted.items(), inner, strict=True)}
        outer = torch.autograd.grad(loss(adapted, query, task), list(leaves.values()))
        for name, g in zip(names, outer, strict=True):
            mean[name] += g / TASKS
    return mean


@pytest.mark.parametrize("rows_at_once", [1, 60, 10_000], ids=["task by task", "two tasks", "all tasks"])
def test_meta_gradient_equals_a_plain_loop_over_tasks_however_it_is_chunked(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner, "ROWS_AT_ONCE", rows_at_once)
    learner = MAML(CONFIG, policy((5, 4)))
    params, names = (
        starting_params(learner.policy),
        [n for n in learner.policy.trainable() if "value" not in n],
    )
    support, query = [random_experience(1), random_experience(2)], random_experience(3)
    ours = meta_gradient(learner, params, support, query)
    slow = loop_meta_gradient(params, names, support, query)
    for name in names:
        torch.testing.assert_close(ours[name], slow[name], rtol=1e-9, atol=1e-12)


def test_first_order_differs_from_second_order_and_is_the_gradient_at_the_adapted_parameters() -> None:
    architecture = policy()
    params = starting_params(architecture)
    support, query = [random_experience(1)], random_experience(2)
    second = meta_gradient(MAML(CONFIG, architecture), params, support, query)
    learner = MAML(dataclasses.replace(CONFIG, first_order=True), architecture)
    first = meta_gradient(learner, params, support, query)
    assert max(float((first[n] - second[n]).abs().max()) for n in first) > 1e-3

    adapted = descend(learner, stack_params(params, TASKS), support[0])
    leaves = {n: adapted[n].detach().requires_grad_() for n in first}
    loss = learner.inner.inner_loss(adapted | leaves, query).sum()
    for name, g in zip(first, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        torch.testing.assert_close(first[name], g.mean(0))


def test_inner_learning_rate_does_not_shrink_with_the_number_of_tasks() -> None:
    learner = MAML(CONFIG, policy())
    params = stack_params(starting_params(learner.policy), TASKS)
    experience = random_experience(5)
    together = descend(learner, params, experience)
    alone = descend(learner, {n: v[:1] for n, v in params.items()}, experience.select(slice(0, 1)))
    torch.testing.assert_close(together["policy.weight"][:1], alone["policy.weight"])
