"""Policies on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ConfigDict

from app.policies.service import FILE_NAME, PolicyEntry
from app.registry.schemas import FileBody
from app.validation import Name, Schema


class PolicyBody(Schema):
    """A policy that an adaptation yielded.

    ``task`` is the id of the task it was adapted to, or the task's definition where it was never registered;
    ``model`` and ``version`` are null where adapting began from scratch.
    """

    id: str
    adaptation: str | None
    model: str | None
    version: int | None
    task: str | dict[str, Any] | None
    environment: str
    policy: dict[str, Any]
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    created_at: datetime
    expires_at: datetime | None
    files: list[FileBody]

    @classmethod
    def of(cls, entry: PolicyEntry) -> PolicyBody:
        """The wire form."""
        row = entry.policy
        return cls(
            id=row.id,
            adaptation=row.adaptation_id,
            model=row.model,
            version=row.version,
            task=entry.task,
            environment=row.spec["environment"],
            policy=row.spec["policy"],
            observation_space=row.spec["observation_space"],
            action_space=row.spec["action_space"],
            created_at=row.created_at,
            expires_at=row.expires_at,
            files=[FileBody(name=FILE_NAME, sha256=row.sha256, size_bytes=row.size_bytes)],
        )


class Policies(Schema):
    """A page of policies, newest first."""

    policies: list[PolicyBody]
    next_page_token: str | None


class Publication(Schema):
    """Where a policy is to become a version."""

    model_config = ConfigDict(
        use_attribute_docstrings=True, json_schema_extra={"examples": [{"model": "cartpole-long"}]}
    )

    model: Name
    """Whose next version it becomes; a new name makes a new model."""
