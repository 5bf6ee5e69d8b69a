"""An outer step within a trust region: the natural meta-gradient, as far as the adapted policies may move.

Source: Schulman et al. 2015, "Trust region policy optimization", section 6 and appendix C, applied to the adapted
policies as in Finn, Abbeel & Levine 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from models import losses, optimiser
from models.learners.base import Diverged, Learner, Metrics
from models.learners.inner import Experience, ratio_objective
from models.learners.meta_gradient import MetaGradient, Trial
from models.learners.promp import mean_divergence
from models.types import Params, all_finite, stack_params

if TYPE_CHECKING:
    from models.learners.maml import MAMLConfig

_RESIDUAL = 0.05
"""Share of the gradient's norm that the natural gradient may leave unexplained."""

_SHORTER = 0.8
"""What is left of a step that went too far or did not help."""


@final
class TrustRegion:
    """One step of the initialisation θ along the natural gradient of the adapted policies' objective.

        max_s  -gᵀs   subject to  ½ sᵀ F s ≤ δ,      F = 1/N Σ_n J_nᵀ F_n J_n

    with g the meta-gradient, F_n the Fisher matrix of task n's adapted policy and J_n = ∇θ θ'_n, exact through all
    inner steps. F is never formed: F_n v is the gradient of a directional derivative of the divergence, and each inner
    step's share of J_n v is v - α ∇²L v, by differentiating twice.
    """

    def __init__(self, learner: Learner[Any], meta_gradient: MetaGradient, config: MAMLConfig) -> None:
        self._learner = learner
        self._meta_gradient = meta_gradient
        self._config = config

    def step(self, params: Params, trial: Trial) -> tuple[Params, Metrics]:
        """The initialisation after the step, unchanged where no step within the region helps.

        Returns:
            The parameters, and `gradient_norm`, `outer_kl` (nats) and `step_scale` (share of the full step; 0: none).

        Raises:
            Diverged: If the meta-gradient is NaN or infinite: no step would help, and the run would stand still.
        """
        config, query = self._config, trial.query
        with torch.no_grad():
            acted = self._learner.policy.features(trial.policies[-1], query.observation, query.trace)
            old_head = self._learner.policy.head(trial.policies[-1], acted)
        # Where it stands every likelihood ratio is 1.
        advantage = losses.masked_mean(query.advantage, query.mask)
        start = -float((advantage + self._entropy(trial.policies[-1], old_head, query)).mean())
        gradient = self._meta_gradient.gradient(params, trial)
        if not all_finite(gradient):
            raise Diverged("the meta-gradient became NaN or infinite; a smaller inner_learning_rate may help")
        metrics = {"gradient_norm": float(optimiser.global_norm(gradient)), "outer_kl": 0.0, "step_scale": 0.0}
        curvature = Curvature(self._learner, trial, config.curvature_share, config.damping)
        direction = conjugate_gradient(curvature.product, gradient, config.conjugate_gradient_steps, _RESIDUAL)
        length = float(_dot(direction, curvature.product(direction)))
        if not math.isfinite(length) or length <= 0:
            return params, metrics
        full = math.sqrt(2 * config.kl_limit / length)
        scale = 1.0
        for _ in range(config.line_search_steps):
            moved = params | {name: params[name] - scale * full * s for name, s in direction.items()}
            loss, divergence = self._evaluate(moved, trial, old_head)
            if loss < start and divergence <= config.kl_limit:
                return moved, metrics | {"outer_kl": divergence, "step_scale": scale}
            scale *= _SHORTER
        return params, metrics

    def _evaluate(self, params: Params, trial: Trial, old_head: Tensor) -> tuple[float, float]:
        """Mean over tasks of the adapted policies' loss, and of their divergence from those that acted."""
        policy, loss, divergence = self._learner.policy, 0.0, 0.0
        for part in self._meta_gradient.replay(params, trial, graph=False):
            query = trial.query.select(part.rows)
            old = {name: value[part.rows] for name, value in trial.policies[-1].items()}
            with torch.no_grad():
                head = policy.head(part.adapted, policy.features(part.adapted, query.observation))
                log_prob = policy.log_prob(part.adapted, head, query.action)
                loss += float((ratio_objective(log_prob, query) - self._entropy(part.adapted, head, query)).sum())
                moved = policy.divergence(old, old_head[part.rows], part.adapted, head)
                divergence += float(losses.masked_mean(moved, query.mask).sum())
        tasks = trial.query.mask.shape[0]
        return loss / tasks, divergence / tasks

    def _entropy(self, params: Params, head: Tensor, query: Experience) -> Tensor | float:
        """The entropy's share of the objective of N policies, [N]."""
        weight = self._config.entropy_coefficient
        return weight * losses.masked_mean(self._learner.policy.entropy(params, head), query.mask) if weight else 0.0


@final
class Curvature:
    """The matrix F + λ1 of :class:`TrustRegion` as a product, estimated from a share of each task's episodes.

    Args:
        learner: Whose inner loop the tasks were adapted by.
        trial: N tasks' support and query.
        share: Of the episodes, at least one.
        damping: λ.
    """

    def __init__(self, learner: Learner[Any], trial: Trial, share: float, damping: float) -> None:
        self._damping = damping
        self._tasks = trial.query.mask.shape[0]
        episodes = max(1, round(share * trial.query.episodes))
        support = [experience.first_episodes(episodes) for experience in trial.support]
        query = trial.query.first_episodes(episodes)
        first_order = learner.config.first_order
        rows = query.mask.shape[1]
        self._parts = [
            _PartCurvature(
                learner,
                [{name: value[group] for name, value in policies.items()} for policies in trial.policies],
                [] if first_order else [experience.select(group) for experience in support],
                query.select(group),
            )
            for group in learner.inner.split(self._tasks, rows, query.mask.device)
        ]

    def product(self, vector: Params) -> Params:
        """(F + λ1) v."""
        total = {name: torch.zeros_like(value) for name, value in vector.items()}
        for part in self._parts:
            for name, value in part.product(vector).items():
                total[name] += value
        return {name: value / self._tasks + self._damping * vector[name] for name, value in total.items()}


class _PartCurvature:
    """Σ_n J_nᵀ F_n J_n v of some tasks, by differentiating gradients that are worked out once."""

    def __init__(
        self, learner: Learner[Any], policies: list[Params], support: list[Experience], query: Experience
    ) -> None:
        self._names = learner.outer
        self._inner_steps = []
        for step, experience in enumerate(support):
            leaves = self._leaves(policies[step])
            loss = learner.inner.inner_loss(policies[step] | leaves, experience).sum()
            self._inner_steps.append((learner.inner.rate(step), *self._gradient(loss, leaves)))
        leaves = self._leaves(policies[-1])
        divergence = mean_divergence(learner.policy, policies[-1], policies[-1] | leaves, query).sum()
        self._divergence = self._gradient(divergence, leaves)

    def product(self, vector: Params) -> Params:
        u = [value.contiguous() for value in stack_params(vector, self._divergence[0][0].shape[0]).values()]
        for rate, leaves, gradient in self._inner_steps:
            u = [x - rate * h for x, h in zip(u, _along(gradient, leaves, u), strict=True)]
        u = _along(self._divergence[1], self._divergence[0], u)
        for rate, leaves, gradient in reversed(self._inner_steps):
            u = [x - rate * h for x, h in zip(u, _along(gradient, leaves, u), strict=True)]
        return {name: x.sum(0) for name, x in zip(self._names, u, strict=True)}

    def _leaves(self, params: Params) -> Params:
        return {name: params[name].detach().clone().requires_grad_() for name in self._names}

    @staticmethod
    def _gradient(loss: Tensor, leaves: Params) -> tuple[list[Tensor], list[Tensor]]:
        tensors = list(leaves.values())
        return tensors, list(torch.autograd.grad(loss, tensors, create_graph=True))


def _along(gradient: list[Tensor], leaves: list[Tensor], vector: list[Tensor]) -> list[Tensor]:
    """∇²L v: the derivative of the gradient along v, by differentiating a second time."""
    return list(torch.autograd.grad(gradient, leaves, vector, retain_graph=True, materialize_grads=True))


def conjugate_gradient(product: Callable[[Params], Params], b: Params, steps: int, tolerance: float = 1e-6) -> Params:
    """Solve A x = b for a positive definite A that is given as a product.

    Args:
        product: A times a vector.
        b: The right-hand side.
        steps: Most products.
        tolerance: It ends early where |b - A x| ≤ tolerance |b|.

    Source: Hestenes & Stiefel 1952, section 3.
    """
    x = {name: torch.zeros_like(value) for name, value in b.items()}
    residual, direction = dict(b), dict(b)
    square = _dot(b, b)
    least = float(square) * tolerance**2
    for _ in range(steps):
        if float(square) <= least:
            break
        along = product(direction)
        rate = square / _dot(direction, along)
        x = {name: x[name] + rate * direction[name] for name in x}
        residual = {name: residual[name] - rate * along[name] for name in x}
        next_square = _dot(residual, residual)
        direction = {name: residual[name] + (next_square / square) * direction[name] for name in x}
        square = next_square
    return x


def _dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()
