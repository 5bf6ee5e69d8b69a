"""Meta-SGD: MAML that learns its inner learning rates together with the initialisation.

Source: Li et al. 2017, "Meta-SGD: learning to learn quickly for few-shot learning", eq. 4 (a rate for every parameter);
Antoniou et al. 2019, "How to train your MAML", section 4 (a rate for every layer and step).
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
class MetaSGDConfig(MetaGradientConfig):
    """Hyperparameters of :class:`MetaSGD`; `inner_learning_rate` is where the learned rates start."""

    name: Literal["meta-sgd"] = "meta-sgd"

    rates: Literal["parameter", "layer"] = "parameter"
    """What has a learned rate of its own. `parameter`: every number, the same in all steps. `layer`: every tensor in
    every inner step; steps beyond those of training take the last step's."""


@final
class MetaSGD(Learner[MetaSGDConfig]):
    """MAML with learned inner rates, which are tensors of the initialisation and may become negative."""

    def __init__(self, config: MetaSGDConfig, policy: Policy) -> None:
        require_no_context(policy, config.name)
        inner = InnerUpdate(
            policy,
            trained(policy),
            config.inner_learning_rate,
            config.entropy_coefficient,
            learned=config.rates,
            steps=config.inner_steps,
            max_tasks=config.max_tasks_in_memory,
        )
        super().__init__(config, policy, inner, trained(policy))
        self.meta_gradient = MetaGradient(self, config)

    @override
    def outer_step(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> tuple[LearnerState, Metrics]:
        return self.meta_gradient.step(state, tasks, keys)
