from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scripted_stream import Break, Close, Late, Refuse, ScriptedStream

from headstart_client import (
    Adaptation,
    BadRequest,
    Client,
    ConnectionFailed,
    Forbidden,
    Gone,
    HeadstartError,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    Problem,
    Retry,
    ServiceFailed,
    StreamClosed,
    TooLarge,
    Unauthorised,
)
from headstart_client._sync import sockets, streams

if TYPE_CHECKING:
    from sys import TraceFunction

MANY = np.array([[0.5, 1.0], [-0.5, 2.0], [0.25, 0.0]])


@pytest.fixture
def server() -> Iterator[ScriptedStream]:
    with ScriptedStream() as server:
        yield server


@pytest.fixture
def client(server: ScriptedStream) -> Iterator[Client]:
    with Client(server.url, "hs_test", timeout_s=2, retry=Retry(first_s=0.001)) as client:
        yield client


def test_one_observation_or_many_are_a_batch(server: ScriptedStream, client: Client) -> None:
    with client.policies.stream("p1") as stream:
        one, many = stream.act([0.5, 1.0]), stream.act(MANY)
    assert server.messages == [{"observation": [0.5, 1.0]}, {"observations": MANY.tolist()}]
    assert (one.actions.tolist(), one.log_probs.tolist(), one.policy, one.revision) == ([1], [-0.5], "p1", 0)
    assert many.actions.dtype == np.int64
    assert many.actions.tolist() == [1, 0, 1]
    assert many.values is not None
    assert many.values.tolist() == [1.5, 1.5, 0.25]


def test_the_key_travels_in_the_handshake_and_never_in_the_address(server: ScriptedStream, client: Client) -> None:
    with client.policies.stream("p1"):
        pass
    (handshake,) = server.handshakes
    assert handshake.headers["Authorization"] == "Bearer hs_test"
    assert handshake.path == "/v1/policies/p1/stream"
    assert handshake.headers["User-Agent"].startswith("headstart-client/")
    assert "Sec-WebSocket-Extensions" not in handshake.headers


def test_a_message_has_what_was_asked_for(server: ScriptedStream, client: Client) -> None:
    with client.policies.stream("p1", deterministic=False) as stream:
        action = stream.act([0.5, 1.0], episode_start=True, seed=7, revision=3, policy_actions=True)
        likeliest = stream.act([0.5, 1.0], deterministic=True)
        assert stream.revision == 0
    asked = {"episode_start": True, "seed": 7, "revision": 3, "policy_actions": True, "deterministic": False}
    assert server.messages == [{"observation": [0.5, 1.0], **asked}, {"observation": [0.5, 1.0]}]
    assert action.revision == 3
    assert action.policy_actions is not None
    assert action.policy_actions.tolist() == [[0.5, 1.0]]
    assert (action.log_probs[0], likeliest.log_probs[0]) == (-0.25, -0.5)


def test_answers_to_what_was_sent_ahead_are_received_in_order(client: Client) -> None:
    count = 2000  # more than the buffers on the way hold, both ways
    wide = np.arange(count)[:, None] + np.zeros(200)
    with client.policies.stream("p1") as stream:
        for each in wide:
            stream.send(each)
        with pytest.raises(ValueError, match="2000 answers are still to be received"):
            stream.act(wide[0])
        values = [stream.receive().values for _ in range(count)]
        with pytest.raises(ValueError, match="every answer"):
            stream.receive()
        assert stream.act([1.0]).actions.tolist() == [1]
    assert [float(each[0]) for each in values if each is not None] == [200.0 * i for i in range(count)]


def test_an_observation_with_a_nan_is_not_sent(server: ScriptedStream, client: Client) -> None:
    with client.policies.stream("p1") as stream:
        with pytest.raises(ValueError, match="JSON"):
            stream.act([float("nan")])
        assert stream.act([1.0]).actions.tolist() == [1]
    assert len(server.messages) == 1


def test_a_refused_message_leaves_the_stream_open(server: ScriptedStream, client: Client) -> None:
    errors = [{"pointer": "/observation", "detail": "must have 4 numbers"}]
    server.script({"error": {"type": "/problems/invalid", "title": "Invalid", "status": 422, "errors": errors}})
    with client.policies.stream("p1") as stream:
        with pytest.raises(InvalidRequest) as caught:
            stream.act([1.0])
        assert caught.value.errors[0].pointer == "/observation"
        assert stream.act([1.0]).actions.tolist() == [1]


CLOSES: dict[int, type[HeadstartError]] = {
    1000: StreamClosed,
    1001: StreamClosed,
    1007: BadRequest,
    1009: TooLarge,
    1013: ServiceFailed,
    4401: Unauthorised,
    4403: Forbidden,
    4404: NotFound,
    4408: StreamClosed,
    4410: Gone,
    4999: StreamClosed,
}


@pytest.mark.parametrize("code", CLOSES)
def test_every_close_code_has_its_exception(server: ScriptedStream, client: Client, code: int) -> None:
    server.script(Close(code, "because"))
    with client.policies.stream("p1") as stream:
        for _ in range(2):
            with pytest.raises(CLOSES[code], match="because") as caught:
                stream.act([1.0])
    if isinstance(caught.value, StreamClosed):
        assert caught.value.code == code
    assert caught.value.transient == (code in (1001, 1013, 4408, 4999))
    assert len(server.messages) == 1


@pytest.mark.parametrize("code", [4403, 4404, 4410])
def test_what_the_service_refuses_it_refuses_when_the_stream_is_opened(
    server: ScriptedStream, client: Client, code: int
) -> None:
    server.greet(Close(code))
    with pytest.raises(CLOSES[code]) as caught, client.policies.stream("p1"):
        pass
    assert isinstance(caught.value, Problem)
    assert caught.value.status == code - 4000
    assert len(server.handshakes) == 1


def test_opening_is_tried_again_and_acting_is_not(server: ScriptedStream, client: Client) -> None:
    server.refuse(Refuse(503, {"Retry-After": "0"}), Refuse(429))
    server.greet(Close(1013), Break())
    with client.policies.stream("p1") as stream:
        assert len(server.handshakes) == 5
        server.script(Break())
        with pytest.raises(StreamClosed, match="broke") as caught:
            stream.act([1.0])
        assert caught.value.code == 1006
        assert isinstance(caught.value, ConnectionFailed)
        stream.open()
        assert stream.act([1.0]).actions.tolist() == [1]


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthorised), (404, NotFound), (500, ServiceFailed)])
def test_a_handshake_may_be_refused_over_http(
    server: ScriptedStream, client: Client, status: int, kind: type[Problem]
) -> None:
    server.refuse(Refuse(status))
    with pytest.raises(kind, match="no"), client.policies.stream("p1"):
        pass


def test_tries_end_with_the_last_refusal(server: ScriptedStream) -> None:
    server.greet(*[Close(1013, "too much")] * 9)
    with (
        Client(server.url, "hs_test", retry=Retry(attempts=3, first_s=0.001)) as client,
        pytest.raises(ServiceFailed, match="too much"),
        client.policies.stream("p1"),
    ):
        pass
    assert len(server.handshakes) == 3


def test_nobody_listening_is_connection_failed() -> None:
    with (
        Client("http://127.0.0.1:1", "hs_test", retry=Retry(attempts=2, first_s=0.001)) as client,
        pytest.raises(ConnectionFailed, match="cannot reach"),
        client.policies.stream("p1"),
    ):
        pass


def test_a_key_that_no_header_can_hold_is_not_tried_again(server: ScriptedStream) -> None:
    with (
        Client(server.url, "hs_a\nhs_b", retry=Retry(first_s=9)) as client,
        pytest.raises(ConnectionFailed),
        client.policies.stream("p1"),
    ):
        pass


def test_a_late_answer_is_not_taken_for_another_ones(server: ScriptedStream) -> None:
    with Client(server.url, "hs_test", timeout_s=0.2) as client, client.policies.stream("p1") as stream:
        server.script(Late(0.3))
        with pytest.raises(ConnectionFailed, match=r"within 0\.2 s"):
            stream.act([1.0])
        assert stream.act([3.0]).values == pytest.approx([3.0])
        server.script(Late(0.3))
        stream.send([4.0])
        with pytest.raises(ConnectionFailed):
            stream.receive()
        assert stream.receive().values == pytest.approx([4.0])


def test_pings_are_answered_while_an_answer_is_awaited() -> None:
    with (
        ScriptedStream(ping_interval=0.05, ping_timeout=0.2) as server,
        Client(server.url, "hs_test") as client,
        client.policies.stream("p1") as stream,
    ):
        server.script(Late(0.6))
        assert stream.act([1.0]).actions.tolist() == [1]


def test_an_interrupted_call_ends_the_stream_which_can_be_opened_again(server: ScriptedStream, client: Client) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with client.policies.stream("p1") as stream:
            server.script(Late(0.3))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                stream.act([1.0])
            with pytest.raises(StreamClosed, match="interrupted"):
                stream.act([1.0])
            stream.open()
            assert stream.act([3.0]).values == pytest.approx([3.0])
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_an_interrupt_anywhere_breaks_the_stream_or_leaves_no_trace(client: Client) -> None:
    here = (streams.__file__, sockets.__file__)
    countdown = 0

    def at_each_line(frame: FrameType, event: str, _: object) -> TraceFunction | None:
        nonlocal countdown
        if frame.f_code.co_filename not in here:
            return None
        if event == "line" and frame.f_code.co_name != "tear":
            countdown -= 1
            if countdown == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return at_each_line

    outcomes = []
    with client.policies.stream("p1") as stream:
        for line in itertools.count(1):
            countdown = line
            try:
                sys.settrace(at_each_line)
                stream.act([-1.0])
                break  # No more lines to interrupt.
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            try:
                assert stream.act([float(line)]).values == pytest.approx([line])
                assert stream.act([line + 0.5]).values == pytest.approx([line + 0.5])
                outcomes.append("as before")
            except StreamClosed:
                outcomes.append("broken")
                stream.open()
    assert len(outcomes) > 30
    assert set(outcomes) == {"as before", "broken"}


def test_a_stream_that_is_closed_leaves_nothing_behind(client: Client) -> None:
    for _ in range(3):
        with client.policies.stream("p1") as stream:
            stream.act([1.0])
        stream.open()
        stream.close()
    pool = client._transport._streams._transport._pool  # type: ignore[attr-defined]
    assert pool.connections == []


def test_more_streams_than_a_client_has_other_connections(client: Client) -> None:
    with contextlib.ExitStack() as opened:
        streams = [opened.enter_context(client.policies.stream("p1")) for _ in range(120)]
        assert [stream.act([1.0]).actions.tolist() for stream in streams] == [[1]] * 120


def test_what_answers_the_handshake_must_speak_websocket() -> None:
    def pretend(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=pretend, args=(listener,))
        thread.start()
        with (
            Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "hs_test", retry=Retry(attempts=1)) as client,
            pytest.raises(ConnectionFailed, match="does not speak WebSocket"),
            client.policies.stream("p1"),
        ):
            pass
        thread.join()


@pytest.mark.parametrize(
    ("answer", "words"), [({"log_prob": 1.0}, "no 'actions'"), ("hello", "JSON"), ("[1]", "object")]
)
def test_an_answer_that_is_no_action_is_an_invalid_response(
    server: ScriptedStream, client: Client, answer: object, words: str
) -> None:
    server.script(answer)
    with client.policies.stream("p1") as stream:
        with pytest.raises(InvalidResponse, match=words):
            stream.act([1.0])
        assert stream.act([1.0]).actions.tolist() == [1]


def test_a_closed_stream_says_so_and_can_be_opened_again(client: Client) -> None:
    stream = client.policies.stream(Adaptation(id="a1", state="collecting", policy="p1"))
    with pytest.raises(StreamClosed, match="is closed"):
        stream.act([1.0])
    with stream:
        assert stream.act([1.0]).policy == "p1"
    with pytest.raises(StreamClosed, match="is closed"):
        stream.act([1.0])
    with stream:
        assert stream.act([1.0]).policy == "p1"


def test_a_key_that_a_starting_service_writes_is_found(server: ScriptedStream, tmp_path: Path) -> None:
    with Client(server.url) as client:
        with pytest.raises(Unauthorised) as caught, client.policies.stream("p1"):
            pass
        assert "no key was found" in caught.value.__notes__[0]
        (tmp_path / "var").mkdir()
        (tmp_path / "var" / "admin.key").write_text("hs_test\n")
        with client.policies.stream("p1") as stream:
            assert stream.act([1.0]).actions.tolist() == [1]


def test_a_service_on_this_machine_is_not_asked_through_a_proxy(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with client.policies.stream("p1") as stream:
        assert stream.act([1.0]).actions.tolist() == [1]
