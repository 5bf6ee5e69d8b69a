from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from scripted_server import Answer, ScriptedServer, answer, problem

from headstart_client import (
    AdaptationFailed,
    Client,
    HeadstartError,
    InvalidRequest,
    InvalidResponse,
    RunFailed,
    Timeout,
)

TASK = {"id": "t1", "name": "long", "environment": "CartPole-v1"}


def run(state: str, **members: object) -> dict[str, object]:
    progress = {"fraction": 0.4, "iterations": 80, "environment_steps": 6400000, "seconds": 31.2}
    metrics = {"return_before": 21.3, "return_after": 187.0}
    return {"id": "r1", "state": state, "model": "m", "progress": progress, "metrics": metrics, **members}


def adaptation(state: str, **members: object) -> dict[str, object]:
    return {"id": "a1", "state": state, "model": "m", "version": 3, "task": "t1", **members}


def test_many_tasks_are_sent_in_batches_of_a_thousand(server: ScriptedServer, client: Client) -> None:
    server.script(answer({"tasks": [TASK] * 1000}), answer({"tasks": [TASK] * 5}))
    tasks = client.tasks.create_many({"environment": "CartPole-v1", "horizon": i} for i in range(1, 1006))
    assert len(tasks) == 1005
    assert [len(request.json["tasks"]) for request in server.requests] == [1000, 5]
    assert server.requests[1].json["tasks"][-1]["horizon"] == 1005


def test_pointers_count_from_the_first_of_all_tasks(server: ScriptedServer, client: Client) -> None:
    errors = [{"pointer": "/tasks/4/discount", "detail": "must be at most 1"}]
    detail = "/tasks/4/discount: must be at most 1"
    refusal = answer({"title": "Invalid", "status": 422, "detail": detail, "errors": errors}, 422)
    server.script(answer({"tasks": [TASK] * 1000}), refusal)
    with pytest.raises(InvalidRequest) as caught:
        client.tasks.create_many([{"environment": "CartPole-v1"}] * 1005)
    assert str(caught.value) == "/tasks/1004/discount: must be at most 1"
    assert caught.value.errors[0].pointer == "/tasks/1004/discount"


def test_a_reward_expression_is_wrapped(server: ScriptedServer, client: Client) -> None:
    server.script(answer(TASK, 201))
    client.tasks.create("CartPole-v1", reward="1 - abs(next_observation[2])", labels={"a": "b"})
    assert server.requests[0].json == {
        "environment": "CartPole-v1",
        "reward": {"expression": "1 - abs(next_observation[2])"},
        "labels": {"a": "b"},
    }


def test_adaptations_of_one_request_are_waited_for_one_and_all(server: ScriptedServer, client: Client) -> None:
    def named(id_: str, state: str) -> dict[str, object]:
        return {**adaptation(state), "id": id_}

    asked = [named(id_, "queued") for id_ in ("b1", "b2", "b3")]
    now = [named("c1", "running"), named("b3", "succeeded"), named("b2", "running"), named("b1", "failed")]
    server.script(
        answer({"adaptations": asked}, 202),
        answer(named("b3", "succeeded")),
        answer({"adaptations": [*now, named("a9", "succeeded")], "next_page_token": "more"}),
        answer(named("b2", "succeeded")),
    )
    done = client.adaptations.create_many("m", ["t1", "t2", "t3"])
    assert [(each.id, each.state) for each in done] == [("b1", "failed"), ("b2", "succeeded"), ("b3", "succeeded")]
    # Of three, one was asked for until it had ended, one more because the list has it unfinished; older ones are not
    # looked through.
    paths = [request.path.split("?")[0] for request in server.requests]
    assert paths == ["/v1/adaptations:batchCreate", "/v1/adaptations/b3", "/v1/adaptations", "/v1/adaptations/b2"]


def test_tasks_to_train_on_may_be_a_family_or_tasks(server: ScriptedServer, client: Client) -> None:
    server.script(*[answer(run("queued"), 202)] * 2)
    client.runs.create("m", tasks="cartpole-physics", stop={"seconds": 1}, seed=0)
    client.runs.create("m", tasks=["t1", "t2"], stop={"seconds": 1}, learner={"name": "maml"})
    assert [request.json["tasks"] for request in server.requests] == [
        {"family": "cartpole-physics"},
        {"ids": ["t1", "t2"]},
    ]
    assert server.requests[0].json["seed"] == 0
    assert server.requests[0].json["learner"] == {"name": "maml"}


def test_a_run_tells_what_it_keeps_and_how_every_held_out_task_did(server: ScriptedServer, client: Client) -> None:
    best = {"iteration": 40, "held_out_return_after": 180.5}
    row = {"sequence": 40, "iteration": 40, "evaluation": {"mean_return": [[20, 21.5], [None, 180.5]]}}
    tasks = [{"environment": "CartPole-v1", "parameters": {"length": 0.4}}, {"environment": "CartPole-v1"}]
    held_out = {"family": "cartpole-physics", "split": "test", "seed": 0, "tasks": tasks}
    server.script(
        answer(run("running", best=best, device="cuda")),
        answer({"metrics": [row, {"sequence": 41, "iteration": 41, "evaluation": None}]}),
        answer(held_out),
    )
    found = client.runs.get("r1")
    assert found.best is not None
    assert (found.best.iteration, found.best.held_out_return_after, found.device) == (40, 180.5, "cuda")
    evaluated, other = client.runs.metrics("r1")
    assert evaluated.evaluation is not None
    assert evaluated.evaluation.mean_return == ((20.0, 21.5), (None, 180.5))
    assert other.evaluation is None
    assert client.runs.evaluation_tasks(found).tasks == tuple(tasks)
    assert server.requests[2].path == "/v1/runs/r1/evaluation-tasks"


def test_a_run_is_asked_for_with_a_learners_options_an_evaluation_and_a_device(
    server: ScriptedServer, client: Client
) -> None:
    asked = {
        "learner": {"name": "meta-sgd", "rates": "layer", "inner_learning_rate": [0.2, 0.1]},
        "evaluation": {"steps": 3},
        "stop": {"gap": {"above": 10.0}},
        "device": "cpu",
    }
    server.script(answer(run("queued"), 202))
    client.runs.create("m", tasks="cartpole-physics", **asked)  # type: ignore[arg-type]
    assert server.requests[0].json == asked | {"model": "m", "tasks": {"family": "cartpole-physics"}}


def test_waiting_returns_the_run_that_succeeded(server: ScriptedServer, client: Client) -> None:
    server.script(*[answer(run(state, version=3)) for state in ("queued", "running", "running", "succeeded")])
    assert client.runs.get("r1").wait().version == 3
    assert server.unused == 0


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_waiting_raises_when_the_run_did_not_succeed(server: ScriptedServer, client: Client, state: str) -> None:
    server.script(answer(run(state, error={"type": "diverged", "detail": "a loss was NaN"})))
    with pytest.raises(RunFailed, match="a loss was NaN") as caught:
        client.runs.wait("r1")
    assert caught.value.run.state == state


def test_waiting_survives_a_restart_of_the_service(server: ScriptedServer, client: Client) -> None:
    server.script(*[Answer(cut=0)] * 5, *[problem(503)] * 5, answer(run("succeeded", version=1)))
    assert client.runs.wait("r1").version == 1


def test_waiting_ends_in_time(server: ScriptedServer, client: Client) -> None:
    server.script(*[answer(run("running"))] * 9)
    started_s = time.monotonic()
    with pytest.raises(Timeout, match=r"not finished after 0\.2 s"):
        client.runs.wait("r1", timeout_s=0.2)
    assert time.monotonic() - started_s < 2
    assert issubclass(Timeout, TimeoutError)


def test_an_alias_carries_its_etag_to_a_conditional_move(server: ScriptedServer, client: Client) -> None:
    alias = {"model": "m", "alias": "champion", "version": 3}
    server.script(answer(alias, ETag='"7"'), answer({**alias, "version": 4}, ETag='"8"'))
    found = client.aliases.get("m", "champion")
    moved = client.aliases.set("m", "champion", 4, if_match=found)
    assert (found.etag, moved.etag, moved.version) == ('"7"', '"8"', 4)
    assert server.requests[1].headers["if-match"] == '"7"'
    assert server.requests[1].json == {"version": 4}


def test_an_alias_from_a_list_cannot_be_a_condition(server: ScriptedServer, client: Client) -> None:
    server.script(answer({"aliases": [{"model": "m", "alias": "champion", "version": 3}]}))
    (listed,) = client.aliases.list("m")
    with pytest.raises(ValueError, match="without an etag"):
        client.aliases.set("m", "champion", 4, if_match=listed)


@pytest.mark.parametrize(
    ("reference", "lookups"),
    [
        ("m/3", []),
        ("m@champion", [("/v1/models/m/aliases/champion", {"model": "m", "alias": "champion", "version": 3})]),
        ("m", [("/v1/models/m", {"name": "m", "latest_version": 3})]),
    ],
)
def test_a_version_is_found_by_number_alias_or_as_the_newest(
    server: ScriptedServer, client: Client, reference: str, lookups: list[tuple[str, object]]
) -> None:
    server.script(*[answer(document) for _, document in lookups], answer({"model": "m", "version": 3}))
    assert client.versions.get(reference).version == 3
    paths = [request.path for request in server.requests]
    assert paths == [*[path for path, _ in lookups], "/v1/models/m/versions/3"]


def test_a_model_without_versions_has_no_newest_one(server: ScriptedServer, client: Client) -> None:
    server.script(answer({"name": "m", "latest_version": None}))
    with pytest.raises(HeadstartError, match="no version yet"):
        client.versions.get("m")


def test_adapting_waits_for_the_policy(server: ScriptedServer, client: Client) -> None:
    done = adaptation("succeeded", policy="p1", before={"mean_return": 21.0}, after={"mean_return": 197})
    server.script(answer(adaptation("running"), 202), answer(adaptation("running")), answer(done))
    result = client.adapt("m@champion", "long", steps=1, episodes=20)
    assert result.policy == "p1"
    assert result.after is not None
    assert result.after.mean_return == 197.0
    sent = server.requests[0]
    method = {"name": "inner-loop", "steps": 1, "episodes": 20}
    assert sent.json == {"model": "m@champion", "task": "long", "method": method}
    assert sent.headers["prefer"] == "wait=10"
    assert "idempotency-key" in sent.headers


def test_adapting_need_not_wait(server: ScriptedServer, client: Client) -> None:
    server.script(answer(adaptation("queued"), 202))
    assert not client.adapt(None, TASK, method={"name": "ppo"}, wait=False).finished
    assert server.requests[0].headers["prefer"] == "wait=0"
    assert server.requests[0].json["model"] is None


def test_an_adaptation_that_failed_is_raised(server: ScriptedServer, client: Client) -> None:
    server.script(answer(adaptation("failed", error={"type": "x", "detail": "the reward was NaN"}), 201))
    with pytest.raises(AdaptationFailed, match="the reward was NaN"):
        client.adapt("m", "long")


@pytest.mark.parametrize("observations", [[0.1, 0.0], [[0.1, 0.0]], np.array([0.1, 0.0]), np.array([[0.1, 0.0]])])
def test_one_observation_or_many_are_a_batch(server: ScriptedServer, client: Client, observations: list[float]) -> None:
    server.script(answer({"actions": [1], "log_probs": [-0.21], "values": [88.1], "policy": "p1"}))
    action = client.act("p1", observations)
    assert server.requests[0].path == "/v1/policies/p1:act"
    assert server.requests[0].json == {"observations": [[0.1, 0.0]], "deterministic": True}
    assert action.actions.dtype == np.int64
    assert action.actions.tolist() == [1]
    assert action.log_probs.tolist() == [-0.21]


def test_a_bare_version_acts_too(server: ScriptedServer, client: Client) -> None:
    server.script(answer({"actions": [[0.5, -1.0]], "log_probs": [-1.0], "values": None, "policy": None}))
    action = client.act("m/3", [[0.0]], deterministic=False, seed=7)
    assert server.requests[0].path == "/v1/models/m/versions/3:act"
    assert server.requests[0].json["seed"] == 7
    assert action.actions.shape == (1, 2)
    assert action.values is None


REMOTE = {"remote": {"observation_space": {"type": "box", "low": [0], "high": [1]}, "action_space": {"n": 2}}}


def test_an_adaptation_that_collects_episodes_is_not_waited_for(server: ScriptedServer, client: Client) -> None:
    collecting = adaptation("collecting", policy="p1", revision=0, remote={"episodes_needed": 20})
    server.script(answer(collecting, 201))
    found = client.adapt("m", REMOTE, steps=1, episodes=20)
    assert not found.finished
    assert found.remote is not None
    assert (found.policy, found.revision, found.remote.episodes_needed) == ("p1", 0, 20)
    assert server.requests[0].json["task"] == REMOTE


def test_episodes_are_brought_listed_and_taken_back(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    episode = {"id": "a/1", "revision": 0, "observations": np.zeros((2, 1)), "actions": [1], "rewards": [0.5]}
    listed = {"id": "a/1", "revision": 0, "steps": 1, "return": 0.5, "complete": True, "used_in": 1}
    brought = {"episodes": 1, "episodes_needed": 0, "steps_taken": 1, "off_policy": 0.01}
    server.script(
        answer({"accepted": 1, "duplicates": 0, "adaptation": adaptation("collecting", revision=1, remote=brought)}),
        answer({"episodes": [listed], "next_page_token": None}),
        problem(503),
        Answer(200, b"{}\n{}\n", {"Content-Type": "application/jsonl"}),
        answer(adaptation("running")),
        answer(adaptation("succeeded", policy="p1", revision=1)),
    )
    uploaded = client.adaptations.upload("a1", [episode], wait_s=5)
    assert (uploaded.accepted, uploaded.adaptation.revision) == (1, 1)
    assert server.requests[0].headers["prefer"] == "wait=5"
    assert server.requests[0].json["episodes"][0]["observations"] == [[0.0], [0.0]]
    (found,) = client.adaptations.episodes("a1")
    assert (found.id, found.episode_return, found.used_in) == ("a/1", 0.5, 1)
    assert client.adaptations.download_episodes("a1", tmp_path / "all.jsonl").read_bytes() == b"{}\n{}\n"
    assert server.requests[2].path == "/v1/adaptations/a1/episodes?format=jsonl"
    assert client.adaptations.finish("a1").state == "succeeded"
    assert server.requests[4].path == "/v1/adaptations/a1:finish"


def test_an_action_is_recorded_and_its_reward_told_later(server: ScriptedServer, client: Client) -> None:
    acted = {"actions": [[0.5]], "log_probs": [-0.2], "values": [88.1], "policy": "p1", "revision": 2}
    server.script(
        answer({**acted, "event_id": "v1", "policy_actions": [[0.7]]}),
        answer({"event_id": "v1", "adaptation": "a1", "policy": "p1", "reward": 1.0}),
        answer(acted),
    )
    action = client.act("p1", [0.0], deterministic=False, revision=2, policy_actions=True, record=True)
    assert (action.event_id, action.revision) == ("v1", 2)
    assert action.policy_actions is not None
    assert action.policy_actions.tolist() == [[0.7]]
    outcome = client.policies.reward(action, 1.0)
    assert (outcome.adaptation, outcome.reward) == ("a1", 1.0)
    assert [request.path for request in server.requests] == ["/v1/policies/p1:act", "/v1/events/v1:reward"]
    asked = {"deterministic": False, "revision": 2, "policy_actions": True, "record": True}
    assert [request.json for request in server.requests] == [{"observations": [[0.0]], **asked}, {"reward": 1.0}]
    with pytest.raises(ValueError, match="record=True"):
        client.policies.reward(client.act("p1", [0.0]), 1.0)


def test_an_observation_with_a_nan_is_not_sent(server: ScriptedServer, client: Client) -> None:
    with pytest.raises(ValueError, match="JSON"):
        client.act("p1", [float("nan")])
    assert server.requests == []


def test_a_key_is_not_shown_by_repr(server: ScriptedServer, client: Client) -> None:
    server.script(answer({"id": "k1", "name": "ci", "key": "hs_secret", "scopes": ["tasks:write"]}, 201))
    expires = datetime(2030, 1, 1, tzinfo=UTC)
    key = client.api_keys.create("ci", ["tasks:write"], expires_at=expires)
    assert key.key == "hs_secret"
    assert "hs_secret" not in repr(key)
    assert server.requests[0].json["expires_at"] == "2030-01-01T00:00:00+00:00"


EPISODE = {
    "observations": [[0.0, 0.1], [0.2, 0.3], [0.4, 0.5]],
    "actions": [1, 0],
    "rewards": [1.0, 0.5],
    "values": [1.4, 0.6],
    "log_probs": [-0.2, -0.7],
    "terminated": True,
    "truncated": False,
    "return": 1.5,
}
ROLLOUT = {"policy": "p1", "task": "t1", "seed": 7, "deterministic": False, "episodes": [EPISODE, EPISODE]}


def test_a_rollout_is_arrays_and_what_they_follow_from(server: ScriptedServer, client: Client) -> None:
    server.script(answer(ROLLOUT))
    rollout = client.policies.rollout("p1", episodes=2, seed=7, deterministic=False, task="long")
    path, _, query = server.requests[0].path.partition("?")
    assert path == "/v1/policies/p1/rollout"
    assert sorted(query.split("&")) == ["deterministic=false", "episodes=2", "format=json", "seed=7", "task=long"]
    assert (rollout.policy, rollout.task, rollout.seed, rollout.deterministic) == ("p1", "t1", 7, False)
    first, second = rollout.episodes
    assert (len(first), first.observations.shape, first.actions.dtype.kind) == (2, (3, 2), "i")
    assert (first.terminated, first.truncated, second.episode_return, rollout.mean_return) == (True, False, 1.5, 1.5)
    assert rollout.raw == ROLLOUT


def test_an_answer_that_is_no_rollout_is_refused(server: ScriptedServer, client: Client) -> None:
    server.script(answer({"episodes": [{"actions": [1]}]}), answer([]))
    for _ in range(2):
        with pytest.raises(InvalidResponse, match="no rollout"):
            client.policies.rollout("p1")


def test_a_video_is_bytes_and_a_file_of_the_format_that_its_name_says(
    server: ScriptedServer, client: Client, tmp_path: Path
) -> None:
    server.script(*[Answer(200, b"film")] * 3)
    assert client.policies.video("p1", episodes=3) == b"film"
    assert client.policies.video("p1", tmp_path / "a.gif") == b"film"
    client.policies.video("p1", str(tmp_path / "a.film"), format="gif", seed=2)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "a.film").read_bytes() == b"film"
    asked = [request.path.partition("?")[2].split("&")[0] for request in server.requests]
    assert asked == ["format=mp4", "format=gif", "format=gif"]
    assert [request.headers["accept"].split(",")[0] for request in server.requests] == [
        "video/mp4",
        "image/gif",
        "image/gif",
    ]


def test_a_video_that_is_refused_leaves_no_file(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    server.script(problem(422, "Bandit-v0 has no renderer"))
    with pytest.raises(InvalidRequest, match="no renderer"):
        client.policies.video("p1", tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_an_adaptation_without_a_policy_cannot_be_rolled_out(server: ScriptedServer, client: Client) -> None:
    server.script(answer(adaptation("running")))
    running = client.adaptations.get("a1")
    with pytest.raises(HeadstartError, match="a1 has no policy: it is running"):
        client.policies.rollout(running)
