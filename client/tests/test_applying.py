from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from scripted_server import ScriptedServer, answer, problem

from headstart_client import Client, Conflict
from headstart_client.cli import main

FILE = """\
families:
  - name: poles
    environment: CartPole-v1
tasks:
  - name: long
    environment: CartPole-v1
    parameters:
      length: 1e0
    labels: {on: no}
---
tasks:
  - name: short
    environment: CartPole-v1
    family: poles
    discount: 1
"""
FAMILY = {"name": "poles", "environment": "CartPole-v1"}
LONG = {"name": "long", "environment": "CartPole-v1", "parameters": {"length": 1.0}, "labels": {"on": "no"}}
SHORT = {"name": "short", "environment": "CartPole-v1", "family": "poles", "discount": 1}
DIFFERENCE = {"pointer": "/parameters/length", "expected": 1.0, "stands": 0.5}


def finding(name: str, outcome: str = "created", *differences: object) -> dict[str, Any]:
    return {"name": name, "id": None, "outcome": outcome, "differences": list(differences)}


def findings(applied: bool, *tasks: object) -> dict[str, Any]:
    return {"applied": applied, "families": [finding("poles", "unchanged")], "tasks": list(tasks)}


def headstart(server: ScriptedServer, *words: str) -> int:
    return main(["--url", server.url, "--key", "hs_test", "tasks", "apply", *words])


@pytest.fixture(autouse=True)
def _file(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(FILE)


def test_a_file_is_sent_as_one_request_and_its_outcomes_are_a_table(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script(answer(findings(True, finding("long"), finding("short", "unchanged"))))
    assert headstart(server, "-f", "tasks.yaml") == 0
    [request] = server.requests
    assert (request.path, request.json) == (
        "/v1/tasks:apply",
        {"families": [FAMILY], "tasks": [LONG, SHORT], "dry_run": False},
    )
    assert "idempotency-key" in request.headers
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["KIND", "NAME", "OUTCOME", "DIFFERENCE"],
        ["family", "poles", "unchanged", "-"],
        ["task", "long", "created", "-"],
        ["task", "short", "unchanged", "-"],
        [],
        ["1", "created,", "2", "unchanged,", "0", "conflict"],
    ]


def test_a_dry_run_is_asked_of_the_service(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script(answer(findings(False, finding("long"), finding("short"))))
    assert headstart(server, "-f", "tasks.yaml", "--dry-run") == 0
    [request] = server.requests
    assert request.json["dry_run"] is True
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["task", "long", "would", "be", "created", "-"]
    assert lines[-1] == "2 would be created, 1 unchanged, 0 conflict; nothing was changed"


def test_conflicts_are_exit_code_8_with_what_differs_and_where_the_file_says_so(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = findings(False, finding("long", "conflict", DIFFERENCE), finding("short"))
    server.script(*[problem(409), answer(seen)] * 2, answer(seen))
    assert headstart(server, "-f", "tasks.yaml") == 8
    captured = capsys.readouterr()
    assert "long   conflict          tasks.yaml:8: /parameters/length: expected 1.0, stands 0.5" in captured.out
    assert "short  would be created" in captured.out
    assert captured.err == "headstart: 1 in conflict with what stands; nothing was changed\n"
    assert [request.json["dry_run"] for request in server.requests] == [False, True]
    assert headstart(server, "-f", "tasks.yaml", "--json") == 8
    document = json.loads(capsys.readouterr().out)
    assert document["counts"] == {"created": 1, "unchanged": 1, "conflict": 1}
    assert (document["applied"], document["tasks"][0]) == (False, seen["tasks"][0] | {"file": "tasks.yaml", "line": 5})
    assert headstart(server, "-f", "tasks.yaml", "--dry-run") == 8


def test_a_conflict_that_has_gone_when_it_is_looked_at_stays_the_refusal_that_it_was(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script(problem(409, "try again"), answer(findings(False, finding("long"), finding("short"))))
    assert headstart(server, "-f", "tasks.yaml") == 1
    assert "try again" in capsys.readouterr().err


def test_what_the_service_finds_wrong_is_shown_by_line(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = [
        {"pointer": "/tasks/1/family", "detail": "there is none"},
        {"pointer": "/families/0/name", "detail": "too long"},
        {"pointer": "/tasks", "detail": "too many"},
    ]
    refused = {"type": "/problems/invalid", "title": "Not valid", "status": 422, "detail": "x", "errors": errors}
    server.script(*[answer(refused, 422)] * 2)
    assert headstart(server, "-f", "tasks.yaml") == 1
    assert capsys.readouterr().err.splitlines() == [
        "headstart: Not valid; nothing was changed",
        "  tasks.yaml:14: /tasks/0/family: there is none",
        "  tasks.yaml:2: /families/0/name: too long",
        "  /tasks: too many",
    ]
    assert headstart(server, "-f", "tasks.yaml", "--json") == 1
    listed = json.loads(capsys.readouterr().out)["problem"]["errors"]
    assert listed[0] == {"file": "tasks.yaml", "line": 14, "pointer": "/tasks/0/family", "detail": "there is none"}


CART = "environment: CartPole-v1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"tasks:\n- {{{CART}}}\ntask: []", "t.yaml:3: /task: unknown; known: families, tasks"),
        ("[]", "t.yaml:1: must be an object with families, tasks or both"),
        ("tasks:\n  a: 1", "t.yaml:2: /tasks: must be a list, not an object"),
        ("tasks:\n- 1", "t.yaml:2: /tasks/0: must be an object, not the number 1"),
        ("tasks:\n- name: a", "t.yaml:2: /tasks/0/environment: required"),
        (f"families:\n- {CART}", "t.yaml:2: /families/0/name: required"),
        (f"families:\n- {CART}\n  name: a\n  split: test", "t.yaml:4: /families/0/split: unknown; known: name"),
        (f"tasks:\n- {CART}\n  name: 7", "t.yaml:3: /tasks/0/name: must be a text, not the number 7"),
        (f"tasks:\n- {CART}\n  name: true", "t.yaml:3: /tasks/0/name: must be a text, not true"),
        (f"tasks:\n- {CART}\n  discount: yes", "t.yaml:3: /tasks/0/discount: must be a number, not the text 'yes'"),
        (f"tasks:\n- {CART}\n  discount: true", "t.yaml:3: /tasks/0/discount: must be a number, not true"),
        (f"tasks:\n- {CART}\n  horizon: 1e3", "must be a whole number, not the number 1000.0"),
        (f"tasks:\n- {CART}\n  parameters:", "t.yaml:3: /tasks/0/parameters: must be an object, not nothing"),
        (f"tasks:\n- {CART}\n  split: all", "must be one of train, validation, test, not the text 'all'"),
        (f"tasks:\n- {CART}\n  reward: '1'", "must be an object {expression: a text}, not the text '1'"),
        (f"tasks:\n- {CART}\n  labels: {{a/b: 7}}", "/tasks/0/labels/a~1b: must be a text, not the number 7: quote it"),
        (f"tasks:\n- {CART}\n  name: a\n- {CART}\n  name: a\n  horizon: 7", "'a' is defined otherwise at t.yaml:2"),
        ("# nothing", "t.yaml: defines no families and no tasks"),
    ],
)
def test_what_is_wrong_in_a_file_is_found_before_anything_is_sent(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "t.yaml").write_text(text)
    assert headstart(server, "-f", "t.yaml") == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert server.requests == []


def test_every_fault_of_every_file_is_told_to_programs_too(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(f"tasks: [{{{CART}, size: 1}}]")
    (tmp_path / "b.json").write_text(json.dumps({"tasks": [LONG | {"horizon": 7}]}, indent=1))
    assert headstart(server, "-f", "tasks.yaml", "-f", "a.yaml", "-f", "b.json", "--json") == 2
    listed = json.loads(capsys.readouterr().out)["problem"]["errors"]
    assert [(each["file"], each["line"], each["pointer"]) for each in listed] == [
        ("a.yaml", 1, "/tasks/0/size"),
        ("b.json", 4, "/tasks/0/name"),
    ]


def test_the_same_definition_twice_is_no_fault(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(FILE)
    both = findings(True, *[finding("long"), finding("short")] * 2)
    server.script(answer(both | {"families": both["families"] * 2}))
    assert headstart(server, "-f", "tasks.yaml", "-f", "again.yaml") == 0


def test_a_folder_is_its_files_by_name_and_a_dash_is_stdin(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ci").mkdir()
    for name, horizon in (("b.yml", 2), ("a.json", 1), ("notes.txt", 9)):
        (tmp_path / "ci" / name).write_text(json.dumps({"tasks": [{"environment": "E", "horizon": horizon}]}))
    monkeypatch.setattr("sys.stdin", io.StringIO("tasks: [{environment: E, horizon: 3}]"))
    server.script(answer({"applied": True, "families": [], "tasks": [finding(str(i)) for i in range(3)]}))
    assert headstart(server, "-f", "ci", "-f", "-") == 0
    assert [task["horizon"] for task in server.requests[0].json["tasks"]] == [1, 2, 3]


def test_from_python_a_conflict_is_an_exception_and_a_dry_run_has_it_as_a_finding(
    server: ScriptedServer, client: Client
) -> None:
    seen = findings(False, finding("long", "conflict", DIFFERENCE))
    server.script(problem(409), answer(seen))
    with pytest.raises(Conflict):
        client.tasks.apply([LONG], [FAMILY])
    found = client.tasks.apply([LONG], [FAMILY], dry_run=True)
    assert (found.applied, found.count("conflict"), found.tasks[0].differences[0].stands) == (False, 1, 0.5)
