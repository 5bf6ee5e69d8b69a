"""Adapting to a task whose environment is with a client: how it begins, what it accepts, how it is finished."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.adaptations.counts import Counts
from app.adaptations.origin import read_origin
from app.auth import Principal, audit
from app.database import Database, new_id, now
from app.errors import Conflict, Gone, Invalid
from app.store import ArtefactStore
from app.tables import Adaptation, Policy, PolicyRevision
from app.work import FINAL, get_work
from models import random
from models.adaptation import InnerLoop
from models.checkpoint import policy_to_json, save_policy
from models.finetune import MethodConfig, PPOConfig
from models.finetune.loop import with_new_values
from models.remote import RemoteTask, read_remote

AWAITED_FOR = timedelta(seconds=5)
"""Time after an upload in which the next is likely to come."""


def remote_task(row: Adaptation) -> RemoteTask:
    """The task of a remote adaptation.

    Raises:
        Conflict: If the adaptation is none.
    """
    if row.counts is None:
        raise Conflict(f"adaptation {row.id} is to a task of the service's own: it takes no episodes")
    return read_remote(row.task_definition["remote"])


def require_remote_method(method: InnerLoop | MethodConfig) -> None:
    """Refuse a method, or a budget, that episodes from elsewhere cannot serve.

    Raises:
        Invalid: At ``/method/...``.
    """
    if isinstance(method, InnerLoop):
        return
    if not isinstance(method, PPOConfig):
        detail = f"remote tasks take inner-loop or ppo, not {method.name}, which acts at every step that it learns from"
        raise Invalid("/method/name", detail)
    for limit in ("seconds", "target_return"):
        if getattr(method, limit) is not None:
            detail = "must be null for a remote task: say :finish when the returns of your episodes are good enough"
            raise Invalid(f"/method/{limit}", detail)


def begin(session: Session, store: ArtefactStore, row: Adaptation, task: RemoteTask) -> None:
    """Give a new adaptation its policy, revision 0, and have it collect episodes.

    Raises:
        Corrupt: If what it starts from is not what was stored.
        InvalidArtefact: Likewise.
    """
    origin = read_origin(session, row.model, row.version, row.start_policy_id, row.request["policy"])
    learner, params = origin.build(store, task, [row.seed])
    policy = learner.policy
    if row.method.get("reset_values"):
        params = with_new_values(policy, params, random.key(row.seed, "finetune").reshape(1))
    sha256, size_bytes = store.put(save_policy(policy, {name: params[name][0] for name in policy.shapes()}))
    moment = now()
    row.state, row.counts, row.touched_at, row.policy_id = "collecting", Counts().to_json(), moment, new_id()
    session.add(row)
    session.flush()
    session.add(
        Policy(
            id=row.policy_id,
            adaptation_id=row.id,
            model=row.model,
            version=row.version,
            spec=policy_to_json(policy) | {"environment": None},
            sha256=sha256,
            size_bytes=size_bytes,
            expires_at=moment + timedelta(seconds=row.ttl_seconds or 0),
        )
    )
    session.flush()
    session.add(PolicyRevision(policy_id=row.policy_id, revision=0, sha256=sha256, size_bytes=size_bytes))


def open_adaptation(session: Session, adaptation_id: str) -> tuple[Adaptation, Policy]:
    """A remote adaptation that is not over, and its policy: locked until the transaction ends.

    Raises:
        Conflict: If it is over, about to be, or no remote one.
        Gone: If its policy has expired.
        NotFound: If there is none.
    """
    row = get_work(session, Adaptation, adaptation_id, lock=True)
    return row, require_open(session, row)


def require_open(session: Session, row: Adaptation) -> Policy:
    """The policy of an adaptation that still takes episodes; raises as :func:`open_adaptation`."""
    remote_task(row)
    if row.state in FINAL:
        when = "" if row.finished_at is None else f" since {row.finished_at.isoformat()}"
        raise Conflict(f"adaptation {row.id} is over: {row.state}{when}")
    if row.finish_requested_at is not None:
        raise Conflict(f"adaptation {row.id} is being finished since {row.finish_requested_at.isoformat()}")
    policy = session.get_one(Policy, row.policy_id, populate_existing=True)
    require_standing(policy)
    return policy


def require_standing(policy: Policy) -> None:
    """Refuse to go on with a policy that is no more.

    Raises:
        Gone: If it was deleted or has expired; says when.
    """
    if policy.deleted_at is not None:
        raise Gone(f"policy {policy.id} was deleted at {policy.deleted_at.isoformat()}")
    if policy.expires_at is not None and policy.expires_at <= now():
        raise Gone(
            f"policy {policy.id} expired at {policy.expires_at.isoformat()}: ttl_seconds after its last revision"
        )


def touch(row: Adaptation, counts: Counts) -> None:
    """Write down what has come in, and have a worker called where that is enough; the row must be locked."""
    row.counts, row.touched_at = counts.to_json(), now()
    if row.state == "collecting" and counts.is_due(row.method):
        row.state, row.crashes = "queued", 0


def finish(session: Session, by: Principal, adaptation_id: str) -> Adaptation:
    """Finish an adaptation: a worker takes the step that is due, or measures by what is left, before it is closed.

    One that is over stays as it is.

    Raises:
        Conflict: If it is no remote one.
        NotFound: If there is none.
    """
    row = get_work(session, Adaptation, adaptation_id, lock=True)
    remote_task(row)
    if row.state in FINAL or row.finish_requested_at is not None:
        return row
    row.finish_requested_at = row.touched_at = now()
    if row.state == "collecting":
        counts = Counts.of(row)
        if counts.episodes == counts.episodes_used:
            # Nothing is left to learn from or to measure by: no worker is needed.
            row.state, row.finished_at = "succeeded", row.finish_requested_at
            row.progress, row.checkpoint_sha256 = (row.progress or {}) | {"fraction": 1.0}, None
        else:
            row.state, row.crashes = "queued", 0
    audit(session, by, "adaptations.finish", f"adaptations/{row.id}")
    session.flush()
    return row


def next_state(row: Adaptation, counts: Counts) -> str:
    """Where an adaptation stands when a step is done: with workers again, or with those who act."""
    return "queued" if row.finish_requested_at is not None or counts.is_due(row.method) else "collecting"


def is_awaited(session: Session) -> bool:
    """Whether somebody is likely to upload, and then to wait for a step, at any moment."""
    awaited = (Adaptation.state == "collecting") & (Adaptation.touched_at > now() - AWAITED_FOR)
    return session.scalar(select(Adaptation.id).where(awaited).limit(1)) is not None


def close_expired(database: Database) -> None:
    """Fail the adaptations that wait for episodes although their policy has expired."""
    left = (Adaptation.state == "collecting") & (Adaptation.policy_id == Policy.id) & (Policy.expires_at <= now())
    with database.snapshot() as session:
        ids = list(session.scalars(select(Adaptation.id).where(left)))
    for adaptation_id in ids:
        with database.transaction() as session:
            row = get_work(session, Adaptation, adaptation_id, lock=True)
            policy = session.get_one(Policy, row.policy_id)
            if row.state == "collecting" and policy.expires_at is not None and policy.expires_at <= now():
                detail = f"its policy expired at {policy.expires_at.isoformat()}, before it was finished"
                row.state, row.finished_at, row.error = "failed", now(), {"type": "gone", "detail": detail}


def is_remote(definition: Mapping[str, Any]) -> bool:
    """Whether what was written down of a task says that its environment is with a client."""
    return "remote" in definition
