"""The registry: models, their immutable versions, and the aliases that point at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from headstart_client.downloads import download, plain_name
from headstart_client.errors import HeadstartError
from headstart_client.transport import Transport, json_of, segment
from headstart_client.wire import File, Resource, id_of, parse, without_none


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


class Models:
    """``client.models``: names with versions."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[Model]:
        """Every model, fetched as they are iterated over."""
        return (parse(Model, m) for m in self._transport.items("/v1/models", "models"))

    def get(self, model: str) -> Model:
        """One model, by name."""
        return parse(Model, self._transport.get(f"/v1/models/{segment(model)}"))


class Versions:
    """``client.versions``: what runs produced.

    A version is named by ``"cartpole/3"``, by an alias as ``"cartpole@champion"``, or ``"cartpole"``: the
    newest.
    """

    def __init__(self, transport: Transport, models: Models, aliases: Aliases) -> None:
        self._transport = transport
        self._models = models
        self._aliases = aliases

    def get(self, reference: VersionReference) -> Version:
        """The version that a reference names now."""
        return parse(Version, self._transport.get(self.path(reference)))

    def lineage(self, reference: VersionReference) -> Lineage:
        """Where a version comes from."""
        return parse(Lineage, self._transport.get(f"{self.path(reference)}/lineage"))

    def download(
        self, reference: VersionReference, to: str | Path, *, files: Iterable[str] | None = None
    ) -> list[Path]:
        """Download a version's files into the folder ``to``, checked; files that are there already are kept.

        Args:
            reference: The version.
            to: The folder; made if need be.
            files: Their names; those that the version lists where not given. ``policy.safetensors`` and
                ``policy.onnx``, its bare initialisation as a policy, are made when they are asked for, and not listed.

        Raises:
            DigestMismatch: If a file is not what the registry says it is.
        """
        version = self.get(reference)
        base = f"{self.path(version)}/files"
        listed = {file.name: file.sha256 for file in version.files}
        return [
            download(self._transport, f"{base}/{name}", Path(to, name), listed.get(name))
            for name in map(plain_name, listed if files is None else files)
        ]

    def path(self, reference: VersionReference) -> str:
        """The version's path on the service; asks it where an alias points, or which version is newest."""
        if isinstance(reference, Version):
            reference = reference.reference
        model, at, alias = reference.partition("@")
        model, _, number = (model, "", "") if at else reference.partition("/")
        if at:
            number = str(self._aliases.get(model, alias).version)
        elif not number:
            latest = self._models.get(model).latest_version
            if latest is None:
                raise HeadstartError(f"model {model} has no version yet")
            number = str(latest)
        return f"/v1/models/{segment(model)}/versions/{segment(number)}"

    def list(self, model: str) -> Iterator[Version]:
        """Versions of a model, fetched as they are iterated over."""
        items = self._transport.items(f"/v1/models/{segment(model)}/versions", "versions")
        return (parse(Version, v) for v in items)


class Aliases:
    """``client.aliases``: movable pointers to versions."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def set(
        self,
        model: str,
        alias: str,
        version: int | Version,
        *,
        if_match: str | Alias | None = None,
        only_new: bool = False,
        require_evaluation: str | Resource | None = None,
    ) -> Alias:
        """Point an alias at a version; made if there is none of that name.

        Args:
            model: Name of the model.
            alias: Name of the alias.
            version: The version, or its number.
            if_match: Move it only if it is still where it was when this (its etag) was read.
            only_new: Make it only if there is none of that name.
            require_evaluation: Move it only if this evaluation, or the one of this id, speaks for the version: it has
                no leakage and did not find it worse than the version where the alias points.

        Raises:
            Conflict: If the evaluation does not speak for it.
            PreconditionFailed: If it has moved meanwhile, or stands although it should be new.
            InvalidRequest: If there is no such version.
        """
        headers = _if_match(if_match) | ({"If-None-Match": "*"} if only_new else {})
        number = version.version if isinstance(version, Version) else version
        path = _alias_path(model, alias)
        # A second try after a lost answer would meet its own change and report a conflict that is none.
        evaluation = None if require_evaluation is None else id_of(require_evaluation)
        body = without_none(version=number, require_evaluation=evaluation)
        return self._sent("PUT", path, body, headers, repeatable=not headers)

    def get(self, model: str, alias: str) -> Alias:
        """One alias, with its etag."""
        return self._sent("GET", _alias_path(model, alias))

    def list(self, model: str) -> Iterator[Alias]:
        """Aliases of a model, fetched as they are iterated over."""
        items = self._transport.items(f"/v1/models/{segment(model)}/aliases", "aliases")
        return (parse(Alias, a) for a in items)

    def delete(self, model: str, alias: str, *, if_match: str | Alias | None = None) -> None:
        """Remove an alias; its history stays."""
        headers = _if_match(if_match)
        self._transport.request("DELETE", _alias_path(model, alias), headers=headers, repeatable=not headers)

    def history(self, model: str, alias: str) -> Iterator[AliasEvent]:
        """Every change of an alias, newest first."""
        items = self._transport.items(f"{_alias_path(model, alias)}/history", "events")
        return (parse(AliasEvent, e) for e in items)

    def rollback(self, model: str, alias: str, *, if_match: str | Alias | None = None) -> Alias:
        """Point an alias back at the version it pointed at before.

        Raises:
            Conflict: If it never pointed at another one.
        """
        path = f"{_alias_path(model, alias)}:rollback"
        return self._sent("POST", path, headers=_if_match(if_match), repeatable=False)

    def _sent(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> Alias:
        response = self._transport.request(method, path, body=body, headers=headers, repeatable=repeatable)
        return replace(parse(Alias, json_of(response)), etag=response.headers.get("etag"))


def _alias_path(model: str, alias: str) -> str:
    return f"/v1/models/{segment(model)}/aliases/{segment(alias)}"


def _if_match(alias: str | Alias | None) -> dict[str, str]:
    if alias is None:
        return {}
    etag = alias if isinstance(alias, str) else alias.etag
    if etag is None:
        raise ValueError("this alias came from a list, without an etag: get it first")
    return {"If-Match": etag}
