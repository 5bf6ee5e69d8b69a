"""Hidden layers of N networks at once: an affine map and a nonlinearity."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Features [N, M, H] of inputs [N, M, I], weights [N, I, H] and biases [N, H]."""

# A second-order meta-gradient differentiates each layer twice; on a processor that waits for memory, half its time goes
# into products and sums of whole activations. Written out for the most common nonlinearity, they share buffers and the
# sums become part of the matrix products. Gradients are checked twice over against finite differences.


class _TanhLayer(Function):
    """y = tanh(x W + b)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, known: Tensor | None) -> Tensor:
        y = tanh_layer(x, weight, bias) if known is None else known.detach()
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        gradients: tuple[Tensor | None, ...] = _TanhLayerGradient.apply(  # type: ignore[no-untyped-call]
            grad, x, weight, y, ctx.needs_input_grad[:3]
        )
        return *gradients, None


class _TanhLayerGradient(Function):
    """With a = g (1 - y²) for the gradient g at y: by x, a Wᵀ; by W, xᵀ a; by b, the sum of a."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, y: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        inner = torch.ops.aten.tanh_backward(grad, y)
        ctx.save_for_backward(grad, x, weight, y, inner)
        ctx.set_materialize_grads(False)
        by_x = torch.bmm(inner, weight.transpose(1, 2)) if needs[0] else None
        by_weight = torch.bmm(x.transpose(1, 2), inner) if needs[1] else None
        return by_x, by_weight, inner.sum(1) if needs[2] else None

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_x: Tensor | None, by_weight: Tensor | None, by_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, x, weight, y, inner = ctx.saved_tensors
        outer = torch.zeros_like(inner) if by_bias is None else by_bias.unsqueeze(1).expand_as(inner)
        outer = outer.contiguous() if by_weight is None else torch.baddbmm(outer, x, by_weight)
        to_x = to_weight = None
        if by_x is not None:
            outer.baddbmm_(by_x, weight)
            to_weight = torch.bmm(by_x.transpose(1, 2), inner)
        if by_weight is not None and ctx.needs_input_grad[1]:
            to_x = torch.bmm(inner, by_weight.transpose(1, 2))
        to_grad = torch.ops.aten.tanh_backward(outer, y)
        return to_grad, to_x, to_weight, outer.mul_(grad).mul_(y).mul_(-2.0), None


class _Linear(Function):
    """y = x W + b, for few outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, by_column(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = _LinearGradient.apply(grad, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return gradients


class _LinearGradient(Function):
    """For the gradient g at y: by x, g Wᵀ; by W, xᵀ g; by b, the sum of g."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, x, weight)
        return torch.bmm(grad, weight.transpose(1, 2)), narrow_outer(x, grad), grad.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_x: Tensor, by_weight: Tensor, by_bias: Tensor) -> tuple[Tensor, ...]:
        grad, x, weight = ctx.saved_tensors
        to_grad = torch.baddbmm(by_bias.unsqueeze(1), x, by_column(by_weight)).baddbmm_(by_x, by_column(weight))
        return to_grad, torch.bmm(grad, by_weight.transpose(1, 2)), narrow_outer(by_x, grad)


def narrow_outer(x: Tensor, narrow: Tensor) -> Tensor:
    """xᵀ n for [N, M, H] and [N, M, A] with few columns A, in the layout that is multiplied quickest."""
    return torch.bmm(narrow.transpose(1, 2), x).transpose(1, 2)


def by_column(weight: Tensor) -> Tensor:
    """The same weights [N, H, A], stored column by column: with few columns, products from the left take a quarter."""
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The affine map x W + b, [N, M, A], of inputs [N, M, H], weights [N, H, A] of few columns, and biases [N, A].

    Can be differentiated twice.
    """
    if not torch.is_grad_enabled():
        return torch.baddbmm(bias.unsqueeze(1), x, by_column(weight))
    y: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y


_MINUS_ONE = torch.tensor(-1.0)


def tanh_layer(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """tanh(x W + b), [N, M, H], to the last bit or two; no gradient is kept.

    Args:
        x: [N, M, I].
        weight: [N, I, H].
        bias: [N, H].
        out: Where to write it; of any strides.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return torch.tanh(torch.baddbmm(bias.unsqueeze(1), x, weight), out=out)
    # tanh z = 2 σ(2z) - 1: a quarter of the time of the library's tanh, and as near to the truth. The bias is added
    # afterwards: where the product is to go on top of it, it is first written out for every row.
    z = torch.bmm(x, weight)
    z = torch.add((bias + bias).unsqueeze(1), z, alpha=2, out=z).sigmoid_()
    return torch.add(_MINUS_ONE, z, alpha=2, out=out if out is not None else z)


def known_tanh_layer(x: Tensor, weight: Tensor, bias: Tensor, known: Tensor) -> Tensor:
    """A tanh layer whose output is known already: not computed again, yet differentiated as if it were."""
    y: Tensor = _TanhLayer.apply(x, weight, bias, known)  # type: ignore[no-untyped-call]
    return y


def _tanh(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return tanh_layer(x, weight, bias)
    y: Tensor = _TanhLayer.apply(x, weight, bias, None)  # type: ignore[no-untyped-call]
    return y


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": partial(functional.gelu, approximate="tanh"),
}


def _composed(activation: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return activation(torch.baddbmm(bias.unsqueeze(1), x, weight))


LAYERS: dict[str, Layer] = {
    "tanh": _tanh,
    "relu": partial(_composed, _ACTIVATIONS["relu"]),
    "gelu": partial(_composed, _ACTIVATIONS["gelu"]),
}
"""A layer for every nonlinearity, by its name in a policy's config; each can be differentiated twice."""

NORM_EPSILON = 1e-5
"""What :func:`normalised_layer` adds to the variance."""


def normalised_layer(activation: str, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Features [N, M, H] of a layer whose affine map is normalised over the units before its nonlinearity f.

        z = x W + b,    y = f( (z - mean z) / √(var z + ε) · scale + shift )

    Can be differentiated twice.

    Args:
        activation: Name of the nonlinearity, a key of :data:`LAYERS`.
        x: [N, M, I].
        weight: [N, I, H].
        bias: [N, H].
        scale: [N, H].
        shift: [N, H].

    Source: Ba, Kiros & Hinton 2016, "Layer normalization", eq. 3 and 4.
    """
    z = torch.baddbmm(bias.unsqueeze(1), x, weight)
    z = functional.layer_norm(z, z.shape[-1:], eps=NORM_EPSILON)
    return _ACTIVATIONS[activation](torch.addcmul(shift.unsqueeze(1), z, scale.unsqueeze(1)))
