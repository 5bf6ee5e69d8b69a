"""Meta-training as a generator of progress."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol

import torch
from annotated_types import Ge, Gt, Le

from models import random
from models.adaptation import InnerLoop, adapt, require_memory
from models.device import Device, resolve_device
from models.families import TaskFamily
from models.learners import LEARNERS, Learner, LearnerConfig
from models.learners.base import LearnerState, Metrics
from models.policy import Policy, PolicyConfig
from models.tasks import TaskBatch
from models.types import InvalidValue, Params, Task

Split = Literal["train", "validation", "test"]

MAX_STEPS_PER_ROLLOUT = 10_000_000
"""Tasks times episodes times horizon of one rollout."""


class TaskSource(Protocol):
    """Where an iteration's tasks come from."""

    def draw(self, seed: int, iteration: int, count: int) -> list[Task]:
        """At most ``count`` tasks, a function of the arguments alone."""
        ...


@dataclass(frozen=True)
class FamilyTasks:
    """Fresh tasks of a family's distribution, no two iterations the same."""

    family: TaskFamily
    split: Split

    def draw(self, seed: int, iteration: int, count: int) -> list[Task]:
        """The ``count`` tasks that follow those of the iterations before."""
        return self.family.sample(self.split, seed, range(iteration * count, (iteration + 1) * count))


@dataclass(frozen=True)
class FixedTasks:
    """A given set of tasks; an iteration takes some of them at random, without replacement."""

    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        """Refuse an empty set."""
        if not self.tasks:
            raise InvalidValue("/tasks", "the selection is empty; select at least one task")

    def draw(self, seed: int, iteration: int, count: int) -> list[Task]:
        """``count`` of the tasks, or all where there are no more."""
        if count >= len(self.tasks):
            return list(self.tasks)
        order = random.permutation(random.key(seed, "tasks", iteration), len(self.tasks))
        return [self.tasks[i] for i in order[:count]]


@dataclass(frozen=True)
class Plateau:
    """No more progress: the mean return of the last `iterations` is not `improvement` above that of as many before."""

    iterations: Annotated[int, Ge(1), Le(100_000)]
    """Width of each of the two windows compared."""

    improvement: Annotated[float, Ge(0)]
    """Least gain in mean return after adapting, in reward units."""


@dataclass(frozen=True)
class Gap:
    """Overfitting to the training tasks: their return after adapting stays so far above that of held-out tasks."""

    above: Annotated[float, Ge(0), Le(1e30)]
    """Least gap between the two mean returns, in reward units."""

    evaluations: Annotated[int, Ge(1), Le(10_000)] = 3
    """How many held-out evaluations in a row must find it."""


@dataclass(frozen=True)
class Stop:
    """When a run ends: at the first condition that holds. At least one is needed."""

    iterations: Annotated[int, Ge(1), Le(10_000_000)] | None = None
    """Outer steps."""

    environment_steps: Annotated[int, Ge(1), Le(10**15)] | None = None
    """Steps of all training episodes; those of held-out evaluations are not counted."""

    seconds: Annotated[float, Gt(0), Le(10**8)] | None = None
    """Time spent training, over all attempts."""

    return_at_least: Annotated[float, Ge(-1e30), Le(1e30)] | None = None
    """Mean return after adapting, over one iteration's training tasks."""

    plateau: Plateau | None = None
    """No more progress on the training tasks."""

    gap: Gap | None = None
    """Early stopping on the generalisation gap; needs an evaluation on held-out tasks."""

    def __post_init__(self) -> None:
        """Refuse a run without an end."""
        conditions = (
            self.iterations,
            self.environment_steps,
            self.seconds,
            self.return_at_least,
            self.plateau,
            self.gap,
        )
        if all(condition is None for condition in conditions):
            raise InvalidValue(
                "/stop",
                "give at least one of iterations, environment_steps, seconds, return_at_least, plateau, gap",
            )

    def reached(self, state: TrainingState) -> str | None:
        """Name of the first condition that holds, in the order of the fields, or None."""
        for name in ("iterations", "environment_steps", "seconds"):
            limit = getattr(self, name)
            if limit is not None and getattr(state, name) >= limit:
                return name
        history = state.history
        if self.return_at_least is not None and history and history[-1] >= self.return_at_least:
            return "return_at_least"
        if self.plateau is not None and len(history) >= 2 * self.plateau.iterations:
            width = self.plateau.iterations
            gain = sum(history[-width:]) / width - sum(history[-2 * width : -width]) / width
            if gain < self.plateau.improvement:
                return "plateau"
        gap = self.gap
        if gap is not None and len(state.gaps) >= gap.evaluations and min(state.gaps[-gap.evaluations :]) > gap.above:
            return "gap"
        return None

    def fraction(self, state: TrainingState) -> float:
        """Share of the nearest countable condition that is used up, in [0, 1]."""
        shares = [
            getattr(state, name) / limit
            for name in ("iterations", "environment_steps", "seconds")
            if (limit := getattr(self, name)) is not None
        ]
        return min(1.0, max(shares, default=0.0))

    @property
    def history_length(self) -> int:
        """Past returns that deciding needs."""
        return max(1, 2 * self.plateau.iterations if self.plateau else 1)


@dataclass(frozen=True)
class HeldOut:
    """Evaluation during training on tasks that are never trained on.

    Attributes:
        tasks: Which.
        every_iterations: Iterations from one evaluation to the next; the last iteration always has one.
        steps: K, inner steps after each of which the return is measured.
        episodes: Of each task in each rollout.
    """

    tasks: tuple[Task, ...]
    every_iterations: int
    steps: int
    episodes: int


@dataclass(frozen=True)
class Training:
    """Everything that decides what a run computes: equal trainings end in equal parameters."""

    learner: LearnerConfig
    policy: PolicyConfig
    tasks: TaskSource
    stop: Stop
    seed: int = 0
    held_out: HeldOut | None = None
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Draw one iteration's tasks and see that all of it fits together and in memory."""
        batch = self._first_tasks
        _require_memory(batch, self.learner.episodes_per_task, self.policy, "/learner", "tasks_per_iteration")
        if self.held_out is not None:
            held_out = TaskBatch.of(self.held_out.tasks)
            _require_memory(held_out, self.held_out.episodes, self.policy, "/evaluation", "tasks")
        elif self.stop.gap is not None:
            raise InvalidValue("/stop/gap", "needs an evaluation on held-out tasks; give evaluation too")
        resolve_device(self.device)
        self.build()

    @property
    def environment(self) -> str:
        """Id of the environment of all its tasks."""
        return self._first_tasks.environment.id

    def build(self) -> Learner[Any]:
        """The learner, with a policy for the tasks' spaces."""
        environment = self._first_tasks.environment
        policy = Policy(self.policy, environment.observation_space, environment.action_space)
        return LEARNERS[self.learner.name](self.learner, policy)

    @cached_property
    def _first_tasks(self) -> TaskBatch:
        return TaskBatch.of(self.tasks.draw(self.seed, 0, self.learner.tasks_per_iteration))


def _require_memory(tasks: TaskBatch, episodes: int, policy: PolicyConfig, pointer: str, count: str) -> None:
    horizon = int(tasks.horizon.max())
    name = "episodes_per_task" if pointer == "/learner" else "episodes"
    require_memory(episodes, horizon, f"{pointer}/{name}", sum(policy.hidden))
    if len(tasks) * episodes * horizon > MAX_STEPS_PER_ROLLOUT:
        size = f"{len(tasks)} tasks x {episodes} episodes x {horizon} steps"
        raise InvalidValue(f"{pointer}/{count}", f"{size} is over {MAX_STEPS_PER_ROLLOUT:,} steps")


@dataclass(frozen=True)
class Best:
    """The initialisation whose return on held-out tasks after adapting was the highest so far.

    Attributes:
        params: Its tensors.
        iteration: After which it was evaluated.
        metrics: Of that iteration.
    """

    params: Params
    iteration: int
    metrics: Metrics


@dataclass(frozen=True)
class TrainingState:
    """A point between two iterations. Training goes on from it bit for bit as if it had never paused.

    Attributes:
        learner: Initialisation and optimiser.
        iterations: Outer steps made.
        environment_steps: Steps of all training episodes.
        seconds: Time spent.
        history: Mean return after adapting of the last iterations, newest last.
        gaps: Generalisation gaps of the last held-out evaluations, newest last.
        best: The best so far; None before the first held-out evaluation.
    """

    learner: LearnerState
    iterations: int = 0
    environment_steps: int = 0
    seconds: float = 0.0
    history: tuple[float, ...] = field(default=())
    gaps: tuple[float, ...] = field(default=())
    best: Best | None = None

    @property
    def kept(self) -> Params:
        """What the run is for: the best initialisation on held-out tasks, or the newest where none were held out."""
        return self.best.params if self.best else self.learner.params


@dataclass(frozen=True)
class Evaluated:
    """Returns of one held-out evaluation, on episodes that nothing else is made of.

    Attributes:
        mean_return: Of every task, before adapting and after 1..K inner steps: K + 1 tuples of N.
    """

    mean_return: tuple[tuple[float, ...], ...]

    def metrics(self, return_after: float) -> Metrics:
        """Means over tasks, and the gap of the training tasks' return after adapting to that of these."""
        means = [sum(returns) / len(returns) for returns in self.mean_return]
        by_step = {f"held_out_return_step_{step}": mean for step, mean in enumerate(means) if step}
        return by_step | {
            "held_out_return_before": means[0],
            "held_out_return_after": means[-1],
            "generalisation_gap": return_after - means[-1],
        }


@dataclass(frozen=True)
class Progress:
    """What one iteration did.

    Attributes:
        state: After the iteration.
        metrics: Of the iteration: `return_before`, `return_after`, `gradient_norm` and the learner's own; where it was
            evaluated also `held_out_return_before`, `held_out_return_step_1` .. `_K`, `held_out_return_after` (the
            last step's) and `generalisation_gap`.
        fraction: How far along the run is, in [0, 1].
        stopped_by: Name of the stop condition that holds; then this is the last progress.
        evaluated: Per task, where it was evaluated.
    """

    state: TrainingState
    metrics: Metrics
    fraction: float
    stopped_by: str | None
    evaluated: Evaluated | None = None


def train(training: Training, state: TrainingState | None = None) -> Iterator[Progress]:
    """Meta-train, yielding after every iteration; to cancel, stop iterating.

    Args:
        training: What to compute.
        state: Where to go on from; None starts afresh. A state at which a stop condition already holds yields once.

    Raises:
        Diverged: If a parameter became NaN or infinite. The state of the last progress is still good.
        NonFiniteReward: If a task's reward or dynamics did.
        AdaptationDiverged: If adapting to a held-out task did.
        EnvironmentFailed: If an environment behind the bridge failed.
    """
    learner, device = training.build(), resolve_device(training.device)
    state = state or TrainingState(learner.initialise(training.seed, device=device))
    state = replace(state, learner=state.learner.to(device))
    started = time.monotonic() - state.seconds
    stopped_by = training.stop.reached(state)
    if stopped_by:
        yield Progress(state, {}, 1.0, stopped_by)
    while not stopped_by:
        drawn = training.tasks.draw(training.seed, state.iterations, training.learner.tasks_per_iteration)
        tasks = TaskBatch.of(drawn, device=device)
        iteration_key = random.key(training.seed, "train", state.iterations, device=device)
        keys = random.fold_in(iteration_key, torch.arange(len(tasks), device=device))
        learner_state, metrics = learner.outer_step(state.learner, tasks, keys)
        steps = int(metrics.pop("environment_steps"))
        state = replace(
            state,
            learner=learner_state,
            iterations=state.iterations + 1,
            environment_steps=state.environment_steps + steps,
            seconds=time.monotonic() - started,
            history=(*state.history, metrics["return_after"])[-training.stop.history_length :],
        )
        stopped_by, evaluated = training.stop.reached(state), None
        held_out = training.held_out
        if held_out and (stopped_by or state.iterations % held_out.every_iterations == 0):
            evaluated = _evaluate(learner, state, held_out, training.seed)
            metrics |= evaluated.metrics(metrics["return_after"])
            state = _judge(state, metrics, training.stop)
            stopped_by = stopped_by or training.stop.reached(state)
        fraction = 1.0 if stopped_by else training.stop.fraction(state)
        yield Progress(state, metrics, fraction, stopped_by, evaluated)


def _evaluate(learner: Learner[Any], state: TrainingState, held_out: HeldOut, seed: int) -> Evaluated:
    method = InnerLoop(steps=held_out.steps, episodes=held_out.episodes, evaluation_episodes=held_out.episodes)
    params = state.learner.params
    tasks = TaskBatch.of(held_out.tasks, device=params["policy.bias"].device)
    # Fresh episodes every time: the best of many evaluations on the same ones would be the best at those.
    result = adapt(learner, params, tasks, method, int(random.key(seed, "held-out", state.iterations)))
    return Evaluated(tuple(tuple(point.mean_return.tolist()) for point in result.curve))


def _judge(state: TrainingState, metrics: Metrics, stop: Stop) -> TrainingState:
    """The state that also knows what the evaluation said."""
    length = stop.gap.evaluations if stop.gap else 1
    gaps = (*state.gaps, metrics["generalisation_gap"])[-length:]
    best, achieved = state.best, metrics["held_out_return_after"]
    if best is None or achieved > best.metrics["held_out_return_after"]:
        best = Best(state.learner.params, state.iterations, dict(metrics))
    return replace(state, gaps=gaps, best=best)
