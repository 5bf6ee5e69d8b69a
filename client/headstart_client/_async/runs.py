"""Runs of a service: background meta-training."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headstart_client._async.downloads import download
from headstart_client._async.events import stream_events
from headstart_client._async.transport import AsyncTransport
from headstart_client._async.waiting import poll
from headstart_client.display import Display, choose_display
from headstart_client.errors import InvalidResponse, RunFailed
from headstart_client.events import Event
from headstart_client.history import History
from headstart_client.runs import (
    TICK_S,
    EvaluationTasks,
    Metric,
    RunRecord,
    TaskSelection,
    run_path,
    task_selection,
)
from headstart_client.ticking import AsyncFlag, async_ticking
from headstart_client.transport import json_of
from headstart_client.waiting import goes_on
from headstart_client.wire import id_of, parse, without_none


@dataclass(frozen=True, kw_only=True)
class AsyncRun(RunRecord):
    """One background meta-training, which can be waited for. Its attributes are those of :class:`RunRecord`."""

    _runs: AsyncRuns | None = field(default=None, repr=False, compare=False)

    async def wait(self, timeout_s: float | None = None, *, progress: bool | None = None) -> AsyncRun:
        """Wait for it to end, as :meth:`Runs.wait`."""
        if self._runs is None:
            raise ValueError("only a run that came from a client can be waited for")
        return await self._runs.wait(self, timeout_s, progress=progress)


class AsyncRuns:
    """``client.runs``: background meta-training."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
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
    ) -> AsyncRun:
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
            tasks=task_selection(tasks),
            stop=stop,
            evaluation=evaluation,
            seed=seed,
            device=device,
        )
        return await self.submit(body, idempotency_key=idempotency_key)

    async def submit(self, body: Mapping[str, object], *, idempotency_key: str | None = None) -> AsyncRun:
        """Start a run from a whole request body, as :meth:`create`."""
        return self._run(await self._transport.create("/v1/runs", body, idempotency_key=idempotency_key))

    async def get(self, run: str | RunRecord) -> AsyncRun:
        """A run as it is now."""
        return self._run(await self._transport.get(run_path(run)))

    def list(self, *, state: str | None = None, model: str | None = None) -> AsyncIterator[AsyncRun]:
        """Runs in one state or of one model, fetched as they are iterated over."""
        items = self._transport.items("/v1/runs", "runs", {"state": state, "model": model})
        return (self._run(item) async for item in items)

    def metrics(self, run: str | RunRecord, *, after: int | None = None) -> AsyncIterator[Metric]:
        """Rows of a run's metrics so far, oldest first, those after a ``sequence`` only if asked."""
        items = self._transport.items(f"{run_path(run)}/metrics", "metrics", {"after": after}, page_size=1000)
        return (parse(Metric, item) async for item in items)

    async def evaluation_tasks(self, run: str | RunRecord) -> EvaluationTasks:
        """The tasks that a run holds out, in the order of their returns in :class:`HeldOutReturns`.

        Raises:
            NotFound: If it has no evaluation.
        """
        return parse(EvaluationTasks, await self._transport.get(f"{run_path(run)}/evaluation-tasks"))

    def events(self, run: str | RunRecord, *, after: str | int | None = None) -> AsyncGenerator[Event, None]:
        """What happens to a run, as it happens, until it has ended; broken connections are taken up again."""
        return stream_events(self._transport, f"{run_path(run)}/events", None if after is None else str(after))

    async def cancel(self, run: str | RunRecord) -> AsyncRun:
        """Ask a run to stop; a queued one never starts.

        Raises:
            Conflict: If it has already ended, where the service minds.
        """
        return self._run(json_of(await self._transport.request("POST", f"{run_path(run)}:cancel")))

    async def checkpoint(self, run: str | RunRecord, to: str | Path) -> Path:
        """Download a run's newest checkpoint to the file ``to``, also of a run that goes on or has failed."""
        return await download(self._transport, f"{run_path(run)}/files/checkpoint.safetensors", Path(to))

    async def wait(
        self, run: str | RunRecord, timeout_s: float | None = None, *, progress: bool | None = None
    ) -> AsyncRun:
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
                ended = await poll(lambda: self.get(run), lambda now: now.finished, f"run {name}", timeout_s)
            else:
                ended = await self._watch(name, timeout_s, display)
        if ended.state != "succeeded":
            raise RunFailed(ended)
        return ended

    async def follow(
        self, run: str | RunRecord, timeout_s: float | None = None
    ) -> AsyncGenerator[AsyncRun | Metric, None]:
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
        async with aclosing(self._ticking(id_of(run), timeout_s)) as items:
            async for item in items:
                if item is not None:
                    yield item

    async def _watch(self, name: str, timeout_s: float | None, display: Display) -> AsyncRun:
        history, run = History(), None
        try:
            async with aclosing(self._ticking(name, timeout_s)) as items:
                async for item in items:
                    now_s = time.monotonic()
                    if isinstance(item, AsyncRun):
                        run = item
                        history.take_run(item, now_s)
                    elif item is not None:
                        history.take_metric(item, now_s)
                    display.show(history, now_s)
        finally:
            display.close(history, time.monotonic())
        return run or await self.get(name)

    def _ticking(self, name: str, timeout_s: float | None) -> AsyncGenerator[AsyncRun | Metric | None, None]:
        return async_ticking(lambda stopped: self._follow(name, stopped), f"run {name}", timeout_s, TICK_S)

    async def _follow(self, name: str, stopped: AsyncFlag) -> AsyncGenerator[AsyncRun | Metric, None]:
        transport = self._transport.patient()
        patient, after = AsyncRuns(transport), 0
        run = await patient.get(name)
        if not run.finished:
            yield run
        async for metric in patient.metrics(name):
            after = metric.sequence
            yield metric
        # A run that was seen as ended has all of its metrics; of any other, the stream tells the rest.
        if not run.finished:
            path = f"{run_path(name)}/events"
            async with aclosing(stream_events(transport, path, str(after), stopped)) as events:
                async for event in events:
                    if event.kind == "metrics":
                        yield parse(Metric, event.data)
                    elif event.kind == "state":
                        run = self._run(event.data)
                        if not run.finished:
                            yield run
        if not run.finished:
            raise InvalidResponse(f"run {name} has not ended, but the service has no more to tell of it")
        yield replace(run, _runs=self)

    def _run(self, answer: object) -> AsyncRun:
        return replace(parse(AsyncRun, answer), _runs=self)
