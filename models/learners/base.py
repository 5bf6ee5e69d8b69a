"""What every meta-learner is: a frozen config, a policy architecture, an inner loop and an outer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from annotated_types import Ge, Gt, Le, Len
from torch import Tensor

from models import optimiser, returns
from models.learners.inner import Experience, InnerUpdate
from models.policy import Policy
from models.rollout import collect
from models.tasks import TaskBatch
from models.types import InvalidValue, Params, Rollout, stack_params

Metrics = dict[str, float]

LearningRate = Annotated[float, Gt(0), Le(1000)] | Annotated[tuple[Annotated[float, Gt(0), Le(1000)], ...], Len(1, 100)]
"""A step size: one for all inner steps, or a list with one for each, the last of which goes on."""


_SHRINKAGE = 1e-3
"""Of value heads that are kept: what trains a policy on takes gradients through its value head, which large weights
would blow up. Advantages are worked out without."""

KEPT_ACTIVATIONS = 100_000_000
"""Steps times hidden units up to which what the hidden layers gave, and the graphs made of it, are kept."""


class Diverged(ArithmeticError):
    """Training produced NaN or infinity; the state before that step is still good."""


@dataclass(frozen=True, kw_only=True)
class EpisodicConfig:
    """What every learner has: how experience is gathered and judged."""

    tasks_per_iteration: Annotated[int, Ge(1), Le(1000)] = 20
    """Tasks of one outer step."""

    episodes_per_task: Annotated[int, Ge(2), Le(1000)] = 20
    """Episodes of one task in each rollout: every inner step has one rollout, and the outer step another."""

    baseline: Literal["linear", "value", "none"] = "linear"
    """What is subtracted from returns. `linear`: a fit on features of observation and time (Duan et al. 2016).
    `value`: the value head, fitted to the task's episodes on the trunk's features. `none`: nothing."""

    gae_decay: Annotated[float, Ge(0), Le(1)] = 1.0
    """λ of the generalised advantage estimate; 1 is the return minus the baseline."""

    normalise_advantages: bool = True
    """Give each task's advantages mean 0 and standard deviation 1."""

    entropy_coefficient: Annotated[float, Ge(0), Le(10)] = 0.0
    """Weight of the policy's entropy (nats) in both loops' objectives."""

    max_tasks_in_memory: Annotated[int, Ge(1), Le(1000)] | None = None
    """Most tasks whose gradients are worked out together; null leaves it to the learner. The result is the same."""


@dataclass(frozen=True)
class LearnerState:
    """All that an outer step changes.

    Attributes:
        params: The initialisation: one policy's tensors, and the learned inner rates where there are any.
        optimiser: Moments of the outer optimiser.
        memory: What else goes from one outer step to the next, by name.
    """

    params: Params
    optimiser: optimiser.AdamState
    memory: Params = field(default_factory=dict)

    def to(self, device: torch.device) -> LearnerState:
        """The same state on a device."""
        adam = self.optimiser
        moments = (_to(adam.mean, device), _to(adam.square, device))
        return LearnerState(
            _to(self.params, device), optimiser.AdamState(adam.step, *moments), _to(self.memory, device)
        )


def _to(params: Params, device: torch.device) -> Params:
    return {name: value.to(device) for name, value in params.items()}


Config = TypeVar("Config", bound=EpisodicConfig, covariant=True)


class Learner(ABC, Generic[Config]):
    """A meta-learner: what :func:`models.training.train` and :func:`models.adaptation.adapt` call.

    Args:
        config: Its hyperparameters.
        policy: The architecture.
        inner: Its inner loop, which adapting uses as well.
        outer: Names of the tensors that the outer step moves, beside learned inner rates.
        memory: What of its own it starts with (:class:`LearnerState`).

    Attributes:
        outer: Names of all tensors that the outer step moves.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        inner: InnerUpdate,
        outer: Sequence[str],
        memory: Params | None = None,
    ) -> None:
        self.config = config
        self.policy = policy
        self.inner = inner
        self.outer = [*outer, *inner.rate_shapes()]
        self._memory = memory or {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of an initialisation: the policy's and the learned inner rates."""
        return self.policy.shapes() | self.inner.rate_shapes()

    def initialise(
        self, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> LearnerState:
        """A new initialisation and an optimiser that has made no step."""
        params = self.policy.initialise(seed, dtype, device) | self.inner.initial_rates(dtype, device)
        adam = optimiser.AdamState.initial({name: params[name] for name in self.outer})
        return LearnerState(params, adam, _to(self._memory, params["policy.bias"].device))

    @abstractmethod
    def outer_step(self, state: LearnerState, tasks: TaskBatch, keys: Tensor) -> tuple[LearnerState, Metrics]:
        """One iteration of meta-training.

        Args:
            state: Before the step; left unchanged.
            tasks: N tasks.
            keys: [N] int64: all randomness of task n comes from stream n.

        Returns:
            The state after, and metrics: `return_before`, `return_after` (means over tasks, before and after adapting),
            `gradient_norm`, `environment_steps`, and what else the learner has to tell.

        Raises:
            Diverged: If a parameter became NaN or infinite.
            NonFiniteReward: If a task's reward did.
        """

    def inner_step(
        self,
        params: Params,
        tasks: TaskBatch,
        keys: Tensor,
        step: int = 0,
        episodes: int | None = None,
        rate: LearningRate | None = None,
    ) -> tuple[Rollout, Params]:
        """Collect support episodes with N policies and take one inner gradient step with each; no graph is kept.

        Args:
            params: N policies, with learned inner rates where the learner has them.
            tasks: N tasks.
            keys: [N] int64, the streams of the episodes.
            step: Which inner step it is, from 0: rates may depend on it.
            episodes: Of each task; by default the learner's number.
            rate: Step size; by default the learner's.

        Returns:
            The support rollout and the N adapted policies.
        """
        rollout = self.collect(params, tasks, keys, episodes, traced=self.keeps(tasks, episodes))
        return rollout, self.update(params, tasks.discount, rollout, step, rate)

    def update(
        self, params: Params, discount: Tensor, rollout: Rollout, step: int = 0, rate: LearningRate | None = None
    ) -> Params:
        """One inner gradient step of N policies on episodes that are there already; no graph is kept.

        Where others than these policies acted, their log-probabilities in the rollout weigh the steps.

        Args:
            params: N policies, with learned inner rates where the learner has them.
            discount: γ of each task, [N].
            rollout: Episodes in N tasks.
            step: Which inner step it is, from 0: rates may depend on it.
            rate: Step size; by default the learner's.

        Returns:
            The N adapted policies.
        """
        experience = self.experience(params, discount, rollout)
        adapted = [
            self.inner.descend(
                {name: value[rows] for name, value in params.items()}, experience.select(rows), step, False, rate
            )
            for rows in self.inner.parts(experience)
        ]
        return {name: torch.cat([part[name].detach() for part in adapted]) for name in params}

    def keeps(self, tasks: TaskBatch, episodes: int | None = None) -> bool:
        """Whether memory is enough to keep a rollout's activations from sampling to the gradient, for all tasks."""
        steps = len(tasks) * int(tasks.horizon.max()) * (episodes or self.config.episodes_per_task)
        fits = steps * sum(self.policy.config.hidden) <= KEPT_ACTIVATIONS
        return fits and len(tasks) <= (self.config.max_tasks_in_memory or len(tasks))

    def collect(
        self, params: Params, tasks: TaskBatch, keys: Tensor, episodes: int | None = None, *, traced: bool = False
    ) -> Rollout:
        """Episodes of N policies in their tasks; by default as many as the config says.

        With ``traced``, the hidden layers' outputs are kept for the gradient that follows, where the policy allows it.
        """
        episodes = episodes or self.config.episodes_per_task
        return collect(self.policy, params, tasks, episodes, keys, traced=traced and self.policy.traceable)

    def experience(self, params: Params, discount: Tensor, rollout: Rollout) -> Experience:
        """Advantages of a rollout by this learner's baseline and each task's γ [N], flattened to rows."""
        reward_to_go = returns.discounted_returns(rollout.reward, rollout.mask, discount)
        if self.config.baseline == "linear":
            value = returns.linear_baseline(rollout, reward_to_go)
        elif self.config.baseline == "value":
            features = self._features(params, rollout)
            fit = returns.fitted_value_head(features, reward_to_go.flatten(1), rollout.mask.flatten(1))
            value = self.policy.value(fit, features).reshape(rollout.reward.shape)
        else:
            value = torch.zeros_like(rollout.reward)
        # An episode's horizon is part of its task: nothing is earned after it, so nothing is bootstrapped.
        final = torch.zeros_like(rollout.reward[:, 0])
        advantage = returns.generalised_advantages(
            rollout.reward, rollout.mask, value, final, discount, self.config.gae_decay
        )
        if self.config.normalise_advantages:
            advantage = returns.standardise(advantage, rollout.mask)
        return Experience.of(rollout, advantage, discount)

    def fit_value(self, params: Params, discount: Tensor, rollout: Rollout) -> Params:
        """N policies whose value heads are the least-squares fit to the episodes in ``rollout``, by each task's γ."""
        reward_to_go = returns.discounted_returns(rollout.reward, rollout.mask, discount)
        return params | returns.fitted_value_head(
            self._features(params, rollout), reward_to_go.flatten(1), rollout.mask.flatten(1), _SHRINKAGE
        )

    def refit(self, params: Params, discount: Tensor, rollout: Rollout) -> Params:
        """The initialisation with a value head fitted to one episode of every task, and newer statistics."""
        reward_to_go = returns.discounted_returns(rollout.reward, rollout.mask, discount)[:, :, 0].reshape(1, -1)
        observation, mask = rollout.observation[:, :, 0], rollout.mask[:, :, 0].reshape(1, -1)
        flat = observation.reshape(1, -1, observation.shape[-1])
        with torch.no_grad():
            features = self.policy.features(stack_params(params, 1), flat)
        fit = returns.fitted_value_head(features, reward_to_go, mask, _SHRINKAGE)
        refitted = params | {name: value[0] for name, value in fit.items()}
        return self.policy.observe(refitted, rollout.observation, rollout.mask)

    @torch.no_grad()
    def _features(self, params: Params, rollout: Rollout) -> Tensor:
        trace = None if rollout.trace is None else [x.flatten(1, 2) for x in rollout.trace]
        return self.policy.features(params, rollout.observation.flatten(1, 2), trace)


def trained(policy: Policy) -> list[str]:
    """Names of the tensors that policy gradients move: all but the value head, which is fitted, and the context."""
    return [name for name in policy.trainable() if not name.startswith("value.") and name != "context"]


def require_no_context(policy: Policy, learner: str) -> None:
    """Refuse context inputs where nothing would adapt them.

    Raises:
        InvalidValue: At ``/policy/context_size``.
    """
    size: Any = policy.config.context_size
    if size:
        detail = f"must be 0 for {learner}: context inputs are adapted by the learner cavia alone, not {size}"
        raise InvalidValue("/policy/context_size", detail)
