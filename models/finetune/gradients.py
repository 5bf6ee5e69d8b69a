"""First derivatives of many small networks, without the machinery that second ones need.

Networks this small spend most of a gradient step in what surrounds its products. Where it pays, for a trunk of plain
tanh layers, the derivatives are written out; any other is differentiated automatically, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers import by_column, narrow_outer, tanh_layer
from models.policy import Policy
from models.types import Params

Pull = Callable[[Tensor], Params]
"""The gradient by each of a trunk's tensors, from that at its features, [N, M, H], which it may overwrite."""


def trunk(policy: Policy, params: Params, statistics: Params, observation: Tensor) -> tuple[Tensor, Pull]:
    """Features [N, M, H] of observations [N, M, O] by N networks, and what takes a gradient back through the trunk.

    Args:
        policy: The architecture.
        params: The networks' tensors; those of the trunk and the context are differentiated by.
        statistics: Of observations; constants.
        observation: [N, M, O].
    """
    if policy.traceable and not policy.config.context_size:
        return _tanh_trunk(policy, params, statistics, observation)
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in params.items()
        if name.startswith(("trunk.", "context"))
    }
    with torch.enable_grad():
        features = policy.features(params | leaves | statistics, observation)

    def pull(gradient: Tensor) -> Params:
        by_leaf = torch.autograd.grad(features, list(leaves.values()), gradient)
        return dict(zip(leaves, by_leaf, strict=True))

    return features.detach(), pull


def _tanh_trunk(policy: Policy, params: Params, statistics: Params, observation: Tensor) -> tuple[Tensor, Pull]:
    x = policy.normalised(statistics, observation)
    outputs = [x]
    depth = len(policy.config.hidden)
    for i in range(depth):
        outputs.append(tanh_layer(outputs[-1], params[f"trunk.{i}.weight"], params[f"trunk.{i}.bias"]))

    def pull(gradient: Tensor) -> Params:
        found: Params = {}
        for i in reversed(range(depth)):
            inner = torch.ops.aten.tanh_backward.grad_input(gradient, outputs[i + 1], grad_input=gradient)
            found[f"trunk.{i}.weight"] = torch.bmm(outputs[i].transpose(1, 2), inner)
            found[f"trunk.{i}.bias"] = inner.sum(1)
            if i:
                gradient = torch.bmm(inner, params[f"trunk.{i}.weight"].transpose(1, 2))
        return found

    return outputs[-1], pull


def head(params: Params, name: str, features: Tensor) -> Tensor:
    """What a head of few outputs gives of features, [N, M, A]."""
    return torch.baddbmm(params[f"{name}.bias"].unsqueeze(1), features, by_column(params[f"{name}.weight"]))


def pull_head(params: Params, name: str, features: Tensor, gradient: Tensor) -> tuple[Tensor, Params]:
    """From the gradient at a head's output [N, M, A], those at the features and by the head's tensors."""
    by_features = torch.bmm(gradient, params[f"{name}.weight"].transpose(1, 2))
    return by_features, {f"{name}.weight": narrow_outer(features, gradient), f"{name}.bias": gradient.sum(1)}
