"""DiCE: MAML whose inner objective has the right derivatives of every order, over whole trajectories.

Source: Foerster et al. 2018, "DiCE: the infinitely differentiable Monte Carlo estimator"; its variance-reduced form is
Farquhar, Whiteson & Foerster 2019, "Loaded DiCE".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, final

from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from models import losses
from models.learners.base import Learner, LearnerState, Metrics, require_no_context, trained
from models.learners.inner import Experience, InnerUpdate
from models.learners.meta_gradient import MetaGradient, MetaGradientConfig
from models.policy import Policy
from models.tasks import TaskBatch


@dataclass(frozen=True, kw_only=True)
class DiCEConfig(MetaGradientConfig):
    """Hyperparameters of :class:`DiCE`."""

    name: Literal["dice"] = "dice"

    variance_reduction: bool = True
    """Use advantages in place of rewards (Loaded DiCE); false is the objective as first published, which has no
    baseline."""

    outer_epochs: Annotated[int, Ge(1), Le(100)] = 1
    """Adam updates on the same rollouts; further ones weight whole trajectories by their likelihood ratio."""

    clip_ratio: Annotated[float, Gt(0), Le(1)] | None = None
    """ε of the clipped outer objective (Schulman et al. 2017, eq. 7); null leaves the likelihood ratio as it is."""


@final
class DiCE(Learner[DiCEConfig]):
    """MAML whose Hessian of the inner objective is that of the expected discounted return, without bias.

    The outer objective is the likelihood ratio: its first derivative is all that is needed.
    """

    def __init__(self, config: DiCEConfig, policy: Policy) -> None:
        require_no_context(policy, config.name)
        inner = InnerUpdate(
            policy,
            trained(policy),
            config.inner_learning_rate,
            config.entropy_coefficient,
            loaded_objective if config.variance_reduction else plain_objective,
            max_tasks=config.max_tasks_in_memory,
        )
        super().__init__(config, policy, inner, trained(policy))
        self.meta_gradient = MetaGradient(self, config)

    @override
    def outer_step(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> tuple[LearnerState, Metrics]:
        return self.meta_gradient.step(state, tasks, keys)


def plain_objective(log_prob: Tensor, experience: Experience) -> Tensor:
    """:func:`models.losses.dice_loss` of an experience, [N]."""
    rows = (log_prob, experience.log_prob, experience.reward, experience.mask)
    return losses.dice_loss(*map(experience.by_time, rows))


def loaded_objective(log_prob: Tensor, experience: Experience) -> Tensor:
    """:func:`models.losses.loaded_dice_loss` of an experience, [N]."""
    advantage = experience.discount * experience.advantage
    return losses.loaded_dice_loss(
        *map(experience.by_time, (log_prob, experience.log_prob, advantage, experience.mask))
    )
