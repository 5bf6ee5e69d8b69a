"""Runs, as they are known: background meta-training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from headstart_client.events import FINISHED
from headstart_client.tasks import Task, TaskFamily
from headstart_client.transport import segment
from headstart_client.wire import Failure, Resource, id_of

TICK_S = 0.5

TaskSelection = str | TaskFamily | Mapping[str, Any] | Iterable[str | Task]


@dataclass(frozen=True, kw_only=True)
class Progress(Resource):
    """How far a run is.

    Attributes:
        fraction: Of the way to its nearest stop condition, in [0, 1].
        iterations: Outer-loop steps taken.
        environment_steps: Steps taken in environments.
        seconds: Time spent training.
    """

    fraction: float = 0.0
    iterations: int = 0
    environment_steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class HeldOutReturns(Resource):
    """Returns of one evaluation on held-out tasks.

    Attributes:
        mean_return: Row k holds the mean return of every task after k inner steps, in the order of
            :meth:`Runs.evaluation_tasks`; ``None`` where it is not finite.
    """

    mean_return: tuple[tuple[float | None, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Metric(Resource):
    """One row of a run's metrics.

    Attributes:
        sequence: Its place in the order of rows; pass it as ``after`` to get what came later.
        iteration: The outer-loop step it was taken at.
        environment_steps: Steps taken in environments until then.
        seconds: Time spent training until then.
        values: Means over tasks by name: ``return_before``, ``return_after``, ...
        evaluation: Returns of every held-out task, where the iteration was evaluated.
    """

    sequence: int
    iteration: int
    environment_steps: int = 0
    seconds: float = 0.0
    values: Mapping[str, float] = field(default_factory=dict)
    evaluation: HeldOutReturns | None = None


@dataclass(frozen=True, kw_only=True)
class Best(Resource):
    """The iteration that did best on held-out tasks so far: what the run's version is made of.

    Attributes:
        iteration: The outer-loop step.
        held_out_return_after: Its mean return after adapting to held-out tasks.
    """

    iteration: int
    held_out_return_after: float


@dataclass(frozen=True, kw_only=True)
class EvaluationTasks(Resource):
    """The held-out tasks of a run: what sampling as many of the family with this split and seed gives.

    Attributes:
        family: Name of their family.
        split: Their part of it.
        seed: That they are drawn with.
        tasks: Their definitions, in the order of every evaluation's returns; one can be adapted to as it is.
    """

    family: str
    split: str
    seed: int
    tasks: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunRecord(Resource):
    """One background meta-training.

    Attributes:
        id: Its unique id.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        model: The model that its version goes to.
        version: Number of the version it made; ``None`` until it has succeeded.
        progress: How far it is.
        metrics: The newest numbers: ``return_before``, ``return_after``, ...
        best: What it keeps, as far as it has been evaluated on held-out tasks.
        attempts: How often a worker has taken it up.
        error: Why it failed.
        stopped_by: The stop condition that ended it.
        learner: The meta-learner and its hyperparameters.
        policy: The policy's architecture.
        tasks: The tasks it trains on.
        stop: Its stop conditions.
        evaluation: How it is evaluated on held-out tasks.
        seed: Of all its randomness.
        device: Where it is computed: ``auto``, ``cpu`` or ``cuda``.
        cancel_requested: Whether somebody asked to cancel it.
        created_at: When it was asked for, UTC.
        started_at: When a worker first took it up, UTC.
        finished_at: When it ended, UTC.
    """

    id: str
    state: str
    model: str | None = None
    version: int | None = None
    progress: Progress = field(default_factory=Progress)
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: Best | None = None
    attempts: int = 0
    error: Failure | None = None
    stopped_by: str | None = None
    learner: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Any] = field(default_factory=dict)
    stop: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] | None = None
    seed: int | None = None
    device: str | None = None
    cancel_requested: bool = False
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.state in FINISHED


def run_path(run: str | RunRecord) -> str:
    """Its path on the service."""
    return f"/v1/runs/{segment(id_of(run))}"


def task_selection(tasks: TaskSelection) -> Mapping[str, Any]:
    """What is sent for the tasks to train on."""
    if isinstance(tasks, str):
        return {"family": tasks}
    if isinstance(tasks, TaskFamily):
        return {"family": tasks.name}
    if isinstance(tasks, Mapping):
        return tasks
    return {"ids": [id_of(task) for task in tasks]}
