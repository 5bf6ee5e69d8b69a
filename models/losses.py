"""Losses of many tasks at once: each returns one number a task, [N], a mean over that task's real steps.

Rows are steps of any order, ``M`` of them a task; ``mask`` is 1.0 for a real step and 0.0 for padding. A mean over
tasks is never taken here: it would divide every inner learning rate by N.
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


def clipped_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The proximal objective: the ratio counts only while it stays within [1 - clip, 1 + clip].

        L = -mean_t min( r_t A_t, clamp(r_t, 1 - ε, 1 + ε) A_t )

    Arguments as :func:`likelihood_ratio_loss`; ``clip`` is ε > 0.

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7.
    """
    ratio = torch.exp(log_prob - old_log_prob)
    return -masked_mean(torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage), mask)


def value_loss(value: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Half the mean squared error of the value head against return targets, [N]; targets are constants."""
    return 0.5 * masked_mean((value - target) ** 2, mask)
