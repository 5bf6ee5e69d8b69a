"""MAML: learn the parameters from which a few policy-gradient steps solve a new task.

Source: Finn, Abbeel & Levine 2017, "Model-agnostic meta-learning", algorithm 3; its outer step by a trust region as
there, by Adam, or with the proximal objective of Rothfuss et al. 2019, "ProMP", algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal, final

from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from models.learners.base import Learner, LearnerState, Metrics, require_no_context, trained
from models.learners.inner import InnerUpdate
from models.learners.meta_gradient import MetaGradient, MetaGradientConfig
from models.learners.promp import InnerDivergence
from models.learners.trpo import TrustRegion
from models.policy import Policy
from models.tasks import TaskBatch
from models.types import InvalidValue


@dataclass(frozen=True, kw_only=True)
class MAMLConfig(MetaGradientConfig):
    """Hyperparameters of :class:`MAML`."""

    name: Literal["maml"] = "maml"

    outer_step: Literal["adam", "promp", "trpo"] = "adam"
    """How the initialisation moves. `adam`: along the meta-gradient, `outer_epochs` times. `promp`: the same with a
    penalty on how far the policies before adapting move. `trpo`: one step within a trust region."""

    inner_kl_target: Annotated[float, Gt(0), Le(10)] = 0.01
    """`promp` only: divergence (nats) of the policies before an inner step towards which its penalty adapts."""

    inner_kl_penalty: Annotated[float, Ge(0), Le(1e6)] = 5e-4
    """`promp` only: first weight of each inner step's divergence; 0 does without the penalty for good."""

    kl_limit: Annotated[float, Gt(0), Le(10)] = 0.01
    """`trpo` only: δ, mean divergence (nats) of the adapted policies that a step may bring about."""

    conjugate_gradient_steps: Annotated[int, Ge(1), Le(100)] = 10
    """`trpo` only: most iterations towards the natural gradient; they end early where a twentieth of it is left."""

    curvature_share: Annotated[float, Gt(0), Le(1)] = 0.05
    """`trpo` only: share of the episodes, at least one a task, from which the curvature is estimated (Schulman et al.
    2015, "Trust region policy optimization", appendix C, take a tenth of much larger batches)."""

    damping: Annotated[float, Ge(0), Le(1e3)] = 1e-2
    """`trpo` only: multiple of the identity added to the curvature."""

    line_search_steps: Annotated[int, Ge(1), Le(100)] = 15
    """`trpo` only: how often the step is shortened to 0.8 of itself before it is given up."""


@final
class MAML(Learner[MAMLConfig]):
    """Exact second-order MAML, batched over tasks."""

    def __init__(self, config: MAMLConfig, policy: Policy) -> None:
        require_no_context(policy, config.name)
        if config.outer_step == "trpo" and config.intermediate_weight:
            # The step is judged by what the last policies achieve and how far they move.
            raise InvalidValue("/learner/intermediate_weight", 'must be 0 where outer_step is "trpo"')
        rates = (config.inner_learning_rate, config.entropy_coefficient)
        inner = InnerUpdate(policy, trained(policy), *rates, max_tasks=config.max_tasks_in_memory)
        penalty = InnerDivergence.initial(config.inner_kl_penalty, config.inner_steps)
        super().__init__(config, policy, inner, trained(policy), penalty if config.outer_step == "promp" else None)
        self._divergence = InnerDivergence(policy)
        # A trust region takes the place of clipping.
        outer = replace(config, clip_ratio=None) if config.outer_step == "trpo" else config
        term = self._divergence.penalty if config.outer_step == "promp" else None
        self.meta_gradient = MetaGradient(self, outer, term)

    @override
    def outer_step(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> tuple[LearnerState, Metrics]:
        meta_gradient, config = self.meta_gradient, self.config
        if config.outer_step == "adam":
            return meta_gradient.step(state, tasks, keys)
        trial = meta_gradient.sample(state, tasks, keys)
        if config.outer_step == "trpo":
            params, metrics = TrustRegion(self, meta_gradient, config).step(state.params, trial)
            after = LearnerState(params, state.optimiser)
        else:
            params, adam, norm = meta_gradient.follow(state, trial)
            moved = self._divergence.measure(meta_gradient.replay(params, trial, graph=False), trial)
            memory = InnerDivergence.adapt(state.memory, moved, config.inner_kl_target)
            after = LearnerState(params, adam, memory)
            metrics = {"gradient_norm": norm, "inner_kl": float(moved.mean())}
        return meta_gradient.finish(after, tasks, trial), trial.metrics() | metrics
