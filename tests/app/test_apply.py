from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select

from app.tables import AuditEvent, Task, TaskFamily

FAMILY = {"name": "poles", "environment": "CartPole-v1", "parameters": {"length": {"uniform": [0.5, 1]}}}
LONG = {"name": "long", "environment": "CartPole-v1", "parameters": {"length": 1}, "family": "poles"}
SHORT = {"name": "short", "environment": "CartPole-v1", "parameters": {"length": 0.5}, "labels": {"team": "a"}}


def send(client, expected=200, **body):
    answer = client.post("/v1/tasks:apply", json=body)
    assert answer.status_code == expected, answer.text
    return answer.json()


def outcomes(answer):
    return [each["outcome"] for each in (*answer["families"], *answer["tasks"])]


def differences(answer):
    return [(d["pointer"], d["expected"], d["stands"]) for each in answer["tasks"] for d in each["differences"]]


def names(client):
    return [task["name"] for task in client.get("/v1/tasks").json()["tasks"]]


def test_definitions_stand_once_they_are_applied_and_again_nothing_changes(client):
    first = send(client, families=[FAMILY], tasks=[LONG, SHORT])
    assert outcomes(first) == ["created"] * 3
    again = send(client, families=[FAMILY], tasks=[SHORT, LONG])
    assert outcomes(again) == ["unchanged"] * 3
    assert [task["id"] for task in again["tasks"]] == [task["id"] for task in first["tasks"]][::-1]
    assert names(client) == ["long", "short"]
    assert client.get("/v1/tasks/long").json()["family"] == "poles"


def test_a_dry_run_says_what_would_be_and_leaves_no_trace(client, database):
    def rows():
        with database.snapshot() as session:
            return [session.scalar(select(func.count()).select_from(each)) for each in (Task, TaskFamily, AuditEvent)]

    before = rows()
    would = send(client, families=[FAMILY], tasks=[LONG, SHORT], dry_run=True)
    assert rows() == before
    does = send(client, families=[FAMILY], tasks=[LONG, SHORT])
    assert (would["applied"], does["applied"]) == (False, True)
    assert [task["id"] for task in would["tasks"]] == [None, None]
    assert would["families"] == does["families"]
    assert would["tasks"] == [task | {"id": None} for task in does["tasks"]]


def test_a_dry_run_may_be_repeated_with_its_idempotency_key(client):
    for dry_run in (True, False):
        body = {"tasks": [SHORT], "dry_run": dry_run}
        key = {"Idempotency-Key": str(dry_run)}
        answers = [client.post("/v1/tasks:apply", json=body, headers=key) for _ in range(2)]
        assert answers[0].json() == answers[1].json()
        assert answers[1].headers["idempotency-replayed"] == "true"
        assert names(client) == ([] if dry_run else ["short"])


def test_what_stands_otherwise_is_a_conflict_that_says_what_differs_and_nothing_is_created(client):
    send(client, tasks=[SHORT])
    changed = SHORT | {"parameters": {"length": 0.6}, "discount": 0.9, "reward": {"expression": "1"}}
    wanted = [LONG | {"family": None}, changed]
    seen = send(client, tasks=wanted, dry_run=True)
    assert outcomes(seen) == ["created", "conflict"]
    assert differences(seen) == [
        ("/parameters/length", 0.6, 0.5),
        ("/reward", {"expression": "1"}, None),
        ("/discount", 0.9, 0.99),
    ]
    refused = send(client, 409, tasks=wanted)
    assert refused["errors"] == [
        {"pointer": "/tasks/1/parameters/length", "detail": "expected 0.6, stands 0.5"},
        {"pointer": "/tasks/1/reward", "detail": 'expected {"expression":"1"}, stands null'},
        {"pointer": "/tasks/1/discount", "detail": "expected 0.9, stands 0.99"},
    ]
    assert names(client) == ["short"]


def test_a_task_of_another_environment_is_not_compared_parameter_by_parameter(client):
    send(client, tasks=[SHORT])
    seen = send(client, tasks=[{"name": "short", "environment": "Pendulum-v1"}], dry_run=True)
    assert differences(seen) == [("/environment", "Pendulum-v1", "CartPole-v1"), ("/horizon", 200, 500)]


def test_the_name_that_a_definition_asks_for_must_be_the_one_that_it_stands_under(client):
    send(client, tasks=[SHORT])
    assert differences(send(client, tasks=[SHORT | {"name": "tiny"}], dry_run=True)) == [("/name", "tiny", "short")]
    unnamed = {name: value for name, value in SHORT.items() if name != "name"}
    [found] = send(client, tasks=[unnamed])["tasks"]
    assert (found["outcome"], found["name"]) == ("unchanged", "short")


def test_the_labels_that_a_definition_asks_for_must_stand_beside_any_others(client):
    send(client, tasks=[SHORT | {"labels": {"team": "a", "week": "7"}}])
    assert outcomes(send(client, tasks=[SHORT])) == ["unchanged"]
    assert outcomes(send(client, tasks=[SHORT | {"labels": {}}])) == ["unchanged"]
    seen = send(client, tasks=[SHORT | {"labels": {"team": "b", "day": "1"}}], dry_run=True)
    assert differences(seen) == [("/labels/day", "1", None), ("/labels/team", "b", "a")]


def test_one_name_for_two_definitions_in_one_request_is_a_conflict_also_where_neither_stands(client):
    seen = send(client, tasks=[SHORT, SHORT | {"horizon": 7}], dry_run=True)
    assert outcomes(seen) == ["created", "conflict"]
    assert differences(seen) == [("/horizon", 7, 500)]


def test_a_family_that_stands_otherwise_is_a_conflict_and_a_preset_may_be_named_as_it_is(client):
    send(client, families=[FAMILY])
    preset = client.get("/v1/task-families/cartpole-physics").json()
    definition = {name: preset[name] for name in ("name", "environment", "parameters", "reward", "discount", "horizon")}
    assert outcomes(send(client, families=[definition, FAMILY])) == ["unchanged"] * 2
    changed = FAMILY | {"parameters": {"length": {"uniform": [0.5, 2]}}}
    refused = send(client, 409, families=[definition, changed], tasks=[LONG])
    assert refused["errors"] == [
        {
            "pointer": "/families/1/parameters/length",
            "detail": 'expected {"uniform":[0.5,2.0]}, stands {"uniform":[0.5,1.0]}',
        }
    ]
    assert names(client) == []


def test_nothing_is_created_where_one_family_is_unknown(client):
    refused = send(client, 422, families=[FAMILY], tasks=[SHORT, LONG | {"family": "nowhere"}])
    assert refused["errors"] == [{"pointer": "/tasks/1/family", "detail": "there is no task family 'nowhere'"}]
    assert names(client) == []
    assert client.get("/v1/task-families/poles").status_code == 404


@pytest.mark.parametrize("dry_run", [True, False])
def test_every_member_at_fault_is_named(client, dry_run):
    wrong = {
        "families": [FAMILY | {"parameters": {"size": 1}}],
        "tasks": [SHORT, SHORT | {"parameters": {"length": -1}}],
    }
    pointers = [error["pointer"] for error in send(client, 422, dry_run=dry_run, **wrong)["errors"]]
    assert pointers == ["/families/0/parameters/size", "/tasks/1/parameters/length"]
    assert send(client, 422, tasks=[SHORT | {"colour": "red"}])["errors"][0]["pointer"] == "/tasks/0/colour"
    assert send(client, 422, dry_run="yes")["errors"][0]["pointer"] == "/dry_run"


def test_pipelines_that_apply_the_same_at_once_create_everything_once(client):
    tasks = [{"name": f"t{i}", "environment": "CartPole-v1", "horizon": 1 + i, "family": "poles"} for i in range(20)]

    def apply(shift):
        return send(client, families=[FAMILY], tasks=tasks[shift:] + tasks[:shift])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(apply, range(12)))
    created = [outcome for answer in answers for outcome in outcomes(answer) if outcome == "created"]
    assert len(created) == 21
    assert sorted(names(client)) == sorted(task["name"] for task in tasks)
