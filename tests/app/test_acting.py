"""Acting with policies and bare versions over HTTP, through the whole application."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from gymnasium.spaces import Box
from httpx import Client
from policies_to_act_with import (
    CARTPOLE,
    OBSERVATION,
    PENDULUM,
    POLICY,
    TORQUE,
    WIDER,
    act_binary,
    some_params,
    store_params,
    store_policy,
    store_version,
)

from app import tables
from models.checkpoint import numpy_params
from models.policy import Policy, PolicyConfig
from models.runtime import NumpyPolicy

# What a policy answers comes from its file; the rows that lead there are the same on every database.
pytestmark = pytest.mark.databases("sqlite")

KINDS = (POLICY, WIDER, TORQUE)


@pytest.fixture
def policy(app: FastAPI, client: Client) -> Iterator[str]:
    assert client is not None, "the application has started"
    return store_policy(app)


def act(client: Client, policy: str, **body: object) -> dict[str, list[float]]:
    response = client.post(f"/v1/policies/{policy}:act", json={"observations": [OBSERVATION]} | body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.databases("sqlite", "postgresql")
def test_the_answer_is_that_of_the_policy_itself(client: Client, policy: str) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    answer = act(client, policy, observations=rows.tolist())
    action, log_prob, value, _ = NumpyPolicy(POLICY, numpy_params(some_params())).act(rows, None)
    assert answer["actions"] == action.tolist()
    np.testing.assert_allclose(answer["log_probs"], log_prob, rtol=1e-6)
    np.testing.assert_allclose(answer["values"], value, rtol=1e-6)
    assert answer["policy"] == policy


@pytest.mark.databases("sqlite", "postgresql")
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
    assert response.status_code == 413
    assert "10000 observations" in response.json()["detail"]
    assert len(act(client, policy, observations=[OBSERVATION] * 10_000)["actions"]) == 10_000


def test_a_body_that_is_not_json_by_its_type_is_refused(client: Client, policy: str) -> None:
    response = client.post(f"/v1/policies/{policy}:act", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 415


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("Application/JSON; charset=utf-8", 200),
        ("application/merge-patch+json", 200),
        ("application/jsonl", 415),
        ("application/octet-streams", 415),
        ("text/plain", 415),
    ],
)
def test_the_kind_of_a_body_is_read_as_http_writes_it(client: Client, policy: str, kind: str, status: int) -> None:
    body = b'{"observations": [[0.01, 0.0, 0.02, 0.0]]}'
    response = client.post(f"/v1/policies/{policy}:act", content=body, headers={"content-type": kind})
    assert response.status_code == status


@pytest.mark.databases("sqlite", "postgresql")
def test_acting_needs_a_key_that_may_act(client: Client, policy: str) -> None:
    path = f"/v1/policies/{policy}:act"
    body = {"observations": [OBSERVATION]}
    assert client.post(path, json=body, headers={"authorization": "Bearer hs_nobody"}).status_code == 401
    for scope, status in (("tasks:write", 403), ("policies:act", 200)):
        key = client.post("/v1/api-keys", json={"name": scope, "scopes": [scope]}).json()["key"]
        assert client.post(path, json=body, headers={"authorization": f"Bearer {key}"}).status_code == status


@pytest.mark.databases("sqlite", "postgresql")
def test_an_unknown_policy_is_not_found_and_an_expired_or_deleted_one_is_gone(app: FastAPI, client: Client) -> None:
    deleted = store_policy(app)
    assert client.delete(f"/v1/policies/{deleted}").status_code == 204
    for policy, status, word in (
        ("0198c3a0-7b1e-7000-8000-000000000000", 404, "there is no policy"),
        ("no-uuid", 404, "there is no policy"),
        (store_policy(app, ttl_s=-1), 410, "expired at 20"),
        (deleted, 410, "was deleted at 20"),
    ):
        for answer in (
            client.post(f"/v1/policies/{policy}:act", json={"observations": [OBSERVATION]}),
            client.post("/v1/policies:act", json={"pairs": [{"policy": policy, "observation": OBSERVATION}]}),
            client.get(f"/v1/policies/{policy}"),
        ):
            assert answer.status_code == status, answer.text
            assert word in answer.json()["detail"]


def test_a_policy_whose_bytes_were_changed_is_never_served(app: FastAPI, client: Client, policy: str) -> None:
    with app.state.database.transaction() as session:
        sha256 = session.get(tables.Policy, policy).sha256
    path = app.state.store.path(sha256)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    response = client.post(f"/v1/policies/{policy}:act", json={"observations": [OBSERVATION]})
    assert response.status_code == 500
    assert "corrupt" in response.json()["title"]


def test_one_observation_is_answered_as_among_many(client: Client, policy: str) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 4)).tolist()
    together = act(client, policy, observations=rows)
    for place, row in enumerate(rows):
        alone = act(client, policy, observations=[row])
        for name in ("actions", "log_probs", "values"):
            assert alone[name] == pytest.approx([together[name][place]], abs=1e-5)


def test_what_a_policy_drew_before_it_was_clipped_is_told_on_request(app: FastAPI, client: Client, policy: str) -> None:
    torque = store_policy(app, policy=TORQUE)
    for count in (1, 3):
        body = {"observations": [[1.0, 0.0, 0.5]] * count, "deterministic": False, "seed": 1, "policy_actions": True}
        answer = act(client, torque, **body)
        for action, drawn in zip(answer["actions"], answer["policy_actions"], strict=True):
            assert action == pytest.approx([2.0 * min(max(x, -1.0), 1.0) for x in drawn], abs=1e-6)
        assert "policy_actions" not in act(client, torque, **(body | {"policy_actions": False}))
    assert "policy_actions" not in act(client, policy, policy_actions=True)


def test_a_revision_that_is_not_there_yet_is_refused(client: Client, policy: str) -> None:
    assert act(client, policy)["revision"] == 0
    response = client.post(f"/v1/policies/{policy}:act", json={"observations": [OBSERVATION], "revision": 1})
    assert response.status_code == 404
    assert "its newest is 0" in response.json()["detail"]


def test_an_observation_whose_answer_is_no_number_is_refused(app: FastAPI, client: Client) -> None:
    relu = Policy(PolicyConfig(hidden=(64, 64), activation="relu"), CARTPOLE.observation_space, CARTPOLE.action_space)
    policy = store_policy(app, policy=relu, scale=1000.0)
    far = [3e38, -3e38, 3e38, -3e38]
    for body in ({"observations": [far]}, {"observations": [OBSERVATION, far]}):
        response = client.post(f"/v1/policies/{policy}:act", json=body)
        assert response.status_code == 422
        assert response.json()["errors"][0]["pointer"] == f"/observations/{len(body['observations']) - 1}"
    response = client.post("/v1/policies:act", json={"pairs": [{"policy": policy, "observation": far}]})
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["pointer"] == "/pairs/0/observation"


@pytest.mark.parametrize("scaling", ["clip", "scale"])
def test_an_action_that_is_no_number_is_refused_however_likely_it_is(
    app: FastAPI, client: Client, scaling: Literal["clip", "scale"]
) -> None:
    anywhere = Box(-np.inf, np.inf, (1,), np.float32)
    config = PolicyConfig(hidden=(8,), action_scaling=scaling)
    torque = Policy(config, PENDULUM.observation_space, anywhere if scaling == "clip" else PENDULUM.action_space)
    params = some_params(policy=torque)
    params |= {"policy.weight": torch.full_like(params["policy.weight"], 3e38)}
    policy = store_params(app, torque, params)
    bad, good = [3.0, 3.0, 3.0], [0.0, 0.0, 0.0]
    path = f"/v1/policies/{policy}:act"
    tensor = {"name": "observation", "datatype": "FP32", "shape": [1, 3], "data": bad}
    refusals = [
        client.post(path, json={"observations": [bad]}),
        client.post(path, json={"observations": [good, bad]}),
        act_binary(client, policy, np.array([good, bad])),
        client.post("/v1/policies:act", json={"pairs": [{"policy": policy, "observation": bad}]}),
        client.post(f"/v2/models/{policy}/infer", json={"inputs": [tensor]}),
    ]
    assert [response.status_code for response in refusals] == [422] * 5
    assert all("no number" in response.text for response in refusals)
    with client.websocket_connect(f"/v1/policies/{policy}/stream") as stream:
        for message in ({"observation": bad}, {"observations": [good, bad]}):
            stream.send_json(message)
            assert "no number" in json.dumps(stream.receive_json()["error"])
    assert client.post(path, json={"observations": [good]}).status_code == 200


# Binary bodies.


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_binary_bodies_are_answered_as_json_is(app: FastAPI, client: Client, policy: str, count: int) -> None:
    torque = store_policy(app, policy=TORQUE)
    for name, size in ((policy, 4), (torque, 3)):
        rows = np.random.default_rng(0).normal(size=(count, size)).astype(np.float32)
        response = act_binary(client, name, rows, "?deterministic=false&seed=3&policy_actions=true")
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/octet-stream"
        table = np.frombuffer(response.content, "<f4").reshape(
            [int(n) for n in response.headers["headstart-shape"].split(",")]
        )
        expected = act(client, name, observations=rows.tolist(), deterministic=False, seed=3, policy_actions=True)
        columns = [np.reshape(expected["actions"], (count, -1)), *np.array([expected["log_probs"], expected["values"]])]
        columns += [expected["policy_actions"]] if "policy_actions" in expected else []
        np.testing.assert_allclose(table, np.column_stack(columns), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"headstart-shape": ""}, 422, "Headstart-Shape: 32,4"),
        ({"headstart-shape": "2"}, 422, "Headstart-Shape: 32,4"),
        ({"headstart-shape": "3,4"}, 422, "48 bytes of float32, not 32"),
        ({"headstart-shape": "4,2"}, 422, "must hold 4 numbers, not 2"),
        ({"headstart-shape": "0,4"}, 422, "neither may be 0"),
        ({"headstart-shape": "99999,4"}, 413, "10000 observations"),
    ],
)
def test_binary_bodies_of_other_shapes_are_refused(
    client: Client, policy: str, change: dict[str, str], status: int, words: str
) -> None:
    response = act_binary(client, policy, np.zeros((2, 4)), **change)
    assert response.status_code == status
    assert words in response.json()["detail"]


def test_binary_bodies_must_hold_finite_numbers_and_known_options(client: Client, policy: str) -> None:
    for bad in (np.nan, np.inf):
        response = act_binary(client, policy, np.array([[0, 0, 0, 0], [0, bad, 0, 0]]))
        assert response.status_code == 422
        assert response.json()["errors"][0]["pointer"] == "/observations/1"
    for query in ("?seed=-1", "?seed=x", "?deterministic=1", "?sead=1", "?revision=1.5"):
        assert act_binary(client, policy, np.zeros((1, 4)), query).status_code == 422


# Fleets.


def fleet(client: Client, pairs: list[tuple[str, list[float]]], **options: object) -> dict[str, list[Any]]:
    body = {"pairs": [{"policy": policy, "observation": row} for policy, row in pairs]}
    response = client.post("/v1/policies:act", json=body | options)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.databases("sqlite", "postgresql")
def test_a_fleet_is_answered_as_its_policies_are_one_by_one(app: FastAPI, client: Client) -> None:
    rng = np.random.default_rng(0)
    kinds = [(store_policy(app, seed, policy=kind), kind.observation_size) for seed in range(6) for kind in KINDS]
    pairs = [(kinds[i][0], rng.normal(size=kinds[i][1]).tolist()) for i in rng.integers(len(kinds), size=200)]
    answer = fleet(client, pairs, policy_actions=True)
    for place, (policy, row) in enumerate(pairs):
        alone = act(client, policy, observations=[row], policy_actions=True)
        for name in ("actions", "log_probs", "values"):
            assert alone[name][0] == pytest.approx(answer[name][place], abs=1e-5)
        assert (answer["policy_actions"][place] is None) == ("policy_actions" not in alone)


def test_a_fleet_may_hold_bare_versions_beside_policies(app: FastAPI, client: Client, policy: str) -> None:
    store_version(app)
    answer = fleet(client, [("cartpole/1", OBSERVATION), (policy, OBSERVATION)])
    assert answer["values"][0] == answer["values"][1], "both were made of the same parameters"


def test_a_sampled_fleet_depends_on_seed_and_pairs_alone(app: FastAPI, client: Client) -> None:
    policies = [store_policy(app, seed) for seed in range(20)]
    pairs = [(policy, OBSERVATION) for policy in policies for _ in range(5)]
    first = fleet(client, pairs, deterministic=False, seed=1)
    act(client, policies[3])
    fleet(client, pairs[::7])  # which moves them in memory
    assert fleet(client, pairs, deterministic=False, seed=1) == first
    assert fleet(client, pairs, deterministic=False, seed=2)["actions"] != first["actions"]
    assert set(first["actions"]) == {0, 1}


def test_a_fleet_of_ten_thousand_pairs_is_answered_and_one_more_is_refused(app: FastAPI, client: Client) -> None:
    policies = [store_policy(app, seed) for seed in range(700)]
    pairs = [(policies[i % 700], OBSERVATION) for i in range(10_000)]
    answer = fleet(client, pairs)
    assert answer["values"][:700] == pytest.approx(answer["values"][700:1400], abs=1e-5)
    assert len(set(answer["values"])) >= 700
    body = {"pairs": [{"policy": policy, "observation": row} for policy, row in [*pairs, pairs[0]]]}
    response = client.post("/v1/policies:act", json=body)
    assert response.status_code == 413
    assert "10000 pairs" in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ('{"pairs": []}', "/pairs"),
        ('{"pairs": [{"policy": "POLICY", "observation": [0, 0, 0]}]}', "/pairs/0/observation"),
        ('{"pairs": [{"policy": "POLICY", "observation": [0, 0, NaN, 0]}]}', "/pairs/0/observation/2"),
        ('{"pairs": [{"policy": "POLICY", "observation": [0, 0, "0", 0]}]}', "/pairs/0/observation/2"),
        ('{"pairs": [{"policy": "POLICY"}]}', "/pairs/0/observation"),
        ('{"pairs": [{"policy": 3, "observation": [0, 0, 0, 0]}]}', "/pairs/0/policy"),
        ('{"pairs": [{"policy": "POLICY", "observation": [0, 0, 0, 0], "seed": 1}]}', "/pairs/0/seed"),
        ('{"observations": [[0, 0, 0, 0]]}', "/observations"),
    ],
)
def test_a_fleet_request_that_is_not_right_is_refused_with_the_place(
    client: Client, policy: str, body: str, pointer: str
) -> None:
    content = body.replace("POLICY", policy)
    response = client.post("/v1/policies:act", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["pointer"] == pointer


# Load.


def test_acting_is_described_in_the_openapi_document(client: Client) -> None:
    document = client.get("/openapi.json").json()
    for path, member in (
        ("/v1/policies/{policy}:act", "observations"),
        ("/v1/models/{model}/versions/{version}:act", "observations"),
        ("/v1/policies:act", "pairs"),
    ):
        operation = document["paths"][path]["post"]
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert member in document["components"]["schemas"][reference.rsplit("/", 1)[-1]]["properties"]
