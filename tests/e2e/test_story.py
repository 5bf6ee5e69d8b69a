"""From tasks to actions through a running service, with the client and its command as a user has them."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from headstart_client import AdaptationFailed, Client, InvalidRequest, NotFound, PreconditionFailed, RunFailed

CARTPOLE = {"environment": "CartPole-v1", "horizon": 50}
HEADSTART = str(Path(sys.executable).with_name("headstart"))
SMALL = {
    "learner": {"name": "maml", "tasks_per_iteration": 3, "episodes_per_task": 4, "inner_learning_rate": 1.0},
    "policy": {"hidden": [8]},
    "stop": {"iterations": 3},
}


@pytest.fixture(scope="module")
def client(service):
    key = service.settings.admin_key_file.read_text().strip()
    with Client(str(service.http.base_url), key) as client:
        yield client


@pytest.fixture(scope="module")
def version(client):
    run = client.runs.create(
        "story",
        tasks={"family": "cartpole-reversed"},
        evaluation={"split": "test", "tasks": 2, "every_iterations": 2},
        **SMALL,
    ).wait()
    return client.versions.get(f"story/{run.version}")


def test_a_run_leaves_its_metrics_and_a_version_with_its_lineage(client, version):
    lineage = client.versions.lineage(version)
    run = client.runs.get(lineage.run)
    assert (run.state, run.stopped_by, run.progress.fraction) == ("succeeded", "iterations", 1.0)
    metrics = list(client.runs.metrics(run))
    assert [m.iteration for m in metrics] == [1, 2, 3]
    assert all({"return_before", "return_after"} <= set(m.values) for m in metrics)
    assert "held_out_return_after" in metrics[1].values
    held_out = client.runs.evaluation_tasks(run)
    assert [len(returns) for returns in metrics[1].evaluation.mean_return] == [len(held_out.tasks)] * 2
    assert [m.evaluation is None for m in metrics] == [True, False, False]
    assert (run.best.iteration, run.best.held_out_return_after) == (
        version.manifest["iteration"],
        version.metrics["held_out_return_after"],
    )
    assert lineage.learner["inner_learning_rate"] == 1.0
    assert lineage.code_version == version.manifest["code_version"]
    events = list(client.runs.events(run))
    assert [e.kind for e in events].count("metrics") == 3
    assert events[-1].data["state"] == "succeeded"


def test_registered_tasks_can_be_trained_on(client):
    tasks = client.families.sample("cartpole-reversed", 3, seed=9)
    run = client.runs.create("registered", tasks=tasks, **SMALL).wait()
    assert client.versions.lineage(f"registered/{run.version}").tasks["ids"] == [task.id for task in tasks]


def test_equal_runs_end_in_equal_parameters(client):
    digests = set()
    for _ in range(2):
        run = client.runs.create("twin", tasks={"family": "cartpole-reversed"}, seed=4, **SMALL).wait()
        files = client.versions.get(f"twin/{run.version}").files
        digests |= {file.sha256 for file in files if file.name == "parameters.safetensors"}
    assert len(digests) == 1


def test_a_task_never_seen_gets_a_policy_that_acts(client, version, tmp_path):
    client.aliases.set("story", "champion", version)
    task = client.families.sample("cartpole-reversed", 1, seed=3, split="test")[0]
    adaptation = client.adapt("story@champion", task, steps=2, episodes=4)
    assert adaptation.state == "succeeded"
    assert (adaptation.model, adaptation.version) == ("story", version.version)
    assert [point.episodes for point in adaptation.curve] == [0, 4, 8]
    assert adaptation.curve[0].mean_return == adaptation.before.mean_return
    assert adaptation.curve[-1].mean_return == adaptation.after.mean_return
    observations = np.random.default_rng(0).normal(size=(5, 4))
    action = client.act(adaptation, observations)
    assert action.actions.shape == (5,)
    assert set(action.actions.tolist()) <= {0, 1}
    again = [client.act(adaptation, observations, deterministic=False, seed=1).actions.tolist() for _ in range(2)]
    assert again[0] == again[1]
    assert client.act(version, observations).actions.shape == (5,)
    path = client.policies.download(adaptation.policy, tmp_path / "policy.safetensors")
    assert path.stat().st_size > 0
    client.policies.delete(adaptation.policy)
    with pytest.raises(NotFound):
        client.policies.get(adaptation.policy)


@pytest.mark.usefixtures("version")
def test_the_same_adaptation_with_the_same_seed_is_the_same_policy(client):
    task = {"environment": "CartPole-v1", "parameters": {"force_mag": -10.0}, "horizon": 50}
    values = [
        client.act(client.adapt("story", task, steps=1, episodes=4, seed=6), [0.1, 0.0, 0.0, 0.0]).values[0]
        for _ in range(2)
    ]
    assert values[0] == values[1]


def test_a_policy_can_be_adapted_from_scratch(client):
    adaptation = client.adapt(None, {"environment": "Navigation2D-v0"}, policy={"hidden": [8]}, steps=1, episodes=4)
    action = client.act(adaptation, [0.0, 0.0])
    assert action.actions.shape == (1, 2)
    assert np.abs(action.actions).max() <= 0.1


def test_a_reward_that_turns_nan_fails_the_run_and_the_adaptation_with_the_reason(client):
    task = client.tasks.create("CartPole-v1", name="nan", reward="sqrt(0.5 - abs(observation[1]))")
    with pytest.raises(RunFailed, match=r"NaN.*sqrt"):
        client.runs.create("nan", tasks=[task], **SMALL | {"stop": {"iterations": 50}}).wait()
    with pytest.raises(NotFound):
        client.models.get("nan")
    with pytest.raises(AdaptationFailed, match=r"NaN.*sqrt"):
        client.adapt(None, task, steps=3, episodes=20)


@pytest.mark.usefixtures("version")
def test_a_task_of_other_spaces_than_the_models_is_refused(client):
    with pytest.raises(InvalidRequest, match="MountainCar-v0"):
        client.adapt("story", {"environment": "MountainCar-v0"})


def test_versions_are_promoted_rolled_back_and_fetched(client, version, tmp_path):
    second = client.runs.create("story", tasks={"family": "cartpole-reversed"}, seed=1, **SMALL).wait().version
    first = client.aliases.set("story", "production", version)
    moved = client.aliases.set("story", "production", second, if_match=first.etag)
    with pytest.raises(PreconditionFailed):
        client.aliases.set("story", "production", version, if_match=first.etag)
    assert moved.version == second
    assert client.aliases.rollback("story", "production").version == version.version
    history = [(event.action, event.version) for event in client.aliases.history("story", "production")]
    assert history == [("rollback", version.version), ("set", second), ("set", version.version)]
    files = client.versions.download("story@production", tmp_path)
    assert {file.name for file in files} == {"manifest.json", "parameters.safetensors"}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["environment"] == "CartPole-v1"


def headstart(service, *arguments):
    environ = service.environ | {"HEADSTART_URL": str(service.http.base_url)}
    return subprocess.run([HEADSTART, *arguments], env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.databases("sqlite")
def test_the_command_line_tells_the_same_story(service, tmp_path):
    sampled = headstart(service, "families", "sample", "cartpole-physics", "--count", "2", "--json")
    assert sampled.returncode == 0, sampled.stderr
    name = json.loads(sampled.stdout)["tasks"][0]["name"]
    body = {"model": "shell", "tasks": {"family": "cartpole-physics"}} | SMALL
    (tmp_path / "run.json").write_text(json.dumps(body))
    started = headstart(service, "runs", "start", str(tmp_path / "run.json"), "--watch", "--json")
    assert started.returncode == 0, started.stderr
    assert json.loads(started.stdout)["state"] == "succeeded"
    assert headstart(service, "models", "alias", "set", "shell", "champion", "1").returncode == 0
    adapted = headstart(service, "adapt", "shell@champion", "--task", name, "--episodes", "4", "--json")
    assert adapted.returncode == 0, adapted.stderr
    policy = json.loads(adapted.stdout)["policy"]
    acted = headstart(service, "act", policy, "--observation", "0.1,0,0.2,0", "--json")
    assert json.loads(acted.stdout)["actions"][0] in (0, 1)
    fetched = headstart(service, "models", "fetch", "shell@champion", "--out", str(tmp_path / "shell"))
    assert fetched.returncode == 0
    assert (tmp_path / "shell" / "parameters.safetensors").exists()


def test_a_policy_is_trained_on_published_and_trained_on_again(client, version):
    first = client.adapt(version, CARTPOLE, method="ppo", environment_steps=1000, steps=20, epochs=2)
    assert (first.stopped_by, first.progress.fraction) == ("environment_steps", 1.0)
    assert first.curve[0].mean_return == first.before.mean_return
    assert first.curve[-1].environment_steps == first.progress.environment_steps
    second = client.adapt(None, CARTPOLE, policy=first.policy, method="dqn", environment_steps=600, wait=False)
    assert second.start_policy == first.policy
    events = list(client.adaptations.events(second))
    second = client.adaptations.get(second)
    assert [event.kind for event in events].count("curve") == len(second.curve)
    published = client.policies.publish(second, "story-tuned")
    lineage = client.versions.lineage(published)
    assert (lineage.parent, lineage.policy, lineage.method["name"]) == (version.reference, second.policy, "dqn")
    assert client.act(published, [0.1, 0.0, 0.2, 0.0]).actions[0] in (0, 1)
    many = client.adaptations.create_many(
        published,
        [CARTPOLE | {"parameters": {"length": length}} for length in (0.3, 0.6)],
        method="inner-loop",
        steps=1,
    )
    assert [each.state for each in many] == ["succeeded"] * 2


@pytest.mark.databases("sqlite")
def test_the_command_line_trains_on_and_publishes(service):
    task = json.dumps(CARTPOLE)
    made = headstart(
        service,
        *("adapt", "--policy", '{"hidden": [8]}', "--task", task, "--method", "ppo", "--environment-steps", "600"),
        *("--option", "epochs=2", "--option", "schedule=constant", "--json"),
    )
    assert made.returncode == 0, made.stderr
    body = json.loads(made.stdout)
    assert (body["method"]["epochs"], body["method"]["schedule"], body["stopped_by"]) == (
        2,
        "constant",
        "environment_steps",
    )
    published = headstart(service, "policies", "publish", body["policy"], "from-the-shell", "--json")
    assert json.loads(published.stdout)["version"] == 1, published.stderr
    for words in (("adaptations", "list"), ("policies", "list"), ("adaptations", "get", body["id"])):
        told = headstart(service, *words)
        assert told.returncode == 0
        assert body["id"] in told.stdout
    neither = headstart(service, "adapt", "--task", task)
    assert (neither.returncode, "--policy" in neither.stderr) == (2, True)
    endless = headstart(service, "adapt", "from-the-shell", "--task", task, "--method", "sac")
    assert endless.returncode == 1
    assert "at least one of environment_steps" in endless.stderr


EVALUATED = ("--method", "inner-loop", "--steps", "2", "--episodes", "4", "--seeds", "2", "--count", "4")


@pytest.mark.databases("sqlite")
def test_versions_are_evaluated_and_a_pipeline_goes_by_the_verdict(service, client, version, tmp_path):
    client.aliases.set("story", "champion", version)
    subjects = (version.reference, "story@champion")
    asked = ("evaluate", *subjects, "--family", "cartpole-reversed", *EVALUATED)
    report = tmp_path / "report.html"
    done = headstart(service, *asked, "--fail-unless", "better-or-equal", "--report", str(report))
    assert done.returncode == 0, done.stderr
    assert f"{version.reference} against story@champion by inner-loop: no difference shown" in done.stdout
    assert "</html>" in report.read_text()

    done = headstart(service, *asked, "--fail-unless", "better", "--json", "--no-scratch")
    assert done.returncode == 6
    assert "the verdict is 'no difference shown', but --fail-unless better" in done.stderr
    evaluation = client.evaluations.get(json.loads(done.stdout)["id"])
    assert evaluation.result["subjects"].keys() == set(subjects)
    assert client.aliases.set("story", "gated", version, require_evaluation=evaluation).version == version.version
    paths = client.evaluations.download_all(evaluation, tmp_path)
    assert {path.name for path in paths} == {file.name for file in evaluation.files}
    again = client.evaluations.wait(client.evaluations.submit(evaluation.protocol))
    assert again.result == evaluation.result

    done = headstart(service, *asked, "--split", "train")
    assert done.returncode == 7
    assert f"LEAKAGE: {version.reference} was trained on 4 of the 4 held-out tasks" in done.stderr


@pytest.mark.databases("sqlite")
def test_a_run_is_watched_at_a_terminal_and_by_a_program(service, client):
    stop = {"iterations": 12}
    run = client.runs.create("watched", tasks={"family": "cartpole-reversed"}, **SMALL | {"stop": stop})
    ours, theirs = pty.openpty()
    environ = service.environ | {"HEADSTART_URL": str(service.http.base_url), "TERM": "xterm", "PYTHONUTF8": "1"}
    watching = subprocess.Popen([HEADSTART, "runs", "watch", run.id], env=environ, stderr=theirs, stdout=theirs)
    os.close(theirs)
    screen = b""
    # Linux ends the reading of a terminal that nobody has open any more with an error.
    with contextlib.suppress(OSError):
        while data := os.read(ours, 65536):
            screen += data
    os.close(ours)
    assert watching.wait(60) == 0
    *_, block = screen.decode().split("\x1b[?25l")
    for words in (
        "100%",
        "iteration 12",
        "steps/s",
        "succeeded after",
        "return ",
        " ┤",
        "⠤⠤ after",
        f"version {' ' * 7}wa",
    ):
        assert words in block
    told = headstart(service, "runs", "watch", run.id, "--json")
    *rows, ended = map(json.loads, told.stdout.splitlines())
    assert [row["iteration"] for row in rows] == list(range(1, 13))
    assert (told.returncode, ended["state"], told.stderr) == (0, "succeeded", "")


@pytest.mark.databases("sqlite")
def test_the_command_line_says_by_its_exit_code_what_went_wrong(service):
    assert headstart(service, "tasks", "get", "nobody").returncode == 1
    assert headstart(service, "tasks", "gett", "nobody").returncode == 2
    assert headstart(service, "--url", "http://127.0.0.1:9", "tasks", "list").returncode == 3
