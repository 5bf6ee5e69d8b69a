"""Executing an adaptation under a lease: from a version, or a new policy, to a stored policy."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.adaptations.service import get_adaptation, learner_from_scratch, read_task
from app.database import new_id, now
from app.execution import Job
from app.tables import Adaptation, Policy, Version, VersionFile
from models.adaptation import CurvePoint, InnerLoop, adapt
from models.checkpoint import (
    MANIFEST_FILE,
    PARAMETERS_FILE,
    from_json,
    policy_to_json,
    save_params,
    unpack,
)
from models.policy import PolicyConfig
from models.tasks import TaskBatch


def execute_adaptation(job: Job) -> None:
    """Adapt and store the policy, in one transaction with the adaptation's result.

    Raises:
        Interrupted: If the process ends or the lease is lost.
        LeaseLost: If it is another worker's now.
        Exception: What fails it.
    """

    def read(session: Session) -> tuple[Adaptation, dict[str, str]]:
        row = get_adaptation(session, job.lease.id)
        return row, _files(session, row)

    adaptation, files = job.persist(read)
    started = time.monotonic()
    task = read_task(adaptation.task_definition)
    method = from_json(InnerLoop, adaptation.method)
    if adaptation.model is None:
        learner = learner_from_scratch(from_json(PolicyConfig, adaptation.request["policy"] or {}), task)
        params = learner.initialise(adaptation.seed).params
    else:
        artefact = unpack(job.store.read(files[MANIFEST_FILE]), job.store.read(files[PARAMETERS_FILE]))
        learner, params = artefact.build(), artefact.params
    name = f"task {adaptation.task_id}" if adaptation.task_id else "the task"
    batch = TaskBatch.of([task], names=[name])
    adapted = job.interrupter.compute(lambda: adapt(learner, params, batch, method, adaptation.seed))
    policy = {name: value[0] for name, value in adapted.params.items()}
    sha256, size_bytes = job.store.put(save_params(policy))
    spec = policy_to_json(learner.policy) | {"environment": task.environment}
    result = _result(adapted.curve, method, time.monotonic() - started)
    policy_id = new_id()

    def publish(session: Session) -> None:
        job.lease.end(session, "succeeded", result=result, policy_id=policy_id)
        session.add(
            Policy(
                id=policy_id,
                adaptation_id=adaptation.id,
                model=adaptation.model,
                version=adaptation.version,
                spec=spec,
                sha256=sha256,
                size_bytes=size_bytes,
                expires_at=now() + timedelta(seconds=adaptation.ttl_seconds or 0),
            )
        )

    job.persist(publish)


def _files(session: Session, adaptation: Adaptation) -> dict[str, str]:
    """Digests of the files of the version that it starts from."""
    statement = (
        select(VersionFile.name, VersionFile.sha256)
        .join(Version, Version.id == VersionFile.version_id)
        .where(Version.model == adaptation.model, Version.number == adaptation.version)
    )
    return {name: sha256 for name, sha256 in session.execute(statement)}


def _result(curve: tuple[CurvePoint, ...], method: InnerLoop, seconds: float) -> dict[str, Any]:
    points = [
        {
            "episodes": point.episodes,
            "environment_steps": int(point.environment_steps[0]),
            "mean_return": float(point.mean_return[0]),
        }
        for point in curve
    ]
    before, after = (
        {"mean_return": point["mean_return"], "episodes": method.evaluation_episodes}
        for point in (points[0], points[-1])
    )
    return {"before": before, "after": after, "curve": points, "seconds": seconds}
