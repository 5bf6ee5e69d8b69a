"""API keys over HTTP; all of it needs the scope ``admin``."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import event

from app.auth import Principal, require
from app.dependencies import RequestKeys
from app.keys import service
from app.keys.schemas import CreatedKey, Key, Keys, NewKey
from app.pagination import RequestPage
from app.transactions import RequestSession, TransactionalRoute, withhold_on_replay

router = APIRouter(prefix="/api-keys", tags=["api-keys"], route_class=TransactionalRoute)

Admin = Annotated[Principal, Depends(require("admin"))]


@router.post("", status_code=201)
def create_api_key(
    body: NewKey, session: RequestSession, by: Admin, request: Request, response: Response
) -> CreatedKey:
    """Make a key. Its secret is in this answer and nowhere else, so a repeated request is answered without it."""
    key, token = service.create_key(session, by, body.name, body.scopes, body.expires_at)
    response.headers["Location"] = f"/v1/api-keys/{key.id}"
    withhold_on_replay(request, "key")
    return CreatedKey(**Key.model_validate(key).model_dump(), key=token)


@router.get("")
def list_api_keys(session: RequestSession, page: RequestPage, _: Admin) -> Keys:
    """All keys, oldest first, revoked ones too; never their secrets."""
    keys, token = service.list_keys(session, page)
    return Keys(api_keys=[Key.model_validate(key) for key in keys], next_page_token=token)


@router.get("/{key_id}")
def get_api_key(key_id: str, session: RequestSession, _: Admin) -> Key:
    """One key, without its secret."""
    return Key.model_validate(service.get_key(session, key_id))


@router.delete("/{key_id}", status_code=204)
def revoke_api_key(key_id: str, session: RequestSession, keys: RequestKeys, by: Admin) -> None:
    """Revoke a key: in this process at once, everywhere within two seconds."""
    digest = service.revoke_key(session, by, key_id).digest
    event.listen(session, "after_commit", lambda _: keys.forget(digest), once=True)
