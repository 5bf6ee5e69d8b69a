"""A whole remote adaptation, and what it is worth: the same as where the environment is the service's."""

import random as shuffling
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import numpy as np
import pytest
import torch
from acting import (
    CARTPOLE,
    METHOD,
    NAVIGATION,
    PENDULUM,
    SEED,
    act,
    at_work,
    begin,
    finish,
    in_pieces,
    look,
    policy_of,
    publish,
    remote_task,
    upload,
    uploaded,
)
from sqlalchemy import event

from app.execution import Interrupter
from app.sweep import sweep
from app.worker import Worker
from models.learners import CONFIGS, LEARNERS
from models.policy import Policy, PolicyConfig
from models.tasks import TaskBatch, define_task

LEARNER_OPTIONS = {
    "cavia": {"inner_learning_rate": 5.0, "baseline": "value"},
    "meta-sgd": {"rates": "layer", "inner_steps": 2, "normalise_advantages": False},
    "reptile": {"baseline": "none", "gae_decay": 0.9},
}
POLICIES = {
    "CartPole-v1": {},
    "Navigation2D-v0": {"action_scaling": "clip"},
    "Pendulum-v1": {"action_scaling": "squash", "log_std": "state", "normalise_observations": True},
}


@pytest.fixture
def worker(settings):
    """A worker that works, in a thread."""
    interrupter = Interrupter()
    worker = Worker(settings, "adaptations", interrupter)
    with at_work(worker, interrupter):
        yield worker


def version_of(database, store, name, task):
    """A version of a learner for a task's spaces, called ``mine``."""
    environment = TaskBatch.of([define_task(**task)]).environment
    config = PolicyConfig(hidden=(8,), context_size=2 if name == "cavia" else 0, **POLICIES[task["environment"]])
    policy = Policy(config, environment.observation_space, environment.action_space)
    publish(database, store, LEARNERS[name](CONFIGS[name](**LEARNER_OPTIONS.get(name, {})), policy))


def here_and_there(client, task, method=METHOD, log_probs=True, **start):
    """The policies of a server-side adaptation and of a remote one on the same seeds, and both adaptations."""
    asked = {"model": "mine", "method": method, "seed": SEED} | start
    here = client.post("/v1/adaptations", json=asked | {"task": task}, headers={"Prefer": "wait=60"}).json()
    assert here["state"] == "succeeded", here
    there = begin(client, task, **asked)
    shuffler = shuffling.Random(0)
    for step in range(1, method["steps"] + 1):
        episodes = act(client, there, task, 2 * step, **({} if log_probs else {"log_probs": None}))
        pieces = [piece for episode in episodes for piece in in_pieces(episode, 3, 7)]
        shuffler.shuffle(pieces)
        with ThreadPoolExecutor(3) as actors:
            list(actors.map(lambda some: uploaded(client, there, some), (pieces[i::4] for i in range(4))))
        assert look(client, there)["revision"] == step
    uploaded(client, there, act(client, there, task, 2 * method["steps"] + 1))
    return here, finish(client, there)


def assert_same_policy(client, here, there):
    ours, theirs = policy_of(client, there)[1], policy_of(client, here)[1]
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=2e-4, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("maml", CARTPOLE),
        ("maml", NAVIGATION),
        ("meta-sgd", PENDULUM),
        ("meta-sgd", CARTPOLE),
        ("cavia", NAVIGATION),
        ("reptile", PENDULUM),
    ],
    ids=lambda value: value if isinstance(value, str) else value["environment"],
)
@pytest.mark.usefixtures("worker")
def test_a_remote_adaptation_gives_the_policy_of_a_server_side_one(client, database, store, name, task):
    version_of(database, store, name, task)
    here, there = here_and_there(client, task)
    assert_same_policy(client, here, there)
    assert (there["state"], there["remote"]["steps_taken"], there["revision"]) == ("succeeded", 2, 3)
    assert there["remote"]["off_policy"] == pytest.approx(0.0, abs=1e-6)
    # One curve is of fresh episodes, the other of those that were learned from; they end with the same.
    assert there["after"]["mean_return"] == pytest.approx(here["after"]["mean_return"], rel=1e-5)
    assert [point["episodes"] for point in there["curve"]] == [point["episodes"] for point in here["curve"]]
    steps = [point["environment_steps"] for point in there["curve"]]
    assert steps == [point["environment_steps"] for point in here["curve"]]


@pytest.mark.usefixtures("worker")
def test_log_probabilities_that_were_not_kept_are_worked_out(client, database, store):
    version_of(database, store, "maml", PENDULUM)
    here, there = here_and_there(client, PENDULUM, log_probs=False)
    assert_same_policy(client, here, there)


@pytest.mark.usefixtures("worker")
def test_a_new_policy_and_a_rate_for_each_step_adapt_alike(client):
    method = METHOD | {"steps": 3, "learning_rate": [0.2, 0.05]}
    here, there = here_and_there(client, CARTPOLE, method, model=None, policy={"hidden": [6]})
    assert_same_policy(client, here, there)


@pytest.mark.usefixtures("worker")
def test_a_remote_adaptation_goes_on_from_a_policy_and_its_own_policy_is_gone_on_from(client, database, store):
    version_of(database, store, "meta-sgd", CARTPOLE)
    first = begin(client, model="mine", method=METHOD | {"steps": 1})
    body = {"model": None, "policy": first["policy"], "task": CARTPOLE, "method": METHOD}
    evaluation = {"subjects": [{"policy": first["policy"]}], "tasks": {"family": "cartpole-physics", "count": 2}}
    for path, asked in (("/v1/adaptations", body), ("/v1/evaluations", evaluation)):
        refused = client.post(path, json=asked)
        assert refused.status_code == 422
        assert "may still change" in refused.json()["errors"][0]["detail"]
    uploaded(client, first, act(client, first))
    first = finish(client, first)
    here, there = here_and_there(client, CARTPOLE, model=None, policy=first["policy"])
    assert (here["start_policy"], here["model"]) == (first["policy"], "mine")
    assert_same_policy(client, here, there)
    published = client.post(f"/v1/policies/{first['policy']}:publish", json={"model": "mine"}).json()
    assert (published["version"], published["manifest"]["task"]) == (2, first["task"])
    lineage = client.get("/v1/models/mine/versions/2/lineage").json()
    assert (lineage["parent"], lineage["task"]["remote"]["horizon"]) == ("mine/1", 30)
    asked = {"subjects": ["mine/2", {"policy": there["policy"]}], "tasks": {"family": "cartpole-physics", "count": 2}}
    assert client.post("/v1/evaluations", json=asked).status_code == 202


def test_the_policy_is_there_before_the_first_episode(client):
    adaptation = begin(client, CARTPOLE)
    assert (adaptation["state"], adaptation["revision"], adaptation["curve"]) == ("collecting", 0, None)
    assert adaptation["remote"] == {
        "episodes": 0,
        "environment_steps": 0,
        "episodes_used": 0,
        "episodes_needed": 6,
        "environment_steps_needed": 0,
        "steps_taken": 0,
        "off_policy": None,
        "events_expired": 0,
    }
    policy = client.get(f"/v1/policies/{adaptation['policy']}").json()
    assert (policy["revision"], policy["environment"], policy["task"]) == (0, None, adaptation["task"])
    answer = client.post(f"/v1/policies/{adaptation['policy']}:act", json={"observations": [[0.1] * 4]})
    assert answer.status_code == 200
    rollout = client.get(f"/v1/policies/{adaptation['policy']}/rollout")
    assert rollout.status_code == 422
    assert "with a client" in rollout.json()["errors"][0]["detail"]
    client.post("/v1/tasks", json=CARTPOLE | {"name": "here"})
    assert client.get(f"/v1/policies/{adaptation['policy']}/rollout?task=here").status_code == 200


def test_a_step_is_taken_when_enough_is_in_and_not_before(client, idle):
    adaptation = begin(client)
    first = act(client, adaptation)
    body = upload(client, adaptation, first[:4]).json()
    assert (body["accepted"], body["duplicates"], body["adaptation"]["state"]) == (4, 0, "collecting")
    assert body["adaptation"]["remote"]["episodes_needed"] == 2
    assert not idle.work_once()
    again = upload(client, adaptation, first).json()
    assert (again["accepted"], again["duplicates"], again["adaptation"]["state"]) == (2, 4, "queued")
    assert again["adaptation"]["remote"]["episodes_needed"] == 0
    # What comes in while a step is due is learned from by that step.
    upload(client, adaptation, [first[0] | {"id": "one-more"}])
    assert idle.work_once()
    after = look(client, adaptation)
    assert (after["state"], after["revision"], after["attempts"]) == ("collecting", 1, 1)
    assert after["remote"]["episodes_used"] == 7
    assert after["before"]["episodes"] == 7
    assert after["progress"]["fraction"] == 0.5
    assert not idle.work_once()
    rows = client.get(f"/v1/adaptations/{adaptation['id']}/episodes").json()["episodes"]
    assert {row["used_in"] for row in rows} == {1}


@pytest.mark.databases("sqlite")
def test_a_worker_holds_others_up_only_to_write_and_not_to_read_episodes(client, idle):
    adaptation = begin(client)
    upload(client, adaptation, act(client, adaptation))
    begun, writing, reading = {}, [], []

    @event.listens_for(idle._database.engine, "before_cursor_execute")
    def listen(_connection, cursor, statement, *_):
        if statement.startswith("BEGIN"):
            begun[cursor.connection] = []
            (writing if statement == "BEGIN IMMEDIATE" else reading).append(begun[cursor.connection])
        elif not statement.startswith("PRAGMA"):
            begun[cursor.connection].append(statement)

    assert idle.work_once()
    assert look(client, adaptation)["revision"] == 1
    for statements in writing:
        assert not all(statement.startswith("SELECT") for statement in statements), statements
        assert not any("payload" in statement for statement in statements), statements
    assert any("payload" in statement for statements in reading for statement in statements)


def test_every_revision_can_be_fetched_and_its_life_begins_anew(client, idle):
    adaptation = begin(client, ttl_seconds=1000)
    path = f"/v1/policies/{adaptation['policy']}"
    at_first, before = client.get(path).json(), policy_of(client, adaptation)[1]
    upload(client, adaptation, act(client, adaptation))
    idle.work_once()
    later, after = client.get(path).json(), policy_of(client, adaptation)[1]
    assert (later["revision"], later["files"][0]["sha256"] != at_first["files"][0]["sha256"]) == (1, True)
    assert later["expires_at"] > at_first["expires_at"]
    assert not torch.equal(before["policy.weight"], after["policy.weight"])
    for revision, params in ((0, before), (1, after)):
        assert torch.equal(policy_of(client, adaptation, revision)[1]["policy.weight"], params["policy.weight"])
    assert client.get(f"{path}/files/policy.safetensors?revision=2").status_code == 404


def test_after_the_last_step_episodes_count_in_the_curve_only(client, idle):
    adaptation = begin(client, method=METHOD | {"steps": 1})
    upload(client, adaptation, act(client, adaptation))
    idle.work_once()
    more = upload(client, adaptation, act(client, adaptation, number=4)).json()["adaptation"]
    assert (more["state"], more["remote"]["episodes_needed"], more["progress"]["fraction"]) == ("collecting", 0, 1.0)
    assert not idle.work_once()
    client.post(f"/v1/adaptations/{adaptation['id']}:finish", headers={"Prefer": "wait=0"})
    assert idle.work_once()
    done = look(client, adaptation)
    assert (done["state"], len(done["curve"]), done["after"]["episodes"]) == ("succeeded", 2, 6)
    assert done["curve"][-1]["mean_return"] == done["after"]["mean_return"]
    assert done["remote"]["steps_taken"] == 1
    assert finish(client, adaptation, 0) == done


def test_without_episodes_of_the_last_revision_finishing_leaves_the_policy_alone(client, idle):
    adaptation = begin(client, method=METHOD | {"steps": 1})
    first = act(client, adaptation)
    upload(client, adaptation, first)
    idle.work_once()
    upload(client, adaptation, [first[0] | {"id": "late"}])
    client.post(f"/v1/adaptations/{adaptation['id']}:finish", headers={"Prefer": "wait=0"})
    idle.work_once()
    done = look(client, adaptation)
    assert (done["state"], done["revision"], done["after"], len(done["curve"])) == ("succeeded", 1, None, 1)


def test_finishing_waits_for_the_step_that_is_due(client, idle):
    adaptation = begin(client)
    upload(client, adaptation, act(client, adaptation))
    asked = client.post(f"/v1/adaptations/{adaptation['id']}:finish", headers={"Prefer": "wait=0"}).json()
    assert asked["state"] == "queued"
    assert idle.work_once()
    assert look(client, adaptation)["state"] == "queued"
    assert idle.work_once()
    done = look(client, adaptation)
    assert (done["state"], done["remote"]["steps_taken"]) == ("succeeded", 1)


def test_episodes_of_older_revisions_weigh_less_and_say_how_far_they_are_off(client, idle):
    adaptation = begin(client, NAVIGATION, method=METHOD | {"learning_rate": 0.5})
    first = act(client, adaptation, NAVIGATION)
    upload(client, adaptation, first)
    idle.work_once()
    fresh = act(client, adaptation, NAVIGATION, 4)
    stale = [episode | {"id": f"stale-{episode['id']}"} for episode in first[:2]]
    upload(client, adaptation, fresh[:4] + stale)
    idle.work_once()
    rows = client.get(f"/v1/adaptations/{adaptation['id']}/episodes").json()["episodes"]
    divergence = {row["id"]: row["off_policy"] for row in rows if row["used_in"] == 2}
    assert all(divergence[each["id"]] < 1e-6 for each in fresh[:4])
    assert all(divergence[each["id"]] > 1e-4 for each in stale)
    mean = look(client, adaptation)["remote"]["off_policy"]
    assert mean == pytest.approx(sum(divergence.values()) / 6)


def test_the_order_in_which_episodes_come_changes_nothing(client, idle):
    policies = []
    for order in (1, -1):
        adaptation = begin(client)
        for episode in act(client, adaptation)[::order]:
            upload(client, adaptation, [episode])
        idle.work_once()
        policies.append(client.get(f"/v1/policies/{adaptation['policy']}").json()["files"][0]["sha256"])
    assert policies[0] == policies[1]


def test_a_collecting_adaptation_is_cancelled_at_once_and_so_is_one_whose_policy_is_deleted(client):
    cancelled, deleted = begin(client), begin(client)
    assert client.post(f"/v1/adaptations/{cancelled['id']}:cancel").json()["state"] == "cancelled"
    assert client.delete(f"/v1/policies/{deleted['policy']}").status_code == 204
    assert look(client, deleted)["state"] == "cancelled"
    for adaptation in (cancelled, deleted):
        assert upload(client, adaptation, [{}]).status_code == 409


@pytest.mark.usefixtures("worker")
def test_state_and_revisions_are_streamed_and_collecting_is_not_the_end(server_url, admin_headers):
    told = []

    def follow(http, path):
        with http.stream("GET", path) as response:
            for line in response.iter_lines():
                told.append(line)

    def wait_for(text):
        deadline = time.monotonic() + 30
        while not any(text in line for line in list(told)):
            assert time.monotonic() < deadline, told
            time.sleep(0.02)

    with (
        httpx.Client(base_url=server_url, headers=admin_headers(), timeout=60) as http,
        ThreadPoolExecutor(1) as reader,
    ):
        adaptation = begin(http, method=METHOD | {"steps": 1})
        followed = reader.submit(follow, http, f"/v1/adaptations/{adaptation['id']}/events")
        wait_for('"state":"collecting"')
        uploaded(http, adaptation, act(http, adaptation))
        wait_for('"revision":1')
        assert not followed.done()
        finish(http, adaptation)
        followed.result(30)
    assert [line for line in told if line.startswith("event: ")].count("event: curve") == 1
    assert '"state":"succeeded"' in [line for line in told if line][-1]


PPO = {"name": "ppo", "parallel_episodes": 4, "steps": 16, "environment_steps": 150, "epochs": 3}


def test_ppo_takes_a_round_when_the_steps_are_in_and_stops_with_its_budget(client, idle):
    adaptation = begin(client, method=PPO)
    assert (adaptation["remote"]["environment_steps_needed"], adaptation["remote"]["episodes_needed"]) == (64, 3)
    taken = 0
    for number in range(2, 40):
        body = upload(client, adaptation, act(client, adaptation, number=number, episodes=2)).json()["adaptation"]
        if body["state"] == "queued":
            assert idle.work_once()
            taken += 1
        if look(client, adaptation)["stopped_by"]:
            break
    done = look(client, adaptation)
    assert (done["stopped_by"], done["remote"]["steps_taken"], done["revision"]) == ("environment_steps", taken, taken)
    assert done["progress"]["environment_steps"] >= 150
    assert done["metrics"]["divergence"] >= 0
    assert not idle.work_once()
    upload(client, adaptation, act(client, adaptation, number=50))
    client.post(f"/v1/adaptations/{adaptation['id']}:finish", headers={"Prefer": "wait=0"})
    idle.work_once()
    done = look(client, adaptation)
    assert (done["state"], done["after"]["episodes"], done["revision"]) == ("succeeded", 6, taken)
    assert len(done["curve"]) == taken + 1


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"method": {"name": "dqn", "environment_steps": 10}}, "/method/name", "inner-loop or ppo"),
        ({"method": PPO | {"seconds": 5}}, "/method/seconds", ":finish"),
        ({"method": PPO | {"target_return": 5}}, "/method/target_return", ":finish"),
        (
            {"method": METHOD | {"episodes": 1000}, "task": remote_task(CARTPOLE, horizon=100_000)},
            "/method/episodes",
            "",
        ),
        ({"task": remote_task(CARTPOLE, horizon=0)}, "/task/remote/horizon", "greater"),
        ({"task": remote_task(CARTPOLE, discount=1.5)}, "/task/remote/discount", "less"),
        ({"task": remote_task(CARTPOLE, reward_seconds=0)}, "/task/remote/reward_seconds", "greater"),
        ({"task": remote_task(CARTPOLE, colour=1)}, "/task/remote/colour", "unknown field"),
        ({"task": remote_task(CARTPOLE, action_space={"type": "discrete", "n": 0})}, "/task/remote/action_space/n", ""),
        ({"task": remote_task(CARTPOLE, action_space={"type": "text"})}, "/task/remote/action_space/type", "'box'"),
        (
            {"task": remote_task(CARTPOLE, observation_space={"type": "discrete", "n": 3})},
            "/task/remote/observation_space/type",
            "box",
        ),
        (
            {"task": remote_task(CARTPOLE, observation_space={"type": "box", "low": [0, 2], "high": [1, 1]})},
            "/task/remote/observation_space/low/1",
            "above high",
        ),
        (
            {"task": remote_task(CARTPOLE, observation_space={"type": "box", "low": [0], "high": [1, 1]})},
            "/task/remote/observation_space/high",
            "must hold 1",
        ),
        (
            {"task": remote_task(CARTPOLE, observation_space={"type": "box", "low": [-1e300], "high": [None]})},
            "/task/remote/observation_space/low/0",
            "no bound",
        ),
        (
            {"task": remote_task(CARTPOLE, action_space={"type": "box", "low": [None], "high": [1]})},
            "/policy/action_scaling",
            "clip",
        ),
    ],
    ids=str,
)
def test_a_remote_task_that_cannot_be_adapted_to_is_refused_with_its_place(client, changes, pointer, detail):
    body = {"model": None, "policy": {"hidden": [8]}, "task": remote_task(CARTPOLE), "method": METHOD} | changes
    response = client.post("/v1/adaptations", json=body)
    assert response.status_code == 422, response.text
    found = {error["pointer"]: error["detail"] for error in response.json()["errors"]}
    assert detail in found[pointer], found


def test_a_version_of_other_spaces_is_refused_and_many_at_once_are_too(client, database, store):
    version_of(database, store, "maml", CARTPOLE)
    body = {"model": "mine", "task": remote_task(PENDULUM), "method": METHOD}
    found = client.post("/v1/adaptations", json=body).json()["errors"]
    assert found[0]["pointer"] == "/task/remote"
    assert "mine/1 has observations of 4 numbers" in found[0]["detail"]
    many = {"model": "mine", "tasks": [CARTPOLE, remote_task(CARTPOLE)], "method": METHOD}
    found = client.post("/v1/adaptations:batchCreate", json=many).json()["errors"]
    assert found[0]["pointer"] == "/tasks/1/remote"
    assert "one remote task at a time" in found[0]["detail"]


def test_the_longest_episodes_are_no_matter_of_what_is_never_measured(client):
    begin(client, task=CARTPOLE | {"horizon": 100_000}, method={"name": "inner-loop", "episodes": 5})


def test_bounds_are_compared_in_the_precision_that_policies_have(client, database, store):
    version_of(database, store, "maml", NAVIGATION)
    task = remote_task(NAVIGATION)
    bound = task["remote"]["action_space"]["high"][0]
    assert bound != round(bound, 3)
    task["remote"]["action_space"] = {"type": "box", "low": [-round(bound, 3)] * 2, "high": [round(bound, 3)] * 2}
    response = client.post("/v1/adaptations", json={"model": "mine", "task": task, "method": METHOD})
    assert response.status_code == 201, response.text


def test_the_bytes_of_all_revisions_stay_as_long_as_the_policy(client, idle, database, store):
    adaptation = begin(client)
    upload(client, adaptation, act(client, adaptation))
    idle.work_once()
    assert sweep(database, store, grace=timedelta(seconds=-1)) == 0
    client.delete(f"/v1/policies/{adaptation['policy']}")
    assert sweep(database, store, grace=timedelta(seconds=-1)) == 2


def test_actions_without_their_originals_are_taken_back_through_the_scaling(client, idle):
    adaptation = begin(client, PENDULUM, policy={"hidden": [8], "action_scaling": "squash"})
    episodes = act(client, adaptation, PENDULUM, policy_actions=None)
    upload(client, adaptation, episodes)
    idle.work_once()
    with_them = begin(client, PENDULUM, policy={"hidden": [8], "action_scaling": "squash"})
    upload(client, with_them, act(client, with_them, PENDULUM))
    idle.work_once()
    ours, theirs = policy_of(client, adaptation)[1], policy_of(client, with_them)[1]
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    assert np.isfinite(look(client, adaptation)["remote"]["off_policy"])
