"""Reptile: move the initialisation towards the parameters that adapting ends in.

Source: Nichol, Achiam & Schulman 2018, "On first-order meta-learning algorithms", algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, final

from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from models import optimiser, random
from models.learners.base import (
    Diverged,
    EpisodicConfig,
    Learner,
    LearnerState,
    LearningRate,
    Metrics,
    require_no_context,
    trained,
)
from models.learners.inner import InnerUpdate
from models.policy import Policy
from models.tasks import TaskBatch
from models.types import all_finite, stack_params


@dataclass(frozen=True, kw_only=True)
class ReptileConfig(EpisodicConfig):
    """Hyperparameters of :class:`Reptile`."""

    name: Literal["reptile"] = "reptile"

    inner_steps: Annotated[int, Ge(1), Le(100)] = 3
    """Gradient steps of the inner loop, each on episodes of its own. One step is joint training on all tasks: what
    Reptile learns beyond that needs two or more (section 5 of the source)."""

    inner_learning_rate: LearningRate = 0.1
    """Step size of the inner loop; a list gives one for each step, the last of which goes on."""

    outer_learning_rate: Annotated[float, Gt(0), Le(1)] = 0.5
    """ε: share of the way to the mean of the adapted parameters that an outer step goes."""


@final
class Reptile(Learner[ReptileConfig]):
    """θ ← θ + ε mean_n (θ'_n - θ), with θ'_n from plain inner steps; nothing is differentiated twice."""

    def __init__(self, config: ReptileConfig, policy: Policy) -> None:
        require_no_context(policy, config.name)
        rates = (config.inner_learning_rate, config.entropy_coefficient)
        inner = InnerUpdate(policy, trained(policy), *rates, max_tasks=config.max_tasks_in_memory)
        super().__init__(config, policy, inner, trained(policy))

    @override
    def outer_step(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> tuple[LearnerState, Metrics]:
        adapted, rollouts = stack_params(state.params, len(tasks)), []
        for step in range(self.config.inner_steps):
            rollout, adapted = self.inner_step(adapted, tasks, random.fold_in(keys, step), step)
            rollouts.append(rollout)
        rollouts.append(self.collect(adapted, tasks, random.fold_in(keys, self.config.inner_steps)))
        way = {name: adapted[name].mean(0) - state.params[name] for name in self.outer}
        params = state.params | {
            name: state.params[name] + self.config.outer_learning_rate * w for name, w in way.items()
        }
        if not all_finite(params):
            raise Diverged("the adapted parameters became NaN or infinite; a smaller learning rate may help")
        metrics = {
            "return_before": float(rollouts[0].mean_return.mean()),
            "return_after": float(rollouts[-1].mean_return.mean()),
            "gradient_norm": float(optimiser.global_norm(way)),
            "environment_steps": float(sum(rollout.environment_steps for rollout in rollouts)),
        }
        return LearnerState(self.refit(params, tasks.discount, rollouts[0]), state.optimiser), metrics
