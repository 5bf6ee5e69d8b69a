"""Acting over a WebSocket, through the whole application; tests/e2e/test_stream.py has what only a server can show."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from fastapi import FastAPI
from policies_to_act_with import CARTPOLE, OBSERVATION, TORQUE, delete, revise, store_policy

from models.policy import Policy, PolicyConfig

if TYPE_CHECKING:
    from starlette.testclient import TestClient, WebSocketTestSession

# Messages and what is computed of them are the same on every database.
pytestmark = pytest.mark.databases("sqlite")


@pytest.fixture
def policy(app: FastAPI, client: TestClient) -> str:
    assert client is not None, "the application has started"
    return store_policy(app)


@pytest.fixture
def stream(client: TestClient, policy: str) -> Iterator[WebSocketTestSession]:
    with client.websocket_connect(f"/v1/policies/{policy}/stream") as session:
        yield session


def ask(stream: WebSocketTestSession, **message: object) -> dict[str, Any]:
    stream.send_text(json.dumps(message))
    answer: dict[str, Any] = json.loads(stream.receive_text())
    return answer


def act(client: TestClient, policy: str, **body: object) -> dict[str, Any]:
    response = client.post(f"/v1/policies/{policy}:act", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def close_code(stream: WebSocketTestSession) -> int:
    message = stream.receive()
    assert message["type"] == "websocket.close", message
    return message["code"]


@pytest.mark.databases("sqlite", "postgresql")
def test_a_stream_answers_as_act_does(client: TestClient, policy: str, stream: WebSocketTestSession) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 4)).tolist()
    expected = act(client, policy, observations=rows)
    for place, row in enumerate(rows):
        answer = ask(stream, observation=row)
        assert answer["action"] == expected["actions"][place]
        assert answer["log_prob"] == pytest.approx(expected["log_probs"][place], abs=1e-5)
        assert answer["value"] == pytest.approx(expected["values"][place], abs=1e-5)
        assert answer["revision"] == 0
    assert ask(stream, observations=rows)["actions"] == expected["actions"]


@pytest.mark.parametrize(("hidden", "count"), [((8,), 1000), ((1500, 1500), 2), ((1500, 1500), 1)])
def test_a_message_that_takes_long_is_answered_alike_and_others_act_meanwhile(
    app: FastAPI, client: TestClient, policy: str, hidden: tuple[int, ...], count: int
) -> None:
    wide = store_policy(app, policy=Policy(PolicyConfig(hidden), CARTPOLE.observation_space, CARTPOLE.action_space))
    rows = np.random.default_rng(0).normal(size=(count, 4)).tolist()
    expected = act(client, wide, observations=rows)
    message = {"observations": rows} if count > 1 else {"observation": rows[0]}
    with client.websocket_connect(f"/v1/policies/{wide}/stream") as stream:
        app.streaming.load.threads.free = threads = asyncio.Semaphore(0)
        stream.send_text(json.dumps(message))
        with client.websocket_connect(f"/v1/policies/{policy}/stream") as other:
            assert "action" in ask(other, observation=OBSERVATION)
        assert client.portal is not None
        # To read what is large, and to act.
        for _ in range(2):
            client.portal.call(threads.release)
        answer = json.loads(stream.receive_text())
    if count == 1:
        answer = {"actions": [answer["action"]], "values": [answer["value"]]}
    assert answer["actions"] == expected["actions"]
    assert answer["values"] == pytest.approx(expected["values"], rel=1e-4, abs=1e-4)


def test_messages_are_answered_in_order_however_many_are_under_way(stream: WebSocketTestSession) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 4)).tolist()
    for row in rows:
        stream.send_text(json.dumps({"observation": row}))
    pipelined = [json.loads(stream.receive_text()) for _ in rows]
    assert pipelined == [ask(stream, observation=row) for row in rows]


def test_msgpack_is_answered_in_msgpack(stream: WebSocketTestSession) -> None:
    stream.send_bytes(msgspec.msgpack.encode({"observation": OBSERVATION}))
    assert msgspec.msgpack.decode(stream.receive_bytes()) == ask(stream, observation=OBSERVATION)
    stream.send_bytes(msgspec.msgpack.encode({"observation": [0.0, math.nan, 0.0, 0.0]}))
    assert "error" in msgspec.msgpack.decode(stream.receive_bytes())
    stream.send_bytes(msgspec.msgpack.encode({1: 2}))
    [error] = msgspec.msgpack.decode(stream.receive_bytes())["error"]["errors"]
    assert error == {"pointer": "", "detail": "the name of a member: Expected `str`, got `int`"}


def test_an_episode_that_starts_with_a_seed_is_drawn_again_the_same(app: FastAPI, client: TestClient) -> None:
    policy = store_policy(app, policy=TORQUE)
    with client.websocket_connect(f"/v1/policies/{policy}/stream") as stream:

        def episode(**start: object) -> list[Any]:
            steps = [{"episode_start": True} | start] + [{}] * 9
            return [
                ask(stream, observation=[1.0, 0.0, 0.1], deterministic=False, policy_actions=True, **step)
                for step in steps
            ]

        first = episode(seed=3)
        assert episode(seed=4) != first != episode()
        assert episode(seed=3) == first
        assert {len(answer["policy_action"]) for answer in first} == {1}
        refused = ask(stream, observation=[1.0, 0.0, 0.1], deterministic=False, seed=3)
        assert refused["error"]["errors"][0]["pointer"] == "/seed"


@pytest.mark.parametrize(
    ("message", "pointer"),
    [
        ('{"observation": [0, 0, 0]}', "/observation"),
        ('{"observation": [0, 0, NaN, 0]}', "/observation/2"),
        ('{"observation": [0, 0, 1e39, 0]}', "/observation/2"),
        ('{"observation": [0, 0, "0", 0]}', "/observation/2"),
        ('{"observation": [[0, 0, 0, 0]]}', "/observation/0"),
        ('{"observations": []}', "/observations"),
        ('{"observations": [[0, 0, 0, 0], [0]]}', "/observations/1"),
        ('{"observation": [0, 0, 0, 0], "observations": [[0, 0, 0, 0]]}', "/observations"),
        ('{"observation": [0, 0, 0, 0], "sead": 1}', "/sead"),
        ('{"observation": [0, 0, 0, 0], "deterministic": 1}', "/deterministic"),
    ],
)
def test_a_message_that_is_not_right_is_answered_with_a_problem_and_the_stream_goes_on(
    stream: WebSocketTestSession, message: str, pointer: str
) -> None:
    stream.send_text(message)
    problem = json.loads(stream.receive_text())["error"]
    assert problem["status"] == 422
    assert problem["errors"][0]["pointer"] == pointer
    assert "action" in ask(stream, observation=OBSERVATION)


@pytest.mark.parametrize("garbage", ["", "{", "act!", "[" * 10_000, b"\xc1\xff", b""])
def test_garbage_closes_the_stream(stream: WebSocketTestSession, garbage: str | bytes) -> None:
    if isinstance(garbage, str):
        stream.send_text(garbage)
    else:
        stream.send_bytes(garbage)
    assert close_code(stream) == 1007


def test_the_key_may_come_in_the_first_message_but_never_in_the_url(
    app: FastAPI, client: TestClient, policy: str
) -> None:
    key = app.state.settings.admin_key_file.read_text().strip()
    path = f"/v1/policies/{policy}/stream"
    nobody = type(client)(app)
    nobody.portal = client.portal
    with nobody.websocket_connect(path) as stream:
        assert ask(stream, key=key) == {"policy": policy, "revision": 0}
        assert "action" in ask(stream, observation=OBSERVATION)
    with nobody.websocket_connect(path) as stream:
        assert "action" in ask(stream, key=key, observation=OBSERVATION)
    for first in ({"observation": OBSERVATION}, {"key": "hs_nobody"}, {"key": 3}):
        with nobody.websocket_connect(f"{path}?key={key}") as stream:
            stream.send_text(json.dumps(first))
            assert close_code(stream) == 4401
    with nobody.websocket_connect(path, headers={"authorization": "Bearer hs_nobody"}) as stream:
        assert close_code(stream) == 4401


@pytest.mark.databases("sqlite", "postgresql")
def test_a_key_needs_the_scope_and_counts_no_longer_once_it_is_revoked(
    app: FastAPI, client: TestClient, policy: str
) -> None:
    path = f"/v1/policies/{policy}/stream"
    for scope, code in (("tasks:write", 4403), ("policies:act", 4401)):
        made = client.post("/v1/api-keys", json={"name": scope, "scopes": [scope]}).json()
        with client.websocket_connect(path, headers={"authorization": f"Bearer {made['key']}"}) as stream:
            if scope == "policies:act":
                assert "action" in ask(stream, observation=OBSERVATION)
                assert client.delete(f"/v1/api-keys/{made['id']}").status_code == 204
                app.state.keys.refresh()
                stream.send_text(json.dumps({"observation": OBSERVATION}))
            assert close_code(stream) == code


@pytest.mark.databases("sqlite", "postgresql")
def test_a_stream_of_a_policy_that_is_not_there_is_closed_with_the_reason(app: FastAPI, client: TestClient) -> None:
    for policy, code in (("nobody", 4404), (store_policy(app, ttl_s=-1), 4410)):
        with client.websocket_connect(f"/v1/policies/{policy}/stream") as stream:
            assert close_code(stream) == code


@pytest.mark.databases("sqlite", "postgresql")
def test_a_stream_takes_a_new_revision_and_ends_with_its_policy(
    app: FastAPI, client: TestClient, policy: str, stream: WebSocketTestSession
) -> None:
    before = ask(stream, observation=OBSERVATION)
    revise(app.state.database, app.state.store, policy, 5)
    refresh(client, app)
    assert ask(stream, observation=OBSERVATION)["value"] != before["value"]
    delete(app.state.database, policy)
    refresh(client, app)
    stream.send_text(json.dumps({"observation": OBSERVATION}))
    assert close_code(stream) == 4410


def refresh(client: TestClient, app: FastAPI) -> None:
    assert client.portal is not None
    client.portal.call(app.state.bank.refresh)


def test_a_client_that_says_nothing_is_closed(app: FastAPI, client: TestClient, policy: str) -> None:
    path = f"/v1/policies/{policy}/stream"
    app.streaming.first.limit_s = app.streaming.idle.limit_s = 0.0
    assert client.portal is not None
    with client.websocket_connect(path) as stream:
        client.portal.call(asyncio.sleep, 0.05)
        client.portal.call(app.streaming.idle.end_overdue)
        assert close_code(stream) == 4408
    nobody = type(client)(app)
    nobody.portal = client.portal
    with nobody.websocket_connect(path) as stream:
        client.portal.call(asyncio.sleep, 0.05)
        client.portal.call(app.streaming.first.end_overdue)
        assert close_code(stream) == 4401


def test_more_streams_than_may_be_open_are_told_to_come_back(
    app: FastAPI, client: TestClient, policy: str, stream: WebSocketTestSession
) -> None:
    app.streaming._max_streams = 1
    with client.websocket_connect(f"/v1/policies/{policy}/stream") as second:
        assert close_code(second) == 1013
    assert "action" in ask(stream, observation=OBSERVATION)
