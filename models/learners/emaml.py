"""E-MAML: MAML that also credits the exploring policy with what its episodes made adapting achieve.

Source: Stadie et al. 2018, "Some considerations on learning to explore via meta-reinforcement learning", eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from models import losses
from models.learners.base import Learner, LearnerState, Metrics, require_no_context, trained
from models.learners.inner import Experience, InnerUpdate, ratio_objective
from models.learners.meta_gradient import MetaGradient, MetaGradientConfig, Part, Trial
from models.policy import Policy
from models.tasks import TaskBatch


@dataclass(frozen=True, kw_only=True)
class EMAMLConfig(MetaGradientConfig):
    """Hyperparameters of :class:`EMAML`."""

    name: Literal["e-maml"] = "e-maml"

    exploration_coefficient: Annotated[float, Ge(0), Le(100)] = 1.0
    """Weight of the exploring policy's credit; 1 makes the meta-gradient that of the return after adapting to episodes
    of the policy itself, 0 is MAML."""

    outer_epochs: Annotated[int, Ge(1), Le(100)] = 1
    """Adam updates on the same rollouts. The credit is right for the first; later ones take it as it was."""

    clip_ratio: Annotated[float, Gt(0), Le(1)] | None = None
    """ε of the clipped outer objective (Schulman et al. 2017, eq. 7); null leaves the likelihood ratio as it is."""


@final
class EMAML(Learner[EMAMLConfig]):
    """MAML whose meta-gradient also goes through which episodes are sampled before adapting.

        ∇θ E_τ~π_θ [ J(θ'(τ)) ] = E_τ [ ∇θ J(θ'(τ)) + J(θ'(τ)) ∇θ log p_θ(τ) ]

    The first takes the episodes for given, as the inner objective's second derivative does here. The second is the
    credit: the log-probability of all support episodes, weighted by the return after adapting, less the mean of the
    other tasks'. Both are divided by an episode's mean length. Without credit the inner objective is MAML's, whose
    second derivative itself accounts for what would be sampled: with both, that would count twice.
    """

    def __init__(self, config: EMAMLConfig, policy: Policy) -> None:
        require_no_context(policy, config.name)
        credits = config.exploration_coefficient > 0
        inner = InnerUpdate(
            policy,
            trained(policy),
            config.inner_learning_rate,
            config.entropy_coefficient,
            score_objective if credits else ratio_objective,
            max_tasks=config.max_tasks_in_memory,
        )
        super().__init__(config, policy, inner, trained(policy))
        self.meta_gradient = MetaGradient(self, config, self._credit if credits else None)

    @override
    def outer_step(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> tuple[LearnerState, Metrics]:
        return self.meta_gradient.step(state, tasks, keys)

    def _credit(self, part: Part, trial: Trial) -> Tensor:
        """Minus each task's credit times the log-probability of its support episodes, [n]."""
        query = trial.query
        achieved = query.reward.sum(1) / query.episodes
        others = max(1, len(achieved) - 1)
        credit = achieved - (achieved.sum() - achieved) / others if len(achieved) > 1 else achieved
        if self.config.normalise_advantages and len(achieved) > 1:
            credit = credit / (credit.std() + 1e-8)
        length = query.mask.sum(1) / query.episodes
        weight = (self.config.exploration_coefficient * credit / length)[part.rows]
        score = torch.zeros_like(weight)
        for params, support in zip(part.visited, trial.support, strict=True):
            experience = support.select(part.rows)
            head = self.policy.head(params, self.policy.features(params, experience.observation))
            score = score + (self.policy.log_prob(params, head, experience.action) * experience.mask).sum(1)
        return -weight * score


def score_objective(log_prob: Tensor, experience: Experience) -> Tensor:
    """:func:`models.losses.score_loss` of an experience, [N]."""
    return losses.score_loss(log_prob, experience.log_prob, experience.advantage, experience.mask)
