"""Bringing a database to the schema of :mod:`app.tables`."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import text
from sqlalchemy.engine import make_url

import migrations
from app.database import create_database_engine

_LOCK = 0x48454144  # "HEAD": any number that nobody else on this PostgreSQL server uses as an advisory lock.


# Alembic keeps the migration that runs in module globals.
_one_at_a_time = threading.Lock()


def migrate(url: str, revision: str = "head") -> None:
    """Upgrade the database to a revision, in one transaction; nothing is done where it already stands there.

    Any number of processes may call this at once: one migrates, the others wait for it.

    Args:
        url: The database. A SQLite file is created where there is none, its folder too.
        revision: An alembic revision; ``base`` empties the database.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    # A migration rebuilds SQLite tables, and dropping the old one must not cascade.
    engine = create_database_engine(url, foreign_keys=False)
    try:
        with _one_at_a_time, engine.begin() as connection:
            # On SQLite the transaction itself is the lock: it began as IMMEDIATE.
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            config.attributes["connection"] = connection
            if revision == "base":
                command.downgrade(config, revision)
            else:
                command.upgrade(config, revision)
    finally:
        engine.dispose()
