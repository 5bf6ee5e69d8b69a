"""What could differ between the client for threads, which the other tests drive, and the one for asyncio."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from scripted_server import Answer, ScriptedServer, answer, problem
from scripted_stream import Break, Close, Late, Refuse, ScriptedStream

from headstart_client import (
    AdaptationFailed,
    AsyncClient,
    AsyncRun,
    ConnectionFailed,
    Gone,
    Metric,
    NotFound,
    Retry,
    RunFailed,
    ServiceFailed,
    StreamClosed,
    Timeout,
    TooManyRequests,
    Unauthorised,
)

pytestmark = pytest.mark.anyio

TASK = {"id": "t1", "name": "long", "environment": "CartPole-v1"}
ACTIONS = {"actions": [1], "log_probs": [-0.2], "values": [88.1], "policy": "p1"}
SSE = {"Content-Type": "text/event-stream"}


def run(state: str = "running", **members: object) -> dict[str, object]:
    return {"id": "r1", "state": state, "model": "m", **members}


def row(i: int) -> dict[str, object]:
    return {"sequence": i, "iteration": i, "values": {"return_after": float(i)}}


def event(kind: str, data: dict[str, object]) -> bytes:
    identity = f"id: {data['sequence']}\n" if "sequence" in data else ""
    return f"event: {kind}\n{identity}data: {json.dumps(data)}\n\n".encode()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url, "hs_test", timeout_s=5, retry=Retry(first_s=0.001)) as client:
        yield client


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_creating_call_is_retried_with_the_same_idempotency_key(
    server: ScriptedServer, client: AsyncClient, status: int
) -> None:
    server.script(problem(status), Answer(cut=0), answer(run("queued"), 202))
    started = await client.runs.create("m", tasks="f", stop={"seconds": 1})
    assert (type(started), started.id) == (AsyncRun, "r1")
    assert len(server.requests) == 3
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    assert len({request.body for request in server.requests}) == 1


async def test_pauses_between_tries_leave_the_event_loop_to_others(server: ScriptedServer) -> None:
    server.script(problem(503, Retry_After="0.3"), answer(TASK))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    async with AsyncClient(server.url, "hs_test") as client, asyncio.TaskGroup() as group:
        other = group.create_task(others())
        started_s = time.monotonic()
        await client.tasks.get("long")
        assert time.monotonic() - started_s >= 0.3
        other.cancel()
    assert turns > 10


async def test_tries_end_and_what_may_not_be_repeated_is_not(server: ScriptedServer, client: AsyncClient) -> None:
    server.script(*[problem(503)] * 6, problem(429, Retry_After="3600"))
    with pytest.raises(ServiceFailed):
        await client.tasks.get("long")
    assert len(server.requests) == 5
    with pytest.raises(ServiceFailed):
        await client.aliases.rollback("m", "champion")
    assert len(server.requests) == 6
    with pytest.raises(TooManyRequests):
        await client.tasks.get("long")
    assert len(server.requests) == 7


async def test_nobody_listening_is_connection_failed() -> None:
    async with AsyncClient("http://127.0.0.1:1", retry=Retry(attempts=2, first_s=0.001)) as client:
        with pytest.raises(ConnectionFailed, match="cannot reach"):
            await client.tasks.get("long")
        assert not (await client.health()).live


async def test_a_deletion_whose_answer_was_lost_is_a_deletion(server: ScriptedServer, client: AsyncClient) -> None:
    server.script(Answer(cut=0), problem(404), problem(404))
    await client.tasks.delete("long")
    with pytest.raises(NotFound):
        await client.tasks.delete("long")


async def test_a_list_fetches_its_pages_as_they_are_needed(server: ScriptedServer, client: AsyncClient) -> None:
    server.script(
        answer({"tasks": [TASK, TASK], "next_page_token": "p2"}),
        answer({"tasks": [], "next_page_token": "p3"}),
        answer({"tasks": [TASK], "next_page_token": None}),
    )
    tasks = client.tasks.list(family="f")
    assert server.requests == []
    assert (await anext(tasks)).id == "t1"
    assert len(server.requests) == 1
    assert len([task async for task in tasks]) == 2
    assert "page_token=p3" in server.requests[2].path
    assert "family=f" in server.requests[2].path


async def test_a_broken_stream_is_taken_up_after_the_last_whole_event(
    server: ScriptedServer, client: AsyncClient
) -> None:
    one, two = event("metrics", row(1)), event("metrics", row(2))
    server.script(
        Answer(200, one + two, SSE, cut=len(one) + 20),
        Answer(cut=0),
        problem(503),
        Answer(200, two + event("state", run("succeeded")), SSE),
    )
    assert [each.id async for each in client.runs.events("r1", after=0)] == ["1", "2", "2"]
    assert [request.headers.get("last-event-id") for request in server.requests] == ["0", "1", "1", "1"]


async def test_a_stream_that_is_left_early_closes_its_connection(server: ScriptedServer, client: AsyncClient) -> None:
    server.script(Answer(200, event("metrics", row(1)), SSE, held=True), answer(TASK))
    async with aclosing(client.runs.events("r1")) as events:
        assert (await anext(events)).id == "1"
    assert (await client.tasks.get("long")).id == "t1"


async def test_a_run_is_followed_while_a_clock_ticks(server: ScriptedServer, client: AsyncClient) -> None:
    server.script(
        answer(run()),
        answer({"metrics": [row(1)], "next_page_token": "p"}),
        answer({"metrics": [row(2)]}),
        *[problem(503)] * 9,
        Answer(200, event("metrics", row(3)) + event("state", run("cancelled")), SSE),
    )
    items = [item async for item in client.runs.follow("r1")]
    assert [item.sequence for item in items if isinstance(item, Metric)] == [1, 2, 3]
    assert [item.state for item in items if isinstance(item, AsyncRun)] == ["running", "cancelled"]


async def test_a_run_that_never_ends_is_given_up_in_time(server: ScriptedServer, client: AsyncClient) -> None:
    server.script(answer(run()), answer({"metrics": []}), Answer(200, event("state", run()), SSE, held=True))
    others = asyncio.all_tasks()
    with pytest.raises(Timeout, match=r"run r1 was not finished after 0\.3 s; it goes on"):
        async for _ in client.runs.follow("r1", timeout_s=0.3):
            pass
    assert asyncio.all_tasks() == others, "the task that read is left behind"


async def test_waiting_survives_a_restart_and_raises_what_failed(server: ScriptedServer, client: AsyncClient) -> None:
    server.script(answer(run("queued")), *[Answer(cut=0)] * 5, *[problem(503)] * 5, answer(run("succeeded", version=1)))
    assert (await (await client.runs.get("r1")).wait(progress=False)).version == 1
    server.script(answer(run("failed", error={"type": "diverged", "detail": "a loss was NaN"})))
    with pytest.raises(RunFailed, match="a loss was NaN"):
        await client.runs.wait("r1")
    server.script(answer({"id": "a1", "state": "failed"}))
    with pytest.raises(AdaptationFailed):
        await client.adapt("m", "long")


async def test_waiting_ends_in_time(server: ScriptedServer, client: AsyncClient) -> None:
    server.script(*[answer(run())] * 9)
    with pytest.raises(Timeout, match=r"not finished after 0\.2 s"):
        await client.runs.wait("r1", timeout_s=0.2)


async def test_a_silent_service_is_connection_failed(server: ScriptedServer) -> None:
    server.script(Answer(200, b'{"id"', held=True), Answer(200, b'{"id"', held=True))
    retry = Retry(attempts=2, first_s=0.001)
    async with AsyncClient(server.url, "hs_test", timeout_s=0.2, retry=retry) as client:
        with pytest.raises(ConnectionFailed, match="in time"):
            await client.tasks.get("long")
    assert len(server.requests) == 2


async def test_calls_that_are_cancelled_leave_the_client_usable(server: ScriptedServer, client: AsyncClient) -> None:
    # More than there are connections: each that was kept by a call that is gone would be missed.
    count = 120
    server.script(*[Answer(200, b'{"id"', held=True)] * count)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await asyncio.gather(*(client.tasks.get("long") for _ in range(count)))
    server.forget()
    # A call that was cancelled may have been written already, and be answered only now.
    server.script(*[answer(TASK)] * (count + 1))
    assert (await client.tasks.get("long")).id == "t1"


async def test_a_call_that_is_cancelled_between_tries_is_not_tried_again(server: ScriptedServer) -> None:
    server.script(problem(503), problem(503))
    async with AsyncClient(server.url, "hs_test", retry=Retry(first_s=0.3)) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.tasks.get("long")
        await asyncio.sleep(0.4)
    assert len(server.requests) == 1


async def test_a_key_that_a_starting_service_writes_later_is_found_later(
    server: ScriptedServer, tmp_path: Path
) -> None:
    def started() -> Answer:
        (tmp_path / "var").mkdir()
        (tmp_path / "var" / "admin.key").write_text("hs_admin\n")
        return problem(401)

    server.script(problem(401), started, answer(TASK))
    async with AsyncClient(server.url) as client:
        with pytest.raises(Unauthorised) as caught:
            await client.tasks.get("long")
        assert "no key was found" in caught.value.__notes__[0]
        await client.tasks.get("long")
    assert [request.headers.get("authorization") for request in server.requests] == [None, None, "Bearer hs_admin"]


async def test_one_client_serves_many_at_once(server: ScriptedServer, client: AsyncClient) -> None:
    count = 120  # more than there are connections

    def slow() -> Answer:
        time.sleep(0.05)
        return answer(ACTIONS)

    server.script(*[slow] * count)
    started_s = time.monotonic()
    actions = await asyncio.gather(*(client.act("p1", [[float(i)]]) for i in range(count)))
    assert time.monotonic() - started_s < count * 0.05
    assert [action.log_probs.tolist() for action in actions] == [[-0.2]] * count
    assert sorted(request.json["observations"][0][0] for request in server.requests) == [*range(count)]


async def test_a_transfer_that_breaks_off_is_continued(
    server: ScriptedServer, client: AsyncClient, tmp_path: Path
) -> None:
    body = bytes(range(256)) * 40
    etag = f'"sha256-{hashlib.sha256(body).hexdigest()}"'
    rest = {"ETag": etag, "Content-Range": f"bytes 4000-{len(body) - 1}/{len(body)}"}
    server.script(Answer(200, body, {"ETag": etag}, cut=4000), Answer(206, body[4000:], rest))
    await client.runs.checkpoint("r1", tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").read_bytes() == body
    assert server.requests[1].headers["range"] == "bytes=4000-"


@pytest.fixture
def stream_server() -> Iterator[ScriptedStream]:
    with ScriptedStream() as server:
        yield server


@pytest.fixture
async def streaming(stream_server: ScriptedStream) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stream_server.url, "hs_test", timeout_s=2, retry=Retry(first_s=0.001)) as client:
        yield client


async def test_a_stream_acts_one_at_a_time_and_ahead(stream_server: ScriptedStream, streaming: AsyncClient) -> None:
    async with streaming.policies.stream("p1", deterministic=False) as stream:
        action = await stream.act([[0.5, 1.0], [-0.5, 0.0]], episode_start=True, seed=7)
        assert action.actions.tolist() == [1, 0]
        for i in range(2000):
            await stream.send([float(i)] * 200)
        values = [(await stream.receive()).values for _ in range(2000)]
    assert [float(each[0]) for each in values if each is not None] == [200.0 * i for i in range(2000)]
    assert stream_server.messages[0]["seed"] == 7
    assert stream_server.handshakes[0].headers["Authorization"] == "Bearer hs_test"


async def test_one_task_sends_and_another_receives(stream_server: ScriptedStream, streaming: AsyncClient) -> None:
    async with streaming.policies.stream("p1") as stream:
        sent = asyncio.Semaphore(0)
        values: list[float] = []

        async def receive() -> None:
            for _ in range(100):
                await sent.acquire()
                answered = (await stream.receive()).values
                assert answered is not None
                values.append(float(answered[0]))

        async with asyncio.TaskGroup() as group:
            group.create_task(receive())
            for i in range(100):
                await stream.send([float(i)])
                sent.release()
    assert values == [*range(100)]
    assert len(stream_server.messages) == 100


async def test_an_act_that_is_cancelled_leaves_the_stream_usable(
    stream_server: ScriptedStream, streaming: AsyncClient
) -> None:
    async with streaming.policies.stream("p1") as stream:
        for _ in range(3):
            stream_server.script(Late(0.1))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stream.act([1.0])
            assert (await stream.act([3.0])).values == pytest.approx([3.0])
        stream_server.script(Late(0.1))
        await stream.send([4.0])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stream.receive()
        assert (await stream.receive()).values == pytest.approx([4.0])


async def test_opening_a_stream_is_tried_again_and_can_be_cancelled(
    stream_server: ScriptedStream, streaming: AsyncClient
) -> None:
    stream_server.refuse(Refuse(503, {"Retry-After": "0"}))
    stream_server.greet(Close(1013), Break(), Late(0.2))
    stream = streaming.policies.stream("p1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await stream.open()
    with pytest.raises(StreamClosed, match="is closed"):
        await stream.act([1.0])
    async with stream:
        assert (await stream.act([1.0])).actions.tolist() == [1]


async def test_a_stream_that_ends_says_why(stream_server: ScriptedStream, streaming: AsyncClient) -> None:
    stream_server.script(Close(4410, "it expired at noon"), Close(4408), Break())
    for kind, words in ((Gone, "at noon"), (StreamClosed, "nothing was asked"), (StreamClosed, "broke")):
        async with streaming.policies.stream("p1") as stream:
            with pytest.raises(kind, match=words):
                await stream.act([1.0])
    async with AsyncClient("http://127.0.0.1:1", "k", retry=Retry(attempts=1)) as nobody:
        with pytest.raises(ConnectionFailed, match="cannot reach"):
            await nobody.policies.stream("p1").open()
