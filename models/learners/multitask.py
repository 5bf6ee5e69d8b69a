"""Plain pre-training on all tasks at once, with no inner loop: the baseline of every meta-learner.

Source: Schulman et al. 2017, "Proximal policy optimization algorithms", algorithm 1, over a batch of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, final

from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import override

from models.learners.base import Learner, LearnerState, LearningRate, Metrics, require_no_context, trained
from models.learners.inner import InnerUpdate
from models.learners.meta_gradient import MetaGradient, OuterConfig
from models.policy import Policy
from models.tasks import TaskBatch


@dataclass(frozen=True, kw_only=True)
class MultitaskConfig(OuterConfig):
    """Hyperparameters of :class:`Multitask`."""

    name: Literal["multitask"] = "multitask"

    inner_steps: Annotated[int, Ge(1), Le(20)] = 1
    """Steps of the inner loop when the policy is evaluated on held-out tasks; training has no inner loop."""

    inner_learning_rate: LearningRate = 0.1
    """Step size of the inner loop when the policy is adapted to a task."""


@final
class Multitask(Learner[MultitaskConfig]):
    """One policy for the mean of all tasks' objectives. It adapts as MAML does, but was not trained to."""

    def __init__(self, config: MultitaskConfig, policy: Policy) -> None:
        require_no_context(policy, config.name)
        rates = (config.inner_learning_rate, config.entropy_coefficient)
        inner = InnerUpdate(policy, trained(policy), *rates, max_tasks=config.max_tasks_in_memory)
        super().__init__(config, policy, inner, trained(policy))
        self.gradient = MetaGradient(self, config)

    @override
    def outer_step(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> tuple[LearnerState, Metrics]:
        return self.gradient.step(state, tasks, keys)
