"""CAVIA: adapt a few context inputs only; all weights are shared by all tasks.

Source: Zintgraf et al. 2019, "Fast context adaptation via meta-learning", section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor
from typing_extensions import override

from models.learners.base import Learner, LearnerState, Metrics, trained
from models.learners.inner import InnerUpdate
from models.learners.meta_gradient import MetaGradient, MetaGradientConfig
from models.policy import Policy
from models.tasks import TaskBatch
from models.types import InvalidValue


@dataclass(frozen=True, kw_only=True)
class CAVIAConfig(MetaGradientConfig):
    """Hyperparameters of :class:`CAVIA`; the policy's `context_size` says how many inputs there are."""

    name: Literal["cavia"] = "cavia"


@final
class CAVIA(Learner[CAVIAConfig]):
    """Context inputs start at zero in every task and are all the inner loop moves; the outer loop moves the rest."""

    def __init__(self, config: CAVIAConfig, policy: Policy) -> None:
        if not policy.config.context_size:
            detail = "must be at least 1 for cavia: context inputs are what it adapts"
            raise InvalidValue("/policy/context_size", detail)
        rates = (config.inner_learning_rate, config.entropy_coefficient)
        inner = InnerUpdate(policy, ["context"], *rates, max_tasks=config.max_tasks_in_memory)
        super().__init__(config, policy, inner, trained(policy))
        self.meta_gradient = MetaGradient(self, config)

    @override
    def outer_step(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> tuple[LearnerState, Metrics]:
        return self.meta_gradient.step(state, tasks, keys)
