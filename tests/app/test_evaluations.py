import dataclasses
import json
import threading
from datetime import timedelta

import pytest
import torch

from app.auth import OPERATOR
from app.evaluations import execution
from app.execution import Interrupter
from app.registry.service import publish_version
from app.store import ArtefactStore
from app.sweep import sweep
from app.tables import Evaluation
from app.tasks.service import create_family
from app.worker import Worker
from models.checkpoint import MANIFEST_FILE, PARAMETERS_FILE, pack
from models.distributions import Uniform
from models.environments import ENVIRONMENTS
from models.evaluation import compare, runs_from_json, summarise
from models.families import define_family
from models.learners import MAML, Multitask, MultitaskConfig
from models.learners.maml import MAMLConfig
from models.policy import Policy as Network
from models.policy import PolicyConfig

NEAR = define_family("near", "Navigation2D-v0", {"goal_x": Uniform(0.3, 0.5), "goal_y": 0.0}, horizon=10)
FAR = define_family("far", "Navigation2D-v0", {"goal_x": Uniform(0.4, 0.6), "goal_y": 0.0}, horizon=10)
METHOD = {"name": "inner-loop", "steps": 2, "episodes": 3, "evaluation_episodes": 2, "learning_rate": 1e-6}
ASKED = {
    "subjects": ["good", "bad"],
    "tasks": {"family": "near", "count": 3},
    "training_tasks": 2,
    "methods": [METHOD],
    "seeds": 2,
}
RUN = {
    "model": "trained",
    "learner": {"tasks_per_iteration": 2, "episodes_per_task": 2},
    "policy": {"hidden": [4]},
    "tasks": {"family": "near"},
    "stop": {"iterations": 1},
}


@pytest.fixture
def store(settings):
    return ArtefactStore(settings.artefacts)


@pytest.fixture
def idle(settings):
    """A worker that does one piece of work when it is told to."""
    worker = Worker(settings, "evaluations")
    yield worker
    worker.close()


@pytest.fixture
def client(client, database, store):
    """Knows two families, a version that goes towards all goals, one that goes away from them."""
    with database.transaction() as session:
        for family in (NEAR, FAR):
            create_family(session, OPERATOR, family)
    publish(database, store, "good", 0.5)
    publish(database, store, "bad", -0.5)
    return client


def publish(database, store, model, velocity, learner=MAML, config=None, **about):
    """A version that goes along x, whatever it sees."""
    environment = ENVIRONMENTS["Navigation2D-v0"]
    policy = Network(
        PolicyConfig(hidden=(4,), initial_log_std=-4.0), environment.observation_space, environment.action_space
    )
    built = learner(config or MAMLConfig(), policy)
    params = built.initialise(0).params
    params["policy.weight"] = torch.zeros_like(params["policy.weight"])
    params["policy.bias"] = torch.tensor([[velocity, 0.0]]).reshape(params["policy.bias"].shape)
    manifest, parameters = pack(built.config, policy, params, {"environment": "Navigation2D-v0", **about})
    files = {MANIFEST_FILE: store.put(manifest), PARAMETERS_FILE: store.put(parameters)}
    with database.transaction() as session:
        publish_version(session, model, json.loads(manifest), files, run_id=None)


def train(client, settings, **changes):
    """A version that a run makes."""
    response = client.post("/v1/runs", json=RUN | changes)
    assert response.status_code == 202, response.text
    worker = Worker(settings, "runs")
    worker.work_once()
    worker.close()
    assert client.get(f"/v1/runs/{response.json()['id']}").json()["state"] == "succeeded"


def ask(client, **changes):
    response = client.post("/v1/evaluations", json=ASKED | changes)
    assert response.status_code == 202, response.text
    return response.json()


def evaluated(client, idle, **changes):
    asked = ask(client, **changes)
    idle.work_once()
    return look(client, asked)


def look(client, asked):
    body = client.get(f"/v1/evaluations/{asked['id']}").json()
    assert body["state"] == "succeeded", body["error"]
    return body


def whole(client, body):
    return client.get(f"/v1/evaluations/{body['id']}/evaluation.json").json()


def refused(client, **changes):
    response = client.post("/v1/evaluations", json=ASKED | changes)
    assert response.status_code == 422, response.text
    [error] = response.json()["errors"]
    return error["pointer"], error["detail"]


def test_the_better_of_two_versions_is_found_and_everything_is_reported(client, idle):
    body = evaluated(client, idle, threshold=-3.5)
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
    method = result["methods"]["inner-loop"]
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


def test_every_number_follows_from_the_runs_that_are_kept(client, idle):
    document = whole(client, evaluated(client, idle))
    method, runs = document["result"]["methods"]["inner-loop"], document["runs"]["inner-loop"]
    oracles = [task["oracle"] for task in document["result"]["tasks"]]
    good, bad = (runs_from_json(runs[name]["held_out"]) for name in ("good", "bad"))
    again = json.loads(json.dumps(summarise(good, "inner-loop", oracles)))
    assert {name: method["subjects"]["good"][name] for name in again} == again
    expected = json.loads(json.dumps(compare(good, bad, "inner-loop")))
    assert method["comparisons"][0] == {"first": "good", "second": "bad"} | expected


def test_its_protocol_sent_again_gives_the_same_numbers_although_an_alias_has_moved(client, idle, database, store):
    publish(database, store, "good", 0.3)
    client.put("/v1/models/good/aliases/champion", json={"version": 1})
    first = evaluated(client, idle, subjects=["good@champion", "bad"], name="nightly", seed=5)
    client.put("/v1/models/good/aliases/champion", json={"version": 2})
    assert first["protocol"]["subjects"][0] == {"name": "good@champion", "version": "good/1"}
    second = look(client, work(client, idle, first["protocol"]))
    assert second["protocol"] == first["protocol"]
    ours, theirs = whole(client, first), whole(client, second)
    assert (ours["runs"], ours["result"]) == (theirs["runs"], theirs["result"])
    moved = evaluated(client, idle, subjects=["good@champion", "bad"], seed=5)
    assert whole(client, moved)["runs"] != ours["runs"]


def work(client, idle, protocol):
    response = client.post("/v1/evaluations", json=protocol)
    assert response.status_code == 202, response.text
    idle.work_once()
    return response.json()


def test_two_equal_versions_are_not_told_apart(client, idle):
    body = evaluated(client, idle, subjects=["good", {"name": "same", "version": "good"}], scratch=False)
    assert body["verdict"] == "no difference shown"


def test_one_subject_alone_has_no_verdict(client, idle):
    body = evaluated(client, idle, subjects=["good"])
    assert body["verdict"] is None
    assert body["result"]["methods"]["inner-loop"]["comparisons"][0]["second"] == "scratch"


def test_several_methods_and_budgets_are_measured_side_by_side(client, idle):
    ppo = {"name": "ppo", "steps": 10, "parallel_episodes": 2, "epochs": 1, "evaluation_episodes": 2}
    methods = [METHOD, ppo | {"environment_steps": 100}, ppo | {"episodes": 4}]
    body = evaluated(client, idle, methods=methods, seeds=1)
    assert list(body["result"]["methods"]) == ["inner-loop", "ppo 1", "ppo 2"]
    assert [each["axis"] for each in body["result"]["methods"].values()] == ["step", *["environment_steps"] * 2]
    assert body["result"]["methods"]["ppo 1"]["subjects"]["good"]["curve"][-1]["place"] == 100
    assert any("one seed" in warning for warning in body["warnings"])


def test_policies_are_evaluated_like_versions(client, idle, settings):
    task = {"environment": "Navigation2D-v0", "parameters": {"goal_x": 0.4}, "horizon": 10}
    client.post("/v1/adaptations", json={"model": "good", "task": task, "method": METHOD}, headers={"Prefer": "wait=0"})
    adapting = Worker(settings, "adaptations")
    adapting.work_once()
    adapting.close()
    [policy] = client.get("/v1/policies").json()["policies"]
    body = evaluated(client, idle, subjects=[{"policy": policy["id"], "name": "tuned"}, "bad"])
    assert body["verdict"] == "better"
    assert body["result"]["subjects"]["tuned"] == {"kind": "policy", "label": f"policy {policy['id']}"}
    assert body["leakage"] == []
    client.post("/v1/tasks", json=task | {"name": "known"})
    body = ask(client, subjects=[{"policy": policy["id"], "name": "tuned"}, "bad"], tasks={"ids": ["known"]})
    assert body["leakage"] == [
        {
            "subject": "tuned",
            "tasks": ["known"],
            "detail": "tuned was trained on 1 of the 1 held-out tasks: known",
        }
    ]
    assert any("only tuned was trained on these tasks" in warning for warning in body["warnings"])


def test_the_gap_is_measured_on_tasks_that_the_version_was_trained_on(client, idle, settings):
    train(client, settings)
    body = evaluated(client, idle, subjects=["trained", "good"])
    assert [task["name"] for task in body["result"]["training_tasks"]] == ["train-0", "train-1"]
    trained, good = (body["result"]["methods"]["inner-loop"]["subjects"][name] for name in ("trained", "good"))
    expected = trained["gap"]["training"]["mean"]["estimate"] - trained["after"]["mean"]["estimate"]
    assert trained["gap"]["estimate"] == pytest.approx(expected)
    assert good["gap"] is None
    assert body["progress"] == {"done": 22, "total": 22}
    assert any("only trained was trained on tasks of this kind (3 of 3 tasks)" in each for each in body["warnings"])


def test_tasks_in_and_out_of_the_training_range_are_told_apart(client, idle, settings):
    train(client, settings)
    body = evaluated(client, idle, subjects=["trained"], tasks={"family": "far", "count": 8}, seeds=1)
    inside = [task["parameters"]["goal_x"] <= 0.5 for task in body["result"]["tasks"]]
    assert [task["in_range"] for task in body["result"]["tasks"]] == inside
    assert 0 < sum(inside) < 8
    groups = body["result"]["methods"]["inner-loop"]["subjects"]["trained"]["groups"]
    rows = body["result"]["methods"]["inner-loop"]["subjects"]["trained"]["tasks"]
    after = [row["after"] for row, within in zip(rows, inside, strict=True) if within]
    assert groups["in_range"]["after"]["mean"]["estimate"] == pytest.approx(sum(after) / len(after))
    assert any(f"{8 - sum(inside)} of the 8 tasks are outside the range" in each for each in body["warnings"])


def test_held_out_tasks_that_were_trained_on_are_leakage(client, settings):
    train(client, settings)
    leaked = ask(client, subjects=["trained", "good"], tasks={"family": "near", "split": "train", "count": 3})
    assert [(leak["subject"], len(leak["tasks"])) for leak in leaked["leakage"]] == [("trained", 3)]
    assert any("only trained was trained on these tasks" in warning for warning in leaked["warnings"])
    # A registered task of the split that fresh tasks were drawn from, and one that a run was given by id.
    task = {"environment": "Navigation2D-v0", "parameters": {"goal_x": 0.4, "goal_y": 0.0}, "horizon": 10}
    client.post("/v1/tasks", json=task | {"name": "of-train", "family": "near", "split": "train"})
    client.post("/v1/tasks", json=task | {"name": "of-test", "family": "near", "split": "test"})
    assert ask(client, subjects=["trained"], tasks={"ids": ["of-train", "of-test"]})["leakage"][0]["tasks"] == [
        "of-train"
    ]
    train(client, settings, model="by-id", tasks={"ids": ["of-test"]})
    assert ask(client, subjects=["by-id"], tasks={"ids": ["of-test"]})["leakage"][0]["tasks"] == ["of-test"]
    assert ask(client, subjects=["good"], tasks={"ids": ["of-test"]})["leakage"] == []


def test_the_splits_of_a_family_with_a_few_tasks_only_leak(client, settings, database):
    few = define_family("few", "Navigation2D-v0", {"goal_x": 0.4, "goal_y": 0.0}, horizon=10)
    with database.transaction() as session:
        create_family(session, OPERATOR, few)
    train(client, settings, tasks={"family": "few"})
    assert len(ask(client, subjects=["trained"], tasks={"family": "few", "count": 2})["leakage"][0]["tasks"]) == 2


def test_a_version_that_came_of_a_policy_has_seen_what_its_ancestors_have(client, settings):
    train(client, settings)
    task = {"environment": "Navigation2D-v0", "parameters": {"goal_x": -0.4}, "horizon": 10, "name": "adapted-to"}
    client.post("/v1/tasks", json=task)
    adapting = Worker(settings, "adaptations")
    asked = {"model": "trained", "task": "adapted-to", "method": METHOD}
    client.post("/v1/adaptations", json=asked, headers={"Prefer": "wait=0"})
    adapting.work_once()
    adapting.close()
    [policy] = client.get("/v1/policies").json()["policies"]
    client.post(f"/v1/policies/{policy['id']}:publish", json={"model": "tuned"})
    assert ask(client, subjects=["tuned"], tasks={"ids": ["adapted-to"]})["leakage"][0]["subject"] == "tuned"
    leaked = ask(client, subjects=["tuned"], tasks={"family": "near", "split": "train"})["leakage"]
    assert len(leaked[0]["tasks"]) == 20


def test_a_version_that_was_chosen_by_the_very_tasks_is_warned_of(client, settings):
    train(client, settings, evaluation={"tasks": 2, "every_iterations": 1, "episodes": 2}, seed=7)
    chosen = ask(client, subjects=["trained"], tasks={"family": "near", "count": 2, "seed": 7})
    assert any("best of its run by its return on these very held-out tasks" in each for each in chosen["warnings"])
    assert chosen["leakage"] == []
    other = ask(client, subjects=["trained"], tasks={"family": "near", "count": 2, "seed": 8})
    assert not any("very held-out tasks" in each for each in other["warnings"])


def test_the_multitask_baseline_is_a_version_of_that_learner(client, idle, database, store):
    publish(database, store, "pretrained", 0.5, Multitask, MultitaskConfig())
    body = evaluated(client, idle, multitask="pretrained", subjects=["bad"])
    assert body["result"]["subjects"]["multitask"] == {"kind": "multitask", "label": "pretrained/1"}
    assert (
        body["result"]["methods"]["inner-loop"]["comparisons"][0] | {"verdict": "worse"}
        == (body["result"]["methods"]["inner-loop"]["comparisons"][0])
    )
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
def test_an_evaluation_that_cannot_be_is_refused_with_a_pointer(client, changes, pointer, detail):
    found = refused(client, **changes)
    assert found[0] == pointer
    assert detail in found[1]
    assert client.get("/v1/evaluations").json()["evaluations"] == []


def test_evaluations_are_found_by_protocol_and_state(client, idle):
    first = evaluated(client, idle, name="nightly", seeds=1, subjects=["good"], scratch=False)
    second = ask(client, name="weekly", seeds=1)

    def found(query):
        return [each["id"] for each in client.get(f"/v1/evaluations{query}").json()["evaluations"]]

    assert found("") == [second["id"], first["id"]]
    assert found("?name=nightly") == found("?state=succeeded") == [first["id"]]
    assert found("?state=running") == []


def test_the_files_are_served_with_their_kinds_once_it_has_succeeded(client, idle, store):
    asked = ask(client)
    early = client.get(f"/v1/evaluations/{asked['id']}/report.html")
    assert early.status_code == 404
    assert "is queued: it has files once it has succeeded" in early.json()["detail"]
    idle.work_once()
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
    sweep(idle._database, store, grace=timedelta(0))
    assert client.get(f"/v1/evaluations/{body['id']}").json()["result"] is not None
    for path in store.folder.glob("*/*"):
        path.write_bytes(b"damaged")
    damaged = client.get(f"/v1/evaluations/{body['id']}")
    assert damaged.status_code == 500
    assert damaged.json()["type"] == "/problems/corrupt"


def test_one_that_is_interrupted_goes_on_with_what_was_not_measured(client, settings, idle, monkeypatch):
    expected = evaluated(client, idle, seed=3)
    asked = ask(client, seed=3)
    interrupter = Interrupter()
    measured = execution.measure
    counted = []

    def stopping(*arguments):
        counted.append(arguments)
        if len(counted) == 3:
            interrupter.stopping = True
            interrupter._interrupt()
        return measured(*arguments)

    monkeypatch.setattr(execution, "measure", stopping)
    worker = Worker(settings, "evaluations", interrupter)
    worker.work_once()
    worker.close()
    waiting = client.get(f"/v1/evaluations/{asked['id']}").json()
    assert (waiting["state"], waiting["progress"]["done"], waiting["result"]) == ("queued", 6, None)
    other = Worker(settings, "evaluations")
    other.work_once()
    other.close()
    # Six units of three runs: two before, the third once more, three after.
    assert len(counted) == 3 + 4
    assert whole(client, look(client, asked))["runs"] == whole(client, expected)["runs"]


def test_one_that_lost_its_worker_goes_on_from_its_checkpoint(client, settings, idle, database, monkeypatch):
    eager = dataclasses.replace(settings, checkpoint_seconds=0.0, lease_seconds=0.3)
    expected = evaluated(client, idle, seed=3)
    asked = ask(client, seed=3)
    measured = execution.measure
    counted = []

    class Killed(BaseException):
        pass

    def dying(*arguments):
        counted.append(arguments)
        if len(counted) == 3:
            raise Killed
        return measured(*arguments)

    monkeypatch.setattr(execution, "measure", dying)
    worker = Worker(eager, "evaluations")
    with pytest.raises(Killed):
        worker.work_once()
    worker.close()
    other = Worker(eager, "evaluations")
    deadline = threading.Event()
    while not other.work_once():
        deadline.wait(0.1)
    other.close()
    assert len(counted) == 3 + 4
    body = look(client, asked)
    assert body["attempts"] == 2
    assert whole(client, body)["runs"] == whole(client, expected)["runs"]
    with database.snapshot() as session:
        assert session.get(Evaluation, asked["id"]).checkpoint_sha256 is None


@pytest.mark.parametrize("saved", [None, {"code_version": "0.0.1", "runs": {"0/0/held_out/0/0": []}}])
def test_a_checkpoint_that_is_damaged_or_of_other_code_is_measured_again(client, idle, database, store, saved):
    asked = ask(client)
    sha256 = "0" * 64 if saved is None else store.put(json.dumps(saved).encode())[0]
    with database.transaction() as session:
        session.get(Evaluation, asked["id"]).checkpoint_sha256 = sha256
    idle.work_once()
    assert look(client, asked)["progress"] == {"done": 18, "total": 18}


def test_a_queued_one_is_cancelled_at_once_and_a_running_one_by_its_worker(client, settings, monkeypatch):
    queued = ask(client)
    assert client.post(f"/v1/evaluations/{queued['id']}:cancel").json()["state"] == "cancelled"
    running = ask(client)
    measured = execution.measure

    def cancelling(*arguments):
        client.post(f"/v1/evaluations/{running['id']}:cancel")
        worker._interrupter.order("cancel")
        worker._interrupter._interrupt()
        return measured(*arguments)

    monkeypatch.setattr(execution, "measure", cancelling)
    worker = Worker(settings, "evaluations")
    worker.work_once()
    worker.close()
    ended = client.get(f"/v1/evaluations/{running['id']}").json()
    assert (ended["state"], ended["cancel_requested"], ended["files"]) == ("cancelled", True, [])


def test_one_whose_rewards_cannot_be_summed_fails_and_says_whose_run_and_which_task_it_was(client, idle):
    reward = {"expression": "log(next_observation[0])"}  # not a number on the left of the origin
    task = {"environment": "Navigation2D-v0", "reward": reward, "horizon": 10, "name": "right-only"}
    client.post("/v1/tasks", json=task)
    asked = ask(client, subjects=["good", "bad"], tasks={"ids": ["right-only"]})
    idle.work_once()
    ended = client.get(f"/v1/evaluations/{asked['id']}").json()
    assert (ended["state"], ended["error"]["type"]) == ("failed", "non-finite-reward")
    assert ended["error"]["detail"].startswith("bad: the reward became NaN or infinite in right-only")


def test_an_alias_moves_only_where_the_required_evaluation_speaks_for_the_version(client, idle, database, store):
    publish(database, store, "good", -0.5)  # good/2 is bad
    publish(database, store, "good", 0.5)  # good/3 is as good as good/1

    def move(version, evaluation, alias="champion"):
        body = {"version": version, "require_evaluation": evaluation}
        return client.put(f"/v1/models/good/aliases/{alias}", json=body)

    def compared(first, second):
        return evaluated(client, idle, subjects=[f"good/{first}", f"good/{second}"], scratch=False)["id"]

    alone = evaluated(client, idle, subjects=["good/1"])["id"]
    assert move(1, alone).status_code == 201
    worse, equal, queued = compared(2, 1), compared(3, 1), ask(client)["id"]
    for version, evaluation, reason in (
        (2, worse, "found good/2 worse than good/1"),
        (3, worse, "is about good/2, not good/3"),
        (2, queued, "is queued: only one that has succeeded speaks for good/2"),
        (3, alone, "is about good/1"),
    ):
        response = move(version, evaluation)
        assert response.status_code == 409, response.text
        assert reason in response.json()["detail"]
        assert client.get("/v1/models/good/aliases/champion").json()["version"] == 1
    unknown = move(3, "none")
    assert unknown.status_code == 422
    assert unknown.json()["errors"][0]["pointer"] == "/require_evaluation"
    assert move(3, equal).status_code == 200
    assert move(1, alone).json()["detail"].endswith("does not compare good/1 with good/3, where the alias points")


def test_leakage_keeps_an_alias_where_it_is(client, idle, settings):
    train(client, settings)
    leaked = evaluated(client, idle, subjects=["trained"], tasks={"family": "near", "split": "train", "count": 2})
    response = client.put(
        "/v1/models/trained/aliases/champion", json={"version": 1, "require_evaluation": leaked["id"]}
    )
    assert response.status_code == 409
    assert "has leakage: trained was trained on 2 of the 2 held-out tasks" in response.json()["detail"]


def test_evaluations_need_their_scope(client):
    key = client.post("/v1/api-keys", json={"name": "reader", "scopes": ["models:read"]}).json()["key"]
    response = client.post("/v1/evaluations", json=ASKED, headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 403


def test_a_task_that_is_deleted_after_it_was_asked_for_is_measured_all_the_same(client, idle):
    task = {"environment": "Navigation2D-v0", "parameters": {"goal_x": 0.4}, "horizon": 10, "name": "gone"}
    client.post("/v1/tasks", json=task)
    asked = ask(client, tasks={"ids": ["gone"]})
    assert client.delete("/v1/tasks/gone").status_code == 204
    idle.work_once()
    assert look(client, asked)["result"]["tasks"][0]["name"] == "gone"
