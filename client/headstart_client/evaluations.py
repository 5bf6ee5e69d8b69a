"""Evaluations, as they are known: what versions and policies are worth on tasks that they have not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from headstart_client.events import FINISHED
from headstart_client.policies import Policy
from headstart_client.registry import Version
from headstart_client.wire import Failure, File, Resource


@dataclass(frozen=True, kw_only=True)
class EvaluationProgress(Resource):
    """How far an evaluation is.

    Attributes:
        done: Adaptations measured.
        total: Adaptations that there are.
    """

    done: int = 0
    total: int = 0


@dataclass(frozen=True, kw_only=True)
class Leak(Resource):
    """Held-out tasks that a subject was trained on.

    Attributes:
        subject: Name of the subject.
        tasks: Names of the tasks.
        detail: The same in a sentence.
    """

    subject: str
    tasks: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Resource):
    """One measurement of versions and policies on tasks.

    Attributes:
        id: Its unique id.
        name: Of its protocol.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        progress: How far it is.
        verdict: On the first subject against the second: ``better``, ``worse`` or ``no difference shown``.
        leakage: What must not be: held-out tasks that a subject was trained on.
        warnings: What to bear in mind, in sentences.
        protocol: What to send to have it repeated.
        result: Every number, once it has succeeded.
        files: What can be downloaded then.
        cancel_requested: Whether somebody asked to cancel it.
        error: Why it failed.
        created_at: When it was asked for, UTC.
    """

    id: str
    name: str | None = None
    state: str
    progress: EvaluationProgress = field(default_factory=EvaluationProgress)
    verdict: str | None = None
    leakage: tuple[Leak, ...] = ()
    warnings: tuple[str, ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    files: tuple[File, ...] = ()
    cancel_requested: bool = False
    error: Failure | None = None
    created_at: datetime | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.state in FINISHED


def subject_reference(subject: str | Version | Policy | Mapping[str, Any]) -> object:
    """What is sent for a subject."""
    if isinstance(subject, Version):
        return subject.reference
    return {"policy": subject.id} if isinstance(subject, Policy) else subject
