"""What every process does before it works."""

from __future__ import annotations

from app.auth import ensure_admin_key
from app.database import Database
from app.migrating import migrate
from app.settings import Settings
from app.tasks.service import install_presets


def prepare(database: Database, settings: Settings) -> None:
    """Bring the data to where this version can work on it: schema, preset families, the first key.

    Any number of processes may do this at once, on a new service too.
    """
    settings.data.mkdir(parents=True, exist_ok=True)
    migrate(settings.database_url)
    with database.transaction() as session:
        install_presets(session)
    ensure_admin_key(database, settings)
