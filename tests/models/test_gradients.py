from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from models.finetune.gradients import head, pull_head, trunk
from models.policy import Policy, PolicyConfig
from models.types import Params

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
CONFIGS = {
    "tanh": PolicyConfig((6, 5)),
    "one layer": PolicyConfig((6,), normalise_observations=True),
    "relu": PolicyConfig((6, 5), "relu"),
    "layer norm": PolicyConfig((6, 5), layer_norm=True),
    "context": PolicyConfig((6, 5), context_size=2),
}


def some_params(policy: Policy) -> tuple[Params, Params]:
    """Trained tensors and statistics of three networks."""
    g = torch.Generator().manual_seed(0)
    params = {n: torch.randn(3, *shape, generator=g, dtype=torch.float64) for n, shape in policy.shapes().items()}
    statistics = {n: value.abs() + 0.1 for n, value in params.items() if n.startswith("observation.")}
    return {n: value for n, value in params.items() if n not in statistics}, statistics


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_gradient_taken_back_through_a_network_is_automatic_differentiations(config: PolicyConfig) -> None:
    policy = Policy(config, OBSERVATIONS, Discrete(2))
    params, statistics = some_params(policy)
    g = torch.Generator().manual_seed(1)
    observation = torch.randn(3, 7, 3, generator=g, dtype=torch.float64)
    gradient = torch.randn(3, 7, 2, generator=g, dtype=torch.float64)

    features, pull = trunk(policy, params, statistics, observation)
    out = head(params, "policy", features)
    by_features, found = pull_head(params, "policy", features, gradient)
    found |= pull(by_features)

    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    wanted = policy.head(leaves, policy.features(leaves | statistics, observation))
    torch.testing.assert_close(out, wanted.detach())
    names = [name for name in leaves if not name.startswith("value.")]
    assert set(found) == set(names)
    by_leaf = torch.autograd.grad(wanted, [leaves[name] for name in names], gradient)
    for name, value in zip(names, by_leaf, strict=True):
        torch.testing.assert_close(found[name], value)
