from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from scripted_server import Answer, ScriptedServer, answer, problem

from headstart_client import (
    Client,
    Conflict,
    ConnectionFailed,
    Gone,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    PreconditionFailed,
    Problem,
    Retry,
    ServiceFailed,
    TooManyRequests,
    Unauthorised,
)
from headstart_client.transport import retry_after_s

TASK = {"id": "t1", "name": "long", "environment": "CartPole-v1"}
RUN = {"id": "r1", "state": "queued"}


def test_the_key_travels_as_a_bearer_token(server: ScriptedServer, client: Client) -> None:
    server.script(answer(TASK))
    client.tasks.get("long")
    assert server.requests[0].headers["authorization"] == "Bearer hs_test"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_creating_call_is_retried_with_the_same_idempotency_key(
    server: ScriptedServer, client: Client, status: int
) -> None:
    server.script(problem(status), Answer(cut=0), answer(RUN, 202))
    assert client.runs.create("m", tasks="f", stop={"seconds": 1}).id == "r1"
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert len(server.requests) == 3
    assert len(keys) == 1
    assert len({request.body for request in server.requests}) == 1


def test_two_calls_have_two_idempotency_keys(server: ScriptedServer, client: Client) -> None:
    server.script(answer(RUN, 202), answer(RUN, 202))
    for _ in range(2):
        client.runs.create("m", tasks="f", stop={"seconds": 1})
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 2


def test_a_first_try_that_is_still_running_is_waited_for(server: ScriptedServer, client: Client) -> None:
    server.script(Answer(cut=0), problem(409, "still running", Retry_After="0"), answer(TASK, 201))
    assert client.tasks.create("CartPole-v1").id == "t1"


def test_another_conflict_is_raised_at_once(server: ScriptedServer, client: Client) -> None:
    server.script(problem(409, "the name stands"))
    with pytest.raises(Conflict, match="the name stands"):
        client.tasks.create("CartPole-v1", name="long")
    assert len(server.requests) == 1


def test_a_call_that_changes_something_twice_is_not_retried(server: ScriptedServer, client: Client) -> None:
    server.script(problem(503), problem(503))
    with pytest.raises(ServiceFailed):
        client.aliases.rollback("m", "champion")
    with pytest.raises(ServiceFailed):
        client.aliases.set("m", "champion", 3, if_match='"7"')
    assert len(server.requests) == 2
    assert server.requests[1].headers["if-match"] == '"7"'


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (410, Gone)])
def test_a_deletion_whose_answer_was_lost_is_a_deletion(
    server: ScriptedServer, client: Client, status: int, kind: type[Problem]
) -> None:
    server.script(Answer(cut=0), problem(status))
    client.policies.delete("p1")
    server.script(problem(status))
    with pytest.raises(kind):
        client.policies.delete("p1")


def test_tries_end_with_the_last_refusal(server: ScriptedServer) -> None:
    server.script(*[problem(503)] * 9)
    with Client(server.url, retry=Retry(attempts=3, first_s=0.001)) as client, pytest.raises(ServiceFailed):
        client.tasks.get("long")
    assert len(server.requests) == 3


def test_retry_after_is_obeyed(server: ScriptedServer, client: Client) -> None:
    server.script(problem(429, Retry_After="0.3"), answer(TASK))
    started_s = time.monotonic()
    client.tasks.get("long")
    assert time.monotonic() - started_s >= 0.3


def test_a_very_long_retry_after_is_left_to_the_caller(server: ScriptedServer, client: Client) -> None:
    server.script(problem(429, Retry_After="3600"))
    with pytest.raises(TooManyRequests) as caught:
        client.tasks.get("long")
    assert caught.value.retry_after_s == 3600


def test_retry_after_may_be_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < (retry_after_s(soon) or 0) <= 30
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_s("soon") is None


def test_pauses_grow_to_a_ceiling_and_differ() -> None:
    retry = Retry(attempts=100, first_s=0.25, longest_s=8)
    error = ConnectionFailed("down")
    pauses = [[retry.pause_s(attempt, error) or 0.0 for _ in range(50)] for attempt in range(8)]
    for attempt, drawn in enumerate(pauses):
        ceiling = min(8.0, 0.25 * 2**attempt)
        assert ceiling / 2 <= min(drawn) < max(drawn) <= ceiling


def test_nobody_listening_is_connection_failed() -> None:
    retry = Retry(attempts=2, first_s=0.001)
    with (
        Client("http://127.0.0.1:1", retry=retry) as client,
        pytest.raises(ConnectionFailed, match="cannot reach"),
    ):
        client.tasks.get("long")


def test_a_key_that_no_header_can_hold_is_not_tried_again(server: ScriptedServer) -> None:
    with Client(server.url, "hs_a\nhs_b", retry=Retry(first_s=9)) as client, pytest.raises(ConnectionFailed):
        client.tasks.get("long")


def test_a_problem_shows_its_detail_and_each_pointer_on_a_line(server: ScriptedServer, client: Client) -> None:
    document = {
        "type": "/problems/invalid",
        "title": "Invalid request",
        "status": 422,
        "detail": "2 members are wrong",
        "errors": [
            {"pointer": "/stop/seconds", "detail": "must be positive"},
            {"pointer": "/seed", "detail": "must be an integer"},
        ],
        "trace": "abc",
    }
    server.script(answer(document, 422))
    with pytest.raises(InvalidRequest) as caught:
        client.runs.submit({})
    assert str(caught.value) == ("2 members are wrong\n  /stop/seconds: must be positive\n  /seed: must be an integer")
    assert caught.value.errors[0].pointer == "/stop/seconds"
    assert caught.value.raw["trace"] == "abc"


def test_a_detail_that_quotes_its_only_error_is_not_repeated(server: ScriptedServer, client: Client) -> None:
    errors = [{"pointer": "/seed", "detail": "must be at least 0"}]
    server.script(answer({"status": 422, "detail": "/seed: must be at least 0", "errors": errors}, 422))
    with pytest.raises(InvalidRequest) as caught:
        client.runs.submit({})
    assert str(caught.value) == "/seed: must be at least 0"


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFound), (412, PreconditionFailed), (500, ServiceFailed), (418, Problem)]
)
def test_a_refusal_without_problem_json_still_has_its_type(
    server: ScriptedServer, client: Client, status: int, kind: type[Problem]
) -> None:
    server.script(Answer(status, b"<html>proxy</html>", {"Content-Type": "text/html"}))
    with pytest.raises(kind) as caught:
        client.tasks.get("long")
    assert caught.value.status == status
    assert "proxy" not in str(caught.value)


def test_a_missing_key_says_where_one_is_looked_for(server: ScriptedServer) -> None:
    server.script(problem(401))
    with Client(server.url) as client, pytest.raises(Unauthorised) as caught:
        client.tasks.get("long")
    assert "HEADSTART_API_KEY" in caught.value.__notes__[0]


def test_a_redirect_is_not_followed_with_the_key(server: ScriptedServer, client: Client) -> None:
    server.script(Answer(307, headers={"Location": "https://elsewhere.example.org/"}))
    with pytest.raises(Problem, match=r"redirected to https://elsewhere\.example\.org/"):
        client.tasks.get("long")


def test_an_answer_that_is_not_json_is_an_invalid_response(server: ScriptedServer, client: Client) -> None:
    server.script(Answer(200, b"<html>hello</html>"))
    with pytest.raises(InvalidResponse, match="without JSON"):
        client.tasks.get("long")


def test_names_are_quoted_and_cannot_leave_their_place(server: ScriptedServer, client: Client) -> None:
    server.script(answer(TASK))
    client.tasks.get("a/../b?c#d")
    assert server.requests[0].path == "/v1/tasks/a%2F..%2Fb%3Fc%23d"
    for name in ("", ".", ".."):
        with pytest.raises(ValueError, match="not a name"):
            client.tasks.delete(name)


def test_a_list_fetches_its_pages_as_they_are_needed(server: ScriptedServer, client: Client) -> None:
    server.script(
        answer({"tasks": [TASK, TASK], "next_page_token": "p2"}),
        answer({"tasks": [], "next_page_token": "p3"}),
        answer({"tasks": [TASK], "next_page_token": None}),
    )
    tasks = client.tasks.list(family="f", labels={"a": "b", "c": "d"})
    assert server.requests == []
    assert len(list(itertools.islice(tasks, 2))) == 2
    assert len(server.requests) == 1
    assert len(list(tasks)) == 1
    assert "family=f" in server.requests[0].path
    assert "label=a%3Ab&label=c%3Ad" in server.requests[0].path
    assert "page_token=p3" in server.requests[2].path
    assert "family=f" in server.requests[2].path


def test_a_list_without_its_member_is_an_invalid_response(server: ScriptedServer, client: Client) -> None:
    server.script(answer({"jobs": []}))
    with pytest.raises(InvalidResponse, match="'tasks'"):
        list(client.tasks.list())


def test_health_is_two_answers_and_never_raises(server: ScriptedServer, client: Client) -> None:
    server.script(answer({}), problem(503))
    health = client.health()
    assert health.live
    assert not health.ready
    with Client("http://127.0.0.1:1") as nobody:
        assert not nobody.health().live
