from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_server import ScriptedServer, answer, problem

from headstart_client import Client, EvaluationFailed, Policy, Version
from headstart_client.cli import main

INTERVAL = {"estimate": 1.5, "low": 1.0, "high": 2.0}
PERFORMANCE = {"mean": INTERVAL, "interquartile_mean": INTERVAL}
SUBJECT: dict[str, Any] = {
    "before": PERFORMANCE,
    "after": PERFORMANCE,
    "worse": INTERVAL | {"estimate": 0.25},
    "gap": None,
    "regret": None,
    "threshold": {"median_environment_steps": None, "censored": 3, "environment_steps": [[5, None], [None, None]]},
}
COMPARISON = {"first": "a", "second": "b", "difference": INTERVAL, "probability": INTERVAL, "verdict": "better"}
DONE: dict[str, Any] = {
    "id": "e1",
    "state": "succeeded",
    "progress": {"done": 4, "total": 4},
    "verdict": "better",
    "leakage": [],
    "warnings": [],
    "protocol": {"subjects": [{"name": "a", "version": "m/1"}]},
    "result": {"methods": {"inner-loop": {"subjects": {"a": SUBJECT, "b": SUBJECT}, "comparisons": [COMPARISON]}}},
    "files": [],
}


def headstart(server: ScriptedServer, *words: str) -> int:
    return main(["--url", server.url, "--key", "hs_test", *words])


def test_an_evaluation_is_asked_for_and_waited_for(server: ScriptedServer, client: Client) -> None:
    server.script(answer(DONE | {"state": "queued", "result": None}, 202), answer(DONE))
    subjects = [Version(model="m", version=1), Policy(id="p1"), {"name": "x", "version": "m@champion"}]
    found = client.evaluate(subjects, {"family": "f"}, methods=["inner-loop", {"name": "ppo", "episodes": 5}], seeds=2)
    assert (found.verdict, found.progress.done) == ("better", 4)
    assert server.requests[0].json == {
        "subjects": ["m/1", {"policy": "p1"}, {"name": "x", "version": "m@champion"}],
        "tasks": {"family": "f"},
        "methods": [{"name": "inner-loop"}, {"name": "ppo", "episodes": 5}],
        "seeds": 2,
    }


def test_one_that_fails_raises_what_failed_it(server: ScriptedServer, client: Client) -> None:
    server.script(answer(DONE | {"state": "failed", "error": {"type": "corrupt", "detail": "damaged"}}))
    with pytest.raises(EvaluationFailed, match="evaluation e1 failed: damaged"):
        client.evaluations.wait("e1")


def test_the_command_sends_what_was_chosen_and_prints_numbers_with_intervals(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script(answer(DONE, 202), answer(DONE))
    options = ["--family", "f", "--count", "3", "--task-seed", "4", "--method", "ppo", "--environment-steps", "100"]
    options += ["--option", "epochs=2", "--threshold", "2", "--no-scratch", "--fail-unless", "better"]
    assert headstart(server, "evaluate", "m/1", "policy:p1", *options) == 0
    assert server.requests[0].json == {
        "subjects": ["m/1", {"policy": "p1"}],
        "tasks": {"family": "f", "count": 3, "seed": 4},
        "methods": [{"name": "ppo", "environment_steps": 100, "epochs": 2}],
        "threshold": 2.0,
        "scratch": False,
    }
    out = capsys.readouterr().out
    assert "1.5 [1, 2]" in out
    assert "not reached by half (1 of 4 got there)" in out
    assert "a against b by inner-loop: better" in out


def test_an_evaluation_is_repeated_by_its_document_and_changed_by_options(
    server: ScriptedServer, tmp_path: Path
) -> None:
    (tmp_path / "done.json").write_text(json.dumps(DONE))
    server.script(answer(DONE, 202), answer(DONE))
    assert headstart(server, "evaluate", "--file", "done.json", "--seed", "7") == 0
    assert server.requests[0].json == {"subjects": [{"name": "a", "version": "m/1"}], "seed": 7}


@pytest.mark.parametrize(
    ("verdict", "wanted", "code"),
    [
        ("better", "better", 0),
        ("better", "better-or-equal", 0),
        ("no difference shown", "better", 6),
        ("no difference shown", "better-or-equal", 0),
        ("worse", "better", 6),
        ("worse", "better-or-equal", 6),
    ],
)
def test_a_pipeline_goes_by_the_exit_code(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], verdict: str, wanted: str, code: int
) -> None:
    server.script(*[answer(DONE | {"verdict": verdict})] * 2)
    assert headstart(server, "evaluate", "m/2", "m/1", "--family", "f", "--fail-unless", wanted, "--json") == code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["verdict"] == verdict
    assert ("--fail-unless" in printed.err) == bool(code)


def test_leakage_is_loud_whatever_the_verdict(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    leak = {"subject": "a", "tasks": ["t"], "detail": "a was trained on 1 of the 1 held-out tasks: t\x1b[2J"}
    server.script(*[answer(DONE | {"leakage": [leak], "warnings": ["few"]})] * 2)
    assert headstart(server, "evaluate", "m/2", "m/1", "--family", "f", "--fail-unless", "better") == 7
    err = capsys.readouterr().err.splitlines()
    assert err == ["warning: few", "LEAKAGE: a was trained on 1 of the 1 held-out tasks: t\\x1b[2J"]


def test_a_verdict_needs_two_subjects(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert headstart(server, "evaluate", "m/2", "--family", "f", "--fail-unless", "better") == 2
    assert "needs two subjects" in capsys.readouterr().err
    assert server.requests == []


def test_what_is_refused_is_told(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script(problem(422, "give exactly one"))
    assert headstart(server, "evaluate", "m/2") == 1
    assert "give exactly one" in capsys.readouterr().err


def test_an_alias_is_moved_only_with_the_evaluation_that_is_required(server: ScriptedServer) -> None:
    alias = {"model": "m", "alias": "champion", "version": 2, "updated_at": "2026-01-01T00:00:00Z"}
    server.script(answer(alias))
    assert headstart(server, "models", "alias", "set", "m", "champion", "2", "--require-evaluation", "e1") == 0
    assert server.requests[0].json == {"version": 2, "require_evaluation": "e1"}
