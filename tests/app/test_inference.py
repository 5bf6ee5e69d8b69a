"""Acting with policies and bare versions, through the whole application."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import pytest
from fastapi import FastAPI
from httpx import Client

from app import tables
from app.database import Database, now
from app.registry.service import publish_version
from app.store import ArtefactStore
from models.checkpoint import MANIFEST_FILE, PARAMETERS_FILE, numpy_params, pack, policy_to_json, save_params
from models.environments import ENVIRONMENTS
from models.learners import MAMLConfig
from models.policy import Policy, PolicyConfig
from models.runtime import NumpyPolicy
from models.types import Params

OBSERVATION = [0.01, 0.0, 0.02, 0.0]
CARTPOLE = ENVIRONMENTS["CartPole-v1"]
POLICY = Policy(PolicyConfig(hidden=(8,)), CARTPOLE.observation_space, CARTPOLE.action_space)


def some_params(seed: int = 0) -> Params:
    params = POLICY.initialise(seed)
    return params | {"policy.weight": params["policy.weight"] * 100}


def store_policy(app: FastAPI, seed: int = 0, ttl_s: float | None = 60) -> str:
    store: ArtefactStore = app.state.store
    database: Database = app.state.database
    sha256, size_bytes = store.put(save_params(some_params(seed)))
    expires_at = None if ttl_s is None else now() + timedelta(seconds=ttl_s)
    with database.transaction() as session:
        row = tables.Policy(spec=policy_to_json(POLICY), sha256=sha256, size_bytes=size_bytes, expires_at=expires_at)
        session.add(row)
        session.flush()
        return row.id


def store_version(app: FastAPI) -> None:
    manifest, parameters = pack(MAMLConfig(), POLICY, some_params(), {})
    database: Database = app.state.database
    store: ArtefactStore = app.state.store
    files = {MANIFEST_FILE: store.put(manifest), PARAMETERS_FILE: store.put(parameters)}
    with database.transaction() as session:
        publish_version(session, "cartpole", json.loads(manifest), files, None)


@pytest.fixture
def policy(app: FastAPI, client: Client) -> Iterator[str]:
    assert client is not None, "the application has started"
    return store_policy(app)


def act(client: Client, policy: str, **body: object) -> dict[str, list[float]]:
    response = client.post(f"/v1/policies/{policy}:act", json={"observations": [OBSERVATION]} | body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_answer_is_that_of_the_policy_itself(client: Client, policy: str) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    answer = act(client, policy, observations=rows.tolist())
    action, log_prob, value = NumpyPolicy(POLICY, numpy_params(some_params())).act(rows, None)
    assert answer["actions"] == action.tolist()
    np.testing.assert_allclose(answer["log_probs"], log_prob, rtol=1e-6)
    np.testing.assert_allclose(answer["values"], value, rtol=1e-6)
    assert answer["policy"] == policy


def test_a_bare_version_acts_too(app: FastAPI, client: Client) -> None:
    store_version(app)
    response = client.post("/v1/models/cartpole/versions/1:act", json={"observations": [OBSERVATION]})
    assert response.status_code == 200
    assert response.json()["actions"] in ([0], [1])
    assert response.json()["policy"] == "cartpole/1"
    assert client.post("/v1/models/cartpole/versions/2:act", json={"observations": [OBSERVATION]}).status_code == 404


def test_a_seed_makes_sampling_reproducible_and_no_seed_samples_anew(client: Client, policy: str) -> None:
    rows = [OBSERVATION] * 200
    first, again, other = (
        act(client, policy, observations=rows, deterministic=False, seed=seed)["actions"] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert set(first) == {0, 1}
    assert act(client, policy, observations=rows)["actions"] == [act(client, policy)["actions"][0]] * 200
    unseeded = [act(client, policy, observations=rows, deterministic=False)["actions"] for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_log_probabilities_of_sampled_actions_are_those_of_the_actions_taken(client: Client, policy: str) -> None:
    answer = act(client, policy, observations=[OBSERVATION] * 50, deterministic=False, seed=0)
    by_action = {a: p for a, p in zip(answer["actions"], answer["log_probs"], strict=True)}
    assert sum(math.exp(p) for p in by_action.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ('{"observations": [[0, 0, 0]]}', 422, "/observations/0"),
        ('{"observations": [[0, 0, 0, 0], [0, 0, 0, 0, 0]]}', 422, "/observations/1"),
        ('{"observations": [[0, 0, NaN, 0]]}', 422, "/observations/0/2"),
        ('{"observations": [[0, 0, Infinity, 0]]}', 422, "/observations/0/2"),
        ('{"observations": [[0, 0, 1e400, 0]]}', 422, "/observations/0/2"),
        ('{"observations": [[0, 0, 1e39, 0]]}', 422, "/observations/0/2"),
        ('{"observations": [[0, 0, %s, 0]]}' % ("9" * 500), 422, "/observations/0/2"),
        ('{"observations": [[0, 0, "0", 0]]}', 422, "/observations/0/2"),
        ('{"observations": [[0, 0, null, 0]]}', 422, "/observations/0/2"),
        ('{"observations": [0, 0, 0, 0]}', 422, "/observations/0"),
        ('{"observations": []}', 422, "/observations"),
        ('{"observations": [[]]}', 422, "/observations/0"),
        ("{}", 422, "/observations"),
        ('{"observations": [[0, 0, 0, 0]], "determinstic": true}', 422, "/determinstic"),
        ('{"observations": [[0, 0, 0, 0]], "seed": -1}', 422, "/seed"),
        ('{"observations": [[0, 0, 0, 0]], "seed": 1.5}', 422, "/seed"),
        ('{"observations": [[0, 0, 0, 0]], "deterministic": "yes"}', 422, "/deterministic"),
        ('{"observations": [[0, 0, 0, 0]', 400, None),
        ("[" * 100_000, 400, None),
        ("", 400, None),
    ],
)
def test_bad_observations_are_refused_and_the_place_is_named(
    client: Client, policy: str, body: str, status: int, pointer: str | None
) -> None:
    headers = {"content-type": "application/json"}
    response = client.post(f"/v1/policies/{policy}:act", content=body, headers=headers)
    problem = response.json()
    assert response.status_code == status, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert [error["pointer"] for error in problem.get("errors", [])] == ([] if pointer is None else [pointer])


def test_more_observations_than_one_request_may_hold_are_refused(client: Client, policy: str) -> None:
    response = client.post(f"/v1/policies/{policy}:act", json={"observations": [OBSERVATION] * 10_001})
    assert response.status_code == 422
    assert len(act(client, policy, observations=[OBSERVATION] * 10_000)["actions"]) == 10_000


def test_a_body_that_is_not_json_by_its_type_is_refused(client: Client, policy: str) -> None:
    response = client.post(f"/v1/policies/{policy}:act", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 415


def test_acting_needs_a_key_that_may_act(client: Client, policy: str) -> None:
    path = f"/v1/policies/{policy}:act"
    body = {"observations": [OBSERVATION]}
    assert client.post(path, json=body, headers={"authorization": "Bearer hs_nobody"}).status_code == 401
    for scope, status in (("tasks:write", 403), ("policies:act", 200)):
        key = client.post("/v1/api-keys", json={"name": scope, "scopes": [scope]}).json()["key"]
        assert client.post(path, json=body, headers={"authorization": f"Bearer {key}"}).status_code == status


def test_an_unknown_an_expired_and_a_deleted_policy_are_not_found(app: FastAPI, client: Client) -> None:
    for policy in ("0198c3a0-7b1e-7000-8000-000000000000", "no-uuid", store_policy(app, ttl_s=-1)):
        response = client.post(f"/v1/policies/{policy}:act", json={"observations": [OBSERVATION]})
        assert response.status_code == 404, response.text


def test_a_policy_deleted_by_another_process_is_forgotten_at_the_next_refresh(app: FastAPI, client: Client) -> None:
    gone, stays = store_policy(app, 0), store_policy(app, 1)
    assert act(client, gone)
    assert act(client, stays)
    with app.state.database.transaction() as session:
        session.get(tables.Policy, gone).deleted_at = now()
    app.state.bank.refresh()
    assert client.post(f"/v1/policies/{gone}:act", json={"observations": [OBSERVATION]}).status_code == 404
    assert act(client, stays)


def test_a_policy_whose_bytes_were_changed_is_never_served(app: FastAPI, client: Client, policy: str) -> None:
    with app.state.database.transaction() as session:
        sha256 = session.get(tables.Policy, policy).sha256
    path = app.state.store.path(sha256)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    response = client.post(f"/v1/policies/{policy}:act", json={"observations": [OBSERVATION]})
    assert response.status_code == 500
    assert "corrupt" in response.json()["title"]


def test_the_least_recently_used_policy_makes_room_and_comes_back_on_demand(app: FastAPI, client: Client) -> None:
    policies = [store_policy(app, seed) for seed in range(3)]
    answers = [act(client, policy)["values"] for policy in policies]
    app.state.bank._capacity_bytes = 2 * app.state.bank.hot(policies[0]).size_bytes
    act(client, policies[1])
    assert [act(client, policy)["values"] for policy in policies] == answers
    app.state.bank._evict()
    assert sum(app.state.bank.hot(policy) is not None for policy in policies) == 2


def test_acting_is_described_in_the_openapi_document(client: Client) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/v1/policies/{policy}:act", "/v1/models/{model}/versions/{version}:act"):
        operation = document["paths"][path]["post"]
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert "observations" in document["components"]["schemas"][reference.rsplit("/", 1)[-1]]["properties"]
