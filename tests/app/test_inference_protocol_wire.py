"""What of the Open Inference Protocol NVIDIA's client does not reach: bodies that it does not send, errors, load."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from httpx import Client, Response
from policies_to_act_with import OBSERVATION, POLICY, some_params, store_policy

from app import tables
from app.protocol.statistics import MOST_BATCH_SIZES, MOST_MODELS, Statistics, Stopwatch
from models.checkpoint import numpy_params
from models.policy import Policy, PolicyConfig
from models.runtime import NumpyPolicy

# Bodies, errors and load are the same on every database.
pytestmark = pytest.mark.databases("sqlite")

BINARY = "application/octet-stream"


@pytest.fixture
def policy(app: FastAPI, client: Client) -> str:
    assert client is not None, "the application has started"
    return store_policy(app)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "observation", "shape": [1, 4], "datatype": "FP32", "data": OBSERVATION} | changes


def infer(client: Client, model: str, body: object, **headers: str) -> Response:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    headers = {"content-type": "application/json"} | headers
    return client.post(f"/v2/models/{model}/infer", content=content, headers=headers)


def infer_binary(client: Client, model: str, header: dict[str, Any], data: bytes, **headers: str) -> Response:
    document = json.dumps(header).encode()
    headers = {"content-type": BINARY, "inference-header-content-length": str(len(document))} | headers
    return infer(client, model, document + data, **headers)


def numbers(response: Response) -> dict[str, list[float]]:
    """The outputs of an answer that is JSON alone."""
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def problem(response: Response, status: int) -> dict[str, Any]:
    """A problem as of RFC 9457 and of the protocol."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail"} <= set(body)
    assert body["error"] == body["detail"]
    assert body["status"] == status
    return body


# Bodies.


def test_data_may_be_flat_or_nested_and_optional_members_null(client: Client, policy: str) -> None:
    rows = [OBSERVATION, [0.5, -0.5, 0.25, 1.0]]
    flat = infer(client, policy, {"inputs": [tensor(shape=[2, 4], data=[*rows[0], *rows[1]])]})
    nested = {"inputs": [tensor(shape=[2, 4], data=rows, parameters=None)], "id": None, "parameters": None}
    repeated = nested | {"outputs": None, "model_name": policy, "model_version": "0"}
    spaced = json.dumps(nested, indent=1)
    action, log_prob, value, _ = NumpyPolicy(POLICY, numpy_params(some_params())).act(np.array(rows, np.float32), None)
    for response in (
        flat,
        infer(client, policy, nested),
        infer(client, policy, repeated),
        infer(client, policy, spaced),
    ):
        assert response.headers["content-type"] == "application/json"
        assert "inference-header-content-length" not in response.headers
        answer = numbers(response)
        assert answer["action"] == action.tolist()
        np.testing.assert_allclose(answer["log_prob"], log_prob, rtol=1e-6)
        np.testing.assert_allclose(answer["value"], value, rtol=1e-6)
        assert [output["shape"] for output in response.json()["outputs"]] == [[2], [2], [2]]


def test_outputs_are_binary_where_the_request_or_the_output_says_so(client: Client, policy: str) -> None:
    asked = [{"name": "value", "parameters": {"binary_data": False}}, {"name": "action"}, {"name": "log_prob"}]
    body = {"inputs": [tensor()], "outputs": asked}
    expected = numbers(infer(client, policy, body))
    response = infer(client, policy, body | {"parameters": {"binary_data_output": True}})
    assert response.headers["content-type"] == BINARY
    length = int(response.headers["inference-header-content-length"])
    value, action, log_prob = json.loads(response.content[:length])["outputs"]
    assert value["data"] == expected["value"]
    assert (action["parameters"], log_prob["parameters"]) == ({"binary_data_size": 8}, {"binary_data_size": 4})
    assert np.frombuffer(response.content[length : length + 8], "<i8").tolist() == expected["action"]
    np.testing.assert_allclose(np.frombuffer(response.content[length + 8 :], "<f4"), expected["log_prob"], rtol=1e-6)


def test_a_body_says_by_its_type_that_it_is_json_or_binary_or_nothing(client: Client, policy: str) -> None:
    body = {"inputs": [tensor()]}
    expected = numbers(infer(client, policy, body))
    for kind in ("application/json; charset=utf-8", BINARY):
        assert numbers(infer(client, policy, body, **{"content-type": kind})) == expected
    assert numbers(client.post(f"/v2/models/{policy}/infer", content=json.dumps(body))) == expected
    for headers in ({"content-type": "text/plain"}, {"content-encoding": "gzip"}):
        problem(infer(client, policy, body, **headers), 415)


@pytest.mark.parametrize(
    ("changes", "data", "headers", "status", "words"),
    [
        ({}, b"", {"inference-header-content-length": "9999"}, 400, "but the body has"),
        ({}, b"", {"inference-header-content-length": "-1"}, 400, "is -1, but"),
        ({}, b"", {"inference-header-content-length": "9" * 30}, 400, "but the body has"),
        ({}, bytes(16), {"inference-header-content-length": "20"}, 400, "not JSON"),
        ({"binary_data_size": 16}, bytes(12), {}, 422, "12 bytes follow the JSON"),
        ({"binary_data_size": 16}, bytes(20), {}, 422, "20 bytes follow the JSON"),
        ({"binary_data_size": 16}, b"", {}, 422, "0 bytes follow the JSON"),
        ({"binary_data_size": 12}, bytes(12), {}, 422, "of FP32 is 16 bytes"),
        ({"binary_data_size": -1}, b"", {}, 422, "/inputs/0/parameters/binary_data_size"),
        ({}, bytes(16), {}, 422, "no input has binary_data_size"),
    ],
)
def test_binary_data_that_are_not_as_long_as_they_say_are_refused(
    client: Client, policy: str, changes: dict[str, int], data: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    sent = tensor(parameters=changes)
    if changes:
        del sent["data"]
    response = infer_binary(client, policy, {"inputs": [sent]}, data, **headers)
    assert words in problem(response, status)["detail"]


def test_binary_data_without_the_length_of_the_json_are_no_json(client: Client, policy: str) -> None:
    sent = {"inputs": [tensor(parameters={"binary_data_size": 16})]}
    problem(infer(client, policy, json.dumps(sent).encode() + bytes([0, 0, 0x80, 0x3F] * 4)), 400)
    assert "goes without" in problem(infer_binary(client, policy, sent, bytes(16)), 422)["detail"]


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({"inputs": [tensor(data=[0, 0, 0])]}, 422, "/inputs/0/data"),
        ({"inputs": [tensor(data=[[0, 0], [0, 0]])]}, 422, "/inputs/0/data"),
        ({"inputs": [tensor(data=[[0, 0, 0, 0, 0]])]}, 422, "/inputs/0/data"),
        ({"inputs": [tensor(data=[[[0, 0, 0, 0]]])]}, 422, "/inputs/0/data/0/0"),
        ({"inputs": [tensor(data=[])]}, 422, "/inputs/0/data"),
        ({"inputs": [tensor(data=None)]}, 422, "/inputs/0/data"),
        ({"inputs": [tensor(data={})]}, 422, "/inputs/0/data"),
        ({"inputs": [tensor(data=[0, 0, 0, "0"])]}, 422, "/inputs/0/data/3"),
        ({"inputs": [tensor(data=[[0, 0, 0, None]])]}, 422, "/inputs/0/data/0/3"),
        ({"inputs": [tensor(data=[0, 0, 0, True])]}, 422, "/inputs/0/data/3"),
        ({"inputs": [tensor(data=[0, 0, 0, float("nan")])]}, 422, "/inputs/0/data/3"),
        ({"inputs": [tensor(data=[0, 0, 0, 1e39])]}, 422, "/inputs/0/data/3"),
        ({"inputs": [tensor(data=[0, 0, 0, 70_000], datatype="FP16")]}, 422, "/inputs/0"),
        ({"inputs": [tensor(data=[0, 0, 0, 0.5], datatype="INT64")]}, 422, "/inputs/0/data/3"),
        ({"inputs": [tensor(data=[0, 0, 0, 128], datatype="INT8")]}, 422, "/inputs/0/data"),
        ({"inputs": [tensor(data=[0, 0, 0, 2**63], datatype="INT64")]}, 422, "/inputs/0/data"),
        ({"inputs": [tensor(data=[0, 0, 0, -1], datatype="UINT8")]}, 422, "/inputs/0/data"),
        ({"inputs": [tensor(datatype="BF16")]}, 422, "/inputs/0/datatype"),
        ({"inputs": [tensor(datatype="BOOL")]}, 422, "/inputs/0/datatype"),
        ({"inputs": [tensor(datatype="fp32")]}, 422, "/inputs/0/datatype"),
        ({"inputs": [tensor(shape=[-1, 4])]}, 422, "/inputs/0/shape/0"),
        ({"inputs": [tensor(shape=[])]}, 422, "/inputs/0/shape"),
        ({"inputs": [tensor(shape=[10_000, 2**62])]}, 422, "/inputs/0/data"),
        ({"inputs": [tensor(shape="1x4")]}, 422, "/inputs/0/shape"),
        ({"inputs": [{"name": "observation"}]}, 422, "/inputs/0/datatype"),
        ({"inputs": [tensor(dtype="FP32")]}, 422, "/inputs/0/dtype"),
        ({"inputs": tensor()}, 422, "/inputs"),
        ({"inputs": [tensor()], "id": 42}, 422, "/id"),
        ({"inputs": [tensor()], "output": []}, 422, "/output"),
        ({"inputs": [tensor()], "parameters": {"sead": 1}}, 422, "/parameters/sead"),
        ({"inputs": [tensor()], "outputs": [{"name": "value", "parameters": {"binary": 1}}]}, 422, None),
        ([], 422, ""),
        (
            '{"inputs": [{"name": "observation", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 01]}]}',
            400,
            None,
        ),
        ('{"inputs": [{"name": "observation", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0', 400, None),
        ("[" * 100_000, 400, None),
        (json.dumps({"inputs": [tensor(data=0)]}).replace('"data": 0', f'"data": {"[" * 5000}{"]" * 5000}'), 400, None),
        ("", 400, None),
        (b"\xff", 400, None),
    ],
)
def test_what_is_wrong_is_refused_and_the_place_is_named(
    client: Client, policy: str, body: object, status: int, pointer: str | None
) -> None:
    answer = problem(infer(client, policy, body), status)
    if pointer is not None:
        assert [error["pointer"] for error in answer["errors"]] == [pointer]


def test_whole_numbers_that_float32_cannot_hold_are_rounded_as_act_rounds_them(client: Client, policy: str) -> None:
    large = 2**62 + 12_345
    answer = numbers(infer(client, policy, {"inputs": [tensor(datatype="INT64", data=[large, 0, 0, 0])]}))
    body = {"observations": [[large, 0, 0, 0]]}
    assert answer["value"] == pytest.approx(client.post(f"/v1/policies/{policy}:act", json=body).json()["values"])


def test_an_observation_whose_answer_is_no_number_is_refused(app: FastAPI, client: Client) -> None:
    relu = PolicyConfig(hidden=(64, 64), activation="relu")
    policy = store_policy(app, policy=Policy(relu, POLICY.observation_space, POLICY.action_space), scale=1000.0)
    far = [3e38, -3e38, 3e38, -3e38]
    answer = problem(infer(client, policy, {"inputs": [tensor(shape=[2, 4], data=[OBSERVATION, far])]}), 422)
    assert "observation 1 is too large for this policy" in answer["detail"]


# Errors, of all that is under /v2.


@pytest.mark.databases("sqlite", "postgresql")
def test_every_error_is_one_of_the_protocol_and_a_problem(app: FastAPI, client: Client, policy: str) -> None:
    body = {"inputs": [tensor()]}
    path = f"/v2/models/{policy}/infer"
    nobody = {"authorization": "Bearer hs_nobody"}
    problem(client.post(path, json=body, headers=nobody), 401)
    for public in ("/v2", f"/v2/models/{policy}", "/v2/models/stats", "/v2/nowhere"):
        assert "www-authenticate" in client.get(public, headers=nobody).headers
        problem(client.get(public, headers=nobody), 401)
    problem(client.post("/v2/repository/index", headers=nobody), 401)
    key = client.post("/v1/api-keys", json={"name": "reader", "scopes": ["models:read"]}).json()["key"]
    problem(client.post(path, json=body, headers={"authorization": f"Bearer {key}"}), 403)
    for unknown in ("/v2/", "/v2/nowhere", "/v2/models", "/v2/models/pole", "/v2/models/pole/ready", "/v2/models/%00"):
        assert problem(client.get(unknown), 400 if unknown.endswith("%00") else 404)
    assert problem(client.get(path), 405)["detail"] == "the path does not take this method"
    assert client.get(path).headers["allow"] == "POST"
    problem(client.delete("/v2/models/stats"), 405)
    problem(client.post("/v2/repository/index", json={"raedy": True}), 422)
    problem(infer(client, "pole", body), 404)
    problem(infer(client, store_policy(app, ttl_s=-1), body), 410)
    problem(infer(client, policy, {"inputs": [tensor(shape=[10_001, 4])]}), 413)
    assert "error" not in client.get("/v1/policies/nobody").json()


@pytest.mark.databases("sqlite", "postgresql")
def test_health_needs_no_key_and_all_else_any(client: Client, policy: str) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert client.get(path, headers={"authorization": ""}).status_code == 200
    key = client.post("/v1/api-keys", json={"name": "reader", "scopes": ["tasks:write"]}).json()["key"]
    reader = {"authorization": f"Bearer {key}"}
    for path in ("/v2", f"/v2/models/{policy}", f"/v2/models/{policy}/ready", f"/v2/models/{policy}/stats"):
        assert client.get(path, headers=reader).status_code == 200
    assert client.post("/v2/repository/index", json={"ready": True}, headers=reader).status_code == 200


def test_a_policy_whose_bytes_were_changed_is_not_ready_and_never_served(
    app: FastAPI, client: Client, policy: str
) -> None:
    with app.state.database.transaction() as session:
        sha256 = session.get(tables.Policy, policy).sha256
    path = app.state.store.path(sha256)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    for response in (infer(client, policy, {"inputs": [tensor()]}), client.get(f"/v2/models/{policy}/ready")):
        assert sha256 in problem(response, 500)["error"]


# Load.


def test_what_acts_is_bounded_together_whichever_way_it_is_asked(app: FastAPI, client: Client, policy: str) -> None:
    load, body = app.acting.load, {"inputs": [tensor()]}
    load.in_flight = load.max_in_flight
    response = infer(client, policy, body)
    assert response.headers["retry-after"] == "1"
    assert "requests are being worked on" in problem(response, 503)["error"]
    load.in_flight, load.bodies.held_bytes = 0, load.bodies.most_held_bytes
    problem(infer(client, policy, body), 503)
    load.bodies.held_bytes = 0
    assert infer(client, policy, body).status_code == 200
    problem(infer(client, policy, b"[" + b"0," * load.bodies.max_body_bytes), 413)
    assert (load.in_flight, load.bodies.held_bytes) == (0, 0)


def test_a_request_that_is_not_answered_in_time_is_answered_503(app: FastAPI, client: Client, policy: str) -> None:
    release = threading.Event()
    fetch = app.state.bank._fetch

    def slow(names: Sequence[str]) -> object:
        release.wait(10)
        return fetch(names)

    app.state.bank._fetch = slow
    body = {"inputs": [tensor()]}
    assert "within 0.1 s" in problem(infer(client, policy, body, **{"headstart-timeout": "0.1"}), 503)["detail"]
    release.set()
    assert infer(client, policy, body).status_code == 200
    problem(infer(client, policy, body, **{"headstart-timeout": "soon"}), 400)


# Statistics.


def test_statistics_are_kept_of_what_was_asked_last() -> None:
    statistics = Statistics()
    for number in range(MOST_MODELS + 1):
        statistics.succeeded("cartpole", str(number), 1, Stopwatch())
        statistics.failed("cartpole", "0", Stopwatch())
    kept = [model.version for model in statistics.all()]
    assert len(kept) == MOST_MODELS
    assert (kept[0], kept[-1]) == ("2", "0")
    for size in [*range(1, MOST_BATCH_SIZES + 1), 1, 100]:
        statistics.succeeded("pole", "1", size, Stopwatch())
    [pole] = statistics.of("pole")
    assert [batch.batch_size for batch in pole.batch_stats] == [*range(3, MOST_BATCH_SIZES + 1), 1, 100]
    assert pole.batch_stats[-2].compute_infer.count == 2
