"""Policies over HTTP. Acting has a path of its own: :mod:`app.inference`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.auth import Caller, Principal, require
from app.dependencies import RequestStore
from app.files import serve_file
from app.pagination import RequestPage
from app.policies import service
from app.policies.schemas import Policies, PolicyBody, Publication
from app.registry.schemas import VersionBody
from app.transactions import RequestSession, TransactionalRoute

router = APIRouter(prefix="/policies", tags=["policies"], route_class=TransactionalRoute)

Writer = Annotated[Principal, Depends(require("models:write"))]


@router.get("")
def list_policies(session: RequestSession, page: RequestPage, _: Caller) -> Policies:
    """Policies that have not expired, newest first."""
    entries, token = service.list_policies(session, page)
    return Policies(policies=[PolicyBody.of(entry) for entry in entries], next_page_token=token)


@router.get("/{policy_id}")
def get_policy(policy_id: str, session: RequestSession, _: Caller) -> PolicyBody:
    """One policy: its spaces, where it comes from, when it expires."""
    return PolicyBody.of(service.get_policy(session, policy_id))


@router.post("/{policy_id}:publish", status_code=201)
def publish_policy(
    policy_id: str, body: Publication, session: RequestSession, store: RequestStore, by: Writer, response: Response
) -> VersionBody:
    """Make a policy the next version of a model: it stands when the policy has expired, and can be adapted further."""
    entry = service.publish_policy(session, store, by, policy_id, body.model)
    response.headers["Location"] = f"/v1/models/{entry.version.model}/versions/{entry.version.number}"
    return VersionBody.of(entry)


@router.delete("/{policy_id}", status_code=204)
def delete_policy(policy_id: str, session: RequestSession, by: Writer) -> None:
    """Take a policy away before it expires."""
    service.delete_policy(session, by, policy_id)


@router.head("/{policy_id}/files/policy.safetensors", include_in_schema=False)
@router.get(
    "/{policy_id}/files/policy.safetensors",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}, 206: {}, 304: {}},
)
def get_policy_file(
    policy_id: str, request: Request, session: RequestSession, store: RequestStore, _: Caller
) -> Response:
    """The policy's parameters. ETag is their sha256; If-None-Match, Range and If-Range are honoured."""
    policy = service.get_policy(session, policy_id).policy
    return serve_file(request, store, service.FILE_NAME, policy.sha256, policy.size_bytes)
