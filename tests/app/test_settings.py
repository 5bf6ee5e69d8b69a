from dataclasses import fields
from pathlib import Path

import pytest

from app.settings import InvalidSetting, Settings, table


def test_without_variables_everything_has_its_default():
    settings = Settings.from_environment({})
    assert settings == Settings()
    assert settings.data == Path("var")
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.database_url == f"sqlite:///{Path.cwd() / 'var' / 'headstart.db'}"
    assert (settings.lease_seconds, settings.checkpoint_seconds, settings.max_attempts) == (10.0, 5.0, 3)
    assert settings.max_body_bytes == 10 * 2**20
    assert settings.threads == 0


def test_the_database_lies_in_the_data_folder():
    settings = Settings.from_environment({"HEADSTART_DATA": "/srv/headstart", "HEADSTART_PORT": ""})
    assert settings.database_url == "sqlite:////srv/headstart/headstart.db"
    assert settings.admin_key_file == Path("/srv/headstart/admin.key")
    assert settings.artefacts == Path("/srv/headstart/artefacts")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u:p%40ss@db/x", "postgresql+psycopg://u:p%40ss@db/x"),
        ("postgres://u@db:5433/x", "postgresql+psycopg://u@db:5433/x"),
        ("postgresql+psycopg://u@db/x?sslmode=require", "postgresql+psycopg://u@db/x?sslmode=require"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
    ],
)
def test_urls_of_databases_are_brought_to_the_driver_that_is_installed(given, used):
    assert Settings.from_environment({"HEADSTART_DATABASE_URL": given}).database_url == used


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEADSTART_PORT", "http"),
        ("HEADSTART_PORT", "65536"),
        ("HEADSTART_PORT", "-1"),
        ("HEADSTART_PORT", "9" * 5000),
        ("HEADSTART_HOST", "two words"),
        ("HEADSTART_LEASE_SECONDS", "0"),
        ("HEADSTART_LEASE_SECONDS", "nan"),
        ("HEADSTART_LEASE_SECONDS", "inf"),
        ("HEADSTART_CHECKPOINT_SECONDS", "soon"),
        ("HEADSTART_MAX_ATTEMPTS", "0"),
        ("HEADSTART_MAX_BODY_BYTES", "10 MB"),
        ("HEADSTART_THREADS", "1.5"),
        ("HEADSTART_DATABASE_URL", "mysql://secret@db/x"),
        ("HEADSTART_DATABASE_URL", "sqlite://"),
        ("HEADSTART_DATABASE_URL", "sqlite:///:memory:"),
        ("HEADSTART_DATABASE_URL", "secret"),
        ("HEADSTART_DATA", "a\0b"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_and_not_repeated(name, value):
    with pytest.raises(InvalidSetting, match=f"{name} must be") as raised:
        Settings.from_environment({name: value})
    assert "secret" not in str(raised.value)


def test_the_table_has_every_variable_with_its_meaning():
    lines = table().splitlines()
    assert len(lines) == len(fields(Settings))
    for line, setting in zip(lines, fields(Settings), strict=True):
        assert line.startswith(f"HEADSTART_{setting.name.upper()} ")
        assert len(line.split("  ")[-1]) > 10, line
