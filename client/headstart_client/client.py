"""The client of a service, for threads and for asyncio."""

from headstart_client._async.client import AsyncClient
from headstart_client._sync.client import Client

__all__ = ["AsyncClient", "Client"]
