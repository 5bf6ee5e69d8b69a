"""DiCE's derivatives of every order against those of the exact return, every trajectory listed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from small_cases import Process, differences
from torch import Tensor

from models.learners.dice import loaded_objective, plain_objective
from models.learners.inner import Experience, Objective, ratio_objective
from models.losses import dice_loss, loaded_dice_loss
from models.types import Rollout

STATES, ACTIONS, HORIZON = 2, 2, 3
PROCESS = Process.random(1, STATES, ACTIONS, HORIZON, discount=0.8, seed=5)
LOGITS = torch.tensor([0.3, -0.8, 0.5, 0.9], dtype=torch.float64)
DIRECTION = torch.tensor([0.2, -0.6, 1.0, 0.4], dtype=torch.float64)
BASELINE = torch.tensor([0.7, -1.3], dtype=torch.float64)


def table(logits: Tensor) -> Tensor:
    return logits.reshape(1, STATES, ACTIONS).softmax(-1)


def true_loss(logits: Tensor) -> Tensor:
    """Minus the exact return a decision."""
    return -PROCESS.expected_return(table(logits))[0] / HORIZON


def estimate(objective: Objective, baseline: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The estimator on all trajectories, sampled at ``LOGITS``, as a function of other logits."""
    experience = PROCESS.experience(table(LOGITS), baseline)
    state, action = experience.observation[0].argmax(1), experience.action[0]
    return lambda logits: objective(table(logits)[:, state, action].log(), experience)[0]


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.detach().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def hessian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(function, at)  # type: ignore[no-any-return, no-untyped-call]


def third_along(function: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor) -> Tensor:
    """Derivative of the Hessian along a direction."""
    leaf = at.detach().requires_grad_()
    first = torch.autograd.grad(function(leaf), leaf, create_graph=True)[0]
    second = torch.stack([torch.autograd.grad(g, leaf, create_graph=True)[0] for g in first])
    rows = [torch.autograd.grad(h, leaf, retain_graph=True)[0] @ direction for h in second.flatten()]
    return torch.stack(rows).reshape(second.shape)


def each(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda points: torch.stack([function(point) for point in points]).detach()


ESTIMATORS = [
    pytest.param(plain_objective, None, id="plain"),
    pytest.param(loaded_objective, torch.zeros(STATES, dtype=torch.float64), id="loaded"),
    pytest.param(loaded_objective, BASELINE, id="loaded, with a baseline"),
]


@pytest.mark.parametrize(("objective", "baseline"), ESTIMATORS)
def test_its_first_three_derivatives_are_those_of_the_expected_return(
    objective: Objective, baseline: Tensor | None
) -> None:
    ours = estimate(objective, baseline)
    width = 1e-5
    first = differences(each(true_loss), LOGITS, width)
    second = differences(each(lambda x: gradient(true_loss, x)), LOGITS, width)
    ends = [hessian(true_loss, LOGITS + sign * width * DIRECTION) for sign in (1, -1)]
    third = (ends[0] - ends[1]) / (2 * width)
    torch.testing.assert_close(gradient(ours, LOGITS), first, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(hessian(ours, LOGITS), second, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(third_along(ours, LOGITS, DIRECTION), third, rtol=1e-6, atol=1e-9)


def test_the_return_itself_is_that_of_any_policy_nearby() -> None:
    other = LOGITS + 0.3 * DIRECTION
    torch.testing.assert_close(estimate(plain_objective, None)(other), true_loss(other))


def test_the_likelihood_ratio_has_the_gradient_alone() -> None:
    # Its weights hold one action each: what an action makes of the actions after it is missing from the curvature.
    listed = PROCESS.experience(table(LOGITS))
    experience = dataclasses.replace(listed, advantage=listed.discount * listed.advantage)
    state, action = experience.observation[0].argmax(1), experience.action[0]
    ratio = lambda logits: ratio_objective(table(logits)[:, state, action].log(), experience)[0]  # noqa: E731
    torch.testing.assert_close(gradient(ratio, LOGITS), gradient(true_loss, LOGITS))
    truth = hessian(true_loss, LOGITS)
    assert float((hessian(ratio, LOGITS) - truth).norm() / truth.norm()) > 0.1


# One task, two episodes of three and one steps; the ratios of the first are 2, 3, 1/2, that of the second 5.
OLD = torch.zeros(1, 3, 2)
NEW = torch.log(torch.tensor([[[2.0, 5.0], [3.0, 7.0], [0.5, 7.0]]]))
GAIN = torch.tensor([[[1.0, 10.0], [4.0, 99.0], [8.0, 99.0]]])
MASK = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])


def test_rewards_are_weighted_by_all_ratios_so_far_and_padding_counts_for_nothing() -> None:
    # 2·1 + 6·4 + 3·8 + 5·10, over four steps.
    loss = dice_loss(NEW, OLD, GAIN * MASK, MASK)
    assert loss.tolist() == [pytest.approx(-100 / 4)]


def test_advantages_are_weighted_by_what_their_action_adds_to_the_ratios_so_far() -> None:
    # (2 - 1)·1 + (6 - 2)·4 + (3 - 6)·8 + (5 - 1)·10, over four steps.
    loss = loaded_dice_loss(NEW, OLD, GAIN * MASK, MASK)
    assert loss.tolist() == [pytest.approx(-33 / 4)]


def test_an_experience_discounts_its_rewards_from_the_first_step_of_an_episode() -> None:
    zero = torch.zeros(2, 3, 1)
    reward = torch.tensor([[[1.0], [1.0], [1.0]], [[2.0], [2.0], [0.0]]])
    rollout = Rollout(
        torch.zeros(2, 3, 1, 4), zero.long(), reward, zero + 1, zero, zero[:, 0] > 0, torch.zeros(2, 1, 4)
    )
    experience = Experience.of(rollout, advantage=7 * reward, discount=torch.tensor([0.5, 1.0]))
    assert experience.reward.tolist() == [[1.0, 0.5, 0.25], [2.0, 2.0, 0.0]]
    assert experience.discount.tolist() == [[1.0, 0.5, 0.25], [1.0, 1.0, 1.0]]
    assert experience.advantage.tolist() == [[7.0, 7.0, 7.0], [14.0, 14.0, 0.0]]
