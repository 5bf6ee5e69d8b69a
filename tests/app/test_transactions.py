import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from fastapi import APIRouter, Request, Response
from sqlalchemy import func, select, update
from starlette.responses import JSONResponse

from app import transactions
from app.database import Database, now
from app.dependencies import RequestDatabase
from app.errors import Conflict
from app.tables import IdempotencyKey, Model
from app.transactions import (
    RequestSession,
    TransactionalRoute,
    answer_after_commit,
    purge_idempotency_keys,
    withhold_on_replay,
)
from app.validation import Schema


class Wanted(Schema):
    name: str
    ending: str = "well"


class Gate:
    """Lets a test hold an endpoint in the middle of its transaction."""

    def __init__(self):
        self.entered = threading.Event()
        self.open = threading.Event()


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def app(app, gate):
    router = APIRouter(prefix="/v1/test", route_class=TransactionalRoute)

    @router.post("/models", status_code=201)
    def create(body: Wanted, session: RequestSession, response: Response, request: Request) -> dict[str, str]:
        session.add(Model(name=body.name))
        session.flush()
        response.headers["Location"] = f"/there/{body.name}"
        response.headers["X-Other"] = "not kept"
        match body.ending:
            case "refused":
                raise Conflict("no")
            case "crash":
                raise ZeroDivisionError
            case "answered":
                return JSONResponse({"said": "no"}, 409)
            case "gate":
                gate.entered.set()
                assert gate.open.wait(20)
            case "secret":
                withhold_on_replay(request, "key")
                return {"name": body.name, "key": "hs_secret"}
            case "later":

                async def answer():
                    await asyncio.sleep(0.01)
                    return JSONResponse({"name": body.name, "when": "later"}, 200)

                answer_after_commit(request, answer)
        return {"name": body.name}

    @router.get("/write")
    def write_in_a_get(session: RequestSession) -> None:
        session.add(Model(name="sneaked"))
        session.flush()

    @router.post("/own", status_code=201)
    def own_transaction(body: Wanted, database: RequestDatabase) -> dict[str, str]:
        with database.transaction() as session:
            session.add(Model(name=body.name))
        return {"name": body.name}

    app.include_router(router)
    return app


@pytest.fixture
def names(app):
    database = app.state.database

    def read():
        with database.snapshot() as session:
            return sorted(session.scalars(select(Model.name)))

    return read


def create(client, name="m", ending="well", key=None, path="/v1/test/models"):
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(path, json={"name": name, "ending": ending}, headers=headers)


def test_the_work_is_committed_when_the_answer_begins(app, client, names):
    seen = []

    async def call():
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/test/models",
            "query_string": b"",
            "headers": [
                (b"authorization", client.headers["Authorization"].encode()),
                (b"content-type", b"application/json"),
            ],
        }

        async def receive():
            return {"type": "http.request", "body": b'{"name": "m"}', "more_body": False}

        async def send(message):
            if message["type"] == "http.response.start":
                seen.append((message["status"], names()))

        await app(scope, receive, send)

    asyncio.run(call())
    assert seen == [(201, ["m"])]


@pytest.mark.parametrize(("ending", "status"), [("refused", 409), ("crash", 500), ("answered", 409)])
def test_a_request_that_fails_leaves_nothing(client, names, ending, status):
    assert create(client, ending=ending).status_code == status
    assert names() == []


def test_a_get_cannot_write(client, names):
    assert client.get("/v1/test/write").status_code >= 500
    assert names() == []


def test_a_violated_constraint_is_a_conflict(client, names):
    create(client)
    assert create(client).status_code == 409
    assert names() == ["m"]


def test_many_more_writers_than_threads_all_finish(client, names):
    with ThreadPoolExecutor(80) as pool:
        answers = list(pool.map(lambda i: create(client, f"m{i}").status_code, range(160)))
    assert answers == [201] * 160
    assert len(names()) == 160


def test_a_writer_sees_what_the_writer_before_it_wrote(database):
    # Read, then write what was read plus one: a transaction that began with the read would lose updates or fail.
    with database.transaction() as session:
        session.add(Model(name="m", next_version=0))

    def count(_):
        with database.transaction() as session:
            row = session.get(Model, "m", with_for_update=True)
            row.next_version += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(80)))
    with database.snapshot() as session:
        assert session.get(Model, "m").next_version == 80


def test_the_same_key_and_body_gets_the_first_answer(client, names):
    first = create(client, key="k")
    again = create(client, key="k")
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert again.headers["Location"] == "/there/m"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert "X-Other" not in again.headers
    assert names() == ["m"]


def test_the_same_key_with_another_body_is_refused(client, names):
    create(client, key="k")
    assert create(client, "other", key="k").status_code == 422
    assert names() == ["m"]


def test_a_key_counts_for_one_path_and_one_caller(client, names):
    create(client, "m", key="k")
    assert create(client, "n", key="k", path="/v1/test/own").status_code == 201
    other = client.post("/v1/api-keys", json={"name": "other", "scopes": ["models:read"]}).json()["key"]
    headers = {"Idempotency-Key": "k", "Authorization": f"Bearer {other}"}
    assert client.post("/v1/test/models", json={"name": "o"}, headers=headers).status_code == 201
    assert names() == ["m", "n", "o"]


@pytest.mark.parametrize("ending", ["refused", "crash", "answered"])
def test_a_key_is_free_again_after_a_failure(client, names, ending):
    assert create(client, ending=ending, key="k").status_code >= 400
    assert create(client, key="k").status_code == 201
    assert names() == ["m"]


def test_a_repeated_request_is_told_to_wait_while_the_first_runs(app, client, gate):
    if app.state.settings.database_url.startswith("sqlite"):
        # There the first request would hold the write lock at the gate, and every other writer at its beginning.
        pytest.skip("one writer at a time")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(create, client, "m", "gate", "k")
        assert gate.entered.wait(20)
        busy = create(client, "m", "gate", "k")
        assert busy.status_code == 409
        assert busy.headers["Retry-After"] == "1"
        gate.open.set()
        assert first.result().status_code == 201
    assert create(client, "m", "gate", "k").headers["Idempotency-Replayed"] == "true"


def test_requests_of_one_key_at_once_do_the_work_once(client, names):
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: create(client, key="k"), range(24)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert sum("Idempotency-Replayed" not in a.headers for a in answers if a.status_code == 201) == 1
    assert names() == ["m"]
    assert create(client, key="k").status_code == 201


def _claims(app):
    with app.state.database.snapshot() as session:
        return session.scalars(select(IdempotencyKey)).all()


def _abandon(app, client, age):
    """What a process leaves that dies between its claim and its commit."""
    create(client, key="k")
    with app.state.database.transaction() as session:
        session.execute(update(IdempotencyKey).values(state="running", claim="dead", claimed_at=now() - age))
        session.execute(Model.__table__.delete())


def test_the_claim_of_a_dead_process_holds_for_a_minute(app, client, names):
    _abandon(app, client, timedelta(seconds=50))
    assert create(client, key="k").status_code == 409
    assert names() == []


def test_the_claim_of_a_dead_process_is_taken_over_after_a_minute(app, client, names):
    _abandon(app, client, timedelta(seconds=61))
    assert create(client, "other", key="k").status_code == 422
    assert create(client, key="k").status_code == 201
    assert names() == ["m"]
    assert create(client, key="k").headers["Idempotency-Replayed"] == "true"


def test_a_process_whose_claim_was_taken_over_changes_nothing(app, client, names, gate, monkeypatch):
    if app.state.settings.database_url.startswith("sqlite"):
        pytest.skip("one writer at a time")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(create, client, "m", "gate", "k")
        assert gate.entered.wait(20)
        monkeypatch.setattr(transactions, "STALE_AFTER", timedelta(0))
        with app.state.database.transaction() as session:
            session.execute(update(IdempotencyKey).values(claim="another"))
        gate.open.set()
        assert slow.result().status_code == 409
    assert names() == []
    assert [claim.claim for claim in _claims(app)] == ["another"]


def test_an_answer_is_kept_for_a_day(app, client):
    create(client, key="k")
    with app.state.database.transaction() as session:
        session.execute(update(IdempotencyKey).values(claimed_at=now() - timedelta(hours=25)))
    assert create(client, "other", key="k").status_code == 201
    with app.state.database.transaction() as session:
        purge_idempotency_keys(session)
        assert session.scalar(select(func.count()).select_from(IdempotencyKey)) == 1
        session.execute(update(IdempotencyKey).values(claimed_at=now() - timedelta(hours=25)))
        purge_idempotency_keys(session)
        assert session.scalar(select(func.count()).select_from(IdempotencyKey)) == 0


def test_a_secret_is_not_kept(app, client):
    assert create(client, ending="secret", key="k").json() == {"name": "m", "key": "hs_secret"}
    assert create(client, ending="secret", key="k").json() == {"name": "m"}
    assert "hs_secret" not in repr([claim.body for claim in _claims(app)])


def test_an_answer_after_the_commit_is_the_one_that_is_given_again(client, names):
    first = create(client, ending="later", key="k")
    assert (first.status_code, first.json()) == (200, {"name": "m", "when": "later"})
    again = create(client, ending="later", key="k")
    assert (again.status_code, again.json()) == (200, {"name": "m", "when": "later"})
    assert names() == ["m"]


def test_an_endpoint_with_transactions_of_its_own_is_answered_once_too(client, names):
    for _ in range(2):
        assert create(client, key="k", path="/v1/test/own").json() == {"name": "m"}
    assert names() == ["m"]


@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb", "kéy"])
@pytest.mark.databases("sqlite")
def test_a_key_that_is_no_word_is_refused(client, names, key):
    headers = {"Idempotency-Key": key.encode("latin-1")}
    assert client.post("/v1/test/models", json={"name": "m"}, headers=headers).status_code == 400
    assert names() == []


def test_moments_come_back_in_utc(database_url):
    database = Database(database_url)
    with database.transaction() as session:
        session.add(Model(name="m"))
    with database.snapshot() as session:
        created_at = session.get(Model, "m").created_at
    assert created_at.utcoffset() == timedelta(0)
    assert abs(now() - created_at) < timedelta(seconds=30)
    database.close()
