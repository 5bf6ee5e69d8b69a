"""Acting against real processes: streams by a real client, several API processes, more load than can be held."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
import websockets.sync.client
from live_service import COMMAND, Service, wait_until
from policies_to_act_with import OBSERVATION, POLICY, delete, put_policy, revise, some_params
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from app.store import ArtefactStore
from models.checkpoint import numpy_params
from models.runtime import NumpyPolicy

# That what others change counts here is shown on each database by tests/app/test_api_keys.py and test_inference.py.
pytestmark = pytest.mark.databases("sqlite")

WITHIN_S = 2.0

Api = tuple[httpx.Client, psutil.Process]


@pytest.fixture(scope="module")
def store(service: Service) -> ArtefactStore:
    return ArtefactStore(service.settings.artefacts)


@pytest.fixture
def policy(service: Service, store: ArtefactStore) -> str:
    return put_policy(service.database, store, ttl_s=600)


def stream(service: Service, policy: str, **options: object) -> ClientConnection:
    url = str(service.http.base_url).replace("http://", "ws://")
    headers = {"Authorization": service.http.headers["Authorization"]}
    return websockets.sync.client.connect(
        f"{url.rstrip('/')}/v1/policies/{policy}/stream", additional_headers=headers, **options
    )


def act(http: httpx.Client, policy: str) -> httpx.Response:
    return http.post(f"/v1/policies/{policy}:act", json={"observations": [OBSERVATION]})


def value_of(seed: int) -> float:
    row = np.array([OBSERVATION], np.float32)
    return float(NumpyPolicy(POLICY, numpy_params(some_params(seed))).act(row, None).value[0])


def test_a_thousand_messages_under_way_are_answered_in_order(service: Service, policy: str) -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 4)).tolist()
    expected = service.http.post(f"/v1/policies/{policy}:act", json={"observations": rows}).json()
    with stream(service, policy) as connection, ThreadPoolExecutor(1) as sender:
        sent = sender.submit(lambda: [connection.send(json.dumps({"observation": row})) for row in rows])
        answers = [json.loads(connection.recv()) for _ in rows]
        sent.result()
    assert [answer["action"] for answer in answers] == expected["actions"]
    assert [answer["value"] for answer in answers] == pytest.approx(expected["values"], abs=1e-5)


def test_a_ping_is_answered(service: Service, policy: str) -> None:
    with stream(service, policy) as connection:
        assert connection.ping().wait(5)


@pytest.mark.parametrize(("size", "code"), [(50_000_000, 1009), (2_000_000, 1009), (900_000, 1007)])
def test_garbage_of_any_size_closes_its_stream_and_no_other(
    service: Service, policy: str, size: int, code: int
) -> None:
    with stream(service, policy) as other, stream(service, policy) as connection:
        with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012 (the server may close before all is sent)
            connection.send("x" * size)
            connection.recv()
        assert closed.value.rcvd is None or closed.value.rcvd.code == code
        assert closed.value.rcvd is not None or size == 50_000_000
        other.send(json.dumps({"observation": OBSERVATION}))
        assert "action" in json.loads(other.recv())


def test_streams_end_with_the_service_and_come_back_with_it(service: Service, policy: str) -> None:
    with stream(service, policy) as connection:
        [api] = [
            child
            for child in psutil.Process(service.process.pid).children()
            if "api" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE
        ]
        api.kill()
        with pytest.raises(ConnectionClosed):
            connection.recv()
    wait_until(lambda: act(service.http, policy).status_code == 200)
    with stream(service, policy) as connection:
        connection.send(json.dumps({"observation": OBSERVATION}))
        assert "action" in json.loads(connection.recv())


@pytest.fixture(scope="module")
def second_api(service: Service) -> Iterator[Api]:
    """Another API process over the same database and store, which works on eight requests at a time."""
    command, settings = [COMMAND, "api"], {"HEADSTART_MAX_IN_FLIGHT": "8", "HEADSTART_ACT_TIMEOUT": "30"}
    with (service.folder / "stderr").open("ab") as log:
        process = subprocess.Popen(
            command, env=service.environ | settings, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        url = process.stdout.readline().rpartition(" ")[2].strip()
        headers = {"Authorization": service.http.headers["Authorization"]}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
            wait_until(lambda: http.get("/v2/health/ready").status_code == 200)
            yield http, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(40)
        process.stdout.close()


def test_revocations_deletions_and_revisions_reach_every_process_within_two_seconds(
    service: Service, second_api: Api, store: ArtefactStore
) -> None:
    goes, changes = (put_policy(service.database, store, seed, ttl_s=600) for seed in range(2))
    made = service.http.post("/v1/api-keys", json={"name": "robot", "scopes": ["policies:act"]}).json()
    other, _ = second_api
    robots = []
    for http in (service.http, other):
        headers = {"Authorization": f"Bearer {made['key']}"}
        robots.append(httpx.Client(base_url=http.base_url, headers=headers))
        for policy in (goes, changes):
            assert act(http, policy).status_code == act(robots[-1], policy).status_code == 200
    delete(service.database, goes)
    revise(service.database, store, changes, 7)
    assert service.http.delete(f"/v1/api-keys/{made['id']}").status_code == 204
    time.sleep(WITHIN_S)
    for http, robot in zip((service.http, other), robots, strict=True):
        assert act(http, goes).status_code == 410
        assert act(http, changes).json()["values"] == pytest.approx([value_of(7)], abs=1e-5)
        assert act(robot, changes).status_code == 401
        robot.close()


def test_a_client_that_sends_half_a_request_delays_nobody(second_api: Api, policy: str) -> None:
    http, _ = second_api
    address = urlsplit(str(http.base_url))
    key = http.headers["Authorization"]
    head = f"POST /v1/policies/{policy}:act HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n"
    halves = []
    for _ in range(200):
        half = socket.create_connection((address.hostname, address.port))
        half.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        halves.append(half)
    for _ in range(3):
        assert act(http, policy).status_code == 200
    for half in halves:
        half.close()
    assert act(http, policy).status_code == 200


async def _press(http: httpx.Client, path: str, body: bytes, seconds: float, connections: int) -> dict[int, int]:
    """Requests as fast as they are answered, from so many connections; how many had each status."""
    counts: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    headers = {"Authorization": http.headers["Authorization"], "Content-Type": "application/json"}
    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(base_url=http.base_url, headers=headers, timeout=60, limits=limits) as client:

        async def one() -> None:
            while time.monotonic() < deadline:
                response = await client.post(path, content=body)
                counts[response.status_code] = counts.get(response.status_code, 0) + 1
                if response.status_code == 503:
                    assert response.headers["retry-after"] == "1"
                    assert response.json()["status"] == 503
                else:
                    assert len(response.json()["actions"]) == 10_000

        await asyncio.gather(*(one() for _ in range(connections)))
    return counts


@pytest.mark.parametrize("seconds", [2.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_more_load_than_can_be_held_is_refused_clearly_in_bounded_memory(
    second_api: Api, policy: str, seconds: float
) -> None:
    body = json.dumps({"observations": [OBSERVATION] * 10_000}).encode()
    http, process = second_api
    asyncio.run(_press(http, f"/v1/policies/{policy}:act", body, 1.0, 8))
    before = process.memory_info().rss
    counts = asyncio.run(_press(http, f"/v1/policies/{policy}:act", body, seconds, 64))
    # Every request was answered, by all that it asked for or by 503; the asserts are in _press.
    assert set(counts) == {200, 503}, counts
    assert process.memory_info().rss - before < 300e6
    wait_until(lambda: act(http, policy).status_code == 200)


def test_a_large_batch_does_not_hold_up_small_ones(service: Service, policy: str) -> None:
    body = json.dumps({"observations": [OBSERVATION] * 10_000})
    http = service.http
    with ThreadPoolExecutor(4) as large:
        headers = {"Authorization": http.headers["Authorization"], "Content-Type": "application/json"}
        url = f"{http.base_url}/v1/policies/{policy}:act".replace("//v1", "/v1")
        act(http, policy)
        batches = [large.submit(httpx.post, url, content=body, headers=headers, timeout=60) for _ in range(12)]
        times = []
        while not all(batch.done() for batch in batches):
            started = time.monotonic()
            assert act(http, policy).status_code == 200
            times.append(time.monotonic() - started)
        assert all(batch.result().status_code == 200 for batch in batches)
        assert sorted(times)[len(times) // 2] < 0.25, "or so: the machine that runs this may have one core"


def test_api_processes_share_a_port_and_connections_are_dealt_out_among_them(tmp_path: Path) -> None:
    service = Service(tmp_path, "")
    service.environ["HEADSTART_API_PROCESSES"] = "2"
    try:
        service.start()
        address = urlsplit(str(service.http.base_url))
        children = map(psutil.Process, service.children())
        apis = [process for process in children if "api" in process.cmdline()]
        assert len(apis) == 2
        with contextlib.ExitStack() as opened:
            for _ in range(64):
                http = opened.enter_context(httpx.Client(base_url=service.http.base_url))
                assert http.get("/v2/health/live").status_code == 200
            for api in apis:
                kept = [each for each in api.net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED]
                assert len(kept) > 10
        again = service.environ | {"HEADSTART_PORT": str(address.port), "HEADSTART_DATA": str(tmp_path / "other")}
        refused = subprocess.run([COMMAND, "serve"], env=again, capture_output=True, text=True, timeout=60)
        assert refused.returncode != 0
        assert "in use" in refused.stderr
    finally:
        service.close()
