"""The tensors of many networks in one, so that a gradient step of all of them is a few operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from models.types import Params

_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.999, 1e-8


@final
class Networks:
    """``K`` networks of one shape as a tensor [K, P], which Adam updates in place.

    Args:
        shapes: Of each tensor of one network, by name.
        flat: All of them, [K, P]; it is changed in place.

    Attributes:
        params: The tensors as views of that one tensor: they change with every step.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], flat: Tensor) -> None:
        self._shapes = dict(shapes)
        self._flat = flat
        self._mean, self._square = torch.zeros_like(flat), torch.zeros_like(flat)
        # Averages of 1, as the moments are of gradients: what a moment lacks of the average it stands for.
        self._weights, self._ones = flat.new_zeros(len(flat), 2), flat.new_ones(len(flat), 2)
        self._shares = flat.new_tensor([1 - _DECAY, 1 - _SQUARE_DECAY])
        self.params = self._views(flat)

    @staticmethod
    def of(params: Params) -> Networks:
        """Networks of copies of these tensors, [K, ...]."""
        flat = torch.cat([value.flatten(1) for value in params.values()], 1)
        return Networks({name: value.shape[1:] for name, value in params.items()}, flat)

    def _views(self, flat: Tensor) -> Params:
        pieces = torch.split(flat, [shape.numel() for shape in self._shapes.values()], 1)
        return {n: x.view(-1, *shape) for (n, shape), x in zip(self._shapes.items(), pieces, strict=True)}

    def rows(self, rows: slice) -> Params:
        """Copies of the tensors of some networks."""
        return {name: value[rows].clone() for name, value in self.params.items()}

    @torch.no_grad()
    def descend(
        self,
        gradient: Mapping[str, Tensor],
        learning_rate: Tensor | float,
        max_norm: float | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """One step of Adam down a gradient.

        Args:
            gradient: By the names of all tensors.
            learning_rate: One, or one of each network, [K, 1].
            max_norm: Length to which each network's gradient is cut.
            active: Which networks to update, [K, 1] bool; by default all.

        Returns:
            Lengths of the gradients before they were cut, [K].

        Source: Kingma & Ba 2015, algorithm 1.
        """
        flat = torch.cat([gradient[name].flatten(1) for name in self._shapes], 1)
        norm: Tensor = torch.linalg.vector_norm(flat, dim=1)
        if max_norm is not None:
            flat *= (max_norm / (norm + 1e-12)).clamp(max=1.0).unsqueeze(1)
        if active is None:
            self._weights.lerp_(self._ones, self._shares)
            self._mean.lerp_(flat, 1 - _DECAY)
            self._square.mul_(_SQUARE_DECAY).addcmul_(flat, flat, value=1 - _SQUARE_DECAY)
        else:
            self._weights.lerp_(self._ones, self._shares * active)
            self._mean.copy_(torch.where(active, self._mean.lerp(flat, 1 - _DECAY), self._mean))
            square = torch.addcmul(self._square * _SQUARE_DECAY, flat, flat, value=1 - _SQUARE_DECAY)
            self._square.copy_(torch.where(active, square, self._square))
            learning_rate = learning_rate * active
        by_mean, by_square = torch.split(self._weights, 1, 1)
        root = by_square.sqrt()
        # Epsilon is meant for the corrected root: it is corrected the other way instead.
        denominator = self._square.sqrt().add_(_EPSILON * root)
        self._flat.addcdiv_(self._mean * (learning_rate * root / by_mean), denominator, value=-1)
        return norm

    @torch.no_grad()
    def follow(self, leader: Networks, share: float) -> None:
        """Move so large a share of the way to other networks of the same shape."""
        self._flat.lerp_(leader._flat, share)

    def state(self, name: str) -> Params:
        """What an update changes, by names that begin with ``name``."""
        return {f"{name}.{part}": tensor.clone() for part, tensor in self._tensors().items()}

    def restore(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        for part, tensor in self._tensors().items():
            tensor.copy_(state[f"{name}.{part}"])

    def _tensors(self) -> Params:
        return {"parameters": self._flat, "mean": self._mean, "square": self._square, "weights": self._weights}
