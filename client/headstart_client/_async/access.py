"""API keys of a service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import datetime

from headstart_client._async.transport import AsyncTransport
from headstart_client.access import ApiKey
from headstart_client.transport import segment
from headstart_client.wire import id_of, parse, without_none


class AsyncApiKeys:
    """``client.api_keys``: who may do what."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, name: str, scopes: Iterable[str], *, expires_at: datetime | str | None = None) -> ApiKey:
        """Make a key; its ``key`` is shown this once.

        Args:
            name: What it is for.
            scopes: What it may do; every scope includes reading.
            expires_at: When it stops working; a datetime needs a time zone.
        """
        if isinstance(expires_at, datetime):
            if expires_at.tzinfo is None:
                raise ValueError("expires_at needs a time zone: datetime.now(UTC) + timedelta(days=90)")
            expires_at = expires_at.isoformat()
        body = without_none(name=name, scopes=list(scopes), expires_at=expires_at)
        return parse(ApiKey, await self._transport.create("/v1/api-keys", body))

    def list(self) -> AsyncIterator[ApiKey]:
        """Every key, revoked ones too, without the keys themselves."""
        return (parse(ApiKey, k) async for k in self._transport.items("/v1/api-keys", "api_keys"))

    async def revoke(self, key: str | ApiKey) -> None:
        """Make a key, given by its id, open nothing any more."""
        await self._transport.request("DELETE", f"/v1/api-keys/{segment(id_of(key))}")
