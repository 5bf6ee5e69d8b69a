"""Decision processes so small that every trajectory can be listed, and what is exactly true of them.

The network, the returns and the adapting are written out a second time here, batched over (task, parameter vector)
pairs, so that finite differences of a true objective are one call. At the end, made-up Gaussian episodes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from models.learners import CONFIGS, LEARNERS, Learner
from models.learners.inner import RATE, Experience
from models.learners.meta_gradient import MetaGradient, Trial
from models.policy import Policy, PolicyConfig
from models.types import Params, stack_params


@dataclasses.dataclass(frozen=True)
class Process:
    """N decision processes with states that are seen as unit vectors; every state is equally likely at first.

    Attributes:
        reward: [N, S, A].
        transition: Probability of the next state, [N, S, A, S].
        discount: γ of all of them.
        horizon: Decisions of an episode.
    """

    reward: Tensor
    transition: Tensor
    discount: float
    horizon: int

    @staticmethod
    def random(tasks: int, states: int, actions: int, horizon: int, discount: float, seed: int = 0) -> Process:
        """Normal rewards and uneven transitions."""
        g = torch.Generator().manual_seed(seed)
        reward = torch.randn(tasks, states, actions, generator=g, dtype=torch.float64)
        logits = torch.randn(tasks, states, actions, states, generator=g, dtype=torch.float64)
        return Process(reward, logits.softmax(-1), discount, horizon)

    def policy(self, hidden: int = 4, context: int = 0) -> Policy:
        """An architecture for its spaces."""
        _, states, actions = self.reward.shape
        space = Box(-np.inf, np.inf, (states,), np.float32)
        return Policy(PolicyConfig((hidden,), context_size=context), space, Discrete(actions))

    def select(self, tasks: Tensor) -> Process:
        """The processes at these places, which may repeat."""
        return dataclasses.replace(self, reward=self.reward[tasks], transition=self.transition[tasks])

    def expected_return(self, table: Tensor) -> Tensor:
        """J, [N], of acting by π(a|s) = ``table`` [N, S, A]: state probabilities carried forward in time."""
        states = table.shape[1]
        reached = torch.full_like(table[..., 0], 1 / states)
        total = torch.zeros_like(reached[:, 0])
        for t in range(self.horizon):
            chosen = reached.unsqueeze(-1) * table
            total = total + self.discount**t * (chosen * self.reward).sum((1, 2))
            reached = torch.einsum("nsa,nsaz->nz", chosen, self.transition)
        return total

    def experience(self, table: Tensor, baseline: Tensor | None = None) -> Experience:
        """Every trajectory once, its reward and advantage weighted by its probability under ``table`` [N, S, A].

        The advantage of a step is the discounted return from there less ``baseline`` [S]. Weights have mean 1, so that
        a mean over rows is an expectation.
        """
        tasks, states, actions = self.reward.shape
        steps = list(itertools.product(range(states), range(actions)))
        listed = torch.tensor(list(itertools.product(steps, repeat=self.horizon)))  # [B, T, 2]
        state, action = listed[..., 0].T, listed[..., 1].T
        log_prob = table.detach().log()[:, state, action]
        moved = self.transition[:, state[:-1], action[:-1], state[1:]]
        weight = log_prob.sum(1).exp() * moved.prod(1) / states * len(listed)
        power = self.discount ** torch.arange(self.horizon, dtype=torch.float64).reshape(1, -1, 1)
        reward = power * self.reward[:, state, action]
        to_go = reward.flip(1).cumsum(1).flip(1) / power
        advantage = to_go if baseline is None else to_go - baseline[state]
        rows = lambda x: (x * torch.ones_like(log_prob)).flatten(1)  # noqa: E731
        return Experience(
            observation=torch.eye(states, dtype=torch.float64)[state].flatten(0, 1).expand(tasks, -1, -1),
            action=action.flatten().expand(tasks, -1),
            log_prob=rows(log_prob),
            advantage=rows(advantage * weight.unsqueeze(1)),
            reward=rows(reward * weight.unsqueeze(1)),
            mask=rows(torch.ones_like(log_prob)),
            discount=rows(power),
            episodes=len(listed),
        )


def table_of(params: Params) -> Tensor:
    """π(a|s) of N policies with one hidden layer, [N, S, A]."""
    bias = params["trunk.0.bias"]
    if "context" in params:
        bias = bias + torch.einsum("nc,nch->nh", params["context"], params["trunk.0.context"])
    hidden = torch.tanh(params["trunk.0.weight"] + bias.unsqueeze(1))
    return torch.softmax(hidden @ params["policy.weight"] + params["policy.bias"].unsqueeze(1), -1)


def as_vector(params: Params, names: list[str]) -> Tensor:
    return torch.cat([params[name].reshape(-1) for name in names])


def from_vectors(vectors: Tensor, like: Params, names: list[str]) -> Params:
    """M sets of tensors from the rows of [M, D]; those that are not named are as in ``like``."""
    params = stack_params(like, len(vectors))
    pieces = vectors.split([like[name].numel() for name in names], 1)
    return params | {n: p.reshape(-1, *like[n].shape) for n, p in zip(names, pieces, strict=True)}


def differences(function: Callable[[Tensor], Tensor], centre: Tensor, width: float = 1e-5) -> Tensor:
    """Central differences of f at a point [D], all coordinates in one call: f maps [M, D] to [M, ...]."""
    offsets = width * torch.eye(len(centre), dtype=centre.dtype)
    values = function(torch.cat([centre + offsets, centre - offsets]))
    return (values[: len(centre)] - values[len(centre) :]) / (2 * width)


def true_objective(learner: Learner[Any], process: Process, params: Params, steps: int, detach: bool = False) -> Tensor:
    """The return a decision, J / T, after exact inner steps of process n from initialisation n; entropy included.

    Args:
        learner: Says what adapts, at which rates, and what the entropy counts.
        process: M processes.
        params: M initialisations.
        steps: Inner steps.
        detach: Take the inner gradients for constants, as first-order learning does.
    """

    def objective(p: Params) -> Tensor:
        table = table_of(p)
        entropy = -(table * table.log()).sum(-1).mean(1)
        value = process.expected_return(table) / process.horizon
        return value + learner.config.entropy_coefficient * entropy

    for step in range(steps):
        names = learner.inner.adapts
        leaves = {name: params[name].requires_grad_() for name in names}
        loss = objective(params | leaves).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=detach)
        moved = {n: leaves[n] + rate_of(learner, params, n, step) * g for n, g in zip(names, gradients, strict=True)}
        params = params | (moved if detach else {name: value.detach() for name, value in moved.items()})
    return objective(params)


def rate_of(learner: Learner[Any], params: Params, name: str, step: int) -> Any:
    """The inner step size of a tensor, by what the configs say."""
    if learner.inner.learned == "parameter":
        return params[RATE + name]
    if learner.inner.learned == "layer":
        learned = params[RATE + name]
        column = learned[:, min(step, learned.shape[1] - 1)]
        return column.reshape(-1, *[1] * (params[name].dim() - 1))
    rate = learner.config.inner_learning_rate
    return rate[min(step, len(rate) - 1)] if isinstance(rate, tuple) else rate


def configured(name: str, **members: Any) -> Any:
    """A learner's config with those of the members that it has."""
    known = {field.name for field in dataclasses.fields(CONFIGS[name])}
    return CONFIGS[name](**{member: value for member, value in members.items() if member in known})  # type: ignore[arg-type]


def built(name: str, process: Process, **members: Any) -> Learner[Any]:
    """A learner for a process, with those of the members that its config has."""
    return LEARNERS[name](configured(name, **members), process.policy(context=3 if name == "cavia" else 0))


def random_params(learner: Learner[Any], seed: int = 0) -> Params:
    """An initialisation with nothing near zero but the context; rates between a half and one."""
    g = torch.Generator().manual_seed(seed)
    params = {}
    for name, shape in learner.shapes().items():
        if name.startswith(RATE):
            params[name] = 0.5 + 0.5 * torch.rand(shape, generator=g, dtype=torch.float64)
        else:
            params[name] = 0.8 * torch.randn(shape, generator=g, dtype=torch.float64)
    return params | {name: torch.zeros_like(value) for name, value in params.items() if name == "context"}


def outer_loop(learner: Learner[Any]) -> tuple[MetaGradient, int]:
    """What differentiates through a learner's inner loop, and the inner steps of its training."""
    if learner.config.name == "multitask":
        return learner.gradient, 0  # type: ignore[attr-defined]
    return learner.meta_gradient, learner.config.inner_steps  # type: ignore[attr-defined]


def exact_trial(learner: Learner[Any], process: Process, params: Params, steps: int) -> Trial:
    """The trial of endless episodes: every trajectory by its probability, in each inner step and after."""
    current = stack_params(params, len(process.reward))
    policies, support = [current], []
    for step in range(steps):
        support.append(process.experience(table_of(current)))
        current = learner.inner.descend(current, support[-1], step, create_graph=False)
        current = {name: value.detach() for name, value in current.items()}
        policies.append(current)
    query = process.experience(table_of(current))
    # The outer loss weighs every step alike; the true return weighs step t by γ^t.
    query = dataclasses.replace(query, advantage=query.discount * query.advantage)
    return Trial(support, query, [], None, policies, None, learner.initialise(0).memory)  # type: ignore[arg-type]


STATES, ACTIONS, TASKS, TIME, EPISODES = 3, 2, 3, 4, 5
"""Sizes of the Gaussian cases."""


def gaussian_policy(log_std: Literal["free", "state"], context: int) -> Policy:
    spaces = Box(-np.inf, np.inf, (STATES,), np.float32), Box(-1.0, 1.0, (ACTIONS,), np.float32)
    return Policy(PolicyConfig((5, 4), log_std=log_std, context_size=context), *spaces)


def gaussian_experience(seed: int) -> Experience:
    """Episodes of uneven length, as if another policy had acted."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(TASKS, TIME * EPISODES, *shape, generator=g, dtype=torch.float64)  # noqa: E731
    length = torch.randint(1, TIME + 1, (TASKS, 1, EPISODES), generator=g)
    mask = (torch.arange(TIME).reshape(1, -1, 1) < length).double().flatten(1)
    discount = (0.9 ** torch.arange(TIME, dtype=torch.float64)).repeat_interleave(EPISODES).expand(TASKS, -1)
    log_prob = -2.5 + 0.3 * normal()
    return Experience(normal(STATES), normal(ACTIONS), log_prob, normal(), normal(), mask, discount, EPISODES)
