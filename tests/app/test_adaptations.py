import hashlib
import json
import threading
import time
from datetime import timedelta

import pytest
import torch
from sqlalchemy import func, select, update

from app.adaptations.waiting import read_prefer
from app.database import now
from app.execution import Interrupter
from app.registry.service import publish_version
from app.sweep import sweep
from app.tables import Adaptation, Policy
from app.worker import Worker
from models.adaptation import InnerLoop, adapt
from models.checkpoint import (
    MANIFEST_FILE,
    PARAMETERS_FILE,
    check_params,
    load_params,
    pack,
    policy_from_json,
    unpack,
)
from models.environments import ENVIRONMENTS
from models.learners import LEARNERS, MAML, MAMLConfig
from models.learners.meta_sgd import MetaSGD, MetaSGDConfig
from models.policy import Policy as Network
from models.policy import PolicyConfig
from models.tasks import TaskBatch, define_task
from models.types import stack_params

HERE = {"environment": "Navigation2D-v0", "parameters": {"goal_x": 0.25}, "horizon": 10}
METHOD = {"name": "inner-loop", "steps": 2, "episodes": 4, "evaluation_episodes": 3}
ASKED = {"model": "nav", "task": HERE, "method": METHOD, "seed": 7}


@pytest.fixture
def learner():
    environment = ENVIRONMENTS["Navigation2D-v0"]
    policy = Network(PolicyConfig(hidden=(4,)), environment.observation_space, environment.action_space)
    return MAML(MAMLConfig(), policy)


@pytest.fixture
def version(database, store, learner):
    """nav/1, a version that no run made."""
    return publish(database, store, learner)


def publish(database, store, learner):
    """Publish a new initialisation as nav/1: its parameters."""
    params = learner.initialise(0).params
    manifest, parameters = pack(learner.config, learner.policy, params, {"environment": "Navigation2D-v0", "seed": 0})
    files = {MANIFEST_FILE: store.put(manifest), PARAMETERS_FILE: store.put(parameters)}
    with database.transaction() as session:
        publish_version(session, "nav", json.loads(manifest), files, None)
    return params


@pytest.fixture
def worker(settings):
    """A worker that works, in a thread."""
    interrupter = Interrupter()
    worker = Worker(settings, "adaptations", interrupter)
    thread = threading.Thread(target=worker.run)
    thread.start()
    yield worker
    interrupter.stopping = True
    thread.join(30)
    worker.close()


def adapt_to(client, headers=None, **changes):
    return client.post("/v1/adaptations", json=ASKED | changes, headers=headers)


def problem(response):
    assert response.status_code == 422, response.text
    return {error["pointer"]: error["detail"] for error in response.json()["errors"]}


@pytest.mark.usefixtures("worker")
def test_an_adaptation_is_what_the_core_computes(client, version, learner):
    response = adapt_to(client)
    body = response.json()
    assert response.status_code == 201, body
    assert response.headers["location"] == f"/v1/adaptations/{body['id']}"
    assert (body["state"], body["model"], body["version"]) == ("succeeded", "nav", 1)
    task = define_task(**HERE)
    assert body["task"] == task.definition()
    expected = adapt(learner, version, TaskBatch.of([task]), InnerLoop(**METHOD), seed=7)
    assert [point["mean_return"] for point in body["curve"]] == [float(p.mean_return[0]) for p in expected.curve]
    assert [point["episodes"] for point in body["curve"]] == [0, 4, 8]
    assert body["before"] == {"mean_return": body["curve"][0]["mean_return"], "episodes": 3}
    assert body["after"] == {"mean_return": body["curve"][-1]["mean_return"], "episodes": 3}
    assert body["seconds"] > 0
    assert client.get(response.headers["location"]).json() == body
    policy = client.get(f"/v1/policies/{body['policy']}").json()
    file = client.get(f"/v1/policies/{body['policy']}/files/policy.safetensors")
    params = check_params(policy_from_json(policy).shapes(), load_params(file.content))
    assert all((params[name] == value[0]).all() for name, value in expected.params.items())


LEARNER_OPTIONS = {"cavia": {"inner_learning_rate": 5.0}, "meta-sgd": {"rates": "layer", "inner_steps": 2}}


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.usefixtures("worker")
@pytest.mark.databases("sqlite")
def test_every_learner_goes_from_a_run_over_a_version_to_a_policy_that_acts(client, settings, store, name):
    learner = {"name": name, "tasks_per_iteration": 2, "episodes_per_task": 2} | LEARNER_OPTIONS.get(name, {})
    policy = {"hidden": [4], "context_size": 2 if name == "cavia" else 0}
    run = {"model": "any", "learner": learner, "policy": policy, "stop": {"iterations": 2}}
    run |= {"tasks": {"family": "navigation-2d"}, "evaluation": {"tasks": 2, "steps": 2}}
    run_id = client.post("/v1/runs", json=run).json()["id"]
    trainer = Worker(settings, "runs")
    trainer.work_once()
    trainer.close()
    ended = client.get(f"/v1/runs/{run_id}").json()
    assert (ended["state"], ended["version"]) == ("succeeded", 1), ended["error"]
    assert ended["best"]["held_out_return_after"] == ended["metrics"]["held_out_return_step_2"]

    response = adapt_to(client, model="any")
    body = response.json()
    assert response.status_code == 201, body
    observations = {"observations": [[0.1, -0.2], [0.0, 0.3]]}
    acted = client.post(f"/v1/policies/{body['policy']}:act", json=observations)
    bare = client.post("/v1/models/any/versions/1:act", json=observations)
    assert (acted.status_code, bare.status_code) == (200, 200), acted.text + bare.text

    files = {file["name"]: file for file in client.get("/v1/models/any/versions/1").json()["files"]}
    artefact = unpack(*(store.read(files[file]["sha256"]) for file in (MANIFEST_FILE, PARAMETERS_FILE)))
    adapted = load_params(client.get(f"/v1/policies/{body['policy']}/files/policy.safetensors").content)
    assert set(adapted) == set(artefact.policy.shapes())
    assert any(tensor.startswith("inner_rate.") for tensor in artefact.params) == (name == "meta-sgd")
    if name == "cavia":
        moved = {each for each, value in adapted.items() if (value != artefact.params[each]).any()}
        assert moved == {"context", "value.weight", "value.bias"}
    # What acts over HTTP is what the core would do.
    rows = torch.tensor(observations["observations"])
    for params, answer in ((adapted, acted), (artefact.params, bare)):
        stacked = stack_params(params, 1)
        head = artefact.policy.head(stacked, artefact.policy.features(stacked, rows.unsqueeze(0)))
        expected = artefact.policy.to_environment(artefact.policy.choose(head, None))[0]
        assert answer.json()["actions"] == [pytest.approx(action, abs=1e-6) for action in expected.tolist()]


@pytest.mark.usefixtures("worker")
@pytest.mark.databases("sqlite")
def test_a_rate_for_each_step_is_one_of_the_methods_options(client, version, learner):
    method = METHOD | {"learning_rate": [0.5, 0.05]}
    body = adapt_to(client, method=method).json()
    assert body["method"]["learning_rate"] == [0.5, 0.05]
    chosen = InnerLoop(**METHOD | {"learning_rate": (0.5, 0.05)})
    expected = adapt(learner, version, TaskBatch.of([define_task(**HERE)]), chosen, seed=7)
    assert [point["mean_return"] for point in body["curve"]] == [float(p.mean_return[0]) for p in expected.curve]


@pytest.mark.databases("sqlite")
def test_a_rate_for_a_version_that_has_learned_its_own_is_refused(client, database, store, learner):
    publish(database, store, MetaSGD(MetaSGDConfig(), learner.policy))
    found = problem(adapt_to(client, method=METHOD | {"learning_rate": 0.1}))
    assert "has learned its own rates" in found["/method/learning_rate"]
    assert adapt_to(client, {"Prefer": "wait=0"}).status_code == 202


@pytest.mark.usefixtures("worker")
def test_without_a_model_a_new_policy_is_adapted(client):
    body = adapt_to(client, model=None, policy={"hidden": [3]}).json()
    assert (body["state"], body["model"], body["version"]) == ("succeeded", None, None)
    policy = client.get(f"/v1/policies/{body['policy']}").json()
    assert policy["policy"]["hidden"] == [3]
    again = adapt_to(client, model=None, policy={"hidden": [3]}).json()
    assert again["curve"] == body["curve"]
    assert adapt_to(client, model=None, policy={"hidden": [3]}, seed=8).json()["curve"] != body["curve"]


@pytest.mark.usefixtures("version", "worker")
def test_a_registered_task_is_adapted_to_by_name_and_answered_by_id(client):
    task = client.post("/v1/tasks", json=HERE | {"name": "corner"}).json()
    body = adapt_to(client, task="corner").json()
    assert (body["state"], body["task"]) == ("succeeded", task["id"])
    assert client.get(f"/v1/policies/{body['policy']}").json()["task"] == task["id"]


@pytest.mark.usefixtures("version")
def test_a_post_that_is_not_to_wait_is_answered_at_once(client):
    for prefer in ("wait=0", "respond-async"):
        started = time.monotonic()
        response = adapt_to(client, {"Prefer": prefer})
        assert time.monotonic() - started < 2
        assert (response.status_code, response.json()["state"]) == (202, "queued")
        assert response.headers["preference-applied"] == prefer
        assert response.headers["retry-after"] == "1"
        assert client.get(response.headers["location"]).json()["state"] == "queued"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (10, None)),
        ("wait=3", (3, "wait=3")),
        ('return=minimal, wait="5"; foo', (5, "wait=5")),
        ("wait=9999", (60, "wait=60")),
        ("wait=soon", (10, None)),
        ("respond-async", (0, "respond-async")),
        ("respond-async, wait=2", (2, "wait=2")),
    ],
)
def test_preferences_are_read_as_rfc_7240_says(header, expected):
    assert read_prefer(header) == expected


@pytest.mark.usefixtures("version", "worker")
def test_an_adaptation_that_fails_is_a_202_with_the_reason(client):
    task = HERE | {"reward": {"expression": "1 / (reward - reward)"}}
    response = adapt_to(client, task=task)
    body = response.json()
    assert (response.status_code, body["state"], body["policy"]) == (202, "failed", None)
    assert body["error"]["type"] == "non-finite-reward"
    assert client.get(response.headers["location"]).json() == body


@pytest.mark.usefixtures("version", "worker")
def test_a_repeated_post_with_one_idempotency_key_adapts_once(client, database):
    headers = {"Idempotency-Key": "once"}
    first, again = (adapt_to(client, headers) for _ in range(2))
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    with database.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(Adaptation)) == 1


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"model": "ghost"}, "/model", "no model 'ghost'"),
        ({"model": "nav@champion"}, "/model", "champion"),
        ({"model": "nav/7"}, "/model", "'7'"),
        ({"task": "ghost"}, "/task", "ghost"),
        ({"task": {"environment": "Nowhere-v0"}}, "/task/environment", "Nowhere-v0"),
        ({"task": HERE | {"parameters": {"goal_x": 99}}}, "/task/parameters/goal_x", "goal_x"),
        ({"task": HERE | {"reward": {"expression": "__import__('os')"}}}, "/task/reward/expression", ""),
        ({"task": HERE | {"name": "x"}}, "/task/name", "unknown field"),
        ({"task": {"environment": "CartPole-v1"}}, "/task", "nav/1 has observations of 2 numbers"),
        ({"method": {"name": "pop"}}, "/method/name", "inner-loop"),
        ({"method": {"steps": "2"}}, "/method/steps", "a number"),
        ({"method": {"episodes": 1000}, "task": HERE | {"horizon": 100_000}}, "/method/episodes", "at most"),
        ({"policy": {"hidden": [4]}}, "/policy", "no model"),
        ({"model": None, "policy": {"context_size": 2}}, "/policy/context_size", "must be 0"),
        ({"method": {"learning_rate": [0.1, 0]}}, "/method/learning_rate/1", "greater than 0"),
        ({"ttl_seconds": 0}, "/ttl_seconds", "greater"),
        ({"colour": 1}, "/colour", "unknown field"),
    ],
)
@pytest.mark.usefixtures("version")
@pytest.mark.databases("sqlite")
def test_an_adaptation_that_cannot_work_is_refused_with_a_pointer(client, changes, pointer, detail):
    found = problem(adapt_to(client, **changes))
    assert pointer in found, found
    assert detail in found[pointer]


@pytest.mark.usefixtures("version", "worker")
def test_a_policy_that_is_deleted_or_has_expired_is_gone(client, database):
    deleted, expired, standing = (adapt_to(client, seed=seed).json()["policy"] for seed in range(3))
    assert client.delete(f"/v1/policies/{deleted}").status_code == 204
    with database.transaction() as session:
        session.execute(update(Policy).where(Policy.id == expired).values(expires_at=now() - timedelta(seconds=1)))
    for policy_id in (deleted, expired):
        for path in ("", "/files/policy.safetensors"):
            assert client.get(f"/v1/policies/{policy_id}{path}").status_code == 410
        assert client.delete(f"/v1/policies/{policy_id}").status_code == 410
    assert [policy["id"] for policy in client.get("/v1/policies").json()["policies"]] == [standing]


@pytest.mark.usefixtures("version", "worker")
def test_the_bytes_of_policies_that_are_gone_are_swept_and_no_others(client, database, store):
    gone, standing = (adapt_to(client, seed=seed).json()["policy"] for seed in range(2))
    client.delete(f"/v1/policies/{gone}")
    before = {path.name for path in store.folder.glob("*/*")}
    assert sweep(database, store) == 0  # they are too young
    assert sweep(database, store, grace=timedelta(seconds=-1)) == 1
    with database.snapshot() as session:
        digests = dict(session.execute(select(Policy.id, Policy.sha256)).all())
    assert before - {path.name for path in store.folder.glob("*/*")} == {digests[gone]}
    assert client.get(f"/v1/policies/{standing}/files/policy.safetensors").status_code == 200


@pytest.mark.usefixtures("version", "worker")
@pytest.mark.databases("sqlite")
def test_a_policys_file_is_served_by_its_digest(client):
    policy_id = adapt_to(client).json()["policy"]
    path = f"/v1/policies/{policy_id}/files/policy.safetensors"
    file = client.get(path)
    entry = client.get(f"/v1/policies/{policy_id}").json()["files"][0]
    assert hashlib.sha256(file.content).hexdigest() == entry["sha256"]
    assert file.headers["etag"] == f'"sha256-{entry["sha256"]}"'
    assert client.get(path, headers={"If-None-Match": file.headers["etag"]}).status_code == 304
    part = client.get(path, headers={"Range": "bytes=8-15"})
    assert (part.status_code, part.content) == (206, file.content[8:16])


@pytest.mark.usefixtures("version")
def test_adaptations_are_listed_newest_first(client):
    ids = [adapt_to(client, {"Prefer": "wait=0"}).json()["id"] for _ in range(3)]
    assert [row["id"] for row in client.get("/v1/adaptations").json()["adaptations"]] == ids[::-1]
    assert client.get("/v1/adaptations/nothing").status_code == 404


@pytest.mark.databases("sqlite")
def test_episodes_that_would_not_fit_in_memory_with_the_policys_size_are_refused(client):
    task = {"environment": "CartPole-v1", "horizon": 100_000}
    method = {"name": "inner-loop", "episodes": 5, "evaluation_episodes": 1}
    body = {"model": None, "task": task, "policy": {"hidden": [500]}, "method": method}
    answer = client.post("/v1/adaptations", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"pointer": "/method/episodes", "detail": "5 episodes of 100000 steps are too many; at most 4 fit"}
    ]
