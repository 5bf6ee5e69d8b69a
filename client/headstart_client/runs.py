"""Runs: background meta-training."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from headstart_client.display import Display, choose_display
from headstart_client.downloads import download
from headstart_client.errors import InvalidResponse, RunFailed
from headstart_client.events import FINISHED, Event, stream_events
from headstart_client.history import History
from headstart_client.tasks import Task, TaskFamily
from headstart_client.transport import Transport, json_of, segment
from headstart_client.waiting import goes_on, poll, ticking
from headstart_client.wire import Failure, Resource, id_of, parse, without_none

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
class Run(Resource):
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
    _runs: Runs | None = field(default=None, repr=False, compare=False)

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.state in FINISHED

    def wait(self, timeout_s: float | None = None, *, progress: bool | None = None) -> Run:
        """Wait for it to end, as :meth:`Runs.wait`."""
        if self._runs is None:
            raise ValueError("only a run that came from a client can be waited for")
        return self._runs.wait(self, timeout_s, progress=progress)


class Runs:
    """``client.runs``: background meta-training."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        model: str,
        *,
        tasks: TaskSelection,
        stop: Mapping[str, Any],
        learner: str | Mapping[str, Any] = "maml",
        policy: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        seed: int | None = None,
        device: str | None = None,
        idempotency_key: str | None = None,
    ) -> Run:
        """Start meta-training; when it has succeeded, the model has one more version.

        Args:
            model: Name of the model; made by its first run.
            tasks: What to train on: a family (drawn afresh in every iteration), registered tasks or their ids
                or names, or the selection as the service takes it: ``{"labels": {...}}``.
            stop: Stop conditions, the first that holds ends the run: ``iterations``, ``environment_steps``,
                ``seconds``, ``return_at_least``, ``plateau``, ``gap``. At least one.
            learner: A meta-learner's name, or that and hyperparameters: ``{"name": "maml", "outer_step":
                "trpo"}``.
            policy: Architecture: ``{"hidden": [64, 32], "activation": "tanh"}``.
            evaluation: On held-out tasks, while training: ``{"split": "test", "tasks": 20,
                "every_iterations": 20, "steps": 3}``. The version is then made of the best iteration.
            seed: Of all the run's randomness.
            device: ``auto``, ``cpu`` or ``cuda``: where the worker computes.
            idempotency_key: With the same key, a later call gives this run instead of another one; made up
                for every call where not given.

        Raises:
            InvalidRequest: If something in it is wrong or contradictory.
        """
        body = without_none(
            model=model,
            learner={"name": learner} if isinstance(learner, str) else learner,
            policy=policy,
            tasks=_selection(tasks),
            stop=stop,
            evaluation=evaluation,
            seed=seed,
            device=device,
        )
        return self.submit(body, idempotency_key=idempotency_key)

    def submit(self, body: Mapping[str, object], *, idempotency_key: str | None = None) -> Run:
        """Start a run from a whole request body, as :meth:`create`."""
        return self._run(self._transport.create("/v1/runs", body, idempotency_key=idempotency_key))

    def get(self, run: str | Run) -> Run:
        """A run as it is now."""
        return self._run(self._transport.get(_path(run)))

    def list(self, *, state: str | None = None, model: str | None = None) -> Iterator[Run]:
        """Runs in one state or of one model, fetched as they are iterated over."""
        return map(self._run, self._transport.items("/v1/runs", "runs", {"state": state, "model": model}))

    def metrics(self, run: str | Run, *, after: int | None = None) -> Iterator[Metric]:
        """Rows of a run's metrics so far, oldest first, those after a ``sequence`` only if asked."""
        items = self._transport.items(f"{_path(run)}/metrics", "metrics", {"after": after}, page_size=1000)
        return (parse(Metric, item) for item in items)

    def evaluation_tasks(self, run: str | Run) -> EvaluationTasks:
        """The tasks that a run holds out, in the order of their returns in :class:`HeldOutReturns`.

        Raises:
            NotFound: If it has no evaluation.
        """
        return parse(EvaluationTasks, self._transport.get(f"{_path(run)}/evaluation-tasks"))

    def events(self, run: str | Run, *, after: str | int | None = None) -> Iterator[Event]:
        """What happens to a run, as it happens, until it has ended; broken connections are taken up again."""
        return stream_events(self._transport, f"{_path(run)}/events", None if after is None else str(after))

    def cancel(self, run: str | Run) -> Run:
        """Ask a run to stop; a queued one never starts.

        Raises:
            Conflict: If it has already ended, where the service minds.
        """
        return self._run(json_of(self._transport.request("POST", f"{_path(run)}:cancel")))

    def checkpoint(self, run: str | Run, to: str | Path) -> Path:
        """Download a run's newest checkpoint to the file ``to``, also of a run that goes on or has failed."""
        return download(self._transport, f"{_path(run)}/files/checkpoint.safetensors", Path(to))

    def wait(self, run: str | Run, timeout_s: float | None = None, *, progress: bool | None = None) -> Run:
        """Wait for a run to succeed.

        Args:
            run: The run, or its id.
            timeout_s: When to give up, in seconds from now; ``None`` for never.
            progress: ``None`` draws a bar and the learning curve on stderr where that is a terminal; ``True``
                writes lines where it is not; ``False`` keeps silent.

        Returns:
            The run as it ended, with its ``version``.

        Raises:
            RunFailed: If it failed or was cancelled.
            Timeout: If the time is over; the run goes on.
        """
        name = id_of(run)
        display = choose_display(progress, sys.stderr)
        with goes_on(f"run {name}", f"headstart runs cancel {name}"):
            if display is None:
                ended = poll(lambda: self.get(run), lambda now: now.finished, f"run {name}", timeout_s)
            else:
                ended = self._watch(name, timeout_s, display)
        if ended.state != "succeeded":
            raise RunFailed(ended)
        return ended

    def follow(self, run: str | Run, timeout_s: float | None = None) -> Iterator[Run | Metric]:
        """A run's metrics, those so far and then the others as they come, and the run at every change of state.

        The last item is the run as it ended, well or badly. A service that is away for less than a minute does
        not end it.

        Args:
            run: The run, or its id.
            timeout_s: When to give up, in seconds from the first item asked for; ``None`` for never.

        Raises:
            Timeout: If the time is over; the run goes on.
            ConnectionFailed: If the service stays away.
        """
        return (item for item in self._ticking(id_of(run), timeout_s) if item is not None)

    def _watch(self, name: str, timeout_s: float | None, display: Display) -> Run:
        history = History()
        try:
            for item in self._ticking(name, timeout_s):
                now_s = time.monotonic()
                if isinstance(item, Run):
                    history.take_run(item, now_s)
                elif item is not None:
                    history.take_metric(item, now_s)
                display.show(history, now_s)
        finally:
            display.close(history, time.monotonic())
        return history.run or self.get(name)

    def _ticking(self, name: str, timeout_s: float | None) -> Iterator[Run | Metric | None]:
        return ticking(lambda stopped: self._follow(name, stopped), f"run {name}", timeout_s, TICK_S)

    def _follow(self, name: str, stopped: threading.Event) -> Iterator[Run | Metric]:
        transport = self._transport.patient()
        patient, after = Runs(transport), 0
        run = patient.get(name)
        if not run.finished:
            yield run
        for metric in patient.metrics(name):
            after = metric.sequence
            yield metric
        # A run that was seen as ended has all of its metrics; of any other, the stream tells the rest.
        events = () if run.finished else stream_events(transport, f"{_path(name)}/events", str(after), stopped)
        for event in events:
            if event.kind == "metrics":
                yield parse(Metric, event.data)
            elif event.kind == "state":
                run = self._run(event.data)
                if not run.finished:
                    yield run
        if not run.finished:
            raise InvalidResponse(f"run {name} has not ended, but the service has no more to tell of it")
        yield replace(run, _runs=self)

    def _run(self, answer: object) -> Run:
        return replace(parse(Run, answer), _runs=self)


def _path(run: str | Run) -> str:
    return f"/v1/runs/{segment(id_of(run))}"


def _selection(tasks: TaskSelection) -> Mapping[str, Any]:
    if isinstance(tasks, str):
        return {"family": tasks}
    if isinstance(tasks, TaskFamily):
        return {"family": tasks.name}
    if isinstance(tasks, Mapping):
        return tasks
    return {"ids": [id_of(task) for task in tasks]}
