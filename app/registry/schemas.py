"""Models, versions and aliases on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from app.registry.examples import ALIAS, ALIAS_EVENT, LINEAGE, MODEL, VERSION
from app.registry.service import Lineage, ModelEntry, VersionEntry
from app.validation import Schema, Whole


class ModelBody(Schema):
    """A model. ``latest_version`` is null as long as none was published."""

    model_config = ConfigDict(json_schema_extra={"examples": [MODEL]})

    name: str
    created_at: datetime
    latest_version: int | None
    aliases: dict[str, int]

    @classmethod
    def of(cls, entry: ModelEntry) -> ModelBody:
        """The wire form."""
        return cls(
            name=entry.model.name,
            created_at=entry.model.created_at,
            latest_version=entry.latest_version,
            aliases=entry.aliases,
        )


class Models(Schema):
    """A page of models."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"models": [MODEL], "next_page_token": None}]})

    models: list[ModelBody]
    next_page_token: str | None


class FileBody(Schema):
    """A file of a version."""

    name: str
    sha256: str
    size_bytes: int


class VersionBody(Schema):
    """A version; ``run`` made it.

    ``files`` are those that are stored; ``policy.safetensors`` and ``policy.onnx``, its bare initialisation as a
    policy, are made when they are asked for, and their digests are not known before.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [VERSION]})

    model: str
    version: int
    run: str | None
    created_at: datetime
    metrics: dict[str, Any]
    manifest: dict[str, Any]
    files: list[FileBody]
    aliases: list[str]

    @classmethod
    def of(cls, entry: VersionEntry) -> VersionBody:
        """The wire form."""
        version = entry.version
        return cls(
            model=version.model,
            version=version.number,
            run=version.run_id,
            created_at=version.created_at,
            metrics=version.manifest.get("metrics") or {},
            manifest=version.manifest,
            files=[FileBody.model_validate(file) for file in entry.files],
            aliases=entry.aliases,
        )


class Versions(Schema):
    """A page of versions."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"versions": [VERSION], "next_page_token": None}]})

    versions: list[VersionBody]
    next_page_token: str | None


class LineageBody(Schema):
    """Where a version comes from.

    ``tasks`` is the selection that its run was given, ``task_ids`` the registered tasks that this was at the time;
    ``parent`` is the version it started from, ``model/3``. One that was a policy has the ids of that and of the
    adaptation in place of a run, with the task that it was adapted to, and how.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [LINEAGE]})

    model: str
    version: int
    run: str | None
    tasks: dict[str, Any] | None
    task_ids: list[str]
    learner: dict[str, Any] | None
    seed: int | None
    code_version: str | None
    parent: str | None
    policy: str | None
    adaptation: str | None
    task: dict[str, Any] | None
    method: dict[str, Any] | None

    @classmethod
    def of(cls, lineage: Lineage) -> LineageBody:
        """The wire form."""
        manifest = lineage.version.manifest
        parent = lineage.parent
        return cls(
            model=lineage.version.model,
            version=lineage.version.number,
            run=lineage.version.run_id,
            tasks=None if lineage.run is None else lineage.run.spec.get("tasks"),
            task_ids=lineage.task_ids,
            learner=manifest.get("learner"),
            seed=manifest.get("seed"),
            code_version=manifest.get("code_version"),
            parent=None if parent is None else f"{parent.model}/{parent.number}",
            policy=manifest.get("policy_id"),
            adaptation=manifest.get("adaptation"),
            task=manifest.get("task"),
            method=manifest.get("method"),
        )


class AliasTarget(Schema):
    """Where an alias is to point."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"examples": [{"version": 3}]})

    version: Annotated[Whole, Field(ge=1, lt=2**31)]
    """A number of one of the model's versions."""

    require_evaluation: str | None = None
    """Id of an evaluation that must speak for the version, else the alias stays as it is (409): it has succeeded
    without leakage, its first subject is the version, and it did not find it worse than the version that the alias
    points to, which must be among its subjects."""


class AliasBody(Schema):
    """An alias: the version it points to."""

    model_config = ConfigDict(json_schema_extra={"examples": [ALIAS]})

    model: str
    alias: str
    version: int
    updated_at: datetime


class Aliases(Schema):
    """A page of aliases."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"aliases": [ALIAS], "next_page_token": None}]})

    aliases: list[AliasBody]
    next_page_token: str | None


class AliasEventBody(Schema):
    """One change of an alias: ``set``, ``rollback`` or ``delete``, and the name of the key that made it."""

    action: str
    version: int | None
    previous_version: int | None
    at: datetime
    by: str


class AliasHistory(Schema):
    """A page of an alias's changes, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"events": [ALIAS_EVENT], "next_page_token": None}]})

    events: list[AliasEventBody]
    next_page_token: str | None
