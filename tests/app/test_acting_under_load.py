"""Acting when there is more to do than can be done: limits, deadlines, memory, clients that stop in the middle."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from acting import begin
from fastapi import FastAPI
from gymnasium.spaces import Box
from httpx import Client
from policies_to_act_with import CARTPOLE, OBSERVATION, act_binary, store_policy

from app.bodies import Bodies
from app.errors import Invalid
from app.slots import Hot
from app.tables import Policy as Row
from models.policy import Policy, PolicyConfig

pytestmark = pytest.mark.databases("sqlite")


@pytest.fixture
def policy(app: FastAPI, client: Client) -> Iterator[str]:
    assert client is not None, "the application has started"
    return store_policy(app)


def test_a_body_that_does_not_arrive_is_given_up(app: FastAPI, client: Client, policy: str) -> None:
    answer_half_a_body(app, client, f"/v1/policies/{policy}:act", app.acting.load.bodies)
    assert app.acting.load.in_flight == 0
    answer_half_a_body(app, client, "/v1/tasks", app.state.bodies)


def answer_half_a_body(app: FastAPI, client: Client, path: str, bodies: Bodies) -> None:
    bodies.arrivals.limit_s = 0.0
    key = client.headers["authorization"].encode()
    headers = [(b"authorization", key), (b"content-type", b"application/json"), (b"content-length", b"100")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    sent: list[Any] = []

    async def one_request() -> None:
        parts = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive() -> Any:
            return parts.pop() if parts else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        request = asyncio.create_task(app(scope | {"headers": headers}, receive, send))
        await asyncio.sleep(0.05)
        assert bodies.held_bytes == 1
        await bodies.arrivals.end_overdue()
        await request

    client.portal.call(one_request)
    assert sent[0]["status"] == 408
    assert bodies.held_bytes == 0


def test_bodies_that_would_take_too_much_memory_are_refused(app: FastAPI, client: Client, policy: str) -> None:
    act_path, observations = f"/v1/policies/{policy}:act", {"observations": [OBSERVATION]}
    others, task = app.state.bodies, {"environment": "CartPole-v1"}
    for path, body, bodies in ((act_path, observations, app.acting.load.bodies), ("/v1/tasks", task, others)):
        bodies.held_bytes = bodies.most_held_bytes
        response = client.post(path, json=body)
        assert response.status_code == 503
        assert "memory" in response.json()["detail"]
        assert response.headers["retry-after"] == "1"
        bodies.held_bytes = 0
        assert client.post(path, json=body).is_success
        assert bodies.held_bytes == 0


def test_more_requests_than_may_be_in_flight_are_answered_503_at_once(
    app: FastAPI, client: Client, policy: str
) -> None:
    app.acting.load.in_flight = app.acting.load.max_in_flight
    response = client.post(f"/v1/policies/{policy}:act", json={"observations": [OBSERVATION]})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["type"] == "/problems/unavailable"
    app.acting.load.in_flight = 0
    assert client.post(f"/v1/policies/{policy}:act", json={"observations": [OBSERVATION]}).status_code == 200


def test_a_request_that_is_not_answered_within_its_deadline_is_answered_503(
    app: FastAPI, client: Client, policy: str
) -> None:
    release = threading.Event()
    fetch = app.state.bank._fetch

    def slow(names: Sequence[str]) -> object:
        release.wait(10)
        return fetch(names)

    app.state.bank._fetch = slow
    path, body = f"/v1/policies/{policy}:act", {"observations": [OBSERVATION]}
    started = time.monotonic()
    response = client.post(path, json=body, headers={"headstart-timeout": "0.1"})
    assert response.status_code == 503
    assert "within 0.1 s" in response.json()["detail"]
    assert time.monotonic() - started < 5
    release.set()
    # The fetch went on, for whoever comes next.
    assert client.post(path, json=body).status_code == 200
    pairs = {"pairs": [{"policy": policy, "observation": OBSERVATION}]}
    for header in ("0", "-1", "nan", "soon"):
        refused = client.post("/v1/policies:act", json=pairs, headers={"headstart-timeout": header})
        assert refused.status_code == 400
        assert "seconds above 0" in refused.json()["detail"]


def test_what_takes_long_waits_for_a_thread_whatever_kind_its_body_is(app: FastAPI, client: Client) -> None:
    wide = Policy(PolicyConfig(hidden=(1024, 1024)), CARTPOLE.observation_space, CARTPOLE.action_space)
    policy = store_policy(app, policy=wide)
    rows = np.zeros((4, 4), np.float32)
    assert act_binary(client, policy, rows).status_code == 200
    threads, cores = app.acting.load.threads.free, os.cpu_count() or 1
    for _ in range(cores):
        client.portal.call(threads.acquire)
    for send in (
        lambda: act_binary(client, policy, rows, **{"headstart-timeout": "0.05"}),
        lambda: client.post(
            f"/v1/policies/{policy}:act", json={"observations": rows.tolist()}, headers={"headstart-timeout": "0.05"}
        ),
    ):
        assert send().status_code == 503
    assert act_binary(client, policy, rows[:1]).status_code == 200, "one observation is not long"
    for _ in range(cores):
        client.portal.call(threads.release)
    assert act_binary(client, policy, rows).status_code == 200


def test_work_that_nobody_waits_for_any_longer_keeps_its_thread_until_it_is_done(
    app: FastAPI, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    assert client is not None, "the application has started"
    release, begun = threading.Event(), []

    def work() -> None:
        begun.append(1)
        release.wait(10)
        raise Invalid("", "nobody hears of this")

    async def impatient() -> int:
        timeouts = 0
        for _ in range(3 * cores):
            try:
                async with asyncio.timeout(0.02):
                    await app.acting.load.threads.run(work)
            except TimeoutError:
                timeouts += 1
        return timeouts

    cores = os.cpu_count() or 1
    assert client.portal.call(impatient) == 3 * cores
    assert len(begun) == cores
    release.set()
    with pytest.raises(Invalid):
        client.portal.call(app.acting.load.threads.run, work)
    assert len(begun) == cores + 1
    gc.collect()
    assert not caplog.records


def test_policies_are_copied_for_threads_that_are_free_only(
    app: FastAPI, client: Client, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, copy = [], Hot.copy

    def counted(self: Hot) -> Hot:
        copied.append(self)
        return copy(self)

    monkeypatch.setattr(Hot, "copy", counted)
    rows = np.zeros((9000, 4))
    asked = [
        lambda: client.post(f"/v1/policies/{policy}:act", json={"observations": rows.tolist()}, headers=soon),
        lambda: act_binary(client, policy, rows, **soon),
        lambda: client.post(f"/v2/models/{policy}/infer", json=inputs, headers=soon),
    ]
    tensor = {"name": "observation", "datatype": "FP32", "shape": [9000, 4], "data": rows.tolist()}
    inputs, soon = {"inputs": [tensor]}, {"headstart-timeout": "0.2"}
    threads, app.acting.load.threads.free = app.acting.load.threads.free, asyncio.Semaphore(0)
    assert [ask().status_code for ask in asked] == [503] * 3
    assert not copied
    app.acting.load.threads.free, soon["headstart-timeout"] = threads, "10"
    assert [ask().status_code for ask in asked] == [200] * 3
    assert len(copied) == 3


def test_inference_that_waits_for_a_thread_is_answered_by_the_revision_that_stands_then(
    app: FastAPI, client: Client
) -> None:
    wide = Policy(PolicyConfig(hidden=(1500, 1500)), CARTPOLE.observation_space, CARTPOLE.action_space)
    policy = store_policy(app, policy=wide)
    tensor = {"name": "observation", "datatype": "FP32", "shape": [1, 4], "data": OBSERVATION}
    path, inputs = f"/v2/models/{policy}/infer", {"inputs": [tensor]}
    assert client.post(path, json=inputs).json()["model_version"] == "0"
    threads = app.inferring.load.threads
    threads.free = asyncio.Semaphore(0)
    with ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(client.post, path, json=inputs)
        time.sleep(0.3)
        assert not waiting.done()
        with app.state.database.transaction() as session:
            session.get(Row, policy).revision = 1
        client.portal.call(app.state.bank.refresh)
        client.portal.call(threads.free.release)
        assert waiting.result().json()["model_version"] == "1"


def test_more_numbers_than_one_answer_may_hold_are_refused_in_every_way_to_ask(app: FastAPI, client: Client) -> None:
    many = Policy(PolicyConfig(hidden=(1,)), CARTPOLE.observation_space, Box(-1.0, 1.0, (4000,), np.float32))
    policy = store_policy(app, policy=many)
    rows = [OBSERVATION] * 501
    tensor = {"name": "observation", "datatype": "FP32", "shape": [501, 4], "data": rows}
    pairs = [{"policy": policy, "observation": OBSERVATION}] * 501
    for response in (
        client.post(f"/v1/policies/{policy}:act", json={"observations": rows}),
        act_binary(client, policy, np.array(rows)),
        client.post("/v1/policies:act", json={"pairs": pairs}),
        client.post(f"/v2/models/{policy}/infer", json={"inputs": [tensor]}),
    ):
        assert response.status_code == 413
    assert "500 observations" in client.post(f"/v1/policies/{policy}:act", json={"observations": rows}).text
    with client.websocket_connect(f"/v1/policies/{policy}/stream") as stream:
        stream.send_json({"observations": rows})
        assert stream.receive_json()["error"]["status"] == 413
    assert act_binary(client, policy, np.array(rows[:500])).status_code == 200


def test_acts_that_wait_to_be_recorded_leave_threads_to_others(app: FastAPI, client: Client) -> None:
    adaptation = begin(client)
    body = {"observations": [OBSERVATION], "deterministic": False, "record": True}

    def recorded(_: int) -> int:
        return client.post(f"/v1/policies/{adaptation['policy']}:act", json=body).status_code

    with ThreadPoolExecutor(60) as actors:
        with app.state.database.transaction():
            statuses = actors.map(recorded, range(60))
            time.sleep(0.3)
            started = time.monotonic()
            assert client.get("/v1/adaptations").status_code == 200
            assert time.monotonic() - started < 2
        assert list(statuses) == [200] * 60


def test_a_stream_whose_client_reads_nothing_is_given_up(app: FastAPI, client: Client, policy: str) -> None:
    async def one_stream() -> None:
        sent = asyncio.Event()
        key = client.headers["authorization"].encode()
        scope = {"type": "websocket", "path": f"/v1/policies/{policy}/stream", "headers": [(b"authorization", key)]}
        events = [{"type": "websocket.receive", "text": "{}"}, {"type": "websocket.connect"}]

        async def receive() -> Any:
            return events.pop() if events else await asyncio.Event().wait()

        async def send(event: Any) -> None:
            if event["type"] == "websocket.send":
                sent.set()
                await asyncio.Event().wait()

        streaming = app.streaming
        served = asyncio.create_task(streaming(scope, receive, send))
        await sent.wait()
        assert streaming._streams == 1
        streaming.idle.limit_s = 0.0
        await streaming.idle.end_overdue()
        await served
        assert streaming._streams == 0

    client.portal.call(one_stream)
