"""API keys on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, ConfigDict, Field

from app.auth import PermissionScope
from app.validation import Schema


class NewKey(Schema):
    """A key that is asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "nightly pipeline", "scopes": ["tasks:write", "runs:write"], "expires_at": None}]
        }
    )

    name: Annotated[str, Field(min_length=1, max_length=128)]
    scopes: Annotated[list[PermissionScope], Field(min_length=1, max_length=16)]
    expires_at: AwareDatetime | None = None


class Key(Schema):
    """A key as everybody may see it who may see keys."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class CreatedKey(Key):
    """A key that was just made; ``key`` is shown this once, and not when the request is repeated."""

    key: str


class Keys(Schema):
    """A page of keys."""

    api_keys: list[Key]
    next_page_token: str | None
