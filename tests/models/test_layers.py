from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from models.layers import LAYERS, normalised_layer

TORCH = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def inputs(*, x_needs_grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((2, 5, 3), (2, 3, 4), (2, 4)))
    return x.requires_grad_(x_needs_grad), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_an_affine_map_and_its_nonlinearity_with_and_without_gradients(name: str) -> None:
    x, weight, bias = inputs()
    expected = TORCH[name](torch.einsum("nmi,nih->nmh", x, weight) + bias[:, None])
    torch.testing.assert_close(LAYERS[name](x, weight, bias), expected)
    with torch.no_grad():
        torch.testing.assert_close(LAYERS[name](x, weight, bias), expected)


@pytest.mark.parametrize("x_needs_grad", [True, False], ids=["hidden layer", "first layer"])
@pytest.mark.parametrize("name", LAYERS)
def test_first_and_second_derivatives_equal_finite_differences(name: str, x_needs_grad: bool) -> None:
    assert torch.autograd.gradcheck(LAYERS[name], inputs(x_needs_grad=x_needs_grad))
    assert torch.autograd.gradgradcheck(LAYERS[name], inputs(x_needs_grad=x_needs_grad))


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
