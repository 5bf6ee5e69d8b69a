from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Answer, ScriptedServer, answer, problem

from headstart_client.cli import main
from headstart_client.output import cell, table

TASK = {
    "id": "t1",
    "name": "long",
    "environment": "CartPole-v1",
    "parameters": {"length": 1.0},
    "horizon": 200,
    "labels": {},
    "digest": "d1",
}
RUN = {"id": "r1", "state": "running", "model": "m"}
ACTION = {"actions": [1], "log_probs": [-0.21], "values": [88.1], "policy": "p1"}


def headstart(server: ScriptedServer, *words: str) -> int:
    return main(["--url", server.url, "--key", "hs_test", *words])


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_tables_are_aligned_with_numbers_to_the_right() -> None:
    text = table(["name", "version"], [["a", 3], ["longer", 12], ["b", None]])
    assert text == "NAME    VERSION\na             3\nlonger       12\nb             -"


def test_a_table_cannot_be_used_to_rewrite_a_terminal() -> None:
    assert cell("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"


def test_a_list_is_a_table_or_one_json_document(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script(*[answer({"tasks": [TASK], "next_page_token": None})] * 2)
    assert headstart(server, "tasks", "list") == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["NAME", "ENVIRONMENT"]
    assert row.split()[:2] == ["long", "CartPole-v1"]
    assert headstart(server, "tasks", "list", "--json") == 0
    assert printed(capsys) == {"tasks": [TASK]}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_json_may_be_asked_for_anywhere(server: ScriptedServer, capsys: pytest.CaptureFixture[str], place: int) -> None:
    server.script(answer(TASK))
    words = ["tasks", "get", "long"]
    words.insert(place, "--json")
    assert headstart(server, *words) == 0
    assert printed(capsys) == TASK


def test_a_task_is_created_from_options(server: ScriptedServer) -> None:
    server.script(answer(TASK, 201))
    options = ["--name", "long", "--parameter", "length=1.0", "--parameter", "kind=red", "--label", "a=b=c"]
    assert headstart(server, "tasks", "create", "--environment", "CartPole-v1", *options) == 0
    assert server.requests[0].json == {
        "environment": "CartPole-v1",
        "name": "long",
        "parameters": {"length": 1.0, "kind": "red"},
        "labels": {"a": "b=c"},
    }


@pytest.mark.parametrize("name", ["tasks.json", "listed.json", "tasks.jsonl"])
def test_tasks_are_imported_from_each_kind_of_file(server: ScriptedServer, tmp_path: Path, name: str) -> None:
    definition = {"name": "long", "environment": "CartPole-v1", "parameters": {"length": 1.0}, "horizon": 200}
    contents = {
        "tasks.json": json.dumps([definition]),
        "listed.json": json.dumps({"tasks": [TASK]}),
        "tasks.jsonl": json.dumps(definition) + "\n\n",
    }
    (tmp_path / name).write_text(contents[name])
    server.script(answer({"tasks": [TASK]}))
    assert headstart(server, "tasks", "import", name) == 0
    assert server.requests[0].path == "/v1/tasks:batchCreate"
    assert server.requests[0].json == {"tasks": [definition]}


@pytest.mark.parametrize("content", ["{", "[1]", "{}", "[" * 100_000])
def test_a_file_that_makes_no_sense_is_a_usage_error(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "tasks.json").write_text(content)
    assert headstart(server, "tasks", "import", "tasks.json") == 2
    assert "tasks.json" in capsys.readouterr().err
    assert headstart(server, "tasks", "import", "missing.json") == 2
    assert server.requests == []


def test_a_refusal_is_exit_code_1_with_the_problem(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script(problem(409, "the name stands"), problem(409, "the name stands"))
    command = ["tasks", "create", "--environment", "CartPole-v1"]
    assert headstart(server, *command) == 1
    assert capsys.readouterr().err == "headstart: the name stands\n"
    assert headstart(server, "--json", *command) == 1
    assert printed(capsys)["problem"]["status"] == 409


@pytest.mark.parametrize(
    "words",
    [[], ["tasks"], ["nothing"], ["act", "p1", "--observation", "a,b"], ["tasks", "list", "--label", "a"]],
)
def test_a_command_line_that_makes_no_sense_is_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err


def test_a_url_that_is_none_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "nowhere", "tasks", "list"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_nobody_listening_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--url", "http://127.0.0.1:1", "models", "list"]) == 3
    captured = capsys.readouterr()
    assert "cannot reach" in json.loads(captured.out)["problem"]["detail"]
    assert "Traceback" not in captured.err


def test_a_run_that_failed_is_exit_code_4_with_the_run(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {**RUN, "state": "failed", "error": {"type": "diverged", "detail": "a loss was NaN"}}
    server.script(answer(failed), answer({"metrics": []}), answer(failed))
    assert headstart(server, "runs", "watch", "r1", "--json") == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out) == failed
    assert "a loss was NaN" in captured.err


def test_what_happens_to_a_run_is_one_object_a_line_and_its_end_the_last(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"sequence": i, "iteration": i, "values": {"return_after": 1.5 * i}} for i in (1, 2, 3)]
    ended = {**RUN, "state": "succeeded", "version": 3}
    told = [f"event: metrics\nid: 3\ndata: {json.dumps(rows[2])}\n\n", f"event: state\ndata: {json.dumps(ended)}\n\n"]
    stream = Answer(200, "".join(told).encode(), {"Content-Type": "text/event-stream"})
    server.script(answer(RUN), answer({"metrics": rows[:2]}), stream, answer(ended))
    assert headstart(server, "runs", "watch", "r1", "--json") == 0
    captured = capsys.readouterr()
    assert [json.loads(line) for line in captured.out.splitlines()] == [RUN, *rows, ended]
    assert captured.err == ""
    assert server.requests[2].headers["last-event-id"] == "2"


def test_a_run_that_takes_too_long_is_exit_code_5(server: ScriptedServer) -> None:
    for options in ([], ["--json"]):
        server.script(answer(RUN), answer({"metrics": []}), Answer(held=True))
        assert headstart(server, "runs", "watch", "r1", "--timeout", "0.2", *options) == 5


def test_a_run_is_started_from_a_file_and_watched(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"model": "m", "learner": {"name": "maml"}, "tasks": {"family": "f"}, "stop": {"seconds": 1}}
    (tmp_path / "run.json").write_text(json.dumps(body))
    ended = {**RUN, "state": "succeeded", "version": 3}
    server.script(answer(RUN, 202), answer(ended), answer({"metrics": []}))
    command = ["runs", "start", "run.json", "--watch", "--json", "--idempotency-key", "nightly-7"]
    assert headstart(server, *command) == 0
    assert printed(capsys) == ended
    assert server.requests[0].json == body
    assert server.requests[0].headers["idempotency-key"] == "nightly-7"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("reptile", {"name": "reptile"}),
        ('{"name": "maml", "outer_step": "trpo"}', {"name": "maml", "outer_step": "trpo"}),
    ],
)
def test_a_run_takes_its_learner_and_its_device_from_the_command_line_too(
    server: ScriptedServer,
    tmp_path: Path,
    written: str,
    sent: object,
) -> None:
    body = {"model": "m", "learner": {"name": "anil"}, "tasks": {"family": "f"}, "stop": {"seconds": 9}}
    (tmp_path / "run.json").write_text(json.dumps(body))
    server.script(answer(RUN, 202))
    command = ["runs", "start", str(tmp_path / "run.json"), "--learner", written, "--device", "cuda"]
    assert headstart(server, *command) == 0
    assert server.requests[0].json == body | {"learner": sent, "device": "cuda"}


def test_an_evaluation_is_a_table_of_held_out_tasks(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [{"environment": "CartPole-v1", "parameters": {"length": length}} for length in (0.25, 1.0)]
    held_out = {"family": "cartpole-physics", "split": "test", "seed": 0, "tasks": tasks}
    best = {"iteration": 40, "held_out_return_after": 180.5}
    row = {"sequence": 40, "iteration": 40, "evaluation": {"mean_return": [[20.0, 22.0], [170.0, None]]}}
    answers = (answer(held_out), answer({**RUN, "best": best}), answer({"metrics": [row]}))
    server.script(*answers, *answers, answer(held_out), answer(RUN))
    assert headstart(server, "runs", "evaluation", "r1") == 0
    assert "after=39" in server.requests[2].path
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["PARAMETERS", "BEFORE", "STEP", "1"],
        ["length=0.25", "20", "170"],
        ["length=1", "22", "-"],
    ]
    assert headstart(server, "runs", "evaluation", "r1", "--json") == 0
    document = printed(capsys)
    assert (document["iteration"], document["tasks"][0]["mean_return"]) == (40, [20.0, 170.0])
    assert headstart(server, "runs", "evaluation", "r1") == 0
    assert capsys.readouterr().out == "not evaluated yet\n"


def test_metrics_are_a_table_with_a_column_for_each_value(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"sequence": i, "iteration": i, "values": {"return_after": 1.5 * i}} for i in (1, 2)]
    server.script(answer({"metrics": rows}))
    assert headstart(server, "runs", "metrics", "r1", "--after", "0") == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["AFTER", "1.5", "3"]
    assert "after=0" in server.requests[0].path


def test_an_alias_shows_the_etag_that_moves_it(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    alias = {"model": "m", "alias": "champion", "version": 3}
    server.script(answer(alias, ETag='"7"'), answer(alias, ETag='"7"'))
    assert headstart(server, "models", "alias", "get", "m", "champion", "--json") == 0
    assert printed(capsys)["etag"] == '"7"'
    assert headstart(server, "models", "alias", "set", "m", "champion", "3", "--if-match", '"7"') == 0
    assert server.requests[1].headers["if-match"] == '"7"'


def test_adapt_sends_what_was_chosen(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    done = {"id": "a1", "state": "succeeded", "policy": "p1", "after": {"mean_return": 197}}
    server.script(answer(done, 201))
    task = '{"environment": "CartPole-v1"}'
    assert headstart(server, "adapt", "m@champion", "--task", task, "--steps", "1", "--seed", "0") == 0
    assert server.requests[0].json == {
        "model": "m@champion",
        "task": {"environment": "CartPole-v1"},
        "method": {"name": "inner-loop", "steps": 1},
        "seed": 0,
    }
    assert "p1" in capsys.readouterr().out


def test_adapting_to_an_environment_elsewhere_does_not_wait_for_episodes_at_a_terminal(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    server.script(answer({"id": "a1", "state": "collecting", "policy": "p1"}, 201))
    assert headstart(server, "adapt", "m", "--task", '{"remote": {}}') == 0
    assert len(server.requests) == 1
    assert "p1" in capsys.readouterr().out


def test_an_observation_may_begin_with_a_minus(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script(answer(ACTION), answer(ACTION))
    assert headstart(server, "act", "p1", "--observation", "-0.1,0,0.2,0", "--json") == 0
    assert printed(capsys) == ACTION
    assert headstart(server, "act", "p1", "--sample", "--seed", "7", "--observation=0,0", "--observation", "1,0") == 0
    assert [request.json for request in server.requests] == [
        {"observations": [[-0.1, 0.0, 0.2, 0.0]], "deterministic": True},
        {"observations": [[0.0, 0.0], [1.0, 0.0]], "deterministic": False, "seed": 7},
    ]


def command(server: ScriptedServer, *words: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "headstart_client", "--url", server.url, *words]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_reader_that_goes_away_is_no_error(server: ScriptedServer) -> None:
    server.script(answer({"tasks": [TASK] * 5000}))
    read, write = os.pipe()
    os.close(read)
    arguments = [sys.executable, "-m", "headstart_client", "--url", server.url, "tasks", "list"]
    done = subprocess.run(arguments, stdout=write, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_interrupt_is_exit_code_130_without_a_traceback(server: ScriptedServer) -> None:
    server.script(answer(RUN), answer({"metrics": []}), Answer(held=True))
    with command(server, "runs", "watch", "r1") as process:
        deadline_s = time.monotonic() + 20
        while len(server.requests) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.splitlines()[-2:] == ["interrupted", "run r1 goes on; stop it with: headstart runs cancel r1"]
    assert "Traceback" not in errors


def test_a_damaged_download_is_exit_code_1(server: ScriptedServer, tmp_path: Path) -> None:
    files = [{"name": "manifest.json", "sha256": "0" * 64}]
    server.script(answer({"model": "m", "version": 3, "files": files}), Answer(200, b"{}"))
    assert headstart(server, "models", "fetch", "m/3", "--out", str(tmp_path / "out")) == 1
    assert list((tmp_path / "out").iterdir()) == []


EPISODE = {name: [0.5, 0.5] for name in ("rewards", "values", "log_probs")} | {
    "observations": [[0.0], [0.1], [0.2]],
    "actions": [1, 0],
    "terminated": False,
    "truncated": True,
    "return": 1.0,
}
ROLLOUT = {"policy": "p1", "task": "t1", "seed": 3, "deterministic": True, "episodes": [EPISODE]}


def test_a_rollout_is_a_table_of_its_episodes_or_json(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.script(*[answer(ROLLOUT)] * 3)
    assert headstart(server, "policies", "rollout", "p1", "--seed", "3", "--sample") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["EPISODE", "STEPS", "RETURN", "END"],
        ["0", "2", "1", "truncated"],
    ]
    assert "deterministic=false" in server.requests[0].path
    assert headstart(server, "policies", "rollout", "p1", "--json") == 0
    assert printed(capsys) == ROLLOUT
    assert headstart(server, "policies", "rollout", "p1", "--out", str(tmp_path / "r.json")) == 0
    assert json.loads((tmp_path / "r.json").read_text()) == ROLLOUT


def test_a_film_is_written_to_the_file_that_is_named_or_to_one_here(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.script(*[Answer(200, b"film")] * 2)
    assert headstart(server, "policies", "rollout", "p1", "--out", "balance.gif", "--episodes", "2") == 0
    assert capsys.readouterr().out == "wrote balance.gif\n"
    assert headstart(server, "policies", "rollout", "p1", "--format", "mp4", "--json") == 0
    assert printed(capsys) == {"file": "rollout-p1-seed-0.mp4", "size_bytes": 4}
    assert {path.name for path in tmp_path.iterdir()} == {"balance.gif", "rollout-p1-seed-0.mp4"}
    assert [request.path.partition("format=")[2][:3] for request in server.requests] == ["gif", "mp4"]
