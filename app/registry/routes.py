"""The registry over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response

from app.auth import Caller, Principal, require
from app.dependencies import RequestStore
from app.files import file_responses, serve_file, serve_made
from app.pagination import RequestPage
from app.policies import export
from app.policies.service import FILE_NAME
from app.registry import aliases, service
from app.registry.schemas import (
    AliasBody,
    Aliases,
    AliasEventBody,
    AliasHistory,
    AliasTarget,
    LineageBody,
    ModelBody,
    Models,
    VersionBody,
    Versions,
)
from app.tables import Alias
from app.transactions import RequestSession, TransactionalRoute
from app.validation import Name

router = APIRouter(prefix="/models", tags=["registry"], route_class=TransactionalRoute)

Writer = Annotated[Principal, Depends(require("models:write"))]
IfMatch = Annotated[str | None, Header(description="The ETag that the alias must have now.")]
IfNoneMatch = Annotated[str | None, Header(description="`*`: the alias must not exist.")]
AliasName = Annotated[Name, Path()]


@router.get("")
def list_models(session: RequestSession, page: RequestPage, _: Caller) -> Models:
    """All models, by name."""
    entries, token = service.list_models(session, page)
    return Models(models=[ModelBody.of(entry) for entry in entries], next_page_token=token)


@router.get("/{model}")
def get_model(model: str, session: RequestSession, _: Caller) -> ModelBody:
    """One model: its newest version and its aliases."""
    return ModelBody.of(service.get_model(session, model))


@router.get("/{model}/versions")
def list_versions(model: str, session: RequestSession, page: RequestPage, _: Caller) -> Versions:
    """The versions of a model, newest first."""
    entries, token = service.list_versions(session, model, page)
    return Versions(versions=[VersionBody.of(entry) for entry in entries], next_page_token=token)


@router.get("/{model}/versions/{version}")
def get_version(model: str, version: str, session: RequestSession, _: Caller) -> VersionBody:
    """One version: manifest, files, metrics, aliases."""
    return VersionBody.of(service.get_version(session, model, version))


@router.get("/{model}/versions/{version}/lineage")
def get_version_lineage(model: str, version: str, session: RequestSession, _: Caller) -> LineageBody:
    """Where a version comes from: run, tasks, learner, seed, code."""
    return LineageBody.of(service.get_lineage(session, model, version))


# Before the files that are stored: the first path that fits is taken.
@router.head("/{model}/versions/{version}/files/policy.onnx", include_in_schema=False)
@router.get(
    "/{model}/versions/{version}/files/policy.onnx",
    response_class=Response,
    responses=file_responses("application/octet-stream"),
)
def get_version_onnx(
    model: str, version: str, request: Request, session: RequestSession, store: RequestStore, _: Caller
) -> Response:
    """The bare initialisation as one ONNX graph, made when it is asked for; served as other files are."""
    return serve_made(request, export.ONNX_FILE, export.version_onnx(session, store, model, version))


@router.head("/{model}/versions/{version}/files/policy.safetensors", include_in_schema=False)
@router.get(
    "/{model}/versions/{version}/files/policy.safetensors",
    response_class=Response,
    responses=file_responses("application/octet-stream"),
)
def get_version_policy(
    model: str, version: str, request: Request, session: RequestSession, store: RequestStore, _: Caller
) -> Response:
    """The bare initialisation as a policy's file, made when it is asked for; served as other files are."""
    return serve_made(request, FILE_NAME, export.version_policy(session, store, model, version))


@router.head("/{model}/versions/{version}/files/{name}", include_in_schema=False)
@router.get(
    "/{model}/versions/{version}/files/{name}",
    response_class=Response,
    responses=file_responses("application/octet-stream", "application/json"),
)
def get_version_file(
    model: str,
    version: str,
    name: Annotated[str, Path(description="Name of the file: `manifest.json` or `parameters.safetensors`.")],
    request: Request,
    session: RequestSession,
    store: RequestStore,
    _: Caller,
) -> Response:
    """A file of a version. ETag is its sha256; If-None-Match, Range and If-Range are honoured."""
    file = service.get_file(session, model, version, name)
    return serve_file(request, store, file.name, file.sha256, file.size_bytes)


@router.get("/{model}/aliases")
def list_aliases(model: str, session: RequestSession, page: RequestPage, _: Caller) -> Aliases:
    """The aliases of a model, by name."""
    rows, token = aliases.list_aliases(session, model, page)
    return Aliases(aliases=[AliasBody.model_validate(row) for row in rows], next_page_token=token)


@router.put("/{model}/aliases/{alias}", responses={201: {"model": AliasBody}})
def set_alias(
    model: str,
    alias: AliasName,
    body: AliasTarget,
    session: RequestSession,
    by: Writer,
    response: Response,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> AliasBody:
    """Point an alias to a version: 201 where it is new; 412 where a precondition does not hold.

    With `require_evaluation`, 409 where that evaluation does not speak for the version.
    """
    row, created = aliases.set_alias(
        session, by, model, alias, body.version, if_match, if_none_match, body.require_evaluation
    )
    response.status_code = 201 if created else 200
    return _with_etag(row, response)


@router.get("/{model}/aliases/{alias}")
def get_alias(model: str, alias: str, session: RequestSession, _: Caller, response: Response) -> AliasBody:
    """Where an alias points; the ETag is for If-Match."""
    return _with_etag(aliases.get_alias(session, model, alias), response)


@router.delete("/{model}/aliases/{alias}", status_code=204)
def delete_alias(model: str, alias: str, session: RequestSession, by: Writer, if_match: IfMatch = None) -> None:
    """Remove an alias; its history stays."""
    aliases.delete_alias(session, by, model, alias, if_match)


@router.get("/{model}/aliases/{alias}/history")
def list_alias_events(model: str, alias: str, session: RequestSession, page: RequestPage, _: Caller) -> AliasHistory:
    """Every change of an alias, newest first, and who made it."""
    rows, token = aliases.list_alias_events(session, model, alias, page)
    events = [AliasEventBody.model_validate(row) for row in rows]
    return AliasHistory(events=events, next_page_token=token)


@router.post("/{model}/aliases/{alias}:rollback")
def roll_back_alias(
    model: str, alias: str, session: RequestSession, by: Writer, response: Response, if_match: IfMatch = None
) -> AliasBody:
    """Point an alias to the version it had before; once more, to the one before that; 409 where there is none."""
    return _with_etag(aliases.roll_back_alias(session, by, model, alias, if_match), response)


def _with_etag(row: Alias, response: Response) -> AliasBody:
    response.headers["ETag"] = f'"{row.revision}"'
    return AliasBody.model_validate(row)
