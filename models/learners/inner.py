"""The inner loop: gradient steps of N tasks at once, each on its own episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, final

import torch
from torch import Tensor

from models import losses
from models.policy import Policy
from models.types import Params, Rollout

ROWS_AT_ONCE = 8_000
"""Steps whose gradient a processor takes together: few enough that their activations stay in its cache."""

RATE = "inner_rate."
"""What names of learned inner rates begin with; the name of the tensor they are for follows."""


@dataclass(frozen=True)
class Experience:
    """A rollout made ready for losses; rows are steps, row t·B + b being step t of episode b. Constants to gradients.

    Attributes:
        observation: [N, M, O].
        action: [N, M] or [N, M, A].
        log_prob: [N, M], under the policy that acted.
        advantage: [N, M].
        reward: γ^t r_t, [N, M].
        mask: [N, M].
        discount: γ^t, [N, M].
        episodes: B.
        trace: What each hidden layer of the policies that acted gave, [N, M, H_i]; None where it was not kept, or no
            longer holds for the policies at hand.
    """

    observation: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    reward: Tensor
    mask: Tensor
    discount: Tensor
    episodes: int
    trace: tuple[Tensor, ...] | None = None

    @staticmethod
    def of(rollout: Rollout, advantage: Tensor, discount: Tensor) -> Experience:
        """A rollout's experience, given its advantages [N, T, B] and each task's discount γ [N]."""
        time = torch.arange(advantage.shape[1], dtype=advantage.dtype, device=advantage.device)
        power = (discount.reshape(-1, 1, 1) ** time.reshape(1, -1, 1)).expand_as(advantage)
        return Experience(
            observation=rollout.observation.flatten(1, 2),
            action=rollout.action.flatten(1, 2),
            log_prob=rollout.log_prob.flatten(1, 2),
            advantage=advantage.flatten(1, 2),
            reward=(power * rollout.reward).flatten(1, 2),
            mask=rollout.mask.flatten(1, 2),
            discount=power.flatten(1, 2),
            episodes=advantage.shape[2],
            trace=None if rollout.trace is None else tuple(x.flatten(1, 2) for x in rollout.trace),
        )

    def without_trace(self) -> Experience:
        """The same, for policies other than those that acted."""
        return replace(self, trace=None)

    def select(self, rows: slice) -> Experience:
        """The experience of some of the tasks."""
        return self._map(lambda x: x[rows])

    def first_episodes(self, count: int) -> Experience:
        """The first ``count`` episodes of every task."""
        taken = self._map(lambda x: self.by_time(x)[:, :, :count].flatten(1, 2))
        return replace(taken, episodes=count)

    def by_time(self, x: Tensor) -> Tensor:
        """Rows [N, M, ...] as [N, T, B, ...]."""
        return x.reshape(x.shape[0], -1, self.episodes, *x.shape[2:])

    def _map(self, function: Callable[[Tensor], Tensor]) -> Experience:
        tensors: dict[str, Any] = {
            each.name: function(getattr(self, each.name)) for each in fields(self) if each.type == "Tensor"
        }
        tensors["trace"] = None if self.trace is None else tuple(map(function, self.trace))
        return replace(self, **tensors)


Objective = Callable[[Tensor, Experience], Tensor]
"""Loss of each task, [N], from the log-probabilities [N, M] of the experience's actions."""


def ratio_objective(log_prob: Tensor, experience: Experience) -> Tensor:
    """The likelihood-ratio loss (:func:`models.losses.likelihood_ratio_loss`)."""
    return losses.likelihood_ratio_loss(log_prob, experience.log_prob, experience.advantage, experience.mask)


@final
class InnerUpdate:
    """One gradient step of N policies, with rates that are given or learned.

    Args:
        policy: The architecture.
        adapts: Names of the tensors that it moves.
        rate: Step size, or one for each step, the last of which goes on; where rates are learned, their first value.
        entropy_coefficient: Weight of the entropy in the objective.
        objective: What it descends, entropy aside.
        learned: `parameter`: every number has a learned rate of its own. `layer`: every tensor has one for each of
            ``steps`` steps; further steps take the last. None: rates are given.
        steps: Inner steps of training.
        max_tasks: Most tasks that are worked on together.
    """

    def __init__(
        self,
        policy: Policy,
        adapts: Sequence[str],
        rate: float | tuple[float, ...],
        entropy_coefficient: float = 0.0,
        objective: Objective = ratio_objective,
        learned: Literal["parameter", "layer"] | None = None,
        steps: int = 1,
        max_tasks: int | None = None,
    ) -> None:
        self.policy = policy
        self.adapts = list(adapts)
        self.learned = learned
        self._rate = rate
        self._entropy_coefficient = entropy_coefficient
        self._objective = objective
        self._steps = steps
        self._max_tasks = max_tasks

    def rate_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every learned rate; empty where they are given."""
        if self.learned is None:
            return {}
        shapes = self.policy.shapes()
        return {RATE + n: shapes[n] if self.learned == "parameter" else (self._steps,) for n in self.adapts}

    def initial_rates(self, dtype: torch.dtype, device: torch.device | str | None) -> Params:
        """Learned rates as they are before training."""
        rates: Params = {}
        for name, shape in self.rate_shapes().items():
            by_step = [rate_at(self._rate, step) for step in range(self._steps)]
            value = torch.tensor(by_step if self.learned == "layer" else by_step[0], dtype=dtype, device=device)
            rates[name] = value.expand(shape).clone()
        return rates

    def parts(self, experience: Experience) -> list[slice]:
        """The tasks in groups that are worked on together."""
        tasks, rows = experience.mask.shape
        return self.split(tasks, rows, experience.mask.device)

    def split(self, tasks: int, rows_per_task: int, device: torch.device) -> list[slice]:
        """``tasks`` tasks of so many rows each, in groups that are worked on together."""
        size = tasks if device.type != "cpu" else max(1, ROWS_AT_ONCE // rows_per_task)
        size = min(size, self._max_tasks or size)
        return [slice(i, min(i + size, tasks)) for i in range(0, tasks, size)]

    def loss(self, params: Params, experience: Experience, objective: Objective) -> Tensor:
        """An objective of N policies on their experience, less the entropy's share, [N]."""
        head = self.policy.head(params, self.policy.features(params, experience.observation, experience.trace))
        loss = objective(self.policy.log_prob(params, head, experience.action), experience)
        if self._entropy_coefficient:
            entropy = losses.masked_mean(self.policy.entropy(params, head), experience.mask)
            loss = loss - self._entropy_coefficient * entropy
        return loss

    def inner_loss(self, params: Params, experience: Experience) -> Tensor:
        """What a step descends: the inner objective of N policies, [N]."""
        return self.loss(params, experience, self._objective)

    def rate(self, step: int) -> float:
        """The given step size of a step, from 0."""
        return rate_at(self._rate, step)

    def descend(
        self,
        params: Params,
        experience: Experience,
        step: int,
        create_graph: bool,
        rate: float | tuple[float, ...] | None = None,
    ) -> Params:
        """One gradient step of each task; the gradient is of the tasks' *sum*, so the rate is not divided.

        Args:
            params: N policies, with learned rates where there are any.
            experience: Of these policies in their N tasks.
            step: Which inner step it is, from 0.
            create_graph: Whether derivatives flow through the gradient itself.
            rate: In place of the given rates.
        """
        leaves = {n: params[n] if params[n].requires_grad else params[n].detach().requires_grad_() for n in self.adapts}
        loss = self.inner_loss(params | leaves, experience).sum()
        gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=create_graph)
        rates = [self._rate_of(name, params, step, rate) for name in leaves]
        return params | {n: x - a * g for (n, x), a, g in zip(leaves.items(), rates, gradient, strict=True)}

    def _rate_of(self, name: str, params: Params, step: int, rate: float | tuple[float, ...] | None) -> float | Tensor:
        if rate is not None or self.learned is None:
            return rate_at(self._rate if rate is None else rate, step)
        learned = params[RATE + name]
        if self.learned == "parameter":
            return learned
        return learned[:, min(step, self._steps - 1)].reshape(-1, *[1] * (params[name].dim() - 1))


def rate_at(rate: float | tuple[float, ...], step: int) -> float:
    """The rate of a step, from 0."""
    return rate[min(step, len(rate) - 1)] if isinstance(rate, tuple) else rate
