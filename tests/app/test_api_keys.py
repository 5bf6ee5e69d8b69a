import stat
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text
from starlette.websockets import WebSocketDisconnect

from app.auth import KeyRing, digest_of, ensure_admin_key
from app.database import Database
from app.keys.service import create_key, revoke_key
from app.preparation import prepare
from app.settings import Settings
from app.tables import ApiKey, AuditEvent
from models.presets import PRESETS


def make(client, *scopes, **more):
    body = {"name": "pipeline", "scopes": list(scopes), **more}
    answer = client.post("/v1/api-keys", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.usefixtures("client")
def test_the_first_start_writes_a_key_that_only_its_owner_can_read(settings):
    assert stat.S_IMODE(settings.admin_key_file.stat().st_mode) == 0o600
    assert settings.admin_key_file.read_text().startswith("hs_")
    assert [path.name for path in settings.data.iterdir() if "key" in path.name] == ["admin.key"]


def test_the_database_holds_no_key(client, database, settings):
    token = make(client, "tasks:write")["key"]
    with database.snapshot() as session:
        for table in (
            session.execute(select(ApiKey.__table__)).all(),
            session.execute(select(AuditEvent.__table__)).all(),
        ):
            assert token not in repr(table)
            assert settings.admin_key_file.read_text().strip() not in repr(table)


def test_processes_that_start_at_once_agree_on_the_first_key(empty_database_url, tmp_path):
    settings = Settings(data=tmp_path / "var", database_url=empty_database_url)

    def start(_):
        database = Database(settings.database_url)
        prepare(database, settings)
        database.close()
        return settings.admin_key_file.read_text()

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(start, range(6)))) == 1
    database = Database(settings.database_url)
    assert KeyRing(database).load(settings.admin_key_file.read_text().strip()).may("admin")
    with database.snapshot() as session:
        assert session.execute(text("SELECT count(*) FROM api_keys")).scalar_one() == 1
        assert session.execute(text("SELECT count(*) FROM task_families")).scalar_one() == len(PRESETS)
    database.close()


def test_a_key_file_that_is_there_is_taken_for_a_new_database(database, tmp_path):
    settings = Settings(data=tmp_path, database_url="sqlite:///unused")
    settings.admin_key_file.write_text("hs_kept\n")
    ensure_admin_key(database, settings)
    assert settings.admin_key_file.read_text() == "hs_kept\n"
    assert KeyRing(database).load("hs_kept").name == "admin"


def test_a_second_start_makes_no_second_key(database, tmp_path):
    settings = Settings(data=tmp_path, database_url="sqlite:///unused")
    ensure_admin_key(database, settings)
    first = settings.admin_key_file.read_text()
    settings.admin_key_file.unlink()
    ensure_admin_key(database, settings)
    assert not settings.admin_key_file.exists()
    assert KeyRing(database).load(first.strip()) is not None


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer hs_unknown", "Basic aHM6", "hs_x", "Bearer h\xe9"]
)
@pytest.mark.parametrize("path", ["/v1/tasks", "/v1", "/v1/nothing", "/v1/policies/x:act"])
@pytest.mark.databases("sqlite")
def test_nothing_under_v1_answers_without_a_key(client, header, path):
    del client.headers["Authorization"]
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = client.post(path, json={}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.databases("sqlite")
def test_a_websocket_that_nobody_answers_is_closed(client):
    for path in ("/v1/policies", "/v1/policies/x/streams"):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(path):
            pass


def test_any_key_may_read_but_writes_only_what_its_scopes_name(client):
    reader = bearer(make(client, "policies:act")["key"])
    assert client.get("/v1/tasks", headers=reader).status_code == 200
    refused = client.post("/v1/tasks", json={"environment": "CartPole-v1"}, headers=reader)
    assert refused.status_code == 403
    assert "tasks:write" in refused.json()["detail"]
    assert client.get("/v1/api-keys", headers=reader).status_code == 403
    writer = bearer(make(client, "tasks:write")["key"])
    assert client.post("/v1/tasks", json={"environment": "CartPole-v1"}, headers=writer).status_code == 201


def test_a_key_is_shown_once(client):
    made = make(client, "runs:write", "admin")
    assert made["scopes"] == ["admin", "runs:write"]
    seen = client.get(f"/v1/api-keys/{made['id']}").json()
    assert "key" not in seen
    assert seen == {name: value for name, value in made.items() if name != "key"}
    assert seen in client.get("/v1/api-keys").json()["api_keys"]


def test_a_repeated_request_for_a_key_does_not_show_it_again(client):
    body = {"name": "once", "scopes": ["admin"]}
    first = client.post("/v1/api-keys", json=body, headers={"Idempotency-Key": "k"}).json()
    again = client.post("/v1/api-keys", json=body, headers={"Idempotency-Key": "k"}).json()
    assert first.pop("key").startswith("hs_")
    assert again == first


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"scopes": ["everything"]}, "/scopes/0"),
        ({"scopes": []}, "/scopes"),
        ({"name": ""}, "/name"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "/expires_at"),
        ({"expires_at": "2100-01-01T00:00:00"}, "/expires_at"),
        ({"expires_at": "soon"}, "/expires_at"),
        ({"owner": "me"}, "/owner"),
    ],
)
@pytest.mark.databases("sqlite")
def test_a_key_that_is_asked_for_wrongly_is_not_made(client, change, pointer):
    answer = client.post("/v1/api-keys", json={"name": "x", "scopes": ["admin"], **change})
    assert answer.status_code == 422
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]
    assert len(client.get("/v1/api-keys").json()["api_keys"]) == 1


def test_a_revoked_key_is_refused_at_once_in_the_process_that_revoked_it(client):
    made = make(client, "tasks:write")
    assert client.get("/v1/tasks", headers=bearer(made["key"])).status_code == 200
    assert client.delete(f"/v1/api-keys/{made['id']}").status_code == 204
    assert client.get("/v1/tasks", headers=bearer(made["key"])).status_code == 401
    assert client.get(f"/v1/api-keys/{made['id']}").json()["revoked_at"] is not None
    assert client.delete(f"/v1/api-keys/{made['id']}").status_code == 204
    assert client.delete("/v1/api-keys/nobody").status_code == 404


def test_a_key_that_is_revoked_elsewhere_is_refused_within_two_seconds(client, app, database):
    made = make(client, "tasks:write")
    assert client.get("/v1/tasks", headers=bearer(made["key"])).status_code == 200
    principal = app.state.keys.lookup(made["key"])
    with database.transaction() as session:
        revoke_key(session, principal, made["id"])
    deadline = time.monotonic() + 2
    while client.get("/v1/tasks", headers=bearer(made["key"])).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_key_ends_when_it_expires(client, app, database):
    with database.transaction() as session:
        principal = app.state.keys.lookup(client.headers["Authorization"].removeprefix("Bearer "))
        if principal is None:
            client.get("/v1/tasks")
            principal = app.state.keys.lookup(client.headers["Authorization"].removeprefix("Bearer "))
        _, token = create_key(session, principal, "short", ["admin"], datetime.now(UTC) + timedelta(seconds=0.5))
    assert client.get("/v1/tasks", headers=bearer(token)).status_code == 200
    time.sleep(0.6)
    assert client.get("/v1/tasks", headers=bearer(token)).status_code == 401


def test_the_ring_knows_in_memory_only_what_it_loaded(database):
    ring = KeyRing(database)
    with database.transaction() as session:
        session.add(ApiKey(name="k", digest=digest_of("hs_k"), scopes=["policies:act"]))
    assert ring.lookup("hs_k") is None
    assert ring.load("hs_k").scopes == {"policies:act"}
    database.close()
    assert ring.lookup("hs_k").may("policies:act")
    assert not ring.lookup("hs_k").may("models:write")


def test_what_is_done_to_keys_is_written_down(client, database):
    made = make(client, "tasks:write")
    client.delete(f"/v1/api-keys/{made['id']}")
    with database.snapshot() as session:
        events = session.scalars(select(AuditEvent).where(AuditEvent.subject == f"api-keys/{made['id']}")).all()
    assert [(event.action, event.by) for event in events] == [
        ("api-keys.create", "admin"),
        ("api-keys.revoke", "admin"),
    ]
