"""What endpoints may ask for besides their session: the things that :func:`app.main.create_app` made."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.auth import KeyRing
from app.database import Database
from app.settings import Settings
from app.store import ArtefactStore


def database_of(connection: HTTPConnection) -> Database:
    """The database of the application that serves the connection."""
    database: Database = connection.app.state.database
    return database


async def _database(connection: HTTPConnection) -> Database:
    return database_of(connection)


async def _settings(connection: HTTPConnection) -> Settings:
    settings: Settings = connection.app.state.settings
    return settings


async def _store(connection: HTTPConnection) -> ArtefactStore:
    store: ArtefactStore = connection.app.state.store
    return store


async def _keys(connection: HTTPConnection) -> KeyRing:
    keys: KeyRing = connection.app.state.keys
    return keys


RequestDatabase = Annotated[Database, Depends(_database)]
"""The database, for an endpoint that waits or streams and must hold no transaction meanwhile."""

RequestSettings = Annotated[Settings, Depends(_settings)]
"""The settings."""

RequestStore = Annotated[ArtefactStore, Depends(_store)]
"""The artefact store."""

RequestKeys = Annotated[KeyRing, Depends(_keys)]
"""The keys that this process knows."""
