"""Executing adaptations under a lease: from a version, a policy, or a new policy, to stored policies.

Those that were asked for together are computed together: the one that is leased leads the others, which are written to
in its transactions only. Where one of them fails, all go on one by one, so that it fails alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, final

import torch
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.adaptations.origin import Origin, read_origin
from app.adaptations.service import read_method, read_task
from app.adaptations.steps import execute_remote
from app.database import new_id, now
from app.errors import Corrupt
from app.execution import Interrupted, Job, allowed_threads, finite, threads
from app.sweep import discard
from app.tables import Adaptation, Policy
from app.work import get_work
from models import random
from models.adaptation import CurvePoint, InnerLoop, adapt
from models.checkpoint import (
    InvalidArtefact,
    code_version,
    load_params,
    metadata_of,
    policy_to_json,
    save_params,
    save_policy,
)
from models.finetune import MethodConfig, Progress, finetune
from models.tasks import TaskBatch, environment_of
from models.types import Params

MANY = 32
"""Adaptations from which on their tensors are worth sharing out to all threads that the settings allow."""

FLUSH_S = 0.6
"""Time between two transactions with progress at least, for up to a hundred adaptations."""


def execute_adaptation(job: Job) -> None:
    """Adapt and store the policies, in one transaction with the adaptations' results.

    Of a remote adaptation, do what is due (:mod:`app.adaptations.steps`).

    Raises:
        Interrupted: If the process ends, the adaptation is cancelled or the lease lost. Where the process ends, the
            newest state is saved before.
        LeaseLost: If it is another worker's now.
        Exception: What fails it.
    """
    if job.read(lambda session: get_work(session, Adaptation, job.lease.id).counts) is not None:
        execute_remote(job)
        return
    group = _Group(job)
    try:
        group.execute()
    except Exception:
        if not group.dissolve():
            raise
        _Group(job).execute()


@final
class _Group:
    """Adaptations that are computed together: the leased one first, then those that it leads."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._attempted_at = time.monotonic()
        self._flushed_at = self._saved_at = time.monotonic()

        def claim(session: Session) -> tuple[list[Adaptation], Origin]:
            job.lease.write(session)
            lead = get_work(session, Adaptation, job.lease.id)
            led = (Adaptation.lead_id == lead.id) & Adaptation.state.in_(("queued", "running"))
            begun = {"state": "running", "started_at": now()}
            statement = update(Adaptation).where(led, Adaptation.state == "queued").values(begun)
            session.execute(statement.execution_options(synchronize_session=False))
            rows = [lead, *session.scalars(select(Adaptation).where(led).order_by(Adaptation.id))]
            architecture = lead.request["policy"]
            return rows, read_origin(session, lead.model, lead.version, lead.start_policy_id, architecture)

        self._rows, self._origin = job.persist(claim)
        self._checkpoint = self._rows[0].checkpoint_sha256
        self._state = None if self._checkpoint is None else self._resume(self._checkpoint)
        tasks = [read_task(row.task_definition) for row in self._rows]
        spaces = environment_of(tasks[0])
        self._learner, self._params = self._origin.build(job.store, spaces, [row.seed for row in self._rows])
        names = [f"task {row.task_id}" if row.task_id else "the task" for row in self._rows]
        self._tasks = TaskBatch.of(tasks, names=names)

    def execute(self) -> None:
        """Compute, and publish what came of it."""
        method = read_method(self._rows[0].method)
        count = allowed_threads(self._job.settings) if len(self._rows) >= MANY else torch.get_num_threads()
        with threads(count):
            if isinstance(method, InnerLoop):
                self._adapt(method)
            else:
                self._finetune(method)

    def dissolve(self) -> bool:
        """Leave the others to go on one by one; False where there are none."""
        if len(self._rows) == 1:
            return False

        def write(session: Session) -> None:
            self._job.lease.write(session, checkpoint_sha256=None, progress=None, result=None)
            values = {"lead_id": None, "progress": None, "result": None}
            statement = update(Adaptation).where(Adaptation.lead_id == self._job.lease.id).values(values)
            session.execute(statement.execution_options(synchronize_session=False))

        self._job.persist(write)
        return True

    def _adapt(self, method: InnerLoop) -> None:
        seeds = [row.seed for row in self._rows]
        adapted = self._job.interrupter.compute(lambda: adapt(self._learner, self._params, self._tasks, method, seeds))
        seconds = time.monotonic() - self._attempted_at
        results = []
        for place in range(len(self._rows)):
            curve = [
                CurvePoint(p.episodes[place], p.environment_steps[place], p.mean_return[place]) for p in adapted.curve
            ]
            results.append(_result(curve, method.evaluation_episodes) | {"seconds": seconds})
        self._publish(adapted.params, results, [])

    def _finetune(self, method: MethodConfig) -> None:
        keys = torch.stack([random.key(row.seed, "finetune") for row in self._rows])
        params = {name: self._params[name] for name in self._learner.policy.shapes()}
        steps = finetune(method, self._learner.policy, params, self._tasks, keys, self._state)
        progress: Progress | None = None
        while progress is None or not progress.is_last:
            try:
                progress = self._job.interrupter.compute(partial(next, steps))
            except Interrupted as interruption:
                if interruption.reason == "stop" and progress is not None:
                    self._save(progress, method)
                raise
            elapsed = time.monotonic()
            if elapsed - self._saved_at >= self._job.settings.checkpoint_seconds:
                self._save(progress, method)
            elif elapsed - self._flushed_at >= FLUSH_S * (1 + len(self._rows) / 100):
                self._flush(progress, method)
        results = [result | {"seconds": progress.seconds} for result in _results(progress, method)]
        self._publish(progress.policies(), results, self._progress(progress))

    def _resume(self, sha256: str) -> Params | None:
        """The newest state, if it is whole, of these adaptations, and of this very code, which knows no other."""
        try:
            data = self._job.store.read(sha256)
            state = load_params(data)
            ours = metadata_of(data).get("code_version") == code_version()
        except (Corrupt, InvalidArtefact):
            return None
        return state if ours and len(state["stopped_by"]) == len(self._rows) else None

    def _flush(self, progress: Progress, method: MethodConfig) -> None:
        self._job.persist_soon(partial(self._write, progress=progress, method=method))
        self._flushed_at = time.monotonic()

    def _save(self, progress: Progress, method: MethodConfig) -> None:
        before = self._checkpoint
        sha256, _ = self._job.store.put(save_params(progress.state(), {"code_version": code_version()}))

        def write(session: Session) -> None:
            self._write(session, progress, method)
            self._job.lease.write(session, checkpoint_sha256=sha256)

        if self._job.persist_soon(write):
            self._checkpoint = sha256
            self._discard(before)
        self._saved_at = self._flushed_at = time.monotonic()

    def _discard(self, sha256: str | None) -> None:
        discard(self._job.database, self._job.store, [] if sha256 is None else [sha256])

    def _write(self, session: Session, progress: Progress, method: MethodConfig) -> None:
        """Progress of every adaptation; those that were to be cancelled end here."""
        values = [
            {"progress": each, "result": result}
            for each, result in zip(self._progress(progress), _results(progress, method), strict=True)
        ]
        self._job.lease.write(session, **values[0])
        self._end_cancelled(session)
        for row, each in zip(self._rows[1:], values[1:], strict=True):
            _write_led(session, row, **each)

    def _end_cancelled(self, session: Session) -> None:
        led = (Adaptation.lead_id == self._job.lease.id) & (Adaptation.state == "running")
        wanted = Adaptation.cancel_requested_at.is_not(None)
        ended = {"state": "cancelled", "finished_at": now()}
        statement = update(Adaptation).where(led, wanted).values(ended)
        session.execute(statement.execution_options(synchronize_session=False))

    def _progress(self, progress: Progress) -> list[dict[str, Any]]:
        shared = {"fraction": progress.fraction, "seconds": progress.seconds, "metrics": finite(progress.metrics)}
        counts = zip(progress.environment_steps.tolist(), progress.episodes.tolist(), strict=True)
        return [shared | {"environment_steps": steps, "episodes": episodes} for steps, episodes in counts]

    def _publish(self, params: Params, results: Sequence[dict[str, Any]], progress: Sequence[dict[str, Any]]) -> None:
        """Store the policies, then close all adaptations in one transaction."""
        spec = policy_to_json(self._learner.policy)
        files = [
            self._job.store.put(
                save_policy(self._learner.policy, {name: value[place] for name, value in params.items()})
            )
            for place in range(len(self._rows))
        ]
        before = self._checkpoint

        def publish(session: Session) -> None:
            for place, (row, (sha256, size_bytes)) in enumerate(zip(self._rows, files, strict=True)):
                policy_id = new_id()
                ended: dict[str, Any] = {"result": results[place], "policy_id": policy_id, "checkpoint_sha256": None}
                if progress:
                    ended["progress"] = progress[place] | {"fraction": 1.0}
                if not place:
                    self._job.lease.end(session, "succeeded", **ended)
                    self._end_cancelled(session)
                elif not _write_led(session, row, state="succeeded", finished_at=now(), **ended):
                    continue
                session.add(
                    Policy(
                        id=policy_id,
                        adaptation_id=row.id,
                        model=row.model,
                        version=row.version,
                        spec=spec | {"environment": row.task_definition["environment"]},
                        sha256=sha256,
                        size_bytes=size_bytes,
                        expires_at=now() + timedelta(seconds=row.ttl_seconds or 0),
                    )
                )

        self._job.persist(publish)
        self._discard(before)


def _write_led(session: Session, row: Adaptation, **values: Any) -> bool:
    """Change an adaptation that another leads, in a transaction of that one's lease; False where it is over."""
    running = (Adaptation.id == row.id) & (Adaptation.state == "running")
    statement = update(Adaptation).where(running).values(values).returning(Adaptation.id)
    return session.scalar(statement.execution_options(synchronize_session=False)) is not None


def _results(progress: Progress, method: MethodConfig) -> list[dict[str, Any]]:
    results = []
    for curve, stopped_by in zip(progress.curve, progress.stopped_by, strict=True):
        result = _result(curve, method.evaluation_episodes)
        if stopped_by is None:
            del result["after"]
        results.append(result | {"stopped_by": stopped_by})
    return results


def _result(curve: Sequence[CurvePoint], episodes: int) -> dict[str, Any]:
    """What :class:`app.adaptations.schemas.AdaptationBody` shows of a curve."""
    points = [
        {
            "episodes": int(point.episodes),
            "environment_steps": int(point.environment_steps),
            "mean_return": float(point.mean_return),
        }
        for point in curve
    ]
    before, after = ({"mean_return": point["mean_return"], "episodes": episodes} for point in (points[0], points[-1]))
    return {"before": before, "after": after, "curve": points}
