"""Adapt an initialisation to tasks it has not seen, and measure what that was worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from models import random
from models.learners import Learner
from models.learners.base import LearningRate
from models.rollout import collect
from models.tasks import TaskBatch
from models.types import InvalidValue, Params, all_finite, stack_params

MAX_STEPS_PER_TASK = 1_000_000
"""Episodes times horizon of one rollout of one task."""

MAX_ACTIVATIONS_PER_TASK = 200_000_000
"""The same times the policy's hidden units: a gradient holds several copies of so many numbers."""


@dataclass(frozen=True)
class InnerLoop:
    """Adapt with the learner's own inner loop."""

    name: Literal["inner-loop"] = "inner-loop"

    steps: Annotated[int, Ge(1), Le(100)] = 1
    """Inner gradient steps; it may differ from the number in training."""

    episodes: Annotated[int, Ge(2), Le(1000)] = 20
    """Episodes collected for each step."""

    learning_rate: LearningRate | None = None
    """Step size, or a list with one for each step, the last of which goes on; null takes the learner's own. A learner
    that has learned its rates takes no other."""

    evaluation_episodes: Annotated[int, Ge(1), Le(1000)] = 20
    """Fresh episodes, used for nothing else, that measure the return before adapting and after each step."""


@dataclass(frozen=True)
class CurvePoint:
    """Performance after some adaptation data.

    Attributes:
        episodes: Support episodes used for each task so far, [N].
        environment_steps: Steps of those episodes, [N].
        mean_return: Mean undiscounted return of fresh episodes, [N].
    """

    episodes: Tensor
    environment_steps: Tensor
    mean_return: Tensor

    def of(self, task: int) -> CurvePoint:
        """That of one task, without axes."""
        return CurvePoint(self.episodes[task], self.environment_steps[task], self.mean_return[task])


@dataclass(frozen=True)
class Adaptation:
    """Policies adapted to N tasks: parameters [N, ...] and a learning curve of steps + 1 points."""

    params: Params
    curve: tuple[CurvePoint, ...]


class AdaptationDiverged(ArithmeticError):
    """Adapting gave parameters that are not finite."""


def require_memory(episodes: int, horizon: int, pointer: str, units: int = 1) -> None:
    """Refuse a rollout of one task that would not fit in memory.

    Args:
        episodes: Of the task.
        horizon: Steps of the longest.
        pointer: Where the number of episodes was given.
        units: Hidden units of the policy, all layers together.

    Raises:
        InvalidValue: At ``pointer``, if the steps are above :data:`MAX_STEPS_PER_TASK`, or steps times units above
            :data:`MAX_ACTIVATIONS_PER_TASK`.
    """
    limit = min(MAX_STEPS_PER_TASK, MAX_ACTIVATIONS_PER_TASK // units) // horizon
    if episodes > limit:
        raise InvalidValue(pointer, f"{episodes} episodes of {horizon} steps are too many; at most {limit} fit")


def require_rate(learner: Learner[Any], method: InnerLoop) -> None:
    """Refuse a step size where the learner has learned its own.

    Raises:
        InvalidValue: At ``/method/learning_rate``.
    """
    if method.learning_rate is not None and learner.inner.learned is not None:
        name = learner.config.name
        raise InvalidValue("/method/learning_rate", f"must be null: a version of {name} has learned its own rates")


def require_convergence(adapted: Params, step: int) -> None:
    """Refuse what came of an inner step, counted from 1.

    Raises:
        AdaptationDiverged: If a parameter became NaN or infinite.
    """
    if not all_finite(adapted):
        raise AdaptationDiverged(f"step {step} gave NaN or infinite parameters; try a smaller learning_rate")


def adapt(
    learner: Learner[Any], params: Params, tasks: TaskBatch, method: InnerLoop, seed: int | Sequence[int]
) -> Adaptation:
    """Adapt an initialisation to each of N tasks.

    Support and evaluation episodes come from streams of their own, so measuring changes nothing.

    Args:
        learner: Whose inner loop is used.
        params: The initialisation: one policy, or N.
        tasks: N tasks.
        method: Steps, episodes and rate.
        seed: Of all randomness; the result for task n depends on (seed, n) alone. With a list of N seeds, each task
            comes out as it would alone with its seed.

    Returns:
        Adapted policies, whose value heads are fitted to the last evaluation episodes, and their curve.

    Raises:
        AdaptationDiverged: If a parameter became NaN or infinite.
        InvalidValue: If a rollout would not fit in memory, or the rate is not to be chosen.
        NonFiniteReward: If a task's reward became so.
    """
    horizon, device = int(tasks.horizon.max()), tasks.horizon.device
    require_memory(method.episodes, horizon, "/method/episodes", sum(learner.policy.config.hidden))
    require_memory(method.evaluation_episodes, horizon, "/method/evaluation_episodes")
    require_rate(learner, method)
    if isinstance(seed, int):
        keys = random.fold_in(random.key(seed, "adapt", device=device), torch.arange(len(tasks), device=device))
    else:
        keys = random.fold_in(torch.stack([random.key(each, "adapt", device=device) for each in seed]), 0)
    stacked = params["policy.bias"].dim() > 1
    adapted = params if stacked else stack_params(params, len(tasks))
    steps_used = torch.zeros(len(tasks), dtype=torch.int64, device=device)
    curve = []
    for step in range(method.steps + 1):
        if step:
            rollout, adapted = learner.inner_step(
                adapted, tasks, random.fold_in(keys, 2 * step), step - 1, method.episodes, method.learning_rate
            )
            steps_used = steps_used + rollout.mask.count_nonzero((1, 2))
            require_convergence(adapted, step)
        evaluation_keys = random.fold_in(keys, 2 * step + 1)
        fresh = collect(learner.policy, adapted, tasks, method.evaluation_episodes, evaluation_keys)
        curve.append(CurvePoint(torch.full_like(steps_used, step * method.episodes), steps_used, fresh.mean_return))
    fitted = learner.fit_value(adapted, tasks.discount, fresh)
    return Adaptation({name: fitted[name] for name in learner.policy.shapes()}, tuple(curve))
