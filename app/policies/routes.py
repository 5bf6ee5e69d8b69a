"""Policies over HTTP. Acting has a path of its own: :mod:`app.acting`."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from app.auth import Caller, Principal, require
from app.dependencies import RequestStore
from app.files import file_responses, serve_file, serve_made
from app.pagination import RequestPage
from app.policies import export, service
from app.policies.rollouts import Theatre
from app.policies.schemas import Policies, PolicyBody, Publication, RolloutBody, RolloutQuery
from app.registry.schemas import VersionBody
from app.transactions import RequestSession, TransactionalRoute

router = APIRouter(prefix="/policies", tags=["policies"], route_class=TransactionalRoute)

Writer = Annotated[Principal, Depends(require("models:write"))]
Actor = Annotated[Principal, Depends(require("policies:act"))]

_MEDIA_TYPES = {"json": "application/json", "gif": "image/gif", "mp4": "video/mp4"}
_FILM = {"schema": {"type": "string", "format": "binary"}}
_ROLLOUT: dict[int | str, dict[str, Any]] = {
    200: {
        "model": RolloutBody,
        "description": "The episodes, as numbers or as a film",
        "content": {"image/gif": _FILM, "video/mp4": _FILM},
    },
    501: {"description": "Something is missing on the server that the renderer or the encoder needs"},
    503: {"description": "Too many are made for others; `Retry-After` says when to ask again"},
}


async def _rollout_query(
    episodes: Annotated[int, Query(ge=1, le=100, description="How many; 10 at most in a film.")] = 1,
    format: Annotated[
        Literal["json", "gif", "mp4"],
        Query(description="Numbers; or a film of one episode after another, drawn by Gymnasium's renderer."),
    ] = "json",
    seed: Annotated[int, Query(ge=0, le=2**63 - 1, description="The same seed gives the same episodes.")] = 0,
    deterministic: Annotated[bool, Query(description="Take the most likely action in place of sampling.")] = True,
    task: Annotated[str | None, Query(description="Id or name; by default the task it was adapted to.")] = None,
) -> RolloutQuery:
    return RolloutQuery(episodes, format, seed, deterministic, task)


async def _theatre(request: Request) -> Theatre:
    theatre: Theatre = request.app.state.theatre
    return theatre


@router.get("")
def list_policies(session: RequestSession, page: RequestPage, _: Caller) -> Policies:
    """Policies that have not expired, newest first."""
    entries, token = service.list_policies(session, page)
    return Policies(policies=[PolicyBody.of(entry) for entry in entries], next_page_token=token)


@router.get("/{policy_id}")
def get_policy(policy_id: str, session: RequestSession, _: Caller) -> PolicyBody:
    """One policy: its spaces, where it comes from, when it expires."""
    return PolicyBody.of(service.get_policy(session, policy_id))


@router.get("/{policy_id}/rollout", response_class=Response, responses=_ROLLOUT)
async def roll_out_policy(
    policy_id: str,
    query: Annotated[RolloutQuery, Depends(_rollout_query)],
    theatre: Annotated[Theatre, Depends(_theatre)],
    _: Actor,
) -> Response:
    """Fresh episodes of a policy in its task, or in another of the same spaces: as numbers, or as a gif or mp4.

    Rewards are the task's own. A film has a frame before each episode's first step and one after every step, at most
    3,000 in all, were every episode as long as the task's horizon.
    """
    content = await theatre.play(policy_id, query)
    name = f"rollout-{policy_id}-seed-{query.seed}.{query.format}"
    headers = {"Content-Disposition": f'inline; filename="{name}"'}
    return Response(content, headers=headers, media_type=_MEDIA_TYPES[query.format])


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
    responses=file_responses("application/octet-stream"),
)
def get_policy_file(
    policy_id: str,
    request: Request,
    session: RequestSession,
    store: RequestStore,
    _: Caller,
    revision: Annotated[int | None, Query(ge=0, lt=2**31, description="An older one; by default the newest.")] = None,
) -> Response:
    """The policy's parameters and what policy it is. ETag is the sha256; If-None-Match and Range are honoured."""
    policy = service.get_policy(session, policy_id).policy
    sha256, size_bytes = service.get_revision(session, policy, revision)
    return serve_file(request, store, service.FILE_NAME, sha256, size_bytes)


@router.head("/{policy_id}/files/policy.onnx", include_in_schema=False)
@router.get(
    "/{policy_id}/files/policy.onnx",
    response_class=Response,
    responses=file_responses("application/octet-stream"),
)
def get_policy_onnx(
    policy_id: str, request: Request, session: RequestSession, store: RequestStore, _: Caller
) -> Response:
    """The whole policy as one ONNX graph, made when it is asked for; served as its parameters are."""
    return serve_made(request, export.ONNX_FILE, export.policy_onnx(session, store, policy_id))
