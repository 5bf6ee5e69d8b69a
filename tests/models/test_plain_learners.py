"""Reptile and multitask pre-training, which differentiate once: against plain loops over tasks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_cases import configured
from torch import Tensor

from models import random
from models.learners import LEARNERS
from models.policy import Policy, PolicyConfig
from models.rollout import collect
from models.tasks import TaskBatch, define_task
from models.types import Params, Rollout, stack_params

TASKS, EPISODES, STREAM = 3, 4, random.fold_in(random.key("plain"), torch.arange(3))
DISCOUNTS = (0.9, 0.8, 1.0)
both = pytest.mark.parametrize("environment", ["CartPole-v1", "Navigation2D-v0"])


def batch(environment: str) -> TaskBatch:
    parameter = {"Navigation2D-v0": "goal_x", "CartPole-v1": "length"}[environment]
    # Long enough for poles to fall: episodes are of uneven length.
    tasks = [define_task(environment, {parameter: 0.2 + 0.3 * n}, discount=DISCOUNTS[n], horizon=14) for n in range(3)]
    return TaskBatch.of(tasks, torch.float64)


def learner_for(name: str, tasks: TaskBatch, **members: Any) -> Any:
    policy = Policy(PolicyConfig((5, 4)), tasks.environment.observation_space, tasks.environment.action_space)
    plain = {"episodes_per_task": EPISODES, "baseline": "none", "normalise_advantages": False}
    return LEARNERS[name](configured(name, **plain | members), policy)


def episodes_of(learner: Any, params: Params, tasks: TaskBatch, task: int, step: int) -> Rollout:
    """What the policy does in one task alone, on that task's stream."""
    keys = random.fold_in(STREAM, step)[task : task + 1]
    return collect(learner.policy, stack_params(params, 1), tasks.select([task]), EPISODES, keys)


def log_prob(params: Params, observation: Tensor, action: Tensor, discrete: bool) -> Tensor:
    """Of one action in one state, the network written out."""
    x = observation
    for layer in range(2):
        x = torch.tanh(x @ params[f"trunk.{layer}.weight"] + params[f"trunk.{layer}.bias"])
    head = x @ params["policy.weight"] + params["policy.bias"]
    if discrete:
        return head[action] - head.exp().sum().log()
    z = (action - head) / params["log_std"].exp()
    return (-0.5 * z**2 - params["log_std"] - 0.5 * math.log(2 * math.pi)).sum()


def loop_loss(params: Params, rollout: Rollout, discount: float, discrete: bool, clip: float | None = None) -> Tensor:
    """Minus the mean over a task's steps of ratio times return from there, clipped or not."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for episode in range(EPISODES):
        length = int(rollout.mask[0, :, episode].sum())
        for t in range(length):
            to_go = sum(discount**k * float(rollout.reward[0, t + k, episode]) for k in range(length - t))
            at = (0, t, episode)
            ratio = torch.exp(
                log_prob(params, rollout.observation[at], rollout.action[at], discrete) - rollout.log_prob[at]
            )
            if clip is not None:
                ratio = min(ratio * to_go, ratio.clamp(1 - clip, 1 + clip) * to_go) / to_go if to_go else ratio
            total, count = total - ratio * to_go, count + 1
    return total / count


def gradient_of(learner: Any, params: Params, rollout: Rollout, discount: float, clip: float | None = None) -> Params:
    leaves = {name: params[name].clone().requires_grad_() for name in learner.outer}
    loss = loop_loss(params | leaves, rollout, discount, learner.policy.discrete, clip)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@both
@pytest.mark.parametrize("rates", [(0.05,), (0.05, 0.02)], ids=["one step", "two falling steps"])
def test_reptile_goes_a_share_of_the_way_to_where_a_plain_loop_over_tasks_adapts(
    rates: tuple[float, ...], environment: str
) -> None:
    tasks = batch(environment)
    learner = learner_for("reptile", tasks, inner_steps=len(rates), inner_learning_rate=rates, outer_learning_rate=0.4)
    state = learner.initialise(0, torch.float64)
    after, metrics = learner.outer_step(state, tasks, STREAM)
    ends = []
    for task, discount in enumerate(DISCOUNTS):
        params = state.params
        for step, rate in enumerate(rates):
            rollout = episodes_of(learner, params, tasks, task, step)
            gradient = gradient_of(learner, params, rollout, discount)
            params = params | {name: params[name] - rate * g for name, g in gradient.items()}
        ends.append(params)
    for name in learner.outer:
        way = torch.stack([end[name] for end in ends]).mean(0) - state.params[name]
        torch.testing.assert_close(after.params[name] - state.params[name], 0.4 * way, rtol=1e-8, atol=1e-12)
    assert after.optimiser is state.optimiser
    before = [episodes_of(learner, state.params, tasks, n, 0).mean_return for n in range(TASKS)]
    last = [episodes_of(learner, ends[n], tasks, n, len(rates)).mean_return for n in range(TASKS)]
    assert metrics["return_before"] == pytest.approx(float(torch.stack(before).mean()))
    assert metrics["return_after"] == pytest.approx(float(torch.stack(last).mean()))


@both
def test_one_step_of_reptile_moves_along_the_plain_policy_gradient(environment: str) -> None:
    tasks = batch(environment)
    learner = learner_for("reptile", tasks, inner_steps=1, inner_learning_rate=0.05, outer_learning_rate=0.4)
    state = learner.initialise(0, torch.float64)
    after, _ = learner.outer_step(state, tasks, STREAM)
    for name, gradient in mean_gradient(learner, state.params, tasks).items():
        step = after.params[name] - state.params[name]
        torch.testing.assert_close(step, -0.4 * 0.05 * gradient, rtol=1e-8, atol=1e-12)


def mean_gradient(learner: Any, params: Params, tasks: TaskBatch) -> Params:
    """The mean over tasks of their policy gradients at the initialisation."""
    rollouts = [episodes_of(learner, params, tasks, n, 0) for n in range(TASKS)]
    assert learner.policy.discrete == any(not bool(rollout.mask.all()) for rollout in rollouts)  # some poles fall
    each = [gradient_of(learner, params, r, d) for r, d in zip(rollouts, DISCOUNTS, strict=True)]
    return {name: torch.stack([g[name] for g in each]).mean(0) for name in learner.outer}


@both
def test_the_gradient_of_multitask_is_the_mean_of_the_tasks_policy_gradients(environment: str) -> None:
    tasks = batch(environment)
    learner = learner_for("multitask", tasks, outer_epochs=1, max_gradient_norm=None)
    state = learner.initialise(0, torch.float64)
    after, metrics = learner.outer_step(state, tasks, STREAM)
    expected = mean_gradient(learner, state.params, tasks)
    for name, gradient in expected.items():
        torch.testing.assert_close(after.optimiser.mean[name] / 0.1, gradient, rtol=1e-8, atol=1e-12)
    assert metrics["return_before"] == metrics["return_after"]
    assert metrics["gradient_norm"] == pytest.approx(float(torch.cat([g.flatten() for g in expected.values()]).norm()))


@both
def test_multitask_makes_clipped_epochs_of_adam_on_the_same_episodes(environment: str) -> None:
    tasks = batch(environment)
    members = {"outer_epochs": 3, "clip_ratio": 0.1, "max_gradient_norm": 0.5, "outer_learning_rate": 0.02}
    learner = learner_for("multitask", tasks, **members)
    state = learner.initialise(0, torch.float64)
    after, _ = learner.outer_step(state, tasks, STREAM)
    rollouts = [episodes_of(learner, state.params, tasks, n, 0) for n in range(TASKS)]
    leaves = {name: state.params[name].clone().requires_grad_() for name in learner.outer}
    adam = torch.optim.Adam(list(leaves.values()), lr=0.02)
    for _ in range(3):
        current = state.params | {name: leaf.detach() for name, leaf in leaves.items()}
        each = [gradient_of(learner, current, r, d, clip=0.1) for r, d in zip(rollouts, DISCOUNTS, strict=True)]
        for name, leaf in leaves.items():
            leaf.grad = torch.stack([g[name] for g in each]).mean(0)
        torch.nn.utils.clip_grad_norm_(list(leaves.values()), 0.5)
        adam.step()
    for name, leaf in leaves.items():
        # torch's clipping adds 1e-6 to the norm.
        torch.testing.assert_close(after.params[name], leaf.detach(), rtol=1e-5, atol=1e-7)


def test_multitask_adapts_as_maml_does() -> None:
    tasks = batch("CartPole-v1")
    adapted = []
    for name in ("multitask", "maml"):
        learner = learner_for(name, tasks, inner_learning_rate=0.3)
        params = stack_params(learner.initialise(0, torch.float64).params, TASKS)
        adapted.append(learner.inner_step(params, tasks, STREAM)[1])
    for name, value in adapted[0].items():
        assert torch.equal(value, adapted[1][name])
