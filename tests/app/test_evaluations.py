import json
from datetime import timedelta

import pytest
from evaluating import ASKED, METHOD, TASK, adapt, ask, evaluated, find, inner_loop, look, publish, warned, whole

from app.sweep import sweep
from models.evaluation import compare, runs_from_json, summarise
from models.learners import Multitask, MultitaskConfig

pytestmark = pytest.mark.usefixtures("good_and_bad")


def refused(client, **changes):
    response = client.post("/v1/evaluations", json=ASKED | changes)
    assert response.status_code == 422, response.text
    [error] = response.json()["errors"]
    return error["pointer"], error["detail"]


def test_the_better_of_two_versions_is_found_and_everything_is_reported(client, evaluator):
    body = evaluated(client, evaluator, threshold=-3.5)
    assert body["verdict"] == "better"
    # Two subjects and a new policy, three tasks, two seeds; no training tasks are known of these versions.
    assert body["progress"] == {"done": 18, "total": 18}
    result = body["result"]
    assert [task["name"] for task in result["tasks"]] == ["test-0", "test-1", "test-2"]
    assert all(0.3 <= task["parameters"]["goal_x"] <= 0.5 and task["oracle"] < 0 for task in result["tasks"])
    assert result["subjects"] == {
        "good": {"kind": "version", "label": "good/1"},
        "bad": {"kind": "version", "label": "bad/1"},
        "scratch": {"kind": "scratch", "label": "a new policy"},
    }
    method = inner_loop(body)
    good, bad = method["subjects"]["good"], method["subjects"]["bad"]
    assert good["after"]["mean"]["estimate"] > bad["after"]["mean"]["estimate"] + 1
    assert good["after"]["mean"]["low"] <= good["after"]["mean"]["estimate"] <= good["after"]["mean"]["high"]
    assert [point["place"] for point in good["curve"]] == [0, 1, 2]
    assert good["regret"]["mean"]["estimate"] < bad["regret"]["mean"]["estimate"]
    assert (good["threshold"]["censored"], bad["threshold"]["censored"]) == (0, 6)
    assert bad["threshold"]["median_environment_steps"] is None
    assert [(each["second"], each["verdict"]) for each in method["comparisons"]] == [
        ("bad", "better"),
        ("scratch", "better"),
    ]
    assert method["comparisons"][0]["probability"]["estimate"] == 1.0


@pytest.mark.databases("sqlite")
def test_every_number_follows_from_the_runs_that_are_kept(client, evaluator):
    document = whole(client, evaluated(client, evaluator))
    method, runs = document["result"]["methods"]["inner-loop"], document["runs"]["inner-loop"]
    oracles = [task["oracle"] for task in document["result"]["tasks"]]
    good, bad = (runs_from_json(runs[name]["held_out"]) for name in ("good", "bad"))
    again = json.loads(json.dumps(summarise(good, "inner-loop", oracles)))
    assert {name: method["subjects"]["good"][name] for name in again} == again
    expected = json.loads(json.dumps(compare(good, bad, "inner-loop")))
    assert method["comparisons"][0] == {"first": "good", "second": "bad"} | expected


def test_its_protocol_sent_again_gives_the_same_numbers_although_an_alias_has_moved(client, evaluator, database, store):
    publish(database, store, "good", 0.3)
    client.put("/v1/models/good/aliases/champion", json={"version": 1})
    first = evaluated(client, evaluator, subjects=["good@champion", "bad"], name="nightly", seed=5)
    client.put("/v1/models/good/aliases/champion", json={"version": 2})
    assert first["protocol"]["subjects"][0] == {"name": "good@champion", "version": "good/1"}
    again = client.post("/v1/evaluations", json=first["protocol"])
    assert again.status_code == 202, again.text
    evaluator.work_once()
    second = look(client, again.json())
    assert second["protocol"] == first["protocol"]
    ours, theirs = whole(client, first), whole(client, second)
    assert (ours["runs"], ours["result"]) == (theirs["runs"], theirs["result"])
    moved = evaluated(client, evaluator, subjects=["good@champion", "bad"], seed=5)
    assert whole(client, moved)["runs"] != ours["runs"]


@pytest.mark.databases("sqlite")
def test_two_equal_versions_are_not_told_apart(client, evaluator):
    body = evaluated(client, evaluator, subjects=["good", {"name": "same", "version": "good"}], scratch=False)
    assert body["verdict"] == "no difference shown"


@pytest.mark.databases("sqlite")
def test_one_subject_alone_has_no_verdict(client, evaluator):
    body = evaluated(client, evaluator, subjects=["good"])
    assert body["verdict"] is None
    assert inner_loop(body)["comparisons"][0]["second"] == "scratch"


@pytest.mark.databases("sqlite")
def test_several_methods_and_budgets_are_measured_side_by_side(client, evaluator):
    ppo = {"name": "ppo", "steps": 10, "parallel_episodes": 2, "epochs": 1, "evaluation_episodes": 2}
    methods = [METHOD, ppo | {"environment_steps": 100}, ppo | {"episodes": 4}]
    body = evaluated(client, evaluator, methods=methods, seeds=1)
    assert list(body["result"]["methods"]) == ["inner-loop", "ppo 1", "ppo 2"]
    assert [each["axis"] for each in body["result"]["methods"].values()] == ["step", *["environment_steps"] * 2]
    assert body["result"]["methods"]["ppo 1"]["subjects"]["good"]["curve"][-1]["place"] == 100
    assert warned(body, "one seed")


def test_policies_are_evaluated_like_versions(client, evaluator, settings):
    policy = adapt(client, settings, "good", TASK)
    subjects = [{"policy": policy, "name": "tuned"}, "bad"]
    body = evaluated(client, evaluator, subjects=subjects)
    assert body["verdict"] == "better"
    assert body["result"]["subjects"]["tuned"] == {"kind": "policy", "label": f"policy {policy}"}
    assert body["leakage"] == []
    client.post("/v1/tasks", json=TASK | {"name": "known"})
    body = ask(client, subjects=subjects, tasks={"ids": ["known"]})
    assert body["leakage"] == [
        {
            "subject": "tuned",
            "tasks": ["known"],
            "detail": "tuned was trained on 1 of the 1 held-out tasks: known",
        }
    ]
    assert warned(body, "only tuned was trained on these tasks")


@pytest.mark.databases("sqlite")
def test_the_multitask_baseline_is_a_version_of_that_learner(client, evaluator, database, store):
    publish(database, store, "pretrained", 0.5, Multitask, MultitaskConfig())
    body = evaluated(client, evaluator, multitask="pretrained", subjects=["bad"])
    assert body["result"]["subjects"]["multitask"] == {"kind": "multitask", "label": "pretrained/1"}
    assert inner_loop(body)["comparisons"][0]["verdict"] == "worse"
    assert refused(client, multitask="good") == (
        "/multitask",
        "good/1 was made by maml, not by multitask; name it among the subjects",
    )


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"subjects": []}, "/subjects", "must hold at least 1, not 0"),
        ({"subjects": ["nothing"]}, "/subjects/0", "there is no model 'nothing'"),
        ({"subjects": [{"policy": "p", "version": "good"}]}, "/subjects/0", "give version or policy, one of them"),
        ({"subjects": [{"policy": "p"}]}, "/subjects/0", "there is no policy 'p'"),
        ({"subjects": ["good", "good"]}, "/subjects/1", "give each a name of its own"),
        ({"subjects": [{"name": "scratch", "version": "good"}]}, "/subjects/0", "a baseline's"),
        ({"tasks": {}}, "/tasks", "exactly one of family, ids, labels"),
        ({"tasks": {"family": "none"}}, "/tasks/family", "there is no task family 'none'"),
        ({"tasks": {"ids": ["none"]}}, "/tasks/ids/0", "there is no task 'none'"),
        ({"tasks": {"ids": ["a"], "count": 3}}, "/tasks", "count go with fresh tasks of a family"),
        ({"tasks": {"labels": {"a": "b"}}}, "/tasks", "the selection is empty"),
        ({"tasks": {"family": "cartpole-physics"}}, "/subjects/0", "the task runs in CartPole-v1"),
        ({"methods": []}, "/methods", "must hold at least 1, not 0"),
        ({"methods": [{"name": "dqn", "environment_steps": 10}]}, "/methods/0/name", "use sac or ppo"),
        ({"methods": [{"name": "ppo"}]}, "/methods/0", "give at least one of environment_steps, episodes, seconds"),
        (
            {"methods": [{"name": "ppo", "environment_steps": 10**6, "evaluate_every": 1}]},
            "/methods/0/evaluate_every",
            "18 runs measured 1000000 times each are too much; at most 111111 times",
        ),
        ({"methods": [METHOD | {"episodes": 1}]}, "/methods/0/episodes", "greater than or equal to 2"),
        ({"seeds": 0}, "/seeds", "greater than or equal to 1"),
        ({"seeds": 100, "tasks": {"family": "near", "count": 1000}}, "/seeds", "at most 50000"),
        ({"threshold": "195"}, "/threshold", "must be a valid number"),
        ({"surplus": 1}, "/surplus", "unknown field"),
    ],
)
@pytest.mark.databases("sqlite")
def test_an_evaluation_that_cannot_be_is_refused_with_a_pointer(client, changes, pointer, detail):
    found = refused(client, **changes)
    assert found[0] == pointer
    assert detail in found[1]
    assert client.get("/v1/evaluations").json()["evaluations"] == []


def test_evaluations_are_found_by_protocol_and_state(client, evaluator):
    first = evaluated(client, evaluator, name="nightly", seeds=1, subjects=["good"], scratch=False)
    second = ask(client, name="weekly", seeds=1)

    def found(query):
        return [each["id"] for each in client.get(f"/v1/evaluations{query}").json()["evaluations"]]

    assert found("") == [second["id"], first["id"]]
    assert found("?name=nightly") == found("?state=succeeded") == [first["id"]]
    assert found("?state=running") == []


def test_the_files_are_served_with_their_kinds_once_it_has_succeeded(client, evaluator, database, store):
    asked = ask(client)
    early = client.get(f"/v1/evaluations/{asked['id']}/report.html")
    assert early.status_code == 404
    assert "is queued: it has files once it has succeeded" in early.json()["detail"]
    evaluator.work_once()
    body = look(client, asked)
    kinds = {
        file["name"]: client.get(f"/v1/evaluations/{body['id']}/{file['name']}").headers["content-type"]
        for file in body["files"]
    }
    assert {"evaluation.json", "report.html", "runs.csv", "curves.png"} <= set(kinds)
    assert kinds["evaluation.json"] == "application/json"
    assert kinds["report.html"] == "text/html; charset=utf-8"
    assert kinds["runs.csv"] == "text/csv; charset=utf-8"
    assert kinds["curves.png"] == "image/png"
    report = client.get(f"/v1/evaluations/{body['id']}/report.html")
    assert "default-src 'none'" in report.headers["content-security-policy"]
    assert b"good is better than bad" in report.content
    assert client.get(f"/v1/evaluations/{body['id']}/none").status_code == 404
    # Nothing refers to the checkpoint any longer; the files stay.
    sweep(database, store, grace=timedelta(0))
    assert find(client, body)["result"] is not None
    for path in store.folder.glob("*/*"):
        path.write_bytes(b"damaged")
    damaged = client.get(f"/v1/evaluations/{body['id']}")
    assert damaged.status_code == 500
    assert damaged.json()["type"] == "/problems/corrupt"


@pytest.mark.databases("sqlite")
def test_one_whose_rewards_cannot_be_summed_fails_and_says_whose_run_and_which_task_it_was(client, evaluator):
    reward = {"expression": "log(next_observation[0])"}  # not a number on the left of the origin
    task = {"environment": "Navigation2D-v0", "reward": reward, "horizon": 10, "name": "right-only"}
    client.post("/v1/tasks", json=task)
    asked = ask(client, subjects=["good", "bad"], tasks={"ids": ["right-only"]})
    evaluator.work_once()
    ended = find(client, asked)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "non-finite-reward")
    assert ended["error"]["detail"].startswith("bad: the reward became NaN or infinite in right-only")


@pytest.mark.databases("sqlite")
def test_evaluations_need_their_scope(client):
    key = client.post("/v1/api-keys", json={"name": "reader", "scopes": ["models:read"]}).json()["key"]
    response = client.post("/v1/evaluations", json=ASKED, headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 403


def test_a_task_that_is_deleted_after_it_was_asked_for_is_measured_all_the_same(client, evaluator):
    client.post("/v1/tasks", json=TASK | {"name": "gone"})
    asked = ask(client, tasks={"ids": ["gone"]})
    assert client.delete("/v1/tasks/gone").status_code == 204
    evaluator.work_once()
    assert look(client, asked)["result"]["tasks"][0]["name"] == "gone"
