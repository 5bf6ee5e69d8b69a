"""Random weight matrices, each a function of a key alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models import random

# Drawn and factorised on the processor in float64, so that a seed means one policy on every device.

GAINS = {"tanh": 5.0 / 3.0, "relu": math.sqrt(2.0), "gelu": math.sqrt(2.0)}
"""Factor by which a layer's weights make up for what its nonlinearity takes from the variance; those of
``torch.nn.init.calculate_gain``, and gelu's is relu's.

Source: He et al. 2015, "Delving deep into rectifiers", eq. 10, for relu.
"""


def glorot_uniform(key: Tensor, rows: int, columns: int) -> Tensor:
    """Independent numbers, uniform in ±√(6 / (rows + columns)), [rows, columns] float64.

    Source: Glorot & Bengio 2010, eq. 16.
    """
    draws = 2.0 * random.uniform(key, rows * columns, torch.float64) - 1.0
    return (draws * math.sqrt(6.0 / (rows + columns))).reshape(rows, columns)


def orthogonal(key: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix with orthonormal rows or columns, whichever are fewer, uniform among all such, [rows, columns] float64.

    The orthogonal factor of a matrix of normal numbers; the signs of the triangular factor's diagonal make it unique.

    Source: Saxe, McClelland & Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear
    neural networks"; the signs, Mezzadri 2007, "How to generate random matrices from the classical compact groups".
    """
    draws = random.normal(key, rows * columns, torch.float64).reshape(max(rows, columns), min(rows, columns))
    orthonormal, triangular = torch.linalg.qr(draws)
    signs: Tensor = torch.copysign(torch.ones_like(triangular[0]), triangular.diagonal())
    unique: Tensor = orthonormal * signs
    return unique if rows >= columns else unique.T
