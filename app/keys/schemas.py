"""API keys on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, ConfigDict, Field

from app.auth import PermissionScope
from app.validation import Schema

_KEY: dict[str, Any] = {
    "id": "01a20729-e864-7ec9-a59d-5cd45dd7a0ab",
    "name": "nightly pipeline",
    "scopes": ["runs:write", "tasks:write"],
    "created_at": "2026-11-23T06:48:36.709399Z",
    "expires_at": None,
    "revoked_at": None,
}


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

    model_config = ConfigDict(json_schema_extra={"examples": [_KEY]})

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class CreatedKey(Key):
    """A key that was just made; ``key`` is shown this once, and not when the request is repeated."""

    model_config = ConfigDict(json_schema_extra={"examples": [_KEY | {"key": "hs_" + 43 * "x"}]})

    key: str


class Keys(Schema):
    """A page of keys."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"api_keys": [_KEY], "next_page_token": None}]})

    api_keys: list[Key]
    next_page_token: str | None
