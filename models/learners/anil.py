"""ANIL: MAML whose inner loop moves the policy head only; the trunk is shared by all tasks.

Source: Raghu et al. 2020, "Rapid learning or feature reuse?", section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor
from typing_extensions import override

from models.learners.base import Learner, LearnerState, Metrics, require_no_context, trained
from models.learners.inner import InnerUpdate
from models.learners.meta_gradient import MetaGradient, MetaGradientConfig
from models.policy import Policy
from models.tasks import TaskBatch


@dataclass(frozen=True, kw_only=True)
class ANILConfig(MetaGradientConfig):
    """Hyperparameters of :class:`ANIL`."""

    name: Literal["anil"] = "anil"


@final
class ANIL(Learner[ANILConfig]):
    """MAML that adapts the policy head and a free standard deviation, and nothing before them."""

    def __init__(self, config: ANILConfig, policy: Policy) -> None:
        require_no_context(policy, config.name)
        heads = [name for name in trained(policy) if not name.startswith("trunk.")]
        rates = (config.inner_learning_rate, config.entropy_coefficient)
        inner = InnerUpdate(policy, heads, *rates, max_tasks=config.max_tasks_in_memory)
        super().__init__(config, policy, inner, trained(policy))
        self.meta_gradient = MetaGradient(self, config)

    @override
    def outer_step(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> tuple[LearnerState, Metrics]:
        return self.meta_gradient.step(state, tasks, keys)
