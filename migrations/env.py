"""What alembic runs: the migrations on the connection it is given, or on the database of the environment's settings."""

from __future__ import annotations

import os
from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection

import app.tables  # noqa: F401 (the tables register themselves with Base)
from app.database import Base, UTCDateTime, create_database_engine
from app.settings import Settings


def render_item(kind: str, item: object, autogen: AutogenContext) -> str | Literal[False]:
    """Write a moment as its plain column type, so that an old migration does not depend on today's classes."""
    del autogen
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UTCDateTime) else False


def run(connection: Connection) -> None:
    """Migrate within the connection's transaction: on both databases a migration happens as a whole or not at all."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = create_database_engine(Settings.from_environment(os.environ).database_url, foreign_keys=False)
    with engine.begin() as own:
        run(own)
    engine.dispose()
