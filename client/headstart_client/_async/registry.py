"""The registry of a service: models, their immutable versions, and the aliases that point at them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from headstart_client._async.downloads import download
from headstart_client._async.transport import AsyncTransport
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


class AsyncModels:
    """``client.models``: names with versions."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self) -> AsyncIterator[Model]:
        """Every model, fetched as they are iterated over."""
        return (parse(Model, m) async for m in self._transport.items("/v1/models", "models"))

    async def get(self, model: str) -> Model:
        """One model, by name."""
        return parse(Model, await self._transport.get(f"/v1/models/{segment(model)}"))


class AsyncVersions:
    """``client.versions``: what runs produced.

    A version is named by ``"cartpole/3"``, by an alias as ``"cartpole@champion"``, or ``"cartpole"``: the
    newest.
    """

    def __init__(self, transport: AsyncTransport, models: AsyncModels, aliases: AsyncAliases) -> None:
        self._transport = transport
        self._models = models
        self._aliases = aliases

    async def get(self, reference: VersionReference) -> Version:
        """The version that a reference names now."""
        return parse(Version, await self._transport.get(await self.path(reference)))

    async def lineage(self, reference: VersionReference) -> Lineage:
        """Where a version comes from."""
        return parse(Lineage, await self._transport.get(f"{await self.path(reference)}/lineage"))

    async def download(
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
        version = await self.get(reference)
        base = f"{await self.path(version)}/files"
        listed = {file.name: file.sha256 for file in version.files}
        return [
            await download(self._transport, f"{base}/{name}", Path(to, name), listed.get(name))
            for name in map(plain_name, listed if files is None else files)
        ]

    async def path(self, reference: VersionReference) -> str:
        """The version's path on the service; asks it where an alias points, or which version is newest."""
        if isinstance(reference, Version):
            reference = reference.reference
        model, at, alias = reference.partition("@")
        model, _, number = (model, "", "") if at else reference.partition("/")
        if at:
            number = str((await self._aliases.get(model, alias)).version)
        elif not number:
            latest = (await self._models.get(model)).latest_version
            if latest is None:
                raise HeadstartError(f"model {model} has no version yet")
            number = str(latest)
        return f"/v1/models/{segment(model)}/versions/{segment(number)}"

    def list(self, model: str) -> AsyncIterator[Version]:
        """Versions of a model, fetched as they are iterated over."""
        items = self._transport.items(f"/v1/models/{segment(model)}/versions", "versions")
        return (parse(Version, v) async for v in items)


class AsyncAliases:
    """``client.aliases``: movable pointers to versions."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def set(
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
        return await self._sent("PUT", path, body, headers, repeatable=not headers)

    async def get(self, model: str, alias: str) -> Alias:
        """One alias, with its etag."""
        return await self._sent("GET", alias_path(model, alias))

    def list(self, model: str) -> AsyncIterator[Alias]:
        """Aliases of a model, fetched as they are iterated over."""
        items = self._transport.items(f"/v1/models/{segment(model)}/aliases", "aliases")
        return (parse(Alias, a) async for a in items)

    async def delete(self, model: str, alias: str, *, if_match: str | Alias | None = None) -> None:
        """Remove an alias; its history stays."""
        headers = if_match_header(if_match)
        await self._transport.request("DELETE", alias_path(model, alias), headers=headers, repeatable=not headers)

    def history(self, model: str, alias: str) -> AsyncIterator[AliasEvent]:
        """Every change of an alias, newest first."""
        items = self._transport.items(f"{alias_path(model, alias)}/history", "events")
        return (parse(AliasEvent, e) async for e in items)

    async def rollback(self, model: str, alias: str, *, if_match: str | Alias | None = None) -> Alias:
        """Point an alias back at the version it pointed at before.

        Raises:
            Conflict: If it never pointed at another one.
        """
        path = f"{alias_path(model, alias)}:rollback"
        return await self._sent("POST", path, headers=if_match_header(if_match), repeatable=False)

    async def _sent(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> Alias:
        response = await self._transport.request(method, path, body=body, headers=headers, repeatable=repeatable)
        return replace(parse(Alias, json_of(response)), etag=response.headers.get("etag"))
