from __future__ import annotations

import pytest
import torch

from models.returns import (
    discounted_returns,
    generalised_advantages,
    least_squares,
    linear_baseline,
    standardise,
)
from models.types import Rollout, ShapeError

REWARD = torch.tensor([[[1.0, 1.0], [2.0, 5.0], [4.0, 9.0]]])
MASK = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])


def test_returns_are_discounted_from_each_step_on_and_end_with_the_episode() -> None:
    got = discounted_returns(REWARD, MASK, torch.tensor([0.5]))
    assert got.tolist() == [[[3.0, 1.0], [4.0, 0.0], [4.0, 0.0]]]


def test_each_task_has_its_own_discount() -> None:
    got = discounted_returns(REWARD.expand(2, -1, -1), MASK.expand(2, -1, -1), torch.tensor([0.5, 1.0]))
    assert got[:, 0, 0].tolist() == [3.0, 7.0]


def test_advantages_equal_the_sum_of_discounted_residuals() -> None:
    value = torch.tensor([[[0.5, 2.0], [1.0, 0.0], [3.0, 0.0]]])
    final = torch.tensor([[10.0, 0.0]])
    gamma, decay = 0.9, 0.7
    got = generalised_advantages(REWARD, MASK, value, final, torch.tensor([gamma]), decay)
    residuals = [1 + gamma * 1 - 0.5, 2 + gamma * 3 - 1, 4 + gamma * 10 - 3]
    expected = [sum((gamma * decay) ** (k - t) * residuals[k] for k in range(t, 3)) for t in range(3)]
    torch.testing.assert_close(got[0, :, 0], torch.tensor(expected))
    torch.testing.assert_close(got[0, :, 1], torch.tensor([1.0 - 2.0, 0.0, 0.0]))


def test_full_decay_gives_the_return_minus_the_value() -> None:
    value = torch.tensor([[[0.5, 2.0], [1.0, 7.0], [3.0, 7.0]]])
    got = generalised_advantages(REWARD, MASK, value, torch.zeros(1, 2), torch.tensor([0.9]), 1.0)
    torch.testing.assert_close(got, (discounted_returns(REWARD, MASK, torch.tensor([0.9])) - value) * MASK)


def test_shapes_that_disagree_are_refused_by_name() -> None:
    with pytest.raises(ShapeError, match="mask"):
        discounted_returns(REWARD, MASK[:, :2], torch.tensor([0.5]))


def test_standardised_advantages_have_mean_zero_and_deviation_one_over_real_steps() -> None:
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7).reshape(1, 7, 1) < torch.tensor([7, 4, 1]).reshape(3, 1, 1)).expand(3, 7, 5).float()
    got = standardise(x * 3 + 1, mask)
    for task in range(3):
        real = got[task][mask[task] > 0]
        assert abs(float(real.mean())) < 1e-6
        assert float(real.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert float(got[mask == 0].abs().max()) == 0


def test_least_squares_ignores_rows_of_no_weight() -> None:
    x = torch.tensor([[[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [9.0, 1.0]]])
    y, weight = torch.tensor([[3.0, 5.0, 7.0, 1000.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(least_squares(x, y, weight, 1e-9), torch.tensor([[2.0, 1.0]]))


def test_the_linear_baseline_explains_returns_that_are_quadratic_in_the_observation_and_cubic_in_time() -> None:
    observation = torch.randn(2, 10, 6, 3, generator=torch.Generator().manual_seed(1))
    time = torch.arange(10).reshape(1, 10, 1) / 100
    returns = observation[..., 0] ** 2 - 2 * observation[..., 1] + 50 * time**3 + 1
    ones = torch.ones(2, 10, 6)
    done = torch.ones(2, 6, dtype=torch.bool)
    rollout = Rollout(observation, ones, ones, ones, ones, done, observation[:, -1])
    torch.testing.assert_close(linear_baseline(rollout, returns, 1e-12), returns, atol=1e-4, rtol=0)
