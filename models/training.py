"""Meta-training as a generator of progress."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import torch
from annotated_types import Ge, Gt, Le

from models import random
from models.adaptation import InnerLoop, adapt, require_memory
from models.families import TaskFamily
from models.learners import LEARNERS, MAML, LearnerConfig
from models.learners.maml import LearnerState, Metrics
from models.policy import Policy, PolicyConfig
from models.tasks import TaskBatch, environment_of
from models.types import InvalidValue, Task

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

    def __post_init__(self) -> None:
        """Refuse a run without an end."""
        conditions = (
            self.iterations,
            self.environment_steps,
            self.seconds,
            self.return_at_least,
            self.plateau,
        )
        if all(condition is None for condition in conditions):
            raise InvalidValue(
                "/stop",
                "give at least one of iterations, environment_steps, seconds, return_at_least, plateau",
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
    """Evaluation during training on tasks that are never trained on."""

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

    def __post_init__(self) -> None:
        """Draw one iteration's tasks and see that they fit together and in memory."""
        batch = TaskBatch.of(self.tasks.draw(self.seed, 0, self.learner.tasks_per_iteration))
        horizon, episodes = int(batch.horizon.max()), self.learner.episodes_per_task
        require_memory(episodes, horizon, "/learner/episodes_per_task", sum(self.policy.hidden))
        if len(batch) * episodes * horizon > MAX_STEPS_PER_ROLLOUT:
            raise InvalidValue(
                "/learner/tasks_per_iteration",
                f"{len(batch)} tasks x {episodes} episodes x {horizon} steps is over {MAX_STEPS_PER_ROLLOUT:,} steps",
            )
        self.build()

    @property
    def environment(self) -> str:
        """Id of the environment of all its tasks."""
        return self.tasks.draw(self.seed, 0, 1)[0].environment

    def build(self) -> MAML:
        """The learner, with a policy for the tasks' spaces."""
        environment = environment_of(self.tasks.draw(self.seed, 0, 1)[0])
        policy = Policy(self.policy, environment.observation_space, environment.action_space)
        return LEARNERS[self.learner.name](self.learner, policy)


@dataclass(frozen=True)
class TrainingState:
    """A point between two iterations. Training goes on from it bit for bit as if it had never paused.

    Attributes:
        learner: Initialisation and optimiser.
        iterations: Outer steps made.
        environment_steps: Steps of all training episodes.
        seconds: Time spent.
        history: Mean return after adapting of the last iterations, newest last.
    """

    learner: LearnerState
    iterations: int = 0
    environment_steps: int = 0
    seconds: float = 0.0
    history: tuple[float, ...] = field(default=())


@dataclass(frozen=True)
class Progress:
    """What one iteration did.

    Attributes:
        state: After the iteration.
        metrics: Of the iteration: `return_before`, `return_after`, `gradient_norm`, and `held_out_return_before`,
            `held_out_return_after`, `generalisation_gap` where it was evaluated.
        fraction: How far along the run is, in [0, 1].
        stopped_by: Name of the stop condition that holds; then this is the last progress.
    """

    state: TrainingState
    metrics: Metrics
    fraction: float
    stopped_by: str | None


def train(training: Training, state: TrainingState | None = None) -> Iterator[Progress]:
    """Meta-train, yielding after every iteration; to cancel, stop iterating.

    Args:
        training: What to compute.
        state: Where to go on from; None starts afresh. A state at which a stop condition already holds yields once.

    Raises:
        Diverged: If a parameter became NaN or infinite. The state of the last progress is still good.
        NonFiniteReward: If a task's reward or dynamics did.
    """
    learner = training.build()
    state = state or TrainingState(learner.initialise(training.seed))
    started = time.monotonic() - state.seconds
    stopped_by = training.stop.reached(state)
    if stopped_by:
        yield Progress(state, {}, 1.0, stopped_by)
    while not stopped_by:
        tasks = TaskBatch.of(training.tasks.draw(training.seed, state.iterations, training.learner.tasks_per_iteration))
        keys = random.fold_in(random.key(training.seed, "train", state.iterations), torch.arange(len(tasks)))
        learner_state, metrics = learner.outer_step(state.learner, tasks, keys)
        steps = int(metrics.pop("environment_steps"))
        state = TrainingState(
            learner_state,
            state.iterations + 1,
            state.environment_steps + steps,
            time.monotonic() - started,
            (*state.history, metrics["return_after"])[-training.stop.history_length :],
        )
        stopped_by = training.stop.reached(state)
        if training.held_out and (stopped_by or state.iterations % training.held_out.every_iterations == 0):
            metrics |= _evaluate(learner, state, training.held_out, training.seed, metrics["return_after"])
        yield Progress(state, metrics, 1.0 if stopped_by else training.stop.fraction(state), stopped_by)


def _evaluate(learner: MAML, state: TrainingState, held_out: HeldOut, seed: int, return_after: float) -> Metrics:
    method = InnerLoop(steps=held_out.steps, episodes=held_out.episodes, evaluation_episodes=held_out.episodes)
    result = adapt(learner, state.learner.params, TaskBatch.of(held_out.tasks), method, seed)
    before, after = (float(result.curve[i].mean_return.mean()) for i in (0, -1))
    return {
        "held_out_return_before": before,
        "held_out_return_after": after,
        "generalisation_gap": return_after - after,
    }
