"""What the tests of evaluations ask for: two families, versions whose behaviour is known, small protocols."""

import contextlib
import json

import torch

from app.registry.service import publish_version
from app.worker import Worker
from models.checkpoint import MANIFEST_FILE, PARAMETERS_FILE, pack
from models.distributions import Uniform
from models.environments import ENVIRONMENTS
from models.families import define_family
from models.learners import MAML
from models.learners.maml import MAMLConfig
from models.policy import Policy as Network
from models.policy import PolicyConfig

NEAR = define_family("near", "Navigation2D-v0", {"goal_x": Uniform(0.3, 0.5), "goal_y": 0.0}, horizon=10)
FAR = define_family("far", "Navigation2D-v0", {"goal_x": Uniform(0.4, 0.6), "goal_y": 0.0}, horizon=10)
TASK = {"environment": "Navigation2D-v0", "parameters": {"goal_x": 0.4}, "horizon": 10}
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


def publish(database, store, model, velocity, learner=MAML, config=None):
    """A version that goes along x, whatever it sees."""
    environment = ENVIRONMENTS["Navigation2D-v0"]
    policy = Network(
        PolicyConfig(hidden=(4,), initial_log_std=-4.0), environment.observation_space, environment.action_space
    )
    built = learner(config or MAMLConfig(), policy)
    params = built.initialise(0).params
    params["policy.weight"] = torch.zeros_like(params["policy.weight"])
    params["policy.bias"] = torch.tensor([[velocity, 0.0]]).reshape(params["policy.bias"].shape)
    manifest, parameters = pack(built.config, policy, params, {"environment": "Navigation2D-v0"})
    files = {MANIFEST_FILE: store.put(manifest), PARAMETERS_FILE: store.put(parameters)}
    with database.transaction() as session:
        publish_version(session, model, json.loads(manifest), files, run_id=None)


def work_once(settings, slot, interrupter=None):
    """One piece of work, by a worker of its own."""
    with contextlib.closing(Worker(settings, slot, interrupter)) as worker:
        worker.work_once()


def train(client, settings, **changes):
    """A version that a run makes."""
    response = client.post("/v1/runs", json=RUN | changes)
    assert response.status_code == 202, response.text
    work_once(settings, "runs")
    assert client.get(f"/v1/runs/{response.json()['id']}").json()["state"] == "succeeded"


def adapt(client, settings, model, task):
    """The id of the policy, the only one there is, that an adaptation makes."""
    asked = {"model": model, "task": task, "method": METHOD}
    client.post("/v1/adaptations", json=asked, headers={"Prefer": "wait=0"})
    work_once(settings, "adaptations")
    [policy] = client.get("/v1/policies").json()["policies"]
    return policy["id"]


def ask(client, **changes):
    response = client.post("/v1/evaluations", json=ASKED | changes)
    assert response.status_code == 202, response.text
    return response.json()


def evaluated(client, evaluator, **changes):
    asked = ask(client, **changes)
    evaluator.work_once()
    return look(client, asked)


def find(client, asked):
    """The evaluation as it is now, whatever became of it."""
    return client.get(f"/v1/evaluations/{asked['id']}").json()


def look(client, asked):
    """The evaluation, which has succeeded."""
    body = find(client, asked)
    assert body["state"] == "succeeded", body["error"]
    return body


def whole(client, body):
    """The document of all runs that its numbers follow from."""
    return client.get(f"/v1/evaluations/{body['id']}/evaluation.json").json()


def inner_loop(body):
    """The results of ``METHOD``."""
    return body["result"]["methods"]["inner-loop"]


def warned(body, text):
    """Whether one of its warnings says so."""
    return any(text in warning for warning in body["warnings"])
