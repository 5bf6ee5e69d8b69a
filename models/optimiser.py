"""Adam as a pure function, so that a training state is a value that can be kept, sent and resumed bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.types import Params


@dataclass(frozen=True)
class AdamState:
    """Moments of the gradient: ``step`` updates so far, first and second moment of each trained tensor."""

    step: int
    mean: Params
    square: Params

    @staticmethod
    def initial(params: Params) -> AdamState:
        """No updates yet: zero moments."""
        mean, square = ({name: torch.zeros_like(value) for name, value in params.items()} for _ in range(2))
        return AdamState(0, mean, square)


def adam(
    params: Params, gradient: Params, state: AdamState, learning_rate: float, epsilon: float = 1e-8
) -> tuple[Params, AdamState]:
    """One Adam update with the usual decay rates 0.9 and 0.999; nothing is changed in place.

        m = β₁m + (1-β₁)g,  v = β₂v + (1-β₂)g²,  θ - η · m̂ / (√v̂ + ε)

    Source: Kingma & Ba 2015, algorithm 1.
    """
    step = state.step + 1
    mean = {name: 0.9 * state.mean[name] + 0.1 * g for name, g in gradient.items()}
    square = {name: 0.999 * state.square[name] + 0.001 * g * g for name, g in gradient.items()}
    updated = dict(params)
    for name in gradient:
        corrected = mean[name] / (1.0 - 0.9**step)
        scale = (square[name] / (1.0 - 0.999**step)).sqrt() + epsilon
        updated[name] = params[name] - learning_rate * corrected / scale
    return updated, AdamState(step, mean, square)


def global_norm(gradient: Params) -> Tensor:
    """Euclidean norm of all tensors taken together."""
    return torch.stack([g.pow(2).sum() for g in gradient.values()]).sum().sqrt()


def clip_norm(gradient: Params, norm: Tensor, limit: float) -> Params:
    """The gradient, scaled down to ``limit`` where its ``norm`` is above it."""
    scale = (limit / (norm + 1e-12)).clamp(max=1.0)
    return {name: g * scale for name, g in gradient.items()}
