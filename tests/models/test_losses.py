from __future__ import annotations

import math

import torch

from models.losses import clipped_loss, likelihood_ratio_loss, score_loss

OLD = torch.tensor([[math.log(0.5), math.log(0.2), 0.0]])
NEW = torch.tensor([[math.log(0.8), math.log(0.1), 0.0]])
ADVANTAGE = torch.tensor([[2.0, -3.0, 99.0]])
MASK = torch.tensor([[1.0, 1.0, 0.0]])


def test_likelihood_ratio_loss_is_minus_the_mean_weighted_advantage_of_real_steps() -> None:
    # -(1.6 · 2 + 0.5 · -3) / 2
    torch.testing.assert_close(likelihood_ratio_loss(NEW, OLD, ADVANTAGE, MASK), torch.tensor([-0.85]))


def test_clipping_takes_the_worse_of_the_clipped_and_the_free_ratio() -> None:
    # Gain: min(3.2, 1.2 · 2) = 2.4. Loss: min(-1.5, 0.8 · -3) = -2.4.
    torch.testing.assert_close(clipped_loss(NEW, OLD, ADVANTAGE, MASK, 0.2), torch.tensor([0.0]))


def test_its_gradient_is_the_policy_gradient_and_its_curvature_keeps_the_outer_product() -> None:
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    log_prob = torch.log(torch.sigmoid(theta)).reshape(1, 1)
    one = torch.ones(1, 1, dtype=torch.float64)
    loss = likelihood_ratio_loss(log_prob, log_prob.detach(), one, one)[0]
    first = torch.autograd.grad(loss, theta, create_graph=True)[0]
    second = torch.autograd.grad(first, theta)[0]
    p = 1 / (1 + math.exp(-0.3))
    # π''/π of the logistic function: (1 - p)(1 - 2p); the log form would give -p(1 - p).
    torch.testing.assert_close(first.detach(), torch.tensor(-(1 - p), dtype=torch.float64))
    torch.testing.assert_close(second, torch.tensor(-(1 - p) * (1 - 2 * p), dtype=torch.float64))


def test_the_score_loss_has_the_value_and_gradient_of_the_likelihood_ratio_but_not_its_outer_product() -> None:
    torch.testing.assert_close(score_loss(NEW, OLD, ADVANTAGE, MASK), torch.tensor([-0.85]))
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    log_prob = torch.log(torch.sigmoid(theta)).reshape(1, 1)
    one = torch.ones(1, 1, dtype=torch.float64)
    loss = score_loss(log_prob, log_prob.detach() - math.log(2), one, one)[0]
    first = torch.autograd.grad(loss, theta, create_graph=True)[0]
    second = torch.autograd.grad(first, theta)[0]
    p = 1 / (1 + math.exp(-0.3))
    # Twice that of log π, for the ratio is two.
    torch.testing.assert_close(first.detach(), torch.tensor(-2 * (1 - p), dtype=torch.float64))
    torch.testing.assert_close(second, torch.tensor(2 * p * (1 - p), dtype=torch.float64))
