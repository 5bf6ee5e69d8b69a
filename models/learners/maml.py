"""MAML: learn the parameters from which a few policy-gradient steps solve a new task.

Source: Finn, Abbeel & Levine 2017, "Model-agnostic meta-learning", algorithm 3; the clipped outer step over several
epochs is that of Rothfuss et al. 2019, "ProMP", algorithm 1, without its penalty on the inner divergence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from models import losses, optimiser, random, returns
from models.policy import Policy
from models.rollout import collect
from models.tasks import TaskBatch
from models.types import Params, Rollout, all_finite, stack_params

Metrics = dict[str, float]

_GRAPH_ACTIVATIONS = 100_000_000
"""Steps times hidden units up to which the graphs of all tasks are kept from adapting to the first meta-gradient."""

_ROWS_AT_ONCE = 8_000
"""Steps whose gradient is taken together: few enough that their activations stay in the processor's cache."""


class Diverged(ArithmeticError):
    """Training produced NaN or infinity; the state before that step is still good."""


@dataclass(frozen=True)
class MAMLConfig:
    """Hyperparameters of :class:`MAML`."""

    name: Literal["maml"] = "maml"

    inner_steps: Annotated[int, Ge(1), Le(20)] = 1
    """Gradient steps of the inner loop, each on episodes of its own."""

    inner_learning_rate: Annotated[float, Gt(0), Le(1000)] = 0.1
    """α: step size of the inner loop, on the mean loss over a task's steps."""

    first_order: bool = False
    """Drop the second derivatives from the meta-gradient (FOMAML, Finn et al. 2017, section 5.2)."""

    tasks_per_iteration: Annotated[int, Ge(1), Le(1000)] = 20
    """Tasks of one outer step."""

    episodes_per_task: Annotated[int, Ge(2), Le(1000)] = 20
    """Episodes of one task in each rollout: every inner step has one rollout, and the outer step another."""

    baseline: Literal["linear", "value"] = "linear"
    """What is subtracted from returns. `linear`: a fit on features of observation and time (Duan et al. 2016).
    `value`: the value head, fitted to the task's episodes on the trunk's features."""

    gae_decay: Annotated[float, Ge(0), Le(1)] = 1.0
    """λ of the generalised advantage estimate; 1 is the return minus the baseline."""

    normalise_advantages: bool = True
    """Give each task's advantages mean 0 and standard deviation 1."""

    entropy_coefficient: Annotated[float, Ge(0), Le(10)] = 0.0
    """Weight of the policy's entropy (nats) in both loops' objectives."""

    outer_learning_rate: Annotated[float, Gt(0), Le(1)] = 3e-3
    """Step size of Adam in the outer loop."""

    outer_epochs: Annotated[int, Ge(1), Le(100)] = 5
    """Adam updates on the same rollouts; more than one wants `clip_ratio`."""

    clip_ratio: Annotated[float, Gt(0), Le(1)] | None = 0.2
    """ε of the clipped outer objective; null leaves the likelihood ratio as it is."""

    max_gradient_norm: Annotated[float, Gt(0), Le(1e6)] | None = 0.5
    """The meta-gradient is scaled down to this Euclidean norm; null leaves it as it is."""


@dataclass(frozen=True)
class LearnerState:
    """All that an outer step changes: the initialisation and the outer optimiser's moments."""

    params: Params
    optimiser: optimiser.AdamState


@dataclass(frozen=True)
class Experience:
    """A rollout made ready for losses; rows are steps. Constants to every gradient.

    Attributes:
        observation: [N, M, O].
        action: [N, M] or [N, M, A].
        log_prob: [N, M], under the policy that acted.
        advantage: [N, M].
        mask: [N, M].
    """

    observation: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    mask: Tensor

    def select(self, rows: slice) -> Experience:
        """The experience of some of the tasks."""
        return Experience(
            self.observation[rows],
            self.action[rows],
            self.log_prob[rows],
            self.advantage[rows],
            self.mask[rows],
        )


@dataclass
class _Part:
    """Some of the tasks: their copies of the initialisation, and what these were adapted to, with its graph."""

    rows: slice
    leaves: Params
    adapted: Params


@final
class MAML:
    """Exact second-order MAML, batched over tasks."""

    def __init__(self, config: MAMLConfig, policy: Policy) -> None:
        self.config = config
        self.policy = policy
        self._trainable = [name for name in policy.trainable() if not name.startswith("value.")]

    def initialise(self, seed: int, dtype: torch.dtype = torch.float32) -> LearnerState:
        """A new policy's parameters and an optimiser that has made no step."""
        params = self.policy.initialise(seed, dtype)
        return LearnerState(params, optimiser.AdamState.initial({n: params[n] for n in self._trainable}))

    def outer_step(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> tuple[LearnerState, Metrics]:
        """One iteration: adapt to every task, then move the initialisation along the mean meta-gradient.

        Args:
            state: Before the step; left unchanged.
            tasks: N tasks.
            keys: [N] int64: all randomness of task n comes from stream n.

        Returns:
            The state after, and `return_before`, `return_after` (means over tasks, before and after adapting),
            `gradient_norm`, `environment_steps`.

        Raises:
            Diverged: If a parameter became NaN or infinite.
            NonFiniteReward: If a task's reward did.
        """
        support, rollouts = [], []
        # Sampling needs the adapted policies, and the first meta-gradient the way they came about: one graph for both,
        # where it fits in memory.
        steps = len(tasks) * self.config.episodes_per_task * int(tasks.horizon.max())
        keep = steps * sum(self.policy.config.hidden) <= _GRAPH_ACTIVATIONS
        parts = [self._start(state.params, rows) for rows in self._parts(tasks)]
        for step in range(self.config.inner_steps):
            policies = _gather(parts)
            rollouts.append(self._collect(policies, tasks, random.fold_in(keys, step)))
            support.append(self.experience(policies, tasks, rollouts[-1]))
            for part in parts:
                second_order = keep and not self.config.first_order
                part.adapted = self._descend(part.adapted, support[-1].select(part.rows), second_order)
                if not keep:
                    part.adapted = {name: value.detach() for name, value in part.adapted.items()}
        policies = _gather(parts)
        query_rollout = self._collect(policies, tasks, random.fold_in(keys, self.config.inner_steps))
        query = self.experience(policies, tasks, query_rollout)
        params, adam_state = state.params, state.optimiser
        for epoch in range(self.config.outer_epochs):
            kept = keep and epoch == 0
            gradient = self._gradient(parts, query) if kept else self.meta_gradient(params, support, query)
            norm = optimiser.global_norm(gradient)
            if self.config.max_gradient_norm is not None:
                gradient = optimiser.clip_norm(gradient, norm, self.config.max_gradient_norm)
            params, adam_state = optimiser.adam(params, gradient, adam_state, self.config.outer_learning_rate)
        if not all_finite(params):
            raise Diverged("the meta-gradient became NaN or infinite; a smaller learning rate may help")
        params = self._refit(params, tasks, rollouts[0])
        metrics = {
            "return_before": float(rollouts[0].mean_return.mean()),
            "return_after": float(query_rollout.mean_return.mean()),
            "gradient_norm": float(norm),
            "environment_steps": float(sum(r.environment_steps for r in [*rollouts, query_rollout])),
        }
        return LearnerState(params, adam_state), metrics

    def inner_step(
        self,
        params: Params,
        tasks: TaskBatch,
        keys: Tensor,
        episodes: int | None = None,
        rate: float | None = None,
    ) -> tuple[Rollout, Params]:
        """Collect support episodes with N policies and take one inner gradient step with each; no graph is kept.

        Args:
            params: N policies.
            tasks: N tasks.
            keys: [N] int64, the streams of the episodes.
            episodes: Of each task; by default the learner's number.
            rate: Step size; by default the learner's.

        Returns:
            The support rollout and the N adapted policies.
        """
        rollout = self._collect(params, tasks, keys, episodes)
        experience = self.experience(params, tasks, rollout)
        adapted = [
            self._descend({name: value[rows] for name, value in params.items()}, experience.select(rows), False, rate)
            for rows in self._parts(tasks, episodes)
        ]
        return rollout, {name: torch.cat([part[name].detach() for part in adapted]) for name in params}

    def experience(self, params: Params, tasks: TaskBatch, rollout: Rollout) -> Experience:
        """Advantages of a rollout by this learner's baseline, flattened to rows."""
        reward_to_go = returns.discounted_returns(rollout.reward, rollout.mask, tasks.discount)
        if self.config.baseline == "linear":
            value = returns.linear_baseline(rollout, reward_to_go)
        else:
            features = self._features(params, rollout)
            fit = self._fit_value(features, reward_to_go, rollout.mask)
            value = self.policy.value(fit, features).reshape(rollout.reward.shape)
        # An episode's horizon is part of its task: nothing is earned after it, so nothing is bootstrapped.
        final = torch.zeros_like(rollout.reward[:, 0])
        advantage = returns.generalised_advantages(
            rollout.reward, rollout.mask, value, final, tasks.discount, self.config.gae_decay
        )
        if self.config.normalise_advantages:
            advantage = returns.standardise(advantage, rollout.mask)
        return Experience(
            rollout.observation.flatten(1, 2),
            rollout.action.flatten(1, 2),
            rollout.log_prob.flatten(1, 2),
            advantage.flatten(1, 2),
            rollout.mask.flatten(1, 2),
        )

    def meta_gradient(self, params: Params, support: list[Experience], query: Experience) -> Params:
        """Mean over tasks of the gradient of each task's loss after adapting, with respect to the initialisation.

            ∇θ 1/N Σ_n L_query(θ'_n),   θ'_n = θ - α ∇θ L_support(θ)   (repeated for every inner step)

        Exact through all inner steps, or with ∇θ θ'_n = 1 where the learner is `first_order`.

        Args:
            params: The initialisation θ.
            support: The experience of each inner step, in order, of N tasks.
            query: Experience of the adapted policies in the same tasks.
        """
        parts = [self._start(params, rows) for rows in _split(query.mask.shape[0], query.mask.shape[1])]
        return self._gradient((self._replay(part, support) for part in parts), query)

    def fit_value(self, params: Params, tasks: TaskBatch, rollout: Rollout) -> Params:
        """N policies whose value heads are the least-squares fit to the episodes in ``rollout``."""
        reward_to_go = returns.discounted_returns(rollout.reward, rollout.mask, tasks.discount)
        return params | self._fit_value(self._features(params, rollout), reward_to_go, rollout.mask)

    def _collect(self, params: Params, tasks: TaskBatch, keys: Tensor, episodes: int | None = None) -> Rollout:
        return collect(self.policy, params, tasks, episodes or self.config.episodes_per_task, keys)

    def _parts(self, tasks: TaskBatch, episodes: int | None = None) -> list[slice]:
        return _split(len(tasks), int(tasks.horizon.max()) * (episodes or self.config.episodes_per_task))

    def _start(self, params: Params, rows: slice) -> _Part:
        """Some tasks at the initialisation, each with a copy of its own to take the gradient at."""
        start = {name: value.clone() for name, value in stack_params(params, rows.stop - rows.start).items()}
        leaves = {name: start[name].requires_grad_() for name in self._trainable}
        return _Part(rows, leaves, start)

    def _replay(self, part: _Part, support: list[Experience]) -> _Part:
        for experience in support:
            part.adapted = self._descend(part.adapted, experience.select(part.rows), not self.config.first_order)
        return part

    def _gradient(self, parts: Iterable[_Part], query: Experience) -> Params:
        """Mean over all tasks of the gradient of the query loss at the leaves."""
        total: Params = {}
        for part in parts:
            loss = self._loss(part.adapted, query.select(part.rows), self.config.clip_ratio).sum()
            gradient = torch.autograd.grad(loss, list(part.leaves.values()))
            for name, g in zip(part.leaves, gradient, strict=True):
                total[name] = total[name] + g.sum(0) if name in total else g.sum(0)
            part.adapted = {}  # let its graph go
        return {name: g / query.mask.shape[0] for name, g in total.items()}

    def _loss(self, params: Params, experience: Experience, clip: float | None) -> Tensor:
        head = self.policy.head(params, self.policy.features(params, experience.observation))
        log_prob = self.policy.log_prob(params, head, experience.action)
        surrogate = (log_prob, experience.log_prob, experience.advantage, experience.mask)
        loss = losses.likelihood_ratio_loss(*surrogate) if clip is None else losses.clipped_loss(*surrogate, clip)
        if self.config.entropy_coefficient:
            entropy = losses.masked_mean(self.policy.entropy(params, head), experience.mask)
            loss = loss - self.config.entropy_coefficient * entropy
        return loss

    def _descend(self, params: Params, experience: Experience, create_graph: bool, rate: float | None = None) -> Params:
        """One inner gradient step of each task; the gradient is of the tasks' *sum*, so the rate is not divided."""
        leaves = {name: params[name] for name in self._trainable}
        if not all(leaf.requires_grad for leaf in leaves.values()):
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        loss = self._loss(params | leaves, experience, None).sum()
        gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=create_graph)
        alpha = self.config.inner_learning_rate if rate is None else rate
        return params | {n: leaf - alpha * g for (n, leaf), g in zip(leaves.items(), gradient, strict=True)}

    @torch.no_grad()
    def _features(self, params: Params, rollout: Rollout) -> Tensor:
        return self.policy.features(params, rollout.observation.flatten(1, 2))

    @staticmethod
    def _fit_value(features: Tensor, reward_to_go: Tensor, mask: Tensor) -> Params:
        x = torch.cat([features, torch.ones_like(features[..., :1])], -1)
        fit = returns.least_squares(x, reward_to_go.flatten(1), mask.flatten(1), 1e-3)
        return {"value.weight": fit[:, :-1].unsqueeze(-1), "value.bias": fit[:, -1:]}

    def _refit(self, params: Params, tasks: TaskBatch, rollout: Rollout) -> Params:
        """The initialisation with a value head fitted to one episode of every task, and newer statistics."""
        reward_to_go = returns.discounted_returns(rollout.reward, rollout.mask, tasks.discount)[:, :, 0].reshape(1, -1)
        observation, mask = rollout.observation[:, :, 0], rollout.mask[:, :, 0].reshape(1, -1)
        flat = observation.reshape(1, -1, observation.shape[-1])
        with torch.no_grad():
            features = self.policy.features(stack_params(params, 1), flat)
        fit = self._fit_value(features, reward_to_go, mask)
        refitted = params | {name: value[0] for name, value in fit.items()}
        return self.policy.observe(refitted, rollout.observation, rollout.mask)


def _split(tasks: int, rows_per_task: int) -> list[slice]:
    size = max(1, _ROWS_AT_ONCE // rows_per_task)
    return [slice(i, min(i + size, tasks)) for i in range(0, tasks, size)]


def _gather(parts: list[_Part]) -> Params:
    return {name: torch.cat([part.adapted[name].detach() for part in parts]) for name in parts[0].adapted}
