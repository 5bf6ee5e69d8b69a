"""Who is calling: API keys, their scopes, and a ring of known keys that needs no database on the hot path."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from app.database import Database, exclusive, new_id, now
from app.errors import Forbidden, Unauthenticated
from app.settings import Settings
from app.tables import ApiKey, AuditEvent

logger = logging.getLogger(__name__)

PermissionScope = Literal["tasks:write", "runs:write", "models:read", "models:write", "policies:act", "admin"]
"""What a key may do. Reading is implied by any; ``admin`` implies all."""

REFRESH_S = 1.0
"""Time between two looks for revoked keys; a revocation counts everywhere within two of these."""

_CHUNK = 500


@dataclass(frozen=True)
class Principal:
    """The holder of a key that stands.

    Attributes:
        id: The key's id.
        name: The key's name, which is what histories show.
        scopes: What it may do.
        expires_at: When it ends; None: never.
    """

    id: str
    name: str
    scopes: frozenset[str]
    expires_at: datetime | None = None

    def may(self, scope: PermissionScope) -> bool:
        """Whether the key allows it."""
        return scope in self.scopes or "admin" in self.scopes


OPERATOR = Principal(id="", name="operator", scopes=frozenset({"admin"}))
"""Who acts when a command runs on the service's own machine."""


def new_token() -> str:
    """A key that nobody can guess: 256 random bits."""
    return "hs_" + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """What the database holds of a key. Random keys need no slow hash: there is nothing to guess."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """The keys that this process has seen, in memory.

    :meth:`lookup` asks nobody; :meth:`load` asks the database; :meth:`refresh`, called every second, forgets what was
    revoked elsewhere.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, Principal] = {}

    def lookup(self, token: str) -> Principal | None:
        """The holder of the key, if this process knows it and it has not expired."""
        return self.lookup_digest(digest_of(token))

    def lookup_digest(self, digest: str) -> Principal | None:
        """The same, by :func:`digest_of` the key."""
        principal = self._known.get(digest)
        if principal is None or (principal.expires_at is not None and principal.expires_at <= now()):
            return None
        return principal

    def load(self, token: str) -> Principal | None:
        """The holder of the key, from the database; None if it is unknown, expired or revoked."""
        digest = digest_of(token)
        with self._database.snapshot() as session:
            key = session.scalar(select(ApiKey).where(ApiKey.digest == digest, ApiKey.revoked_at.is_(None)))
        if key is not None:
            self._known[digest] = Principal(key.id, key.name, frozenset(key.scopes), key.expires_at)
        return self.lookup(token)

    def forget(self, digest: str) -> None:
        """Know a key no longer; if it stands, it is loaded again."""
        self._known.pop(digest, None)

    def refresh(self) -> None:
        """Forget the keys that no longer stand."""
        digests = list(self._known)
        with self._database.snapshot() as session:
            for start in range(0, len(digests), _CHUNK):
                chunk = digests[start : start + _CHUNK]
                standing = select(ApiKey.digest).where(ApiKey.digest.in_(chunk), ApiKey.revoked_at.is_(None))
                for digest in set(chunk).difference(session.scalars(standing)):
                    self.forget(digest)


def bearer_token(authorization: bytes | None) -> str | None:
    """The key in an ``Authorization`` header; None where there is none of the Bearer kind."""
    kind, _, token = (authorization or b"").decode("latin-1").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


async def authenticate(keys: KeyRing, authorization: bytes | None) -> Principal:
    """The holder of the key in an ``Authorization`` header.

    Raises:
        Unauthenticated: If there is no key, or it is unknown, expired or revoked.
    """
    token = bearer_token(authorization)
    if token is None:
        raise Unauthenticated("send your key: Authorization: Bearer hs_...")
    principal = keys.lookup(token) or await run_in_threadpool(keys.load, token)
    if principal is None:
        raise Unauthenticated("the key is unknown, expired or revoked")
    return principal


class AuthenticationMiddleware:
    """Lets nothing under `/v1` and `/v2` pass without a key, but for `/v2/health`.

    The holder is ``scope["headstart.principal"]``.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and _is_guarded(scope["path"]):
            # The first of several counts, as everywhere.
            sent = next((value for name, value in scope["headers"] if name == b"authorization"), None)
            scope["headstart.principal"] = await authenticate(self.keys, sent)
        await self.app(scope, receive, send)


def _is_guarded(path: str) -> bool:
    return f"{path}/".startswith(("/v1/", "/v2/")) and not path.startswith("/v2/health/")


_bearer = HTTPBearer(
    auto_error=False, scheme_name="api_key", description="A key of this service: `hs_...`, see /v1/api-keys."
)


async def _caller(request: Request, _: Annotated[object, Security(_bearer)]) -> Principal:
    principal: Principal = request.scope["headstart.principal"]
    return principal


Caller = Annotated[Principal, Depends(_caller)]
"""The holder of the key that the request came with, whatever its scopes: enough for reading."""


def require(scope: PermissionScope) -> Callable[[Principal], object]:
    """A dependency that gives the caller, if its key has the scope: ``Annotated[Principal, Depends(require(...))]``.

    The dependency raises :class:`app.errors.Forbidden`.
    """

    async def allowed(principal: Caller) -> Principal:
        if not principal.may(scope):
            raise Forbidden(f"the key {principal.name!r} lacks the scope {scope}")
        return principal

    return allowed


def audit(session: Session, by: Principal, action: str, subject: str, **detail: object) -> None:
    """Write down who changes what, in the transaction of the change."""
    session.add(AuditEvent(by=by.name, by_id=by.id or None, action=action, subject=subject, detail=dict(detail)))


def ensure_admin_key(database: Database, settings: Settings) -> None:
    """Give a new service its first key: written to ``admin.key`` (mode 0600), only its hash to the database.

    Nothing is done where a key with the scope ``admin`` stands. Processes that start at once agree on one. A key file
    that is there already is taken as it is, so that a service whose database was replaced keeps its key.
    """
    file = settings.admin_key_file
    with database.transaction() as session:
        exclusive(session, "admin-key")
        active = (ApiKey.revoked_at.is_(None)) & (ApiKey.expires_at.is_(None) | (ApiKey.expires_at > now()))
        if any("admin" in key.scopes for key in session.scalars(select(ApiKey).where(active))):
            return
        token = _read_or_write(file, new_token())
        if session.scalar(select(ApiKey).where(ApiKey.digest == digest_of(token))) is not None:
            logger.warning("the key in %s was revoked; make another: headstart-server keys create", file)
            return
        key = ApiKey(id=new_id(), name="admin", digest=digest_of(token), scopes=["admin"])
        session.add(key)
        audit(session, OPERATOR, "api-keys.create", f"api-keys/{key.id}", name="admin")
    logger.info("wrote the administrator's key to %s", file)


def _read_or_write(file: Path, token: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as handle:
            handle.write(token + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        # A link, unlike a rename, leaves a file that stands: the first process wins, its file is complete.
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink()
    return file.read_text().strip()
