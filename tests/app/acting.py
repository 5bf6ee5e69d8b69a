"""A client with an environment of its own: it asks for remote adaptations, acts with their policies, uploads."""

import contextlib
import itertools
import json
import threading

import torch

from app.registry.service import publish_version
from models import random
from models.checkpoint import MANIFEST_FILE, PARAMETERS_FILE, load_params, pack, policy_from_json, space_to_json
from models.rollout import collect
from models.tasks import TaskBatch, define_task
from models.types import stack_params

CARTPOLE = {"environment": "CartPole-v1", "horizon": 30}
NAVIGATION = {"environment": "Navigation2D-v0", "parameters": {"goal_x": 0.25}, "horizon": 10}
PENDULUM = {"environment": "Pendulum-v1", "horizon": 12}
METHOD = {"name": "inner-loop", "steps": 2, "episodes": 6, "evaluation_episodes": 6}
SEED = 11


def remote_task(task, **changes):
    """What a client says of a task that it keeps to itself."""
    defined = define_task(**task)
    environment = TaskBatch.of([defined]).environment
    spaces = {
        "observation_space": space_to_json(environment.observation_space),
        "action_space": space_to_json(environment.action_space),
    }
    return {"remote": spaces | {"discount": defined.discount, "horizon": defined.horizon} | changes}


def begin(client, task=CARTPOLE, **changes):
    """A new remote adaptation of a new policy."""
    body = {"model": None, "policy": {"hidden": [8]}, "task": remote_task(task), "method": METHOD, "seed": SEED}
    if changes.get("model"):
        del body["policy"]
    response = client.post("/v1/adaptations", json=body | changes)
    assert response.status_code == 201, response.text
    return response.json()


def publish(database, store, learner, name="mine"):
    """A version of new parameters that no run made."""
    manifest, parameters = pack(learner.config, learner.policy, learner.initialise(0).params, {"seed": 0})
    files = {MANIFEST_FILE: store.put(manifest), PARAMETERS_FILE: store.put(parameters)}
    with database.transaction() as session:
        publish_version(session, name, json.loads(manifest), files, None)


def look(client, adaptation):
    return client.get(f"/v1/adaptations/{adaptation['id']}").json()


def policy_of(client, adaptation, revision=None):
    """The architecture of an adaptation's policy and its parameters."""
    path = f"/v1/policies/{adaptation['policy']}"
    query = "" if revision is None else f"?revision={revision}"
    file = client.get(f"{path}/files/policy.safetensors{query}")
    assert file.status_code == 200, file.text
    return policy_from_json(client.get(path).json()), load_params(file.content)


def acted(policy, params, task, keys, revision, episodes=6, name="episode", **members):
    """Episodes of a policy in a task, as a client uploads them."""
    rollout = collect(policy, stack_params(params, 1), TaskBatch.of([define_task(**task)]), episodes, keys.reshape(1))
    actions = policy.to_environment(rollout.action)
    observations = torch.cat([rollout.observation, rollout.final_observation.unsqueeze(1)], 1)
    uploaded = []
    for b, length in enumerate(rollout.lengths[0].tolist()):
        terminated = bool(rollout.terminated[0, b])
        episode = {
            "id": f"{name}/{b:03}",
            "revision": revision,
            "observations": observations[0, : length + 1, b].tolist(),
            "actions": actions[0, :length, b].tolist(),
            "rewards": rollout.reward[0, :length, b].tolist(),
            "log_probs": rollout.log_prob[0, :length, b].tolist(),
            "terminated": terminated,
            "truncated": not terminated,
        }
        if not policy.discrete:
            episode["policy_actions"] = rollout.action[0, :length, b].tolist()
        uploaded.append(episode | members)
    return uploaded


def keys_of(seed, number):
    """Streams of what a server-side adaptation of that seed collects: support of step k is 2k, measuring 2k + 1."""
    keys = random.fold_in(random.key(seed, "adapt").reshape(1), 0)
    return random.fold_in(keys, number)


def act(client, adaptation, task=CARTPOLE, number=2, seed=SEED, **changes):
    """Episodes of the newest revision."""
    revision = look(client, adaptation)["revision"]
    policy, params = policy_of(client, adaptation)
    return acted(policy, params, task, keys_of(seed, number), revision, name=f"episode-{number}", **changes)


def upload(client, adaptation, episodes, **headers):
    return client.post(f"/v1/adaptations/{adaptation['id']}/episodes", json={"episodes": episodes}, headers=headers)


def uploaded(client, adaptation, episodes, wait_s=30):
    """The adaptation after an upload and the step that was due."""
    response = upload(client, adaptation, episodes, Prefer=f"wait={wait_s}")
    assert response.status_code == 200, response.text
    return response.json()["adaptation"]


def finish(client, adaptation, wait_s=30):
    response = client.post(f"/v1/adaptations/{adaptation['id']}:finish", headers={"Prefer": f"wait={wait_s}"})
    assert response.status_code == 200, response.text
    return response.json()


def in_pieces(episode, *cuts):
    """An episode cut at these steps."""
    cuts = [cut for cut in cuts if 0 < cut < len(episode["actions"])]
    bounds = [0, *cuts, len(episode["actions"])]
    pieces = []
    for first, end in itertools.pairwise(bounds):
        piece = episode | {"offset": first, "observations": episode["observations"][first : end + 1]}
        for name in ("actions", "rewards", "log_probs", "policy_actions"):
            if episode.get(name) is not None:
                piece[name] = episode[name][first:end]
        if end < len(episode["actions"]):
            piece |= {"terminated": False, "truncated": False}
        pieces.append(piece)
    return pieces


@contextlib.contextmanager
def at_work(worker, interrupter):
    """A worker that works in a thread."""
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        interrupter.stopping = True
        thread.join(30)
        worker.close()
