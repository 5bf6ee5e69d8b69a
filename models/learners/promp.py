"""The penalty that keeps the policies before each inner step near those that sampled.

Source: Rothfuss et al. 2019, "ProMP: proximal meta-policy search", eq. 11 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from models import losses
from models.learners.inner import Experience
from models.learners.meta_gradient import Part, Trial
from models.policy import Policy
from models.types import Params

_PENALTY = "inner_kl_penalty"


@final
class InnerDivergence:
    """Σ_k η_k KL(π_old,k || π_k) of the policies before inner step k, over the states of its support."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @staticmethod
    def initial(penalty: float, steps: int) -> Params:
        """The learner's memory at first: η of every inner step."""
        return {_PENALTY: torch.full((steps,), penalty, dtype=torch.float64)}

    @staticmethod
    def adapt(memory: Params, divergence: Tensor, target: float) -> Params:
        """Memory whose η is halved where the divergence [K] is below 2/3 of the target, doubled above 3/2 of it.

        Source: Schulman et al. 2017, "Proximal policy optimization algorithms", section 4.
        """
        eta = memory[_PENALTY]
        eta = torch.where(divergence < target / 1.5, eta / 2, torch.where(divergence > target * 1.5, eta * 2, eta))
        return {_PENALTY: eta.clamp(max=1e6)}

    def penalty(self, part: Part, trial: Trial) -> Tensor:
        """The weighted divergences of a part's tasks, [n]."""
        weights = trial.memory[_PENALTY].tolist()
        total = trial.query.mask.new_zeros(part.rows.stop - part.rows.start)
        for weight, divergence in zip(weights, self._divergences(part, trial), strict=True):
            total = total + weight * divergence
        return total

    def measure(self, parts: Iterable[Part], trial: Trial) -> Tensor:
        """Mean divergence over tasks of each inner step, [K] float64, at the policies that the parts visited."""
        by_part = []
        for part in parts:
            with torch.no_grad():
                by_part.append(torch.stack(list(self._divergences(part, trial))))
        return torch.cat(by_part, 1).mean(1).double()

    def _divergences(self, part: Part, trial: Trial) -> Iterable[Tensor]:
        for params, old, support in zip(part.visited, trial.policies, trial.support, strict=False):
            experience = support.select(part.rows)
            before = {name: value[part.rows] for name, value in old.items()}
            yield mean_divergence(self._policy, before, params, experience)


def mean_divergence(policy: Policy, old: Params, params: Params, experience: Experience) -> Tensor:
    """Mean KL(old || new) of N policies over the states of their experience, [N]; ``old`` is a constant."""
    with torch.no_grad():
        old_head = policy.head(old, policy.features(old, experience.observation))
    head = policy.head(params, policy.features(params, experience.observation))
    return losses.masked_mean(policy.divergence(old, old_head, params, head), experience.mask)
