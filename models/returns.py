"""Discounted returns, advantages and baselines, batched over tasks and episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from models.types import Params, Rollout, ShapeError


def _require_same(reward: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.shape != reward.shape:
            raise ShapeError(f"{name} is {tuple(other.shape)}, but reward is {tuple(reward.shape)}")


def discounted_returns(reward: Tensor, mask: Tensor, discount: Tensor) -> Tensor:
    """Reward-to-go of every step, discounted from that step on.

        G_t = r_t + γ G_{t+1},   G_T = 0

    Args:
        reward: [N, T, B], in the task's own reward units.
        mask: [N, T, B], 1.0 up to and including an episode's last step, then 0.0.
        discount: γ of each task, [N], in (0, 1].

    Returns:
        [N, T, B], zero where mask is zero; detached.

    Raises:
        ShapeError: If the leading axes disagree.

    Source: Sutton & Barto 2018, eq. 3.9.
    """
    _require_same(reward, mask=mask)
    return _backwards(reward * mask, discount).detach()


def generalised_advantages(
    reward: Tensor, mask: Tensor, value: Tensor, final_value: Tensor, discount: Tensor, decay: float
) -> Tensor:
    """Generalised advantage estimates.

        δ_t = r_t + γ V(s_{t+1}) - V(s_t),   A_t = δ_t + γλ A_{t+1}

    Args:
        reward: [N, T, B].
        mask: [N, T, B].
        value: V(s_t) of every step, [N, T, B].
        final_value: V after each episode's last step, [N, B]: zero where the episode terminated.
        discount: γ, [N].
        decay: λ in [0, 1]; 1 gives the return minus the value.

    Returns:
        [N, T, B], zero where mask is zero; detached.

    Raises:
        ShapeError: If the leading axes disagree.

    Source: Schulman et al. 2016, "High-dimensional continuous control using GAE", eq. 16.
    """
    _require_same(reward, mask=mask, value=value)
    gamma = discount.reshape(-1, 1, 1)
    value = value * mask
    last = mask - torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1) + last * final_value.unsqueeze(1)
    delta = (reward + gamma * following - value) * mask
    return _backwards(delta, discount * decay).detach()


def _backwards(x: Tensor, factor: Tensor) -> Tensor:
    """y_t = x_t + factor · y_{t+1} along axis 1."""
    by_step = x.transpose(0, 1).contiguous()
    factor = factor.unsqueeze(1)
    for t in range(by_step.shape[0] - 2, -1, -1):
        by_step[t].addcmul_(factor, by_step[t + 1])
    return by_step.transpose(0, 1)


def linear_baseline(rollout: Rollout, returns: Tensor, ridge: float = 1e-5) -> Tensor:
    """Least-squares fit of each task's returns on features of observation and time, [N, T, B].

    The features of step t are (o, o², τ, τ², τ³, 1) with o clipped to [-10, 10] and τ = t / 100; one fit for each task.

    Source: Duan et al. 2016, "Benchmarking deep RL for continuous control", section 4 of the supplement.
    """
    tasks, steps, episodes, _ = rollout.observation.shape
    observation = rollout.observation.clamp(-10.0, 10.0)
    time = (torch.arange(steps, dtype=observation.dtype, device=observation.device) / 100.0).reshape(1, -1, 1, 1)
    time = time.expand(tasks, steps, episodes, 1)
    x = torch.cat([observation, observation**2, time, time**2, time**3, torch.ones_like(time)], -1)
    x = x.reshape(tasks, steps * episodes, -1)
    fit = least_squares(x, returns.reshape(tasks, -1), rollout.mask.reshape(tasks, -1), ridge)
    return torch.bmm(x, fit.unsqueeze(-1)).reshape(tasks, steps, episodes)


def least_squares(x: Tensor, y: Tensor, weight: Tensor, ridge: float | Tensor) -> Tensor:
    """Coefficients [N, F] that minimise Σ w (x·c - y)² + ridge·|c|² for x [N, M, F], y and w [N, M], ridge [N, 1].

    The normal equations are solved in float64: features of time are nearly collinear.
    """
    weighted = (x * weight.unsqueeze(-1)).double().transpose(1, 2)
    gram = torch.bmm(weighted, x.double())
    gram.diagonal(dim1=1, dim2=2).add_(ridge)
    solution: Tensor = torch.linalg.solve(gram, torch.bmm(weighted, y.double().unsqueeze(-1)))
    return solution.squeeze(-1).to(x.dtype)


def fitted_value_head(features: Tensor, value: Tensor, mask: Tensor, shrinkage: float = 0.0) -> Params:
    """Value heads of N policies that give ``value`` of ``features`` as nearly as linear ones can, where ``mask`` is 1.

    Args:
        features: [N, M, H].
        value: [N, M].
        mask: [N, M].
        shrinkage: What a squared weight costs, of what a squared error of the mean row does. Without it, a head makes
            the most of the small differences between nearly collinear features, with weights in the hundreds.
    """
    x = torch.cat([features, torch.ones_like(features[..., :1])], -1)
    fit = least_squares(x, value, mask, 1e-3 + shrinkage * mask.sum(1, keepdim=True).double())
    return {"value.weight": fit[:, :-1].unsqueeze(-1), "value.bias": fit[:, -1:]}


def standardise(advantage: Tensor, mask: Tensor) -> Tensor:
    """Each task's advantages with mean 0 and standard deviation 1 over its real steps, [N, T, B]."""
    count = mask.sum((1, 2), keepdim=True)
    mean = (advantage * mask).sum((1, 2), keepdim=True) / count
    centred = (advantage - mean) * mask
    deviation = ((centred**2).sum((1, 2), keepdim=True) / count).sqrt()
    return centred / (deviation + 1e-8)
