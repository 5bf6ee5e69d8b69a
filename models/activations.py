"""The nonlinearities that a policy can have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

# torch differentiates tanh twice as well, by four products that are each written to memory of their own. On a
# processor that waits for memory, reusing one buffer takes an eighth off the time of a second-order meta-gradient.


class _Tanh(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        result: Tensor = _TanhGradient.apply(grad, y)  # type: ignore[no-untyped-call]
        return result


class _TanhGradient(Function):
    """g · (1 - y²), and its own derivatives: ∂/∂g = 1 - y², ∂/∂y = -2 g y."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(grad, y)
        result: Tensor = torch.ops.aten.tanh_backward(grad, y)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        grad, y = ctx.saved_tensors
        by_grad = torch.ops.aten.tanh_backward(outer, y)
        return by_grad, (outer * grad).mul_(y).mul_(-2.0)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent, differentiable twice."""
    y: Tensor = _Tanh.apply(x)  # type: ignore[no-untyped-call]
    return y


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": tanh,
    "relu": torch.relu,
    "gelu": partial(functional.gelu, approximate="tanh"),
}
"""Every nonlinearity by its name in a policy's config."""
