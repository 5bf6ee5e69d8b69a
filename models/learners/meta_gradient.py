"""The gradient of what adapting achieves, with respect to where it started: shared by the learners that need it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, final

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from models import losses, optimiser, random
from models.learners.base import Diverged, EpisodicConfig, Learner, LearnerState, LearningRate, Metrics
from models.learners.inner import Experience, ratio_objective
from models.tasks import TaskBatch
from models.types import Params, Rollout, all_finite, stack_params


@dataclass(frozen=True, kw_only=True)
class OuterConfig(EpisodicConfig):
    """What every learner has whose outer step follows a gradient with Adam."""

    outer_learning_rate: Annotated[float, Gt(0), Le(1)] = 3e-3
    """Step size of Adam in the outer loop."""

    outer_epochs: Annotated[int, Ge(1), Le(100)] = 5
    """Adam updates on the same rollouts; more than one wants `clip_ratio`."""

    clip_ratio: Annotated[float, Gt(0), Le(1)] | None = 0.2
    """ε of the clipped outer objective (Schulman et al. 2017, eq. 7); null leaves the likelihood ratio as it is."""

    max_gradient_norm: Annotated[float, Gt(0), Le(1e6)] | None = 0.5
    """The outer gradient is scaled down to this Euclidean norm; null leaves it as it is."""


@dataclass(frozen=True, kw_only=True)
class MetaGradientConfig(OuterConfig):
    """What every learner has that differentiates through its inner loop."""

    inner_steps: Annotated[int, Ge(1), Le(20)] = 1
    """Gradient steps of the inner loop, each on episodes of its own."""

    inner_learning_rate: LearningRate = 0.1
    """α: step size of the inner loop, on the mean loss over a task's steps; a list gives one for each step, the last
    of which goes on."""

    intermediate_weight: Annotated[float, Ge(0), Le(100)] = 0.0
    """Weight in the outer objective of the return after each inner step but the last, whose weight is 1: adapting is
    then also good after fewer steps. It needs no further episodes (Antoniou et al. 2019, "How to train your MAML",
    section 4)."""

    first_order: bool = False
    """Drop the second derivatives from the meta-gradient (FOMAML, Finn et al. 2017, section 5.2)."""


@dataclass
class Part:
    """Some of the tasks: their copies of the initialisation, and what these were adapted to, with its graph.

    Attributes:
        rows: Which tasks.
        leaves: Their copies of the tensors that the outer step moves.
        adapted: All tensors of their policies.
        visited: The policies before each inner step, with their graph.
    """

    rows: slice
    leaves: Params
    adapted: Params
    visited: list[Params] = field(default_factory=list)


@dataclass
class Trial:
    """What one iteration gathered: support and query of N tasks, and the graphs of the first meta-gradient.

    Attributes:
        support: The experience of each inner step, in order.
        query: That of the adapted policies.
        support_rollouts: The episodes that `support` was made of.
        query_rollout: Those of `query`.
        policies: The N policies that collected each of `support`, and then those that collected `query`; constants.
        parts: Parts with their graphs, for one use; None where they would not fit in memory.
        memory: The learner's, for a further loss.
    """

    support: list[Experience]
    query: Experience
    support_rollouts: list[Rollout]
    query_rollout: Rollout
    policies: list[Params]
    parts: list[Part] | None
    memory: Params = field(default_factory=dict)

    def metrics(self) -> Metrics:
        """Mean returns before and after adapting, and the steps that it took."""
        first = self.support_rollouts[0] if self.support_rollouts else self.query_rollout
        rollouts = [*self.support_rollouts, self.query_rollout]
        return {
            "return_before": float(first.mean_return.mean()),
            "return_after": float(self.query_rollout.mean_return.mean()),
            "environment_steps": float(sum(rollout.environment_steps for rollout in rollouts)),
        }


OuterTerm = Callable[[Part, Trial], Tensor]
"""A further loss of a part's tasks, [n], which may use the part's visited and adapted policies."""


@final
class MetaGradient:
    """Gathers trials and differentiates through them; batched over tasks, in parts that fit the cache.

    Args:
        learner: Whose inner loop and experience it uses.
        config: How the outer objective is made; without an inner loop in it, of learning without adapting.
        term: What is added to the outer loss.
    """

    def __init__(self, learner: Learner[OuterConfig], config: OuterConfig, term: OuterTerm | None = None) -> None:
        self._learner = learner
        self._inner = learner.inner
        self._names = learner.outer
        self._clip = config.clip_ratio
        self._steps, self._first_order, self._intermediate = 0, False, 0.0
        if isinstance(config, MetaGradientConfig):
            self._steps, self._first_order = config.inner_steps, config.first_order
            self._intermediate = config.intermediate_weight
        self._term = term

    def sample(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> Trial:
        """Adapt to every task, gathering the experience of each inner step, and that of the adapted policies."""
        learner, support, rollouts, policies = self._learner, [], [], []
        rows = int(tasks.horizon.max()) * learner.config.episodes_per_task
        # Sampling needs the adapted policies, and the first meta-gradient the way they came about: one graph for both,
        # where it fits in memory.
        keep = learner.keeps(tasks)
        parts = [self._start(state.params, group) for group in self._inner.split(len(tasks), rows, keys.device)]
        for step in range(self._steps + 1):
            policies.append(_gather(parts))
            rollout = learner.collect(policies[-1], tasks, random.fold_in(keys, step), traced=keep)
            support.append(learner.experience(policies[-1], tasks.discount, rollout))
            rollouts.append(replace(rollout, trace=None))
            if step < self._steps:
                for part in parts:
                    self._descend(part, support[-1], step, keep)
                support[-1] = support[-1].without_trace()
        *support, query = support
        *rollouts, query_rollout = rollouts
        return Trial(support, query, rollouts, query_rollout, policies, parts if keep else None, state.memory)

    def gradient(self, params: Params, trial: Trial) -> Params:
        """Mean over tasks of the gradient of each task's loss after adapting, with respect to the initialisation.

            ∇θ 1/N Σ_n L_query(θ'_n),   θ'_n = θ - α ∇θ L_support(θ)   (repeated for every inner step)

        Exact through all inner steps, or with ∇θ θ'_n = 1 where it is first order. The graphs that sampling left are
        used up: another call adapts again, from ``params``.
        """
        parts: Iterable[Part] = trial.parts if trial.parts is not None else self.replay(params, trial, graph=True)
        query, trial.parts, trial.query = trial.query, None, trial.query.without_trace()
        total: Params = {}
        for part in parts:
            loss = self._inner.loss(part.adapted, query.select(part.rows), self._outer_objective)
            if self._intermediate:
                for visited, support in zip(part.visited[1:], trial.support[1:], strict=True):
                    now = self._inner.loss(visited, support.select(part.rows), self._outer_objective)
                    loss = loss + self._intermediate * now
            if self._term is not None:
                loss = loss + self._term(part, trial)
            gradient = torch.autograd.grad(loss.sum(), list(part.leaves.values()), materialize_grads=True)
            for name, g in zip(part.leaves, gradient, strict=True):
                # Task by task: a sum that does not depend on how tasks are divided into parts.
                for one in g:
                    total[name] = total[name] + one if name in total else one
            part.adapted, part.visited = {}, []  # let the graph go
        tasks = query.mask.shape[0]
        return {name: g / tasks for name, g in total.items()}

    def replay(self, params: Params, trial: Trial, *, graph: bool) -> Iterator[Part]:
        """Adapt again from other parameters, on the support as it is, part by part.

        Args:
            params: The initialisation.
            trial: Whose support to use.
            graph: Whether gradients are to flow back to each part's leaves.
        """
        for rows in self._inner.parts(trial.query):
            part = self._start(params, rows)
            for step, experience in enumerate(trial.support):
                self._descend(part, experience, step, graph)
            yield part

    def step(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> tuple[LearnerState, Metrics]:
        """An outer step by Adam: sample, and follow the gradient for as many epochs as the config says."""
        trial = self.sample(state, tasks, keys)
        params, adam, norm = self.follow(state, trial)
        return self.finish(LearnerState(params, adam, state.memory), tasks, trial), trial.metrics() | {
            "gradient_norm": norm
        }

    def follow(self, state: LearnerState, trial: Trial) -> tuple[Params, optimiser.AdamState, float]:
        """Epochs of Adam on one trial: the parameters, Adam's moments, and the last gradient's norm before clipping."""
        config, params, adam = self._learner.config, state.params, state.optimiser
        norm = torch.zeros(())
        for _ in range(config.outer_epochs):
            gradient = self.gradient(params, trial)
            norm = optimiser.global_norm(gradient)
            if config.max_gradient_norm is not None:
                gradient = optimiser.clip_norm(gradient, norm, config.max_gradient_norm)
            params, adam = optimiser.adam(params, gradient, adam, config.outer_learning_rate)
        return params, adam, float(norm)

    def finish(self, state: LearnerState, tasks: TaskBatch, trial: Trial) -> LearnerState:
        """The state with its value head and statistics brought up to date.

        Raises:
            Diverged: If a parameter is NaN or infinite.
        """
        if not all_finite(state.params):
            raise Diverged("the meta-gradient became NaN or infinite; a smaller learning rate may help")
        rollout = (trial.support_rollouts or [trial.query_rollout])[0]
        return replace(state, params=self._learner.refit(state.params, tasks.discount, rollout))

    def _start(self, params: Params, rows: slice) -> Part:
        """Some tasks at the initialisation, each with a copy of its own to take the gradient at."""
        start = {name: value.clone() for name, value in stack_params(params, rows.stop - rows.start).items()}
        return Part(rows, {name: start[name].requires_grad_() for name in self._names}, start)

    def _descend(self, part: Part, support: Experience, step: int, graph: bool) -> None:
        part.visited.append(part.adapted)
        second_order = graph and not self._first_order
        part.adapted = self._inner.descend(part.adapted, support.select(part.rows), step, second_order)
        if not graph:
            part.adapted = {name: value.detach() for name, value in part.adapted.items()}

    def _outer_objective(self, log_prob: Tensor, query: Experience) -> Tensor:
        if self._clip is None:
            return ratio_objective(log_prob, query)
        return losses.clipped_loss(log_prob, query.log_prob, query.advantage, query.mask, self._clip)


def _gather(parts: list[Part]) -> Params:
    return {name: torch.cat([part.adapted[name].detach() for part in parts]) for name in parts[0].adapted}
