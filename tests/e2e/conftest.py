"""A service for the tests of one file, on each database."""

import uuid

import psycopg
import pytest
from live_service import Service


@pytest.fixture(scope="module")
def service(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    url = f"sqlite:///{folder / 'headstart.db'}"
    name = f"e2e_{uuid.uuid4().hex}"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgresql_server")
        with psycopg.connect(server("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        url = server(name)
    service = Service(folder, url)
    try:
        service.start()
        yield service
    finally:
        service.close()
        if request.param == "postgresql":
            with psycopg.connect(server("postgres"), autocommit=True) as connection:
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
