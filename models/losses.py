"""Losses of many tasks at once: each returns one number a task, [N], a mean over that task's real steps.

Rows are steps, ``M`` of them a task; ``mask`` is 1.0 for a real step and 0.0 for padding. A mean over tasks is never
taken here: it would divide every inner learning rate by N.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` [N, M] over the rows where ``mask`` is 1, [N]."""
    return (x * mask).sum(1) / mask.sum(1)


def likelihood_ratio_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """Minus the importance-weighted advantage.

        L = -mean_t [ π(a_t|s_t) / π_old(a_t|s_t) · A_t ]

    Unlike -mean [log π · A], its second derivative keeps the term ∇log π ∇log πᵀ A, which exact second-order adaptation
    needs. Gradients flow through ``log_prob`` alone.

    Args:
        log_prob: [N, M], under the policy being learned.
        old_log_prob: [N, M], under the policy that acted; a constant.
        advantage: [N, M]; a constant.
        mask: [N, M].

    Source: Rothfuss et al. 2019, "ProMP", eq. 8 (the low-variance curvature surrogate).
    """
    return -masked_mean(torch.exp(log_prob - old_log_prob) * advantage, mask)


def score_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """A loss with the value and the gradient of :func:`likelihood_ratio_loss`, of which the actions are a constant too.

        L = -mean_t [ ρ_t (log π(a_t|s_t) - log π(a_t|s_t) + 1) A_t ],   ρ_t = π(a_t|s_t) / π_old(a_t|s_t)

    Gradients flow through the first logarithm alone, so the second derivative is that of log π · A: that actions would
    be sampled otherwise by another policy is left to whoever accounts for it. Arguments as there.

    Source: Rothfuss et al. 2019, "ProMP", section 4, formulation II.
    """
    ratio = torch.exp(log_prob - old_log_prob).detach()
    return -masked_mean(ratio * (log_prob - log_prob.detach() + 1.0) * advantage, mask)


def clipped_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The proximal objective: the ratio counts only while it stays within [1 - clip, 1 + clip].

        L = -mean_t min( r_t A_t, clamp(r_t, 1 - ε, 1 + ε) A_t )

    Arguments as :func:`likelihood_ratio_loss`; ``clip`` is ε > 0.

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7.
    """
    ratio = torch.exp(log_prob - old_log_prob)
    return -masked_mean(torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage), mask)


def dice_loss(log_prob: Tensor, old_log_prob: Tensor, discounted_reward: Tensor, mask: Tensor) -> Tensor:
    """Minus the return, each reward weighted by the likelihood ratio of all actions that led to it.

        L = -1/T Σ_t γ^t r_t Π_{u≤t} [ π(a_u|s_u) / π_old(a_u|s_u) ]

    Its derivatives of every order are unbiased estimates of those of the expected return, divided by the mean length T
    of an episode, which makes the first equal in scale to :func:`likelihood_ratio_loss`.

    Args:
        log_prob: [N, T, B], under the policy being learned.
        old_log_prob: [N, T, B], under the policy that acted; a constant.
        discounted_reward: γ^t r_t, [N, T, B]; a constant.
        mask: [N, T, B].

    Source: Foerster et al. 2018, "DiCE: the infinitely differentiable Monte Carlo estimator", eq. 5; the stored
    log-probabilities take the place of the operator that stops gradients.
    """
    weight = torch.exp(((log_prob - old_log_prob) * mask).cumsum(1))
    return -masked_mean((weight * discounted_reward).flatten(1), mask.flatten(1))


def loaded_dice_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """DiCE with a baseline: of an action's ratio, only what it adds to the ratios before it counts.

        L = -1/T Σ_t A_t ( Π_{u≤t} ρ_u - Π_{u<t} ρ_u ),   ρ_u = π(a_u|s_u) / π_old(a_u|s_u)

    With ``advantage`` = γ^t (G_t - b(s_t)) of whole returns G its derivatives of every order are those of
    :func:`dice_loss` in expectation, at a lower variance. Arguments as there; ``advantage`` is [N, T, B].

    Source: Farquhar, Whiteson & Foerster 2019, "Loaded DiCE", eq. 12, without its second discount.
    """
    log_ratio = (log_prob - old_log_prob) * mask
    upto = log_ratio.cumsum(1)
    gained = torch.exp(upto) - torch.exp(upto - log_ratio)
    return -masked_mean((gained * advantage).flatten(1), mask.flatten(1))
