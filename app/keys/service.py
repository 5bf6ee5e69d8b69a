"""Making, listing and revoking API keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.auth import PermissionScope, Principal, audit, digest_of, new_token
from app.database import new_id, now
from app.errors import Invalid, NotFound
from app.pagination import Page, paginate
from app.tables import ApiKey


def create_key(
    session: Session,
    by: Principal,
    name: str,
    scopes: Sequence[PermissionScope],
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; it and the token that its holder sends, which is stored nowhere.

    Raises:
        Invalid: If it would have expired already.
    """
    if expires_at is not None and expires_at <= now():
        raise Invalid("/expires_at", "must be in the future")
    token = new_token()
    key = ApiKey(
        id=new_id(),
        name=name,
        digest=digest_of(token),
        scopes=sorted(set(scopes)),
        expires_at=expires_at,
    )
    session.add(key)
    audit(session, by, "api-keys.create", f"api-keys/{key.id}", name=name, scopes=key.scopes)
    session.flush()
    return key, token


def get_key(session: Session, key_id: str) -> ApiKey:
    """The key of that id, revoked or not.

    Raises:
        NotFound: If there is none.
    """
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFound(f"there is no API key {key_id!r}")
    return key


def list_keys(session: Session, page: Page) -> tuple[list[ApiKey], str | None]:
    """A page of all keys, oldest first."""
    return paginate(session, select(ApiKey), ApiKey.id, page, {"list": "api_keys"})


def revoke_key(session: Session, by: Principal, key_id: str) -> ApiKey:
    """End a key, everywhere within two seconds; one that was revoked before stays so.

    Raises:
        NotFound: If there is none.
    """
    key = get_key(session, key_id)
    if key.revoked_at is None:
        key.revoked_at = now()
        audit(session, by, "api-keys.revoke", f"api-keys/{key.id}", name=key.name)
    return key
