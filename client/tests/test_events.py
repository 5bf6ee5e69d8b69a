from __future__ import annotations

import pytest
from scripted_server import Answer, ScriptedServer, problem

from headstart_client import Client, ConnectionFailed, InvalidResponse, NotFound
from headstart_client._sync.events import lines, parse_events

METRICS = b'id: 1\nevent: metrics\ndata: {"sequence": 1}\n\n'
MORE = b'id: 2\nevent: metrics\ndata: {"sequence": 2}\n\n'
END = b'id: 3\nevent: state\ndata: {"state": "succeeded"}\n\n'


def stream(body: bytes, cut: int | None = None) -> Answer:
    return Answer(200, body, {"Content-Type": "text/event-stream"}, cut)


def test_lines_end_where_the_standard_says_however_they_are_cut() -> None:
    text = "a\r\nb\nc\rd\u2028e\u0085f\n\n".encode()
    whole = list(lines([text]))
    assert whole == ["a", "b", "c", "d\u2028e\u0085f", ""]
    assert list(lines(text[i : i + 1] for i in range(len(text)))) == whole


def test_events_have_an_id_a_kind_and_data() -> None:
    (event,) = parse_events([": hello", "id: 7", "event: metrics", 'data: {"a":', "data:1}", ""])
    assert (event.id, event.kind, event.data) == ("7", "metrics", {"a": 1})


def test_an_event_that_broke_off_is_dropped() -> None:
    assert list(parse_events(["id: 7", 'data: {"a": 1}'])) == []


@pytest.mark.parametrize("data", ["{", "[1]"])
def test_data_that_is_no_json_object_is_an_invalid_response(data: str) -> None:
    with pytest.raises(InvalidResponse):
        list(parse_events([f"data: {data}", ""]))


def test_a_stream_ends_with_the_run(server: ScriptedServer, client: Client) -> None:
    server.script(stream(METRICS + END + MORE))
    assert [event.id for event in client.runs.events("r1")] == ["1", "3"]


def test_a_broken_stream_is_taken_up_after_the_last_whole_event(server: ScriptedServer, client: Client) -> None:
    server.script(
        stream(METRICS + MORE, cut=len(METRICS) + 20),
        Answer(cut=0),
        problem(503),
        stream(MORE),
        stream(END),
    )
    assert [event.id for event in client.runs.events("r1", after=0)] == ["1", "2", "3"]
    sent = [request.headers.get("last-event-id") for request in server.requests]
    assert sent == ["0", "1", "1", "1", "2"]


def test_a_stream_that_never_gets_anywhere_is_connection_failed(server: ScriptedServer, client: Client) -> None:
    server.script(*[stream(b": hello\n\n")] * 9)
    with pytest.raises(ConnectionFailed, match="ended before the run"):
        list(client.runs.events("r1"))
    assert len(server.requests) == 5


def test_a_refusal_is_raised(server: ScriptedServer, client: Client) -> None:
    server.script(problem(404, "no such run"))
    with pytest.raises(NotFound, match="no such run"):
        list(client.runs.events("r1"))


def test_no_content_means_do_not_come_back(server: ScriptedServer, client: Client) -> None:
    server.script(Answer(204))
    assert list(client.runs.events("r1")) == []
