from pathlib import Path

import pytest

from app.settings import InvalidSetting, Settings
from app.worker import Worker
from models.environments import bridge

MODULE = "gymnasium_samples"
SMALL = {"learner": {"tasks_per_iteration": 2, "episodes_per_task": 2}, "policy": {"hidden": [4]}}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    yield Settings(data=tmp_path / "var", environment_modules=(MODULE,), environment_timeout=20.0)
    bridge.configure([])


@pytest.fixture
def work(client, settings):
    """Executes what is queued and answers with the run, or the adaptation."""
    workers = {slot: Worker(settings, slot) for slot in ("runs", "adaptations")}

    def work(kind, **body):
        created = client.post(f"/v1/{kind}", json=body, headers={"Prefer": "wait=0"})
        assert created.status_code == 202, created.text
        assert workers[kind].work_once()
        return client.get(f"/v1/{kind}/{created.json()['id']}").json()

    yield work
    for worker in workers.values():
        worker.close()


def register(client, environment, parameters, horizon=8):
    body = {"environment": environment, "parameters": parameters, "horizon": horizon}
    response = client.post("/v1/tasks", json=body)
    assert response.status_code == 201, response.text
    return response.json()["id"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "ZeroDivisionError: nothing is left to share\nTraceback"),
        ("die", "its process ended with exit code 3\nmy last words"),
    ],
)
def test_an_environment_that_fails_fails_the_run_with_its_traceback_and_the_worker_goes_on(client, work, how, message):
    tasks = {"ids": [register(client, f"{MODULE}:Bad-v0", {"how": how})]}
    run = work("runs", model="lost", tasks=tasks, stop={"iterations": 2}, **SMALL)
    assert (run["state"], run["error"]["type"]) == ("failed", "environment-failed")
    assert message in run["error"]["detail"]
    assert f"{MODULE}:Bad-v0, how={how}" in run["error"]["detail"]
    tasks = {"ids": [register(client, "FrozenLake-v1", {"is_slippery": False})]}
    assert work("runs", model="lake", tasks=tasks, stop={"iterations": 2}, **SMALL)["state"] == "succeeded"


def test_a_policy_of_a_bridged_environment_is_adapted_and_acts_on_flattened_observations(client, work):
    task = register(client, f"{MODULE}:Rooms-v0", {"rooms": 4})
    run = work("runs", model="rooms", tasks={"ids": [task]}, stop={"iterations": 1}, **SMALL)
    assert run["state"] == "succeeded", run
    adaptation = work("adaptations", model="rooms", task=task, method={"name": "inner-loop", "episodes": 2})
    assert adaptation["state"] == "succeeded", adaptation
    size = len(client.get("/v1/models/rooms/versions/1").json()["manifest"]["observation_space"]["low"])
    assert size == 15
    for place in (f"policies/{adaptation['policy']}", "models/rooms/versions/1"):
        acted = client.post(f"/v1/{place}:act", json={"observations": [[0.0] * size]})
        assert acted.status_code == 200, acted.text
        assert acted.json()["actions"][0] in range(6)
    other = register(client, f"{MODULE}:Rooms-v0", {"rooms": 7})
    refused = client.post("/v1/adaptations", json={"model": "rooms", "task": other})
    assert refused.status_code == 422
    assert "observations of 18 numbers" in refused.json()["detail"]


def test_held_out_tasks_of_other_spaces_than_the_selected_ones_are_refused(client):
    environment = f"{MODULE}:Rooms-v0"
    family = {"name": "rooms", "environment": environment, "parameters": {"rooms": 4}, "horizon": 8}
    assert client.post("/v1/task-families", json=family).status_code == 201
    large = {"name": "large", "environment": environment, "parameters": {"rooms": 7}, "horizon": 8, "family": "rooms"}
    assert client.post("/v1/tasks", json=large).status_code == 201
    run = {"model": "rooms", "tasks": {"ids": ["large"]}, "stop": {"iterations": 1}, "evaluation": {"tasks": 2}}
    [error] = client.post("/v1/runs", json=run | SMALL).json()["errors"]
    assert error["pointer"] == "/tasks"
    assert "large" in error["detail"]
    assert "the held-out tasks" in error["detail"]


def test_environments_are_described_by_their_ids_and_only_the_built_in_ones_are_listed(client):
    listed = [each["id"] for each in client.get("/v1/environments").json()["environments"]]
    assert "CartPole-v1" in listed
    assert "Taxi-v4" not in listed
    taxi = client.get("/v1/environments/Taxi-v4").json()
    assert taxi["action_space"] == {"type": "discrete", "n": 6}
    assert {"name": "is_rainy", "kind": "boolean", "default": False}.items() <= taxi["parameters"][0].items()
    assert client.get(f"/v1/environments/{MODULE}:Arm-v0").json()["id"] == f"{MODULE}:Arm-v0"
    assert client.get("/v1/environments/Nothing-v0").status_code == 404
    named = client.get("/v1/environments/tabular/CliffWalking-v0")
    assert named.status_code in (200, 404)
    assert "tabular/CliffWalking-v0" in named.text


@pytest.mark.parametrize(
    ("environment", "parameters", "pointer", "detail"),
    [
        ("json:Thing-v0", {}, "/environment", "HEADSTART_ENVIRONMENT_MODULES"),
        ("FrozenLake-v1", {"map_name": "9x9"}, "/parameters/map_name", "KeyError: '9x9'"),
        ("FrozenLake-v1", {"wind": 1}, "/parameters/wind", "no parameter"),
        (f"{MODULE}:Bad-v0", {"how": "reset"}, "/parameters/how", "RuntimeError: no beginning"),
        (f"{MODULE}:Bad-v0", {"when": 1.5}, "/parameters/when", "a whole number"),
    ],
)
def test_a_task_that_cannot_run_is_refused_where_it_is_registered(client, environment, parameters, pointer, detail):
    response = client.post("/v1/tasks", json={"environment": environment, "parameters": parameters})
    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert error["pointer"] == pointer
    assert detail in error["detail"]


def test_modules_are_named_one_by_one():
    read = Settings.from_environment({"HEADSTART_ENVIRONMENT_MODULES": "mine, yours.games ,"})
    assert read.environment_modules == ("mine", "yours.games")
    for text in ("a b", "x;y", "mine:Env-v0", "../mine"):
        with pytest.raises(InvalidSetting, match="names of Python modules"):
            Settings.from_environment({"HEADSTART_ENVIRONMENT_MODULES": text})
