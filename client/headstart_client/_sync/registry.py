# Generated from headstart_client/_async/registry.py by: python client/generate_sync.py
"""The registry of a service: models, their immutable versions, and the aliases that point at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from headstart_client._sync.downloads import download
from headstart_client._sync.transport import Transport
from headstart_client.downloads import plain_name
from headstart_client.errors import HeadstartError
from headstart_client.registry import (
    Alias,
    AliasEvent,
    Lineage,
    Model,
    Version,
    VersionReference,
    alias_path,
    if_match_header,
)
from headstart_client.transport import json_of, segment
from headstart_client.wire import Resource, id_of, parse, without_none


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
            number = str((self._aliases.get(model, alias)).version)
        elif not number:
            latest = (self._models.get(model)).latest_version
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
        headers = if_match_header(if_match) | ({"If-None-Match": "*"} if only_new else {})
        number = version.version if isinstance(version, Version) else version
        path = alias_path(model, alias)
        # A second try after a lost answer would meet its own change and report a conflict that is none.
        evaluation = None if require_evaluation is None else id_of(require_evaluation)
        body = without_none(version=number, require_evaluation=evaluation)
        return self._sent("PUT", path, body, headers, repeatable=not headers)

    def get(self, model: str, alias: str) -> Alias:
        """One alias, with its etag."""
        return self._sent("GET", alias_path(model, alias))

    def list(self, model: str) -> Iterator[Alias]:
        """Aliases of a model, fetched as they are iterated over."""
        items = self._transport.items(f"/v1/models/{segment(model)}/aliases", "aliases")
        return (parse(Alias, a) for a in items)

    def delete(self, model: str, alias: str, *, if_match: str | Alias | None = None) -> None:
        """Remove an alias; its history stays."""
        headers = if_match_header(if_match)
        self._transport.request("DELETE", alias_path(model, alias), headers=headers, repeatable=not headers)

    def history(self, model: str, alias: str) -> Iterator[AliasEvent]:
        """Every change of an alias, newest first."""
        items = self._transport.items(f"{alias_path(model, alias)}/history", "events")
        return (parse(AliasEvent, e) for e in items)

    def rollback(self, model: str, alias: str, *, if_match: str | Alias | None = None) -> Alias:
        """Point an alias back at the version it pointed at before.

        Raises:
            Conflict: If it never pointed at another one.
        """
        path = f"{alias_path(model, alias)}:rollback"
        return self._sent("POST", path, headers=if_match_header(if_match), repeatable=False)

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
