"""API keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from headstart_client.wire import Resource


@dataclass(frozen=True, kw_only=True)
class ApiKey(Resource):
    """A key that opens the service.

    Attributes:
        id: Its unique id, which opens nothing.
        name: What it is for.
        scopes: What it may do: ``tasks:write``, ``runs:write``, ``models:read``, ``models:write``,
            ``policies:act``, ``admin``.
        key: The key itself, in the answer to its making and never again. Not shown by ``repr``.
        created_at: When it was made, UTC.
        expires_at: When it stops working, UTC; ``None`` for never.
        revoked_at: When it was revoked, UTC; ``None`` while it stands.
    """

    id: str
    name: str = ""
    scopes: tuple[str, ...] = ()
    key: str | None = field(default=None, repr=False)
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
