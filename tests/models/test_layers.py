from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from models.layers import LAYERS, Layer, known_tanh_layer, linear, normalised_layer, tanh_layer

AFFINE: dict[str, Layer] = LAYERS | {"linear": linear}

TORCH = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "linear": lambda x: x,
}


def inputs(*, x_needs_grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((2, 5, 3), (2, 3, 4), (2, 4)))
    return x.requires_grad_(x_needs_grad), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("name", AFFINE)
def test_a_layer_is_an_affine_map_and_its_nonlinearity_with_and_without_gradients(name: str) -> None:
    x, weight, bias = inputs()
    expected = TORCH[name](torch.einsum("nmi,nih->nmh", x, weight) + bias[:, None])
    torch.testing.assert_close(AFFINE[name](x, weight, bias), expected)
    with torch.no_grad():
        torch.testing.assert_close(AFFINE[name](x, weight, bias), expected)


@pytest.mark.parametrize("x_needs_grad", [True, False], ids=["hidden layer", "first layer"])
@pytest.mark.parametrize("name", AFFINE)
def test_first_and_second_derivatives_equal_finite_differences(name: str, x_needs_grad: bool) -> None:
    assert torch.autograd.gradcheck(AFFINE[name], inputs(x_needs_grad=x_needs_grad))
    assert torch.autograd.gradgradcheck(AFFINE[name], inputs(x_needs_grad=x_needs_grad))


def test_a_layer_whose_output_is_known_has_the_derivatives_of_one_that_computes_it() -> None:
    x, weight, bias = inputs()
    with torch.no_grad():
        known = tanh_layer(x, weight, bias)
    results = []
    for layer in (LAYERS["tanh"], lambda *of: known_tanh_layer(*of, known)):
        y = layer(x, weight, bias)
        first = torch.autograd.grad(y.sin().sum(), (x, weight, bias), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight, bias))
        results.append((y, *first, *second))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_tanh_in_single_precision_is_within_two_roundings_of_one() -> None:
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64).reshape(1, -1, 1)
    y = tanh_layer(z.float(), torch.ones(1, 1, 1), torch.zeros(1, 1))
    assert float((y.double() - torch.tanh(z)).abs().max()) < 2 * torch.finfo(torch.float32).eps
    assert float(y.abs().max()) <= 1.0


def norm_inputs() -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    return (*inputs(), *(torch.randn(2, 4, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2)))


@pytest.mark.parametrize("name", LAYERS)
def test_a_normalised_layer_is_torchs_layer_norm_network_by_network(name: str) -> None:
    x, weight, bias, scale, shift = norm_inputs()
    together = normalised_layer(name, x, weight, bias, scale, shift)
    for n in range(2):
        z = torch.nn.functional.layer_norm(x[n] @ weight[n] + bias[n], (4,), scale[n], shift[n])
        torch.testing.assert_close(together[n], TORCH[name](z))


@pytest.mark.parametrize("name", LAYERS)
def test_first_and_second_derivatives_of_a_normalised_layer_equal_finite_differences(name: str) -> None:
    layer = partial(normalised_layer, name)
    assert torch.autograd.gradcheck(layer, norm_inputs())
    assert torch.autograd.gradgradcheck(layer, norm_inputs())


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_second_derivatives_hold_where_only_some_gradients_are_used(wanted: tuple[int, ...]) -> None:
    def second(layer: object) -> list[Tensor | None]:
        arguments = inputs()
        first = torch.autograd.grad(layer(*arguments).pow(2).sum(), arguments, create_graph=True)  # type: ignore[operator]
        return list(torch.autograd.grad(sum(first[i].pow(2).sum() for i in wanted), arguments, allow_unused=True))

    for ours, theirs in zip(
        second(LAYERS["tanh"]), second(lambda x, w, b: torch.tanh(torch.baddbmm(b[:, None], x, w))), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
