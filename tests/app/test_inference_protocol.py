"""The Open Inference Protocol as NVIDIA's own client speaks it, against a real server."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import ml_dtypes
import numpy as np
import pytest
from fastapi import FastAPI
from policies_to_act_with import OBSERVATION, POLICY, TORQUE, delete, revise, store_policy, store_version
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from app import tables
from app.auth import OPERATOR
from app.protocol.tensors import DATATYPES
from app.registry.aliases import set_alias
from models.policy import Policy

# What a policy answers comes from its file; what is looked up is shown on each database.
pytestmark = pytest.mark.databases("sqlite")

GUIDE = Path(__file__).parents[2] / "docs/inference-protocol.md"
KINDS: dict[str, Policy] = {"discrete": POLICY, "continuous": TORQUE}
DTYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]
DTYPES += [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.fixture
def headers(server_url: str, admin_headers: Callable[[], dict[str, str]]) -> dict[str, str]:
    assert server_url, "the application has started"
    return admin_headers()


@pytest.fixture
def triton(server_url: str) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(urlsplit(server_url).netloc) as client:
        yield client


@pytest.fixture
def infer(triton: InferenceServerClient, headers: dict[str, str]) -> Callable[..., InferResult]:
    """Infers from rows, in their own datatype, as binary data."""

    def infer(model: str, rows: np.ndarray, *, binary: bool = True, **options: Any) -> InferResult:
        tensor = InferInput("observation", list(rows.shape), np_to_triton_dtype(rows.dtype))
        tensor.set_data_from_numpy(rows, binary_data=binary)
        return triton.infer(model, [tensor], headers=dict(headers), **options)

    return infer


@pytest.fixture
def act(server_url: str, headers: dict[str, str]) -> Callable[..., dict[str, Any]]:
    """Acts through `/v1`."""

    def act(place: str, rows: np.ndarray, **options: Any) -> dict[str, Any]:
        body = {"observations": rows.astype(np.float32).tolist(), "policy_actions": True} | options
        response = httpx.post(f"{server_url}/v1/{place}:act", json=body, headers=headers)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    return act


def same(result: InferResult, answer: dict[str, Any]) -> None:
    """Whether what was inferred is what `:act` answered, in datatype, shape and value."""
    actions = np.array(answer["actions"])
    continuous = actions.ndim == 2
    outputs = {"action": (actions, 0.0), "log_prob": (answer["log_probs"], 1e-5), "value": (answer["values"], 1e-5)}
    if continuous:
        outputs |= {"action": (actions, 1e-6), "policy_action": (answer["policy_actions"], 1e-6)}
    assert [output["name"] for output in result.get_response()["outputs"]] == list(outputs)
    for name, (expected, tolerance) in outputs.items():
        found = result.as_numpy(name)
        assert found.dtype == (np.int64 if name == "action" and not continuous else np.float32)
        assert found.shape == np.shape(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)


def some_rows(policy: Policy, count: int, dtype: Any = np.float32) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(count, policy.observation_size)) * 3
    whole = np.issubdtype(np.dtype(dtype), np.integer)
    return (np.abs(rows.round()) if whole and np.dtype(dtype).kind == "u" else rows).astype(dtype)


def test_every_datatype_is_tried() -> None:
    assert {np_to_triton_dtype(np.dtype(dtype)) for dtype in DTYPES} == set(DATATYPES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_datatype_is_answered_as_act_answers_binary_and_in_json(
    app: FastAPI, infer: Callable[..., InferResult], act: Callable[..., dict[str, Any]], kind: str, dtype: Any
) -> None:
    policy = store_policy(app, policy=KINDS[kind])
    rows = some_rows(KINDS[kind], 5, dtype)
    expected = act(f"policies/{policy}", rows)
    asked = [InferRequestedOutput(output, binary_data=False) for output in output_names(KINDS[kind])]
    for binary in (True, False) if dtype is not ml_dtypes.bfloat16 else (True,):
        same(infer(policy, rows, binary=binary), expected)
        same(infer(policy, rows, binary=binary, outputs=asked), expected)


def output_names(policy: Policy) -> list[str]:
    return ["action", "log_prob", "value"] + ([] if policy.discrete else ["policy_action"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 64, 10_000])
def test_batches_of_any_size_are_answered_as_act_answers_drawn_actions_of_a_seed_included(
    app: FastAPI, infer: Callable[..., InferResult], act: Callable[..., dict[str, Any]], kind: str, count: int
) -> None:
    policy = store_policy(app, policy=KINDS[kind])
    rows = some_rows(KINDS[kind], count)
    for options in ({}, {"deterministic": False, "seed": 7}, {"deterministic": True, "seed": 7}):
        expected = act(f"policies/{policy}", rows, **options)
        same(infer(policy, rows, parameters=options), expected)
        same(infer(policy, rows, binary=False, parameters=options), expected)


def test_a_seed_makes_sampling_reproducible_and_no_seed_samples_anew(
    app: FastAPI, infer: Callable[..., InferResult], headers: dict[str, str]
) -> None:
    assert headers
    policy = store_policy(app)
    rows = np.tile(np.float32(OBSERVATION), (200, 1))

    def actions(**parameters: Any) -> list[int]:
        drawn: list[int] = (
            infer(policy, rows, parameters={"deterministic": False} | parameters).as_numpy("action").tolist()
        )
        return drawn

    assert actions(seed=1) == actions(seed=1) != actions(seed=2)
    assert actions() != actions()
    assert set(actions()) == {0, 1}


def test_some_of_the_outputs_may_be_asked_for_each_in_its_own_form(
    app: FastAPI, infer: Callable[..., InferResult]
) -> None:
    policy = store_policy(app, policy=TORQUE)
    rows = some_rows(TORQUE, 3)
    everything = infer(policy, rows)
    asked = [InferRequestedOutput("value", binary_data=False), InferRequestedOutput("policy_action")]
    result = infer(policy, rows, outputs=asked, request_id="four-two")
    answer = result.get_response()
    assert answer["id"] == "four-two"
    assert (answer["model_name"], answer["model_version"]) == (policy, "0")
    assert [sorted(output) for output in answer["outputs"]] == [
        ["data", "datatype", "name", "shape"],
        ["datatype", "name", "parameters", "shape"],
    ]
    for name in ("value", "policy_action"):
        np.testing.assert_array_equal(result.as_numpy(name), everything.as_numpy(name))
    assert "id" not in everything.get_response()


@pytest.mark.databases("sqlite", "postgresql")
def test_versions_are_models_by_number_by_alias_and_the_newest(
    app: FastAPI,
    triton: InferenceServerClient,
    infer: Callable[..., InferResult],
    act: Callable[..., dict[str, Any]],
    headers: dict[str, str],
) -> None:
    for _ in range(3):
        store_version(app)
    with app.state.database.transaction() as session:
        set_alias(session, OPERATOR, "cartpole", "champion", 2)
    rows = some_rows(POLICY, 4)
    for name, version, found in (
        ("cartpole", "", "3"),
        ("cartpole", "1", "1"),
        ("cartpole@champion", "", "2"),
        ("cartpole@champion", "2", "2"),
    ):
        result = infer(name, rows, model_version=version)
        assert [result.get_response()[member] for member in ("model_name", "model_version")] == ["cartpole", found]
        same(result, act(f"models/cartpole/versions/{found}", rows))
        assert triton.is_model_ready(name, version, headers=headers)
        metadata = triton.get_model_metadata(name, version, headers=headers)
        assert (metadata["name"], metadata["versions"]) == ("cartpole", ["1", "2", "3"])
    for name, version, status in (
        ("cartpole", "4", "404"),
        ("cartpole", "last", "404"),
        ("cartpole@champion", "3", "404"),
        ("cartpole@nobody", "", "404"),
        ("pole", "", "404"),
    ):
        assert not triton.is_model_ready(name, version, headers=headers)
        assert refused(lambda: infer(name, rows, model_version=version)).status() == status  # noqa: B023


def refused(ask: Callable[[], object]) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as raised:
        ask()
    return raised.value


@pytest.mark.databases("sqlite", "postgresql")
def test_a_policys_versions_are_its_revisions_of_which_the_newest_is_served(
    app: FastAPI, triton: InferenceServerClient, infer: Callable[..., InferResult], headers: dict[str, str]
) -> None:
    policy = store_policy(app)
    rows = some_rows(POLICY, 2)
    before = infer(policy, rows, model_version="0").as_numpy("value")
    assert "no revision 1 yet" in refused(lambda: infer(policy, rows, model_version="1")).message()
    revise(app.state.database, app.state.store, policy, 5)
    with app.state.database.transaction() as session:
        session.get(tables.Policy, policy).revision = 1
    assert (infer(policy, rows, parameters={"revision": 1}).as_numpy("value") != before).all()
    assert infer(policy, rows, model_version="1").get_response()["model_version"] == "1"
    gone = refused(lambda: infer(policy, rows, model_version="0"))
    assert (gone.status(), "has revision 1 now" in gone.message()) == ("410", True)
    assert triton.get_model_metadata(policy, headers=headers)["versions"] == ["1"]


def test_the_server_says_what_it_is_and_what_its_models_take(
    app: FastAPI, triton: InferenceServerClient, headers: dict[str, str]
) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    metadata = triton.get_server_metadata(headers=headers)
    assert metadata["name"] == "headstart"
    assert set(metadata["extensions"]) == {"binary_tensor_data", "parameters", "statistics"}
    value = [{"name": name, "datatype": "FP32", "shape": [-1]} for name in ("log_prob", "value")]
    for kind, size, outputs in (
        (POLICY, 4, [{"name": "action", "datatype": "INT64", "shape": [-1]}, *value]),
        (
            TORQUE,
            3,
            [
                {"name": "action", "datatype": "FP32", "shape": [-1, 1]},
                *value,
                {"name": "policy_action", "datatype": "FP32", "shape": [-1, 1]},
            ],
        ),
    ):
        policy = store_policy(app, policy=kind)
        assert triton.get_model_metadata(policy, headers=headers) == {
            "name": policy,
            "versions": ["0"],
            "platform": "headstart",
            "inputs": [{"name": "observation", "datatype": "FP32", "shape": [-1, size]}],
            "outputs": outputs,
        }


@pytest.mark.databases("sqlite", "postgresql")
def test_the_index_lists_versions_and_then_policies_in_pages(
    app: FastAPI, triton: InferenceServerClient, headers: dict[str, str], server_url: str
) -> None:
    for _ in range(3):
        store_version(app)
    policies = [store_policy(app, seed) for seed in range(3)]
    store_policy(app, ttl_s=-1)
    expected = [("cartpole", str(number)) for number in (3, 2, 1)] + [(policy, "0") for policy in policies[::-1]]
    index = triton.get_model_repository_index(headers=headers)
    assert [(entry["name"], entry["version"]) for entry in index] == expected
    assert {entry["state"] for entry in index} == {"READY"}
    for size in (1, 2, 3, 4, 5, 6, 7):
        query: dict[str, Any] | None = {"page_size": size}
        listed: list[tuple[str, str]] = []
        while query is not None:
            response = httpx.post(f"{server_url}/v2/repository/index", headers=headers, params=query)
            page = [(entry["name"], entry["version"]) for entry in response.json()]
            assert len(page) <= size
            listed += page
            token = response.headers.get("headstart-next-page-token")
            query = None if token is None else {"page_size": size, "page_token": token}
        assert listed == expected
    for token in ("policies.x", "versions.x", "x", "x.", "policies.versions."):
        response = httpx.post(f"{server_url}/v2/repository/index", headers=headers, params={"page_token": token})
        assert response.status_code == 400


def test_statistics_count_what_was_answered_and_what_was_refused(
    app: FastAPI, triton: InferenceServerClient, infer: Callable[..., InferResult], headers: dict[str, str]
) -> None:
    policy = store_policy(app)

    def statistics(*place: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = triton.get_inference_statistics(*place, headers=headers)["model_stats"]
        return found

    assert statistics() == []
    [nothing] = statistics(policy)
    assert (nothing["inference_count"], nothing["batch_stats"]) == (0, [])
    for count in (1, 64, 64, 5000):
        infer(policy, some_rows(POLICY, count))
    refused(lambda: infer(policy, some_rows(TORQUE, 2)))
    refused(lambda: infer("nobody", some_rows(POLICY, 2)))
    [model] = statistics(policy, "0")
    assert statistics() == statistics(policy) == [model]
    assert (model["name"], model["version"]) == (policy, "0")
    assert (model["inference_count"], model["execution_count"]) == (5129, 4)
    stats = model["inference_stats"]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert {stats[part]["count"] for part in ("success", *parts)} == {4}
    assert stats["fail"]["count"] == 1
    assert stats["fail"]["ns"] > 0
    assert sum(stats[part]["ns"] for part in parts) == stats["success"]["ns"]
    assert {batch["batch_size"]: batch["compute_infer"]["count"] for batch in model["batch_stats"]} == {
        1: 1,
        64: 2,
        5000: 1,
    }
    assert sum(batch["compute_infer"]["ns"] for batch in model["batch_stats"]) == stats["compute_infer"]["ns"]
    assert all(stats[part]["ns"] > 0 for part in parts)


def test_the_statistics_of_a_model_are_those_of_its_versions(
    app: FastAPI, triton: InferenceServerClient, infer: Callable[..., InferResult], headers: dict[str, str]
) -> None:
    for _ in range(2):
        store_version(app)
    for version in ("1", "", "2"):
        infer("cartpole", some_rows(POLICY, 2), model_version=version)

    def counts(*place: str) -> dict[str, int]:
        found = triton.get_inference_statistics(*place, headers=headers)["model_stats"]
        return {model["version"]: model["inference_count"] for model in found}

    assert counts("cartpole") == {"1": 2, "2": 4}
    assert counts("cartpole", "1") == {"1": 2}
    assert refused(lambda: counts("cartpole", "3")).status() == "404"


def test_many_requests_share_the_connections_of_one_client(
    app: FastAPI, server_url: str, headers: dict[str, str], act: Callable[..., dict[str, Any]]
) -> None:
    policy = store_policy(app)
    rows = some_rows(POLICY, 40)
    with InferenceServerClient(urlsplit(server_url).netloc, concurrency=8) as client:
        under_way = []
        for row in rows:
            tensor = InferInput("observation", [1, 4], "FP32").set_data_from_numpy(row[None])
            under_way.append(client.async_infer(policy, [tensor], headers=dict(headers)))
        actions = [each.get_result().as_numpy("action")[0] for each in under_way]
    assert actions == act(f"policies/{policy}", rows)["actions"]


@pytest.mark.parametrize(
    ("rows", "status", "words"),
    [
        (np.zeros((2, 3), np.float32), "422", "must be [-1, 4], not [2, 3]"),
        (np.zeros((4,), np.float32), "422", "must be [observations, numbers of each]"),
        (np.zeros((1, 2, 4), np.float32), "422", "must be [observations, numbers of each]"),
        (np.zeros((0, 4), np.float32), "422", "both above 0"),
        (np.zeros((10_001, 4), np.float32), "413", "one request may hold 10000 observations"),
        (np.full((2, 4), np.nan, np.float32), "422", "observation 0 must hold finite numbers"),
        (np.array([[0, 0, 0, 0], [0, 0, np.inf, 0]], np.float16), "422", "observation 1 must hold finite numbers"),
        (np.array([[0, 0, 1e39, 0]]), "422", "within FP64 and FP32"),
        (np.zeros((2, 4), bool), "422", "not BOOL"),
        (np.array([["0"] * 4], np.object_), "422", "not BYTES"),
    ],
)
def test_what_is_refused_is_told_in_the_clients_own_exception(
    app: FastAPI, infer: Callable[..., InferResult], rows: np.ndarray, status: str, words: str
) -> None:
    policy = store_policy(app)
    error = refused(lambda: infer(policy, rows))
    assert error.status() == status
    assert words in error.message()


def test_other_inputs_outputs_and_parameters_are_refused(
    app: FastAPI, triton: InferenceServerClient, infer: Callable[..., InferResult], headers: dict[str, str]
) -> None:
    policy = store_policy(app)
    rows = some_rows(POLICY, 2)

    def tensor(name: str) -> InferInput:
        return InferInput(name, [2, 4], "FP32").set_data_from_numpy(rows)

    shared = InferInput("observation", [2, 4], "FP32").set_shared_memory("region", 32)
    classified = [InferRequestedOutput("action", class_count=2)]
    refusals: Sequence[tuple[Callable[[], object], str]] = (
        (lambda: triton.infer(policy, [], headers=dict(headers)), "the input observation is missing"),
        (lambda: triton.infer(policy, [tensor("x")], headers=dict(headers)), "unknown input; known: observation"),
        (lambda: triton.infer(policy, 2 * [tensor("observation")], headers=dict(headers)), "comes twice"),
        (lambda: triton.infer(policy, [shared], headers=dict(headers)), "known: binary_data_size"),
        (lambda: infer(policy, rows, outputs=[InferRequestedOutput("logits")]), "known: action, log_prob, value"),
        (lambda: infer(policy, rows, outputs=[InferRequestedOutput("policy_action")]), "unknown output"),
        (lambda: infer(policy, rows, outputs=2 * [InferRequestedOutput("value")]), "asked for twice"),
        (lambda: infer(policy, rows, outputs=classified), "known: binary_data"),
        (lambda: infer(policy, rows, parameters={"determinstic": True}), "known: deterministic, seed"),
        (lambda: infer(policy, rows, parameters={"seed": -1}), "/parameters/seed"),
        (lambda: infer(policy, rows, parameters={"deterministic": "no"}), "/parameters/deterministic"),
        (lambda: infer(policy, rows, sequence_id=3), "known: deterministic, seed"),
        (lambda: infer(policy, rows, request_compression_algorithm="gzip"), "without Content-Encoding"),
    )
    for ask, words in refusals:
        error = refused(ask)
        assert error.status() in ("415", "422"), words
        assert words in error.message()


@pytest.mark.databases("sqlite", "postgresql")
def test_policies_that_are_not_there_and_keys_that_may_not_are_told(
    app: FastAPI,
    triton: InferenceServerClient,
    infer: Callable[..., InferResult],
    server_url: str,
    headers: dict[str, str],
) -> None:
    policy, rows = store_policy(app), some_rows(POLICY, 2)
    deleted = store_policy(app)
    delete(app.state.database, deleted)
    for name, status, words in (
        ("0198c3a0-7b1e-7000-8000-000000000000", "404", "there is no policy"),
        (store_policy(app, ttl_s=-1), "410", "expired at 20"),
        (deleted, "410", "was deleted at 20"),
    ):
        assert not triton.is_model_ready(name, headers=headers)
        for ask in (
            lambda: infer(name, rows),  # noqa: B023
            lambda: triton.get_model_metadata(name, headers=headers),  # noqa: B023
            lambda: triton.get_inference_statistics(name, headers=headers),  # noqa: B023
        ):
            error = refused(ask)
            assert (error.status(), words in error.message()) == (status, True)
    tensor = InferInput("observation", [2, 4], "FP32").set_data_from_numpy(rows)
    assert refused(lambda: triton.infer(policy, [tensor])).status() == "401"
    assert refused(triton.get_server_metadata).status() == "401"
    body = {"name": "reader", "scopes": ["models:read"]}
    key = httpx.post(f"{server_url}/v1/api-keys", json=body, headers=headers).json()["key"]
    reader = {"Authorization": f"Bearer {key}"}
    assert triton.is_model_ready(policy, headers=reader)
    error = refused(lambda: triton.infer(policy, [tensor], headers=reader))
    assert (error.status(), error.message()) == ("403", "the key needs the scope policies:act")


def test_what_the_guide_shows_works(
    app: FastAPI,
    server_url: str,
    headers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    [block] = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    store_version(app)
    with app.state.database.transaction() as session:
        set_alias(session, OPERATOR, "cartpole", "champion", 1)
    monkeypatch.setenv("HEADSTART_URL", server_url)
    monkeypatch.setenv("HEADSTART_API_KEY", headers["Authorization"].removeprefix("Bearer "))
    script = tmp_path / "example.py"
    script.write_text(block)
    runpy.run_path(str(script))["client"].close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == re.findall(r"# (\[.*)", block)[0]
    assert lines[-1] == "64"
