"""E-MAML's meta-gradient: the mean over every set of support episodes that may be sampled is the true gradient."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from small_cases import (
    Process,
    as_vector,
    built,
    differences,
    exact_trial,
    from_vectors,
    outer_loop,
    random_params,
    table_of,
)
from torch import Tensor

from models.learners.inner import Experience
from models.learners.meta_gradient import Trial
from models.types import Params, stack_params

EPISODES, RATE = 2, 0.8
EXACT: dict[str, Any] = {
    "inner_learning_rate": RATE,
    "normalise_advantages": False,
    "baseline": "none",
    "episodes_per_task": EPISODES,
}


Episode = tuple[tuple[int, int], ...]  # a state and an action for each step


def sets_of(process: Process) -> list[tuple[Episode, ...]]:
    """Every pair of episodes."""
    _, states, actions = process.reward.shape
    steps = itertools.product(range(states), range(actions))
    return list(itertools.product(itertools.product(steps, repeat=process.horizon), repeat=EPISODES))


def probability(process: Process, table: Tensor, episodes: tuple[Episode, ...]) -> Tensor:
    """Of sampling just these, [N], when acting by ``table`` [N, S, A]."""
    chance = torch.ones_like(table[:, 0, 0])
    for episode in episodes:
        chance = chance / table.shape[1]
        for s, a in episode:
            chance = chance * table[:, s, a]
        for (s, a), (following, _) in itertools.pairwise(episode):
            chance = chance * process.transition[:, s, a, following]
    return chance


def returns_to_go(process: Process, episode: Episode) -> list[Tensor]:
    """The return from each step on, [N] each."""
    rewards = [process.reward[:, s, a] for s, a in episode]
    return [torch.stack(rewards[t:]).sum(0) for t in range(len(rewards))]


def sampled(process: Process, table: Tensor, sets: list[tuple[Episode, ...]]) -> Experience:
    """The experience of task n having sampled set n, with nothing subtracted from its returns."""
    listed = torch.tensor(sets).transpose(1, 2)  # [N, T, B, 2]
    states, actions = listed[..., 0], listed[..., 1]
    tasks = torch.arange(len(sets)).reshape(-1, 1, 1)
    reward = process.reward[tasks, states, actions]
    to_go = reward.flip(1).cumsum(1).flip(1)
    observation = torch.eye(process.reward.shape[1], dtype=torch.float64)[states]
    one = torch.ones_like(reward)
    fields = (observation, actions, table.detach().log()[tasks, states, actions], to_go, reward, one, one)
    return Experience(*(field.flatten(1, 2) for field in fields), EPISODES)


def true_return(params: Params, process: Process, names: list[str], steps: int) -> Tensor:
    """E[J(θ')], [M], over what M policies sample in M processes before each inner step."""
    table = table_of(params)
    if steps == 0:
        return process.expected_return(table)
    total = torch.zeros(len(table), dtype=torch.float64)
    for episodes in sets_of(process):
        leaves = {name: params[name].detach().requires_grad_() for name in names}
        acting = table_of(params | leaves)
        scores = [
            value * acting[:, s, a].log()
            for episode in episodes
            for (s, a), value in zip(episode, returns_to_go(process, episode), strict=True)
        ]
        loss = torch.stack(scores).mean(0).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        adapted = params | {n: leaves[n].detach() + RATE * g for n, g in zip(names, gradients, strict=True)}
        total = total + probability(process, table, episodes) * true_return(adapted, process, names, steps - 1)
    return total.detach()


def mean_gradient(learner: Any, process: Process, params: Params) -> Tensor:
    """The learner's meta-gradient, weighted by the probability of every way the tasks' support may turn out."""
    outer, steps = outer_loop(learner)
    total = torch.zeros_like(as_vector(params, learner.outer))

    def follow(current: Params, support: list[Experience], weight: float) -> None:
        nonlocal total
        table = table_of(current)
        if len(support) == steps:
            trial = Trial(support, process.experience(table), [], None, [], None)  # type: ignore[arg-type]
            total = total + weight * as_vector(outer.gradient(params, trial), learner.outer)
            return
        for sets in itertools.product(sets_of(process), repeat=len(table)):
            chance = 1.0
            for n, each in enumerate(sets):
                chance *= float(probability(process.select(torch.tensor([n])), table[n : n + 1], each))
            experience = sampled(process, table, list(sets))
            adapted = learner.inner.descend(current, experience, len(support), create_graph=False)
            detached = {name: value.detach() for name, value in adapted.items()}
            follow(detached, [*support, experience], weight * chance)

    follow(stack_params(params, len(process.reward)), [], 1.0)
    return total


@pytest.mark.parametrize(
    ("tasks", "states", "horizon", "steps"),
    [(1, 2, 1, 1), (2, 1, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2)],
    ids=["two states", "two tasks, each the other's baseline", "two decisions", "two inner steps"],
)
def test_the_mean_meta_gradient_over_all_supports_is_that_of_the_expected_return_after_adapting(
    tasks: int, states: int, horizon: int, steps: int
) -> None:
    process = Process.random(tasks, states, 2, horizon, discount=1.0, seed=3)
    learner = built("e-maml", process, inner_steps=steps, **EXACT)
    params = random_params(learner)
    ours = mean_gradient(learner, process, params)

    def objective(vectors: Tensor) -> Tensor:
        each = from_vectors(vectors.repeat_interleave(tasks, 0), params, learner.outer)
        many = process.select(torch.arange(tasks).repeat(len(vectors)))
        return true_return(each, many, learner.outer, steps).reshape(-1, tasks).mean(1) / horizon

    expected = differences(objective, as_vector(params, learner.outer))
    torch.testing.assert_close(-ours, expected, rtol=1e-6, atol=1e-9)


def test_maml_leaves_out_what_sampling_has_to_do_with_it() -> None:
    process = Process.random(1, 1, 2, 1, discount=1.0, seed=3)
    plain, crediting = (built(name, process, **EXACT) for name in ("maml", "e-maml"))
    params = random_params(plain)
    ours, right = (mean_gradient(learner, process, params) for learner in (plain, crediting))
    assert float((ours - right).norm() / right.norm()) > 0.05


def test_a_task_that_achieves_what_the_others_do_has_no_credit() -> None:
    one = Process.random(1, 2, 2, 1, discount=1.0, seed=3)
    process = one.select(torch.tensor([0, 0, 0]))
    gradients = []
    for coefficient in (1.0, 50.0):
        learner = built("e-maml", process, exploration_coefficient=coefficient, **EXACT)
        params = random_params(learner)
        trial = exact_trial(learner, process, params, 1)
        gradients.append(as_vector(outer_loop(learner)[0].gradient(params, trial), learner.outer))
    torch.testing.assert_close(gradients[0], gradients[1])
