"""Every table of the meta-database. No relationships: services say what they load."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, declared_attr, mapped_column
from sqlalchemy.sql.schema import SchemaItem

from app.database import Base, JSONColumn, UTCDateTime, new_id, now

STATES = ("queued", "running", "succeeded", "failed", "cancelled")
"""What long work passes through; the last three are final."""

SPLITS = ("train", "validation", "test")
"""Parts of a task family."""

_STANDING = text("deleted_at IS NULL")


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


class _Row(Base):
    __abstract__ = True

    id: Mapped[str] = mapped_column(Text, primary_key=True, default=new_id, sort_order=-1)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, sort_order=1)


class Work(_Row):
    """Long work that a worker claims by a lease.

    ``attempt`` counts the claims and is the fencing token: a worker writes only where it still equals the number it got
    with its claim. ``crashes`` counts the claims whose lease ran out; a worker that gives its work back
    is none of them.
    """

    __abstract__ = True

    states: ClassVar[tuple[str, ...]] = STATES

    state: Mapped[str] = mapped_column(Text, default="queued")
    lease_owner: Mapped[str | None] = mapped_column(Text)
    lease_expires_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    crashes: Mapped[int] = mapped_column(Integer, default=0)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONColumn)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[SchemaItem, ...]:
        table: str = cls.__tablename__
        return (
            _one_of("state", cls.states),
            Index(f"ix_{table}_state_lease_expires_at", "state", "lease_expires_at"),
            Index(f"ix_{table}_state_id", "state", "id"),
        )


class TaskFamily(_Row):
    """A distribution over tasks; ``parameters`` holds a number, a name or a distribution for each parameter."""

    __tablename__ = "task_families"

    name: Mapped[str] = mapped_column(Text, unique=True)
    environment: Mapped[str] = mapped_column(Text)
    parameters: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    reward: Mapped[str | None] = mapped_column(Text)
    discount: Mapped[float] = mapped_column(Double)
    horizon: Mapped[int] = mapped_column(Integer)
    preset: Mapped[bool] = mapped_column(Boolean, default=False)
    digest: Mapped[str] = mapped_column(Text)


class Task(_Row):
    """A registered task. ``digest`` is that of its definition, family and split; deleted rows stay, hidden."""

    __tablename__ = "tasks"

    name: Mapped[str] = mapped_column(Text)
    environment: Mapped[str] = mapped_column(Text)
    parameters: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    reward: Mapped[str | None] = mapped_column(Text)
    discount: Mapped[float] = mapped_column(Double)
    horizon: Mapped[int] = mapped_column(Integer)
    family: Mapped[str | None] = mapped_column(ForeignKey("task_families.name"))
    split: Mapped[str | None] = mapped_column(Text)
    labels: Mapped[dict[str, str]] = mapped_column(JSONColumn, default=dict)
    digest: Mapped[str] = mapped_column(Text)
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    __table_args__ = (
        _one_of("split", SPLITS),
        Index("uq_tasks_name", "name", unique=True, sqlite_where=_STANDING, postgresql_where=_STANDING),
        Index("uq_tasks_digest", "digest", unique=True, sqlite_where=_STANDING, postgresql_where=_STANDING),
        Index("ix_tasks_family_split_id", "family", "split", "id"),
    )


class TaskLabel(Base):
    """One label of a task, as a row, so that tasks are found by it."""

    __tablename__ = "task_labels"

    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[str] = mapped_column(Text)

    __table_args__ = (Index("ix_task_labels_name_value_task_id", "name", "value", "task_id"),)


class Run(Work):
    """One background meta-training.

    ``spec`` is the request, completed with every default: learner, policy, tasks, stop, evaluation, seed, device.
    ``metrics`` are the newest; ``best`` says which iteration is kept, and its return on held-out tasks; ``fraction`` is
    in [0, 1]; ``seconds`` is training time over all attempts.
    """

    __tablename__ = "runs"

    model: Mapped[str] = mapped_column(Text)
    spec: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    iterations: Mapped[int] = mapped_column(BigInteger, default=0)
    environment_steps: Mapped[int] = mapped_column(BigInteger, default=0)
    seconds: Mapped[float] = mapped_column(Double, default=0.0)
    fraction: Mapped[float] = mapped_column(Double, default=0.0)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSONColumn, default=dict)
    best: Mapped[dict[str, Any] | None] = mapped_column(JSONColumn)
    stopped_by: Mapped[str | None] = mapped_column(Text)
    version: Mapped[int | None] = mapped_column(Integer)

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[SchemaItem, ...]:
        return (*super().__table_args__, Index("ix_runs_model_id", "model", "id"))


class RunTask(Base):
    """A registered task that a run was given; a run that draws fresh tasks from a family has none."""

    __tablename__ = "run_tasks"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id"), primary_key=True, index=True)


class RunMetric(Base):
    """What a run measured after one iteration. ``sequence`` counts from 1 within the run.

    ``evaluation`` holds the return of every held-out task; null where there was no evaluation.
    """

    __tablename__ = "run_metrics"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    iteration: Mapped[int] = mapped_column(BigInteger)
    environment_steps: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Double)
    values: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    evaluation: Mapped[dict[str, Any] | None] = mapped_column(JSONColumn)
    attempt: Mapped[int] = mapped_column(Integer)


class Checkpoint(Base):
    """A state from which a run resumes, as an artefact."""

    __tablename__ = "checkpoints"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    iteration: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    sha256: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Model(Base):
    """A name for versions. ``next_version`` only grows, so that no number is used twice."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    next_version: Mapped[int] = mapped_column(Integer, default=1)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Version(_Row):
    """An immutable artefact of a model. ``manifest`` is the content of its ``manifest.json``."""

    __tablename__ = "versions"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    number: Mapped[int] = mapped_column(Integer)
    manifest: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"), index=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))

    __table_args__ = (UniqueConstraint("model", "number"),)


class VersionFile(Base):
    """A file of a version; its bytes are the artefact of that digest."""

    __tablename__ = "version_files"

    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    sha256: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class Alias(Base):
    """A movable, unique pointer to a version. ``revision`` is the id of the event that set it, and never returns."""

    __tablename__ = "aliases"

    model: Mapped[str] = mapped_column(Text, primary_key=True)
    alias: Mapped[str] = mapped_column(Text, primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    revision: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime)

    __table_args__ = (ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.number"]),)


class AliasEvent(Base):
    """One change of an alias, with who made it: the name of the API key and its id."""

    __tablename__ = "alias_events"

    id: Mapped[str] = mapped_column(Text, primary_key=True, default=new_id)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    alias: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    version: Mapped[int | None] = mapped_column(Integer)
    previous_version: Mapped[int | None] = mapped_column(Integer)
    at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    by: Mapped[str] = mapped_column(Text)
    by_id: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        _one_of("action", ("set", "rollback", "delete")),
        Index("ix_alias_events_model_alias_id", "model", "alias", "id"),
    )


class Adaptation(Work):
    """One use of a version on one task.

    ``request`` is the body as it was sent; ``task_definition`` is the completed task, registered or inline, or under
    ``remote`` what is known of one whose environment is with a client. It starts from a version, a policy, or neither.
    ``progress`` says how far it is; ``result`` holds before, after, curve, seconds and what ended it, as far as they
    are known. ``checkpoint_sha256`` is the artefact that it resumes from.

    One with a ``lead_id`` is computed together with that one, under its lease, and claimed on its own only when that is
    over; while its lead works on it, it is running and has no ``lease_owner``.

    One to a task whose environment is with a client has ``counts`` of what came in and what was made of it
    (:class:`app.adaptations.counts.Counts`), and is ``collecting`` while nothing is to be computed; ``touched_at`` is
    when something last came in. Whoever changes any of these holds the row's lock.
    """

    __tablename__ = "adaptations"

    states: ClassVar[tuple[str, ...]] = (*STATES, "collecting")

    request: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    model: Mapped[str | None] = mapped_column(Text)
    version: Mapped[int | None] = mapped_column(Integer)
    start_policy_id: Mapped[str | None] = mapped_column(Text)
    task_id: Mapped[str | None] = mapped_column(ForeignKey("tasks.id"))
    task_definition: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    method: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    seed: Mapped[int] = mapped_column(BigInteger)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONColumn)
    lead_id: Mapped[str | None] = mapped_column(Text, index=True)
    checkpoint_sha256: Mapped[str | None] = mapped_column(Text, index=True)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONColumn)
    policy_id: Mapped[str | None] = mapped_column(Text)
    ttl_seconds: Mapped[int | None] = mapped_column(BigInteger)
    counts: Mapped[dict[str, Any] | None] = mapped_column(JSONColumn)
    touched_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    finish_requested_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Policy(_Row):
    """What an adaptation yielded. ``spec`` says what acting needs: spaces, architecture. Parameters are an artefact.

    ``sha256`` and ``size_bytes`` are those of the newest revision. Only policies of remote adaptations have more than
    the first, number 0.
    """

    __tablename__ = "policies"

    adaptation_id: Mapped[str | None] = mapped_column(ForeignKey("adaptations.id"), unique=True)
    model: Mapped[str | None] = mapped_column(Text)
    version: Mapped[int | None] = mapped_column(Integer)
    spec: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    sha256: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    expires_at: Mapped[datetime | None] = mapped_column(UTCDateTime, index=True)
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class PolicyRevision(Base):
    """Parameters that the policy of a remote adaptation had, or has."""

    __tablename__ = "policy_revisions"

    policy_id: Mapped[str] = mapped_column(ForeignKey("policies.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    sha256: Mapped[str] = mapped_column(Text, index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Episode(Base):
    """An episode that a client has uploaded, as far as it has come in; its steps are in :class:`EpisodePiece`.

    ``id`` is the client's. ``sequence`` counts an adaptation's episodes from 1 as they came; ``steps`` and
    ``episode_return`` are of the pieces that are in; ``length`` is known with the last piece, and the episode is
    ``complete`` when all are in. ``used_in`` is the step, from 1, that learned from it, and ``off_policy`` how far the
    policy had moved by then from the one that acted, in nats.
    """

    __tablename__ = "episodes"

    adaptation_id: Mapped[str] = mapped_column(ForeignKey("adaptations.id"), primary_key=True)
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(Integer)
    steps: Mapped[int] = mapped_column(Integer)
    length: Mapped[int | None] = mapped_column(Integer)
    episode_return: Mapped[float] = mapped_column(Double)
    terminated: Mapped[bool] = mapped_column(Boolean)
    truncated: Mapped[bool] = mapped_column(Boolean)
    complete: Mapped[bool] = mapped_column(Boolean)
    off_policy: Mapped[float | None] = mapped_column(Double)
    used_in: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)

    __table_args__ = (
        Index("uq_episodes_adaptation_id_sequence", "adaptation_id", "sequence", unique=True),
        Index("ix_episodes_adaptation_id_used_in", "adaptation_id", "used_in"),
    )


class EpisodePiece(Base):
    """Consecutive steps of an episode, from step ``offset`` on, as they were uploaded.

    ``payload`` holds them without loss, and what was said of them beside the key
    (:class:`app.adaptations.pieces.Piece`); ``digest`` is its sha256.
    """

    __tablename__ = "episode_pieces"

    adaptation_id: Mapped[str] = mapped_column(Text, primary_key=True)
    episode_id: Mapped[str] = mapped_column(Text, primary_key=True)
    offset: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    steps: Mapped[int] = mapped_column(Integer)
    digest: Mapped[str] = mapped_column(Text)
    payload: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (ForeignKeyConstraint(["adaptation_id", "episode_id"], ["episodes.adaptation_id", "episodes.id"]),)


class ActEvent(_Row):
    """An action that was recorded, and the reward that came of it, if one has come before ``expires_at``.

    ``counted`` says that the adaptation's counts know of its expiry.
    """

    __tablename__ = "act_events"

    adaptation_id: Mapped[str] = mapped_column(ForeignKey("adaptations.id"), index=True)
    policy_id: Mapped[str] = mapped_column(ForeignKey("policies.id"))
    revision: Mapped[int] = mapped_column(Integer)
    observation: Mapped[list[float]] = mapped_column(JSONColumn)
    action: Mapped[int | list[float]] = mapped_column(JSONColumn)
    policy_action: Mapped[list[float] | None] = mapped_column(JSONColumn)
    log_prob: Mapped[float] = mapped_column(Double)
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    reward: Mapped[float | None] = mapped_column(Double)
    rewarded_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    counted: Mapped[bool] = mapped_column(Boolean, default=False)


class Evaluation(Work):
    """One measurement of versions and policies on tasks.

    ``protocol`` is the request, completed and with every name resolved, so that it can be sent again. ``spec`` is what
    the worker needs: subjects, definitions of the tasks, leakage, warnings. ``progress`` counts what is measured;
    ``checkpoint_sha256`` is the artefact with the runs so far. ``verdicts``, of the first
    subject against the one at each place, are there when it has succeeded.
    """

    __tablename__ = "evaluations"

    name: Mapped[str | None] = mapped_column(Text, index=True)
    protocol: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    spec: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    progress: Mapped[dict[str, Any]] = mapped_column(JSONColumn)
    checkpoint_sha256: Mapped[str | None] = mapped_column(Text, index=True)
    verdicts: Mapped[list[str | None] | None] = mapped_column(JSONColumn)


class EvaluationFile(Base):
    """A file of an evaluation: results, report, plots; its bytes are the artefact of that digest."""

    __tablename__ = "evaluation_files"

    evaluation_id: Mapped[str] = mapped_column(ForeignKey("evaluations.id"), primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    sha256: Mapped[str] = mapped_column(Text, index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class ApiKey(_Row):
    """Who may call. ``digest`` is the sha256 of the key; the key itself is nowhere."""

    __tablename__ = "api_keys"

    name: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(Text, unique=True)
    scopes: Mapped[list[str]] = mapped_column(JSONColumn)
    expires_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class IdempotencyKey(Base):
    """A POST that a client may send again, and the answer it gets then.

    ``claim`` names the request that works on it; ``fingerprint`` is the sha256 of the query and body it came with.
    """

    __tablename__ = "idempotency_keys"

    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    method: Mapped[str] = mapped_column(Text, primary_key=True)
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, default="running")
    claim: Mapped[str] = mapped_column(Text)
    claimed_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, index=True)
    status: Mapped[int | None] = mapped_column(Integer)
    headers: Mapped[dict[str, str] | None] = mapped_column(JSONColumn)
    body: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (_one_of("state", ("running", "done")),)


class AuditEvent(Base):
    """Who changed what. ``subject`` is the path of the resource without the API's version: ``tasks/0190...``."""

    __tablename__ = "audit_events"

    id: Mapped[str] = mapped_column(Text, primary_key=True, default=new_id)
    at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, index=True)
    by: Mapped[str] = mapped_column(Text)
    by_id: Mapped[str | None] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text, index=True)
    detail: Mapped[dict[str, Any]] = mapped_column(JSONColumn, default=dict)
