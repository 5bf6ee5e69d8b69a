from __future__ import annotations

import torch

from models.optimiser import AdamState, adam, clip_norm, global_norm


def test_adam_equals_torchs_own_over_many_steps() -> None:
    g = torch.Generator().manual_seed(0)
    params = {"a": torch.randn(4, 3, generator=g), "b": torch.randn(3, generator=g)}
    theirs = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimiser, state = torch.optim.Adam(theirs.values(), lr=0.01), AdamState.initial(params)
    for _ in range(50):
        gradient = {name: torch.randn(value.shape, generator=g) for name, value in params.items()}
        for name, value in theirs.items():
            value.grad = gradient[name].clone()
        optimiser.step()
        params, state = adam(params, gradient, state, 0.01)
    for name, value in params.items():
        torch.testing.assert_close(value, theirs[name].detach())


def test_a_step_leaves_the_old_parameters_and_moments_as_they_were() -> None:
    params = {"a": torch.ones(2)}
    state = AdamState.initial(params)
    adam(params, {"a": torch.ones(2)}, state, 0.1)
    assert params["a"].tolist() == [1, 1]
    assert state.mean["a"].tolist() == [0, 0]


def test_a_long_gradient_is_cut_to_the_limit_and_a_short_one_is_left() -> None:
    gradient = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    norm = global_norm(gradient)
    assert float(norm) == 5
    assert float(global_norm(clip_norm(gradient, norm, 0.5))) == 0.5
    assert clip_norm(gradient, norm, 10)["a"].tolist() == [3]
