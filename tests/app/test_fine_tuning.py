import dataclasses
import threading

import pytest
import torch
from sqlalchemy import select, update

from app.execution import Interrupter
from app.tables import Adaptation, Policy
from app.worker import Worker
from models.checkpoint import load_params, save_params

CARTPOLE = {"environment": "CartPole-v1", "horizon": 40}
PENDULUM = {"environment": "Pendulum-v1", "horizon": 20}
SMALL = {"hidden": [8]}
QUICK = {"environment_steps": 400, "evaluation_episodes": 2}
PPO = {"name": "ppo", "steps": 20, "parallel_episodes": 4, "epochs": 2} | QUICK
DQN = {"name": "dqn", "warm_up_steps": 100, "batch_size": 16} | QUICK
SAC = {"name": "sac", "warm_up_steps": 50, "batch_size": 16} | QUICK
SQUASHED = SMALL | {"action_scaling": "squash", "log_std": "state", "normalise_observations": True}
METHODS = {"ppo": (PPO, CARTPOLE, SMALL), "dqn": (DQN, CARTPOLE, SMALL), "sac": (SAC, PENDULUM, SQUASHED)}


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


def ask(client, task=CARTPOLE, method=PPO, policy=SMALL, **changes):
    body = {"model": None, "task": task, "method": method, "policy": policy, "seed": 3} | changes
    return client.post("/v1/adaptations", json=body, headers={"Prefer": "wait=0"}).json()


def finished(client, adaptation):
    response = client.get(f"/v1/adaptations/{adaptation['id']}")
    assert response.json()["state"] == "succeeded", response.text
    return response.json()


def parameters(client, adaptation):
    return load_params(client.get(f"/v1/policies/{adaptation['policy']}/files/policy.safetensors").content)


def problem(response):
    assert response.status_code == 422, response.text
    return {error["pointer"]: error["detail"] for error in response.json()["errors"]}


@pytest.mark.parametrize(("method", "task", "policy"), METHODS.values(), ids=METHODS)
@pytest.mark.databases("sqlite")
def test_a_new_policy_is_trained_measured_and_acts(client, idle, method, task, policy):
    asked = ask(client, task, method, policy)
    assert (asked["state"], asked["policy"], asked["curve"]) == ("queued", None, None)
    assert asked["progress"] == {"fraction": 0.0, "environment_steps": 0, "episodes": 0, "seconds": 0.0}
    idle.work_once()
    done = finished(client, asked)
    assert done["method"] | method == done["method"]
    assert done["stopped_by"] == "environment_steps"
    assert done["progress"]["fraction"] == 1.0
    assert done["progress"]["environment_steps"] == done["curve"][-1]["environment_steps"] >= 400
    assert done["progress"]["episodes"] == done["curve"][-1]["episodes"] > 0
    assert [done[when]["mean_return"] for when in ("before", "after")] == [
        done["curve"][place]["mean_return"] for place in (0, -1)
    ]
    assert done["metrics"]
    size = 4 if task is CARTPOLE else 3
    acted = client.post(f"/v1/policies/{done['policy']}:act", json={"observations": [[0.1] * size]})
    assert acted.status_code == 200, acted.text


def test_a_method_goes_on_from_a_policy_and_from_the_version_that_it_became(client, idle):
    first = ask(client)
    idle.work_once()
    first = finished(client, first)
    second = ask(client, policy=first["policy"], seed=4)
    assert second["start_policy"] == first["policy"]
    idle.work_once()
    second = finished(client, second)

    response = client.post(f"/v1/policies/{first['policy']}:publish", json={"model": "tuned"})
    version = response.json()
    assert response.status_code == 201, response.text
    assert response.headers["location"] == "/v1/models/tuned/versions/1"
    assert version["metrics"] == {f"return_{when}": first[when]["mean_return"] for when in ("before", "after")}
    third = ask(client, model="tuned", policy=None, seed=4)
    idle.work_once()
    third = finished(client, third)
    assert (third["model"], third["version"]) == ("tuned", 1)
    # The version has the policy's very tensors, so the same training follows from both.
    assert third["curve"] == second["curve"]
    ours, theirs = parameters(client, third), parameters(client, second)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())

    fourth = client.post(f"/v1/policies/{third['policy']}:publish", json={"model": "tuned"}).json()
    assert fourth["version"] == 2
    lineage = client.get("/v1/models/tuned/versions/2/lineage").json()
    assert (lineage["parent"], lineage["policy"], lineage["adaptation"]) == ("tuned/1", third["policy"], third["id"])
    assert lineage["task"]["environment"] == "CartPole-v1"
    assert lineage["method"] == third["method"]
    inner = ask(client, model="tuned", policy=None, method={"name": "inner-loop", "episodes": 2})
    idle.work_once()
    finished(client, inner)


def test_work_that_stops_in_the_middle_ends_as_if_it_had_not(client, settings, store, database):
    long = PPO | {"environment_steps": 4000}
    whole, parted = ask(client, method=long), ask(client, method=long)
    worker = Worker(settings, "adaptations")
    worker.work_once()
    worker.close()

    interrupter = Interrupter()
    impatient = Worker(dataclasses.replace(settings, checkpoint_seconds=0.0), "adaptations", interrupter)
    compute, rounds = interrupter.compute, []

    def stop_after_some(function):
        rounds.append(function)
        interrupter.stopping = len(rounds) % 7 == 0
        return compute(function)

    interrupter.compute = stop_after_some
    while client.get(f"/v1/adaptations/{parted['id']}").json()["state"] != "succeeded":
        impatient.work_once()
        interrupter.stopping = False
    impatient.close()
    whole, parted = finished(client, whole), finished(client, parted)
    assert parted["attempts"] > 3
    assert parted["curve"] == whole["curve"]
    ours, theirs = parameters(client, parted), parameters(client, whole)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with database.snapshot() as session:
        assert set(session.scalars(select(Adaptation.checkpoint_sha256))) == {None}
        kept = set(session.scalars(select(Policy.sha256)))
    assert {path.name for path in store.folder.glob("*/*")} == kept


@pytest.mark.parametrize("method", [PPO, {"name": "inner-loop", "episodes": 3, "steps": 2}], ids=lambda m: m["name"])
@pytest.mark.databases("sqlite")
def test_many_at_once_come_out_as_each_alone(client, idle, method):
    tasks = [CARTPOLE | {"parameters": {"length": length}} for length in (0.4, 0.5, 0.6)]
    body = {"model": None, "policy": SMALL, "method": method, "tasks": [*tasks, PENDULUM], "seed": 5}
    response = client.post("/v1/adaptations:batchCreate", json=body)
    assert response.status_code == 202, response.text
    asked = response.json()["adaptations"]
    assert [each["seed"] for each in asked] == [5, 6, 7, 8]
    assert idle.work_once()
    assert idle.work_once()
    assert not idle.work_once()
    done = [finished(client, each) for each in asked]
    assert len({each["policy"] for each in done}) == 4
    for place, task in enumerate(tasks):
        alone = ask(client, task, method, seed=5 + place)
        idle.work_once()
        alone = finished(client, alone)
        assert [point["mean_return"] for point in done[place]["curve"]] == pytest.approx(
            [point["mean_return"] for point in alone["curve"]], rel=0.05
        )
        theirs = parameters(client, alone)
        for name, value in parameters(client, done[place]).items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-2)


def test_of_many_at_once_the_one_that_fails_fails_alone(client, idle):
    bad = CARTPOLE | {"reward": {"expression": "1 / (observation[0] - observation[0])"}}
    body = {"model": None, "policy": SMALL, "method": PPO, "tasks": [CARTPOLE, bad, CARTPOLE]}
    asked = client.post("/v1/adaptations:batchCreate", json=body).json()["adaptations"]
    while idle.work_once():
        pass
    ended = [client.get(f"/v1/adaptations/{each['id']}").json() for each in asked]
    assert [each["state"] for each in ended] == ["succeeded", "failed", "succeeded"]
    assert ended[1]["error"]["type"] == "non-finite-reward"


def test_of_many_at_once_one_can_be_cancelled_and_the_first_too(client, settings):
    body = {"model": None, "policy": SMALL, "method": PPO | {"environment_steps": 10**6}, "tasks": [CARTPOLE] * 3}
    asked = client.post("/v1/adaptations:batchCreate", json=body).json()["adaptations"]
    interrupter = Interrupter()
    worker = Worker(dataclasses.replace(settings, checkpoint_seconds=0.0), "adaptations", interrupter)
    compute, rounds = interrupter.compute, []

    def cancel_in_the_middle(function):
        rounds.append(function)
        if len(rounds) == 3:
            cancelled = client.post(f"/v1/adaptations/{asked[1]['id']}:cancel").json()
            assert (cancelled["state"], cancelled["cancel_requested"]) == ("running", True)
        if len(rounds) == 6:
            assert client.get(f"/v1/adaptations/{asked[1]['id']}").json()["state"] == "cancelled"
            client.post(f"/v1/adaptations/{asked[0]['id']}:cancel")
            interrupter.order("cancel")
        return compute(function)

    interrupter.compute = cancel_in_the_middle
    worker.work_once()
    worker.close()
    states = [client.get(f"/v1/adaptations/{each['id']}").json()["state"] for each in asked]
    assert states[:2] == ["cancelled", "cancelled"]
    # What the first had led goes on by itself.
    follower = Worker(settings, "adaptations", other := Interrupter())
    compute_other = other.compute

    def claimed(function):
        rounds.append(function)
        assert client.get(f"/v1/adaptations/{asked[2]['id']}").json()["state"] == "running"
        other.order("cancel")
        return compute_other(function)

    other.compute = claimed
    count = len(rounds)
    assert follower.work_once()
    assert len(rounds) == count + 1
    follower.close()


def test_a_worker_that_dies_with_many_at_once_loses_none(client, settings, database, idle):
    body = {"model": None, "policy": SMALL, "method": PPO, "tasks": [CARTPOLE] * 3}
    asked = client.post("/v1/adaptations:batchCreate", json=body).json()["adaptations"]
    interrupter = Interrupter()
    dying = Worker(settings, "adaptations", interrupter)

    def die(function):
        del function
        raise KeyboardInterrupt

    interrupter.compute = die
    with pytest.raises(KeyboardInterrupt):
        dying.work_once()
    dying.close()
    assert [client.get(f"/v1/adaptations/{each['id']}").json()["state"] for each in asked] == ["running"] * 3
    assert not idle.work_once()
    with database.transaction() as session:
        session.execute(
            update(Adaptation).where(Adaptation.id == asked[0]["id"]).values(lease_expires_at=Adaptation.created_at)
        )
    assert idle.work_once()
    for each in asked:
        finished(client, each)


@pytest.mark.usefixtures("worker")
def test_the_curve_and_the_state_are_streamed(client):
    asked = ask(client, method=PPO | {"environment_steps": 2000})
    with client.stream("GET", f"/v1/adaptations/{asked['id']}/events") as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line]
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    done = finished(client, asked)
    assert kinds.count("curve") == len(done["curve"])
    assert kinds[-1] == "state"
    ids = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]
    assert ids == sorted(ids)
    with client.stream(
        "GET", f"/v1/adaptations/{asked['id']}/events", headers={"Last-Event-ID": str(ids[-1] - 1)}
    ) as response:
        again = [line for line in response.iter_lines() if line.startswith("event: ")]
    assert again == ["event: curve", "event: state"]


def test_a_queued_one_is_cancelled_at_once(client, idle):
    asked = ask(client)
    assert client.post(f"/v1/adaptations/{asked['id']}:cancel").json()["state"] == "cancelled"
    assert not idle.work_once()
    assert client.post("/v1/adaptations/nothing:cancel").status_code == 404


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"method": {"name": "ppo"}}, "/method", "at least one of environment_steps, episodes, seconds"),
        ({"method": {"name": "dqn", "target_return": 1}}, "/method", "at least one of"),
        (
            {"method": {"name": "ppo", "environment_steps": 0}},
            "/method/environment_steps",
            "greater than or equal to 1",
        ),
        ({"method": {"name": "ppo", "episodes": -5}}, "/method/episodes", "greater than or equal to 1"),
        ({"method": {"name": "ppo", "seconds": 0}}, "/method/seconds", "greater than 0"),
        ({"method": {"name": "ppo", "environment_steps": 10, "target_return": "x"}}, "/method/target_return", "number"),
        ({"method": {"name": "trpo", "environment_steps": 10}}, "/method/name", "'inner-loop', 'ppo', 'dqn', 'sac'"),
        ({"method": {"name": "dqn", "environment_steps": 10, "clip_ratio": 1}}, "/method/clip_ratio", "unknown field"),
        ({"method": SAC}, "/method/name", "dqn or ppo"),
        ({"method": DQN, "task": PENDULUM}, "/method/name", "sac or ppo"),
        ({"method": PPO | {"parallel_episodes": 1024, "steps": 100000}}, "/method/parallel_episodes", "too many"),
        ({"method": DQN | {"buffer_size": 10**8}}, "/method/buffer_size", "less than or equal to"),
        ({"policy": "nothing"}, "/policy", "there is no policy 'nothing'"),
        ({"policy": 7}, "/policy", "must be an object"),
    ],
    ids=str,
)
@pytest.mark.databases("sqlite")
def test_what_cannot_work_is_refused_with_its_place(client, changes, pointer, detail):
    body = {"model": None, "task": CARTPOLE, "method": PPO, "policy": SMALL} | changes
    assert detail in problem(client.post("/v1/adaptations", json=body))[pointer]


@pytest.mark.databases("sqlite")
def test_a_policy_that_does_not_fit_the_task_is_refused_with_both_named(client, idle):
    first = ask(client)
    idle.work_once()
    policy = finished(client, first)["policy"]
    body = {"model": None, "policy": policy, "task": PENDULUM, "method": PPO}
    detail = problem(client.post("/v1/adaptations", json=body))["/task"]
    assert f"policy {policy} has observations of 4 numbers and 2 discrete actions" in detail
    assert "Pendulum-v1, which has observations of 3 numbers" in detail


def test_of_many_at_once_every_task_at_fault_is_named_and_none_is_begun(client):
    body = {
        "model": None,
        "policy": SMALL,
        "method": DQN,
        "tasks": [CARTPOLE, PENDULUM, "nothing", {"environment": "x"}],
    }
    found = problem(client.post("/v1/adaptations:batchCreate", json=body))
    assert set(found) == {"/method/name", "/tasks/2", "/tasks/3/environment"}
    assert client.get("/v1/adaptations").json()["adaptations"] == []


@pytest.mark.databases("sqlite")
def test_seeds_of_many_at_once_must_all_be_seeds(client):
    body = {"model": None, "policy": SMALL, "method": PPO, "tasks": [CARTPOLE] * 2}
    path = "/v1/adaptations:batchCreate"
    assert "room for 2 seeds" in problem(client.post(path, json=body | {"seed": 2**63 - 1}))["/seed"]
    assert client.post(path, json=body | {"seed": 2**63 - 2}).status_code == 202


def test_publishing_needs_a_policy_that_stands_and_a_name(client, idle):
    assert client.post("/v1/policies/nothing:publish", json={"model": "m"}).status_code == 404
    first = ask(client)
    idle.work_once()
    path = f"/v1/policies/{finished(client, first)['policy']}"
    assert "must match" in problem(client.post(f"{path}:publish", json={"model": "No Name"}))["/model"]
    client.delete(path)
    assert client.post(f"{path}:publish", json={"model": "m"}).status_code == 410
    assert client.get("/v1/models").json()["models"] == []


def test_a_checkpoint_of_other_code_is_not_gone_on_from(client, idle, store, database):
    expected, asked = ask(client), ask(client)
    idle.work_once()
    strange = store.put(save_params({"stopped_by": torch.tensor([-1])}, {"code_version": "0.0.1"}))[0]
    with database.transaction() as session:
        session.get(Adaptation, asked["id"]).checkpoint_sha256 = strange
    idle.work_once()
    assert finished(client, asked)["curve"] == finished(client, expected)["curve"]
