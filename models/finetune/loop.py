"""Fine-tuning as a generator of progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from models import random
from models.adaptation import AdaptationDiverged, CurvePoint
from models.finetune.base import FineTuneConfig, FineTuner, Metrics, within
from models.finetune.methods import METHODS, MethodConfig, require_fit
from models.policy import Policy
from models.rollout import collect
from models.tasks import TaskBatch
from models.types import Params

LIMITS: Final = ("environment_steps", "episodes", "seconds", "target_return")
"""What can end a task's fine-tuning, in the order in which it is looked at."""

_LEARN, _EVALUATE = 0, 1


@dataclass(frozen=True)
class Progress:
    """What fine-tuning has come to after a round.

    Attributes:
        environment_steps: Of each task until it was over, [N].
        episodes: Finished ones of each task until it was over, [N].
        seconds: Time spent, evaluations included.
        metrics: Of the round, means over tasks.
        fraction: Share of the budget that is used up, of the task that has most left.
        stopped_by: Name of the limit that ended each task, None for one that goes on. With none of these this is the
            last progress.
        curve: Of each task, its evaluations so far: tensors without axes.
        policies: The N policies: as they are now, or as they were when their task was over. Worked out when called.
        state: Everything that is needed to go on from here, as tensors by name. Worked out when called.
    """

    environment_steps: Tensor
    episodes: Tensor
    seconds: float
    metrics: Metrics
    fraction: float
    stopped_by: tuple[str | None, ...]
    curve: tuple[tuple[CurvePoint, ...], ...]
    policies: Callable[[], Params]
    state: Callable[[], Params]

    @property
    def is_last(self) -> bool:
        """Whether every task is over."""
        return all(self.stopped_by)


def finetune(
    config: MethodConfig,
    policy: Policy,
    params: Params,
    tasks: TaskBatch,
    keys: Tensor,
    state: Mapping[str, Tensor] | None = None,
) -> Iterator[Progress]:
    """Train N policies on, each in its own task, yielding at the start and after every round.

    What comes of task n depends on its policy, its key and its task alone. To cancel, stop iterating.

    Args:
        config: Method and budget.
        policy: The architecture.
        params: N policies to start from.
        tasks: N tasks.
        keys: [N] int64, one stream of random numbers for each task.
        state: Where to go on from: what a progress of the same arguments gave. It ends bit for bit as if it had not
            paused, unless ``seconds`` or a schedule by them decide.

    Raises:
        AdaptationDiverged: If a parameter became NaN or infinite; the state of the last progress is still good.
        EnvironmentFailed: If a bridged environment failed.
        InvalidValue: If the method does not fit the task's actions, or would not fit in memory.
        NonFiniteReward: If a task's reward or dynamics became so.
    """
    require_fit(config, policy, int(tasks.horizon.max()))
    if config.reset_values:
        params = with_new_values(policy, params, keys)
    learning = None if state is None else within("learning", state)
    tuner = METHODS[config.name](config, policy, params, tasks, learning_keys(keys), learning)
    with tuner.stream:
        loop = _Loop(config, tuner, random.fold_in(keys, _EVALUATE))
        if state is None:
            loop.evaluate(torch.ones_like(loop.over))
        else:
            loop.restore(state)
        yield loop.progress({})
        while not bool(loop.over.all()):
            yield loop.progress(loop.round())


def learning_keys(keys: Tensor) -> Tensor:
    """Streams of what tasks learn, of their streams of all random numbers, [N]."""
    return random.fold_in(keys, _LEARN)


def with_new_values(policy: Policy, params: Params, keys: Tensor) -> Params:
    """N policies with new value heads, each by its key, [N]."""
    new = [policy.initialise(int(key)) for key in keys]
    heads = {name: torch.stack([each[name] for each in new]) for name in ("value.weight", "value.bias")}
    return {**params, **{name: value.to(params[name]) for name, value in heads.items()}}


class _Loop:
    def __init__(self, config: FineTuneConfig, tuner: FineTuner[Any], keys: Tensor) -> None:
        self._config = config
        self._tuner = tuner
        self._keys = keys
        self._started = time.monotonic()
        zeros = torch.zeros_like(tuner.tasks.horizon)
        self._environment_steps, self._episodes = zeros.clone(), zeros.clone()
        self._stopped_by = zeros - 1
        self._curve: list[list[CurvePoint]] = [[] for _ in zeros]
        self._kept: Params | None = None

    @property
    def over(self) -> Tensor:
        return self._stopped_by >= 0

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def round(self) -> Metrics:
        active = ~self.over
        before = int(self._environment_steps[active][0]) // self._config.evaluation_interval
        segment, metrics = self._tuner.round(self._used().to(self._tuner.tasks.discount))
        self._tuner.observed.observe(segment)
        steps, places = segment.reward.shape[1:]
        self._environment_steps += active * (steps * places)
        self._episodes += active * segment.finished
        finished = int(segment.finished.sum())
        if finished:
            metrics["training_return"] = float(segment.finished_return.sum()) / finished
        self._stop("environment_steps", active, self._environment_steps)
        self._stop("episodes", active, self._episodes)
        self._stop("seconds", active, torch.full_like(self._environment_steps, 0).double() + self._seconds)
        due = int(self._environment_steps[active][0]) // self._config.evaluation_interval > before
        evaluated = active if due else active & self.over
        if bool(evaluated.any()):
            metrics["return"] = self.evaluate(evaluated)
        newly = active & self.over
        if bool(newly.any()):
            self._keep(newly)
        return metrics

    def evaluate(self, which: Tensor) -> float:
        """Measure the policies of some tasks; their mean return."""
        rows = which.nonzero()[:, 0]
        tasks, policies = self._tuner.tasks, self._tuner.policies
        for name, value in policies.items():
            finite = torch.isfinite(value).flatten(1).all(1)
            if not bool(finite.all()):
                task = tasks.describe(int((~finite).nonzero()[0, 0]))
                raise AdaptationDiverged(f"{name} became NaN or infinite in {task}; try a smaller learning_rate")
        if len(rows) < len(tasks):
            tasks = tasks.select(rows.tolist())
            policies = {name: value[rows] for name, value in policies.items()}
        keys = random.fold_in(self._keys, self._tuner.stream.time)[rows]
        config = self._config
        fresh = collect(
            self._tuner.policy, policies, tasks, config.evaluation_episodes, keys, deterministic=config.greedy
        )
        for row, achieved in zip(rows.tolist(), fresh.mean_return, strict=True):
            point = CurvePoint(self._episodes[row].clone(), self._environment_steps[row].clone(), achieved)
            self._curve[row].append(point)
        if config.target_return is not None:
            reached = torch.zeros_like(which)
            reached[rows] = fresh.mean_return >= config.target_return
            self._mark("target_return", reached)
        return float(fresh.mean_return.mean())

    def progress(self, metrics: Metrics) -> Progress:
        stopped_by = tuple(None if i < 0 else LIMITS[i] for i in self._stopped_by.tolist())
        fraction = 1.0 if all(stopped_by) else float(self._used()[~self.over].min())
        return Progress(
            environment_steps=self._environment_steps.clone(),
            episodes=self._episodes.clone(),
            seconds=self._seconds,
            metrics=metrics,
            fraction=fraction,
            stopped_by=stopped_by,
            curve=tuple(map(tuple, self._curve)),
            policies=self._policies,
            state=self._state,
        )

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._started -= float(state["seconds"])
        self._environment_steps = state["environment_steps"].clone()
        self._episodes = state["episodes"].clone()
        self._stopped_by = state["stopped_by"].clone()
        self._kept = within("kept", state) or None
        columns = (state[f"curve.{name}"] for name in ("task", "episodes", "environment_steps", "mean_return"))
        for task, *values in zip(*columns, strict=True):
            self._curve[int(task)].append(CurvePoint(*values))

    def _state(self) -> Params:
        points = [(row, point) for row, curve in enumerate(self._curve) for point in curve]
        state = {
            "seconds": torch.tensor([self._seconds], dtype=torch.float64),
            "environment_steps": self._environment_steps.clone(),
            "episodes": self._episodes.clone(),
            "stopped_by": self._stopped_by.clone(),
            "curve.task": torch.tensor([row for row, _ in points]),
            "curve.episodes": torch.stack([point.episodes for _, point in points]),
            "curve.environment_steps": torch.stack([point.environment_steps for _, point in points]),
            "curve.mean_return": torch.stack([point.mean_return for _, point in points]),
        }
        # Copies: what a task that is over keeps may be what another goes on with, and files hold no tensor twice.
        state |= {f"kept.{name}": value.clone() for name, value in (self._kept or {}).items()}
        return state | {f"learning.{name}": value for name, value in self._tuner.state().items()}

    def _policies(self) -> Params:
        policies = self._tuner.policies
        if self._kept is None:
            return policies
        return _merged(self.over, self._kept, policies)

    def _keep(self, newly: Tensor) -> None:
        policies = self._tuner.policies
        self._kept = policies if self._kept is None else _merged(newly, policies, self._kept)

    def _used(self) -> Tensor:
        """Share of each task's budget that is used up, [N] in [0, 1]."""
        config = self._config
        shares = torch.zeros_like(self._environment_steps, dtype=torch.float64)
        for limit, amount in (
            (config.environment_steps, self._environment_steps),
            (config.episodes, self._episodes),
            (config.seconds, torch.full_like(shares, self._seconds)),
        ):
            if limit is not None:
                shares = torch.maximum(shares, amount / limit)
        return shares.clamp(max=1.0)

    def _stop(self, name: str, active: Tensor, amount: Tensor) -> None:
        limit = getattr(self._config, name)
        if limit is not None:
            self._mark(name, active & (amount >= limit))

    def _mark(self, name: str, reached: Tensor) -> None:
        self._stopped_by = torch.where(reached & ~self.over, LIMITS.index(name), self._stopped_by)


def _merged(which: Tensor, first: Params, second: Params) -> Params:
    """Tensors of ``first`` where ``which`` [N], else those of ``second``."""
    return {name: torch.where(which.reshape(-1, *[1] * (x.dim() - 1)), x, second[name]) for name, x in first.items()}
