"""Executing a run under a lease: from its newest checkpoint to a published version.

A checkpoint, the metrics up to it and the progress are committed together, so that whatever a run resumes
from, its curve has neither gap nor duplicate. A metric's sequence number is its iteration: a resumed run
computes the iterations after its checkpoint again, bit for bit, and writes the same rows under the same
numbers. Somebody who follows the stream and had seen them already is sent the next ones only.
"""

from __future__ import annotations

import json
import logging
import math
import time
from functools import partial
from typing import Any, final

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from app.database import now
from app.errors import Corrupt, StorageFull
from app.execution import Interrupted, Job
from app.registry.service import publish_version
from app.runs.service import list_checkpoints, training_of
from app.sweep import discard
from app.tables import Checkpoint, Run, RunMetric
from app.work import get_work
from models.checkpoint import (
    MANIFEST_FILE,
    PARAMETERS_FILE,
    InvalidArtefact,
    check_params,
    load_state,
    pack,
    save_state,
)
from models.learners.base import Metrics
from models.training import Evaluated, Progress, Training, TrainingState, train

logger = logging.getLogger(__name__)

FLUSH_S = 0.6
"""Time between two transactions with progress and metrics at least, while iterations are quicker."""

KEPT_CHECKPOINTS = 2
"""Newest checkpoints that stay: should the last be damaged, there is the one before."""


def execute_run(job: Job) -> None:
    """Train until a stop condition holds and publish the version.

    Raises:
        Interrupted: If the process ends, the run is cancelled or the lease lost; the newest state is saved
            before, unless it is lost. LeaseLost: If the run is another worker's now. Exception: What fails
            the run. Where the core raised it, the newest good state is saved before.
    """

    def read(session: Session) -> tuple[Run, Training, list[Checkpoint]]:
        run = get_work(session, Run, job.lease.id)
        return run, training_of(session, run), list(list_checkpoints(session, run.id))

    run, training, checkpoints = job.persist(read)
    execution = _RunExecution(job, run, training)
    execution.resume(checkpoints)
    execution.train()


@final
class _RunExecution:
    def __init__(self, job: Job, run: Run, training: Training) -> None:
        self._job = job
        self._run = run
        self._training = training
        self._state: TrainingState | None = None
        self._metrics: dict[str, Any] = dict(run.metrics)
        self._unwritten: list[dict[str, Any]] = []
        self._flushed_at = self._saved_at = time.monotonic()
        self._saved_iteration = 0

    def resume(self, checkpoints: list[Checkpoint]) -> None:
        """Take up the newest state that is whole, and forget what was written beyond it."""
        shapes = self._training.build().shapes()
        for checkpoint in checkpoints:
            try:
                state = load_state(self._job.store.read(checkpoint.sha256))
                check_params(shapes, state.learner.params)
            except (Corrupt, InvalidArtefact) as error:
                damaged = (self._run.id, checkpoint.iteration, error)
                logger.warning("run %s: checkpoint %d is damaged: %s", *damaged)
                continue
            self._state, self._saved_iteration = state, state.iterations
            logger.info("run %s goes on after iteration %d", self._run.id, state.iterations)
            break

        def forget(session: Session) -> None:
            self._write(session)
            for table, place in ((RunMetric, RunMetric.iteration), (Checkpoint, Checkpoint.iteration)):
                session.execute(delete(table).where(table.run_id == self._run.id, place > self._saved_iteration))

        self._job.persist(forget)

    def train(self) -> None:
        """Iterate to the end."""
        steps = train(self._training, self._state)
        stopped_by = None
        while stopped_by is None:
            try:
                progress = self._job.interrupter.compute(partial(next, steps))
            except Interrupted as interruption:
                if interruption.reason != "lost":
                    self._save()
                raise
            except Exception:
                self._save_if_possible()
                raise
            self._take(progress)
            stopped_by = progress.stopped_by
            elapsed = time.monotonic()
            if stopped_by is None and elapsed - self._saved_at >= self._job.settings.checkpoint_seconds:
                self._save()
            elif stopped_by is None and elapsed - self._flushed_at >= FLUSH_S:
                self._flush()
        self._publish(stopped_by)

    def _take(self, progress: Progress) -> None:
        state = self._state = progress.state
        values = _finite(progress.metrics)
        if not values:
            return
        self._metrics = self._metrics | values
        self._unwritten.append(
            {
                "run_id": self._run.id,
                "sequence": state.iterations,
                "iteration": state.iterations,
                "environment_steps": state.environment_steps,
                "seconds": state.seconds,
                "values": values,
                "evaluation": None if progress.evaluated is None else _returns(progress.evaluated),
                "attempt": self._job.lease.attempt,
            }
        )

    def _write(self, session: Session) -> None:
        """Progress and unwritten metrics; may be repeated."""
        state = self._state
        self._job.lease.write(
            session,
            iterations=state.iterations if state else 0,
            environment_steps=state.environment_steps if state else 0,
            seconds=state.seconds if state else 0.0,
            fraction=self._training.stop.fraction(state) if state else 0.0,
            metrics=self._metrics if state else {},
            best=_best(state) if state else None,
        )
        if self._unwritten:
            first = RunMetric.sequence >= self._unwritten[0]["sequence"]
            session.execute(delete(RunMetric).where(RunMetric.run_id == self._run.id, first))
            session.execute(insert(RunMetric), self._unwritten)

    def _flush(self) -> None:
        if self._job.persist_soon(self._write):
            self._unwritten = []
        self._flushed_at = time.monotonic()

    def _save(self) -> None:
        """Checkpoint the newest state, unless there is none or it is saved."""
        self._saved_at = self._flushed_at = time.monotonic()
        state = self._state
        if state is None or state.iterations == self._saved_iteration:
            return
        try:
            sha256, size_bytes = self._job.store.put(save_state(state))
        except (OSError, StorageFull):
            self._flush()
            raise
        pruned: list[str] = []

        def write(session: Session) -> None:
            self._write(session)
            pruned[:] = self._add_checkpoint(session, state, sha256, size_bytes)

        if self._job.persist_soon(write):
            self._unwritten = []
            self._saved_iteration = state.iterations
            discard(self._job.database, self._job.store, pruned)

    def _save_if_possible(self) -> None:
        try:
            self._save()
        except (StorageFull, OSError):
            # The failure that brought us here is the one to report.
            logger.exception("run %s: its last state could not be saved", self._run.id)

    def _add_checkpoint(self, session: Session, state: TrainingState, sha256: str, size_bytes: int) -> list[str]:
        """Write the checkpoint's row and delete those that are no longer kept; the digests of their artefacts."""
        ours = Checkpoint.run_id == self._run.id
        session.execute(delete(Checkpoint).where(ours, Checkpoint.iteration >= state.iterations))
        row = {"iteration": state.iterations, "sha256": sha256, "size_bytes": size_bytes, "created_at": now()}
        session.execute(insert(Checkpoint), [{"run_id": self._run.id, **row}])
        newest = select(Checkpoint.iteration).where(ours).order_by(Checkpoint.iteration.desc())
        oldest = min(session.scalars(newest.limit(KEPT_CHECKPOINTS)))
        pruned = delete(Checkpoint).where(ours, Checkpoint.iteration < oldest).returning(Checkpoint.sha256)
        return list(session.scalars(pruned))

    def _publish(self, stopped_by: str) -> None:
        """Store the files, then publish the version and close the run in one transaction."""
        state, training, job = self._state, self._training, self._job
        assert state is not None
        policy = training.build().policy
        about = self._about(state, stopped_by)
        manifest, parameters = pack(training.learner, policy, state.kept, about)
        put = job.store.put
        files = {MANIFEST_FILE: put(manifest), PARAMETERS_FILE: put(parameters)}
        checkpoint = put(save_state(state))
        content = json.loads(manifest)
        pruned: list[str] = []

        def publish(session: Session) -> None:
            self._write(session)
            pruned[:] = self._add_checkpoint(session, state, *checkpoint)
            version = publish_version(session, self._run.model, content, files, self._run.id)
            job.lease.end(session, "succeeded", version=version.number, stopped_by=stopped_by, fraction=1.0)

        job.persist(publish)
        discard(self._job.database, self._job.store, pruned)

    def _about(self, state: TrainingState, stopped_by: str) -> dict[str, Any]:
        spec, best = self._run.spec, state.best
        described = ("environment", "seed", "tasks", "family", "stop", "evaluation")
        return {name: spec[name] for name in described} | {
            "run": self._run.id,
            "stopped_by": stopped_by,
            "iterations": state.iterations,
            "environment_steps": state.environment_steps,
            "selected_by": "last" if best is None else "held_out_return",
            "iteration": state.iterations if best is None else best.iteration,
            "metrics": self._metrics if best is None else _finite(best.metrics),
        }


def _finite(metrics: Metrics) -> Metrics:
    # A number that is not finite has no place in JSON; a run goes on as long as its parameters are.
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _returns(evaluated: Evaluated) -> dict[str, Any]:
    """What :class:`app.runs.schemas.HeldOutReturns` shows."""
    rows = evaluated.mean_return
    return {"mean_return": [[value if math.isfinite(value) else None for value in row] for row in rows]}


def _best(state: TrainingState) -> dict[str, Any] | None:
    """What :class:`app.runs.schemas.BestBody` shows, as far as there is something that JSON can say."""
    best = state.best
    if best is None or not math.isfinite(achieved := best.metrics["held_out_return_after"]):
        return None
    return {"iteration": best.iteration, "held_out_return_after": achieved}
