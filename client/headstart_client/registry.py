"""The registry: models, their immutable versions, and the aliases that point at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from headstart_client.transport import segment
from headstart_client.wire import File, Resource


@dataclass(frozen=True, kw_only=True)
class Model(Resource):
    """A name with versions.

    Attributes:
        name: Its unique name.
        latest_version: Number of its newest version; ``None`` before there is one.
        aliases: Version numbers by alias: ``{"champion": 3}``.
        created_at: When its first run was asked for, UTC.
    """

    name: str
    latest_version: int | None = None
    aliases: Mapping[str, int] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Version(Resource):
    """An initialisation that a run produced, or a policy that was published; it never changes.

    Attributes:
        model: Name of its model.
        version: Its number, from 1, never used again.
        run: Id of the run that made it; ``None`` if it was imported.
        metrics: Numbers of the iteration that it was made of: the best on held-out tasks, or the last.
        manifest: Learner, hyperparameters, architecture, spaces, digests.
        files: What can be downloaded.
        aliases: The aliases that point at it now.
        created_at: When it was made, UTC.
    """

    model: str
    version: int
    run: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    aliases: tuple[str, ...] = ()
    created_at: datetime | None = None

    @property
    def reference(self) -> str:
        """What names exactly this version: ``cartpole/3``."""
        return f"{self.model}/{self.version}"


@dataclass(frozen=True, kw_only=True)
class Lineage(Resource):
    """Where a version comes from.

    Attributes:
        model: Name of its model.
        version: Its number.
        run: Id of the run that made it.
        tasks: The selection of tasks that its run was given.
        task_ids: The registered tasks that this was at the time.
        learner: The meta-learner and its hyperparameters.
        seed: Of the run.
        code_version: Of the service that trained it.
        parent: The version it started from, like ``cartpole/3``, if any.
        policy: Of one that was a policy: that policy's id.
        adaptation: Id of the adaptation that yielded it.
        task: Definition of the task it was adapted to.
        method: How it was adapted.
    """

    model: str
    version: int
    run: str | None = None
    tasks: Mapping[str, Any] | None = None
    task_ids: tuple[str, ...] = ()
    learner: Mapping[str, Any] | None = None
    seed: int | None = None
    code_version: str | None = None
    parent: str | None = None
    policy: str | None = None
    adaptation: str | None = None
    task: Mapping[str, Any] | None = None
    method: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Alias(Resource):
    """A movable pointer to one version of a model.

    Attributes:
        model: Name of its model.
        alias: Its name, unique in the model.
        version: Number of the version it points at.
        updated_at: When it last moved, UTC.
        etag: Stands for its present position; pass it (or the alias) as ``if_match``. ``None`` in lists.
    """

    model: str
    alias: str
    version: int
    updated_at: datetime | None = None
    etag: str | None = None


@dataclass(frozen=True, kw_only=True)
class AliasEvent(Resource):
    """One change of an alias.

    Attributes:
        action: ``set``, ``rollback`` or ``delete``.
        version: The version it pointed at afterwards.
        previous_version: The version it pointed at before.
        at: When, UTC.
        by: The key that did it.
    """

    action: str
    version: int | None = None
    previous_version: int | None = None
    at: datetime | None = None
    by: str | None = None


VersionReference = str | Version


def alias_path(model: str, alias: str) -> str:
    """Its path on the service."""
    return f"/v1/models/{segment(model)}/aliases/{segment(alias)}"


def if_match_header(alias: str | Alias | None) -> dict[str, str]:
    """The header that makes a change depend on where an alias was.

    Raises:
        ValueError: If that is not known of it.
    """
    if alias is None:
        return {}
    etag = alias if isinstance(alias, str) else alias.etag
    if etag is None:
        raise ValueError("this alias came from a list, without an etag: get it first")
    return {"If-Match": etag}
