"""Policies and versions as files that act without the service, against what the service answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
from fastapi import FastAPI
from headstart_client import InvalidPolicyFile, LocalPolicy
from httpx import Client

from app import tables
from app.database import now
from app.policies import export
from app.registry.service import publish_version
from app.worker import Worker
from models.checkpoint import MANIFEST_FILE, PARAMETERS_FILE, pack, policy_to_json, save_params, save_policy
from models.environments import ENVIRONMENTS
from models.learners.meta_sgd import MetaSGD, MetaSGDConfig
from models.policy import Policy, PolicyConfig
from models.types import Params

# Files are made of artefacts; only what does not stand is looked up.
pytestmark = pytest.mark.databases("sqlite")

NAVIGATION = ENVIRONMENTS["Navigation2D-v0"]
POLICY = Policy(
    PolicyConfig((8,), "gelu", normalise_observations=True), NAVIGATION.observation_space, NAVIGATION.action_space
)
OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
NAMES = ("policy.safetensors", "policy.onnx")

onnxruntime.set_default_logger_severity(3)

Stored = Callable[[], str]


def some_params() -> Params:
    params = POLICY.initialise(0)
    return params | {
        "policy.weight": params["policy.weight"] * 100,
        "observation.count": params["observation.count"] + 9,
    }


def put_policy(app: FastAPI, content: bytes) -> str:
    """Store a policy of these bytes: its path."""
    sha256, size_bytes = app.state.store.put(content)
    with app.state.database.transaction() as session:
        spec = policy_to_json(POLICY) | {"environment": "Navigation2D-v0"}
        row = tables.Policy(spec=spec, sha256=sha256, size_bytes=size_bytes)
        session.add(row)
        session.flush()
        return f"/v1/policies/{row.id}"


@pytest.fixture
def version(app: FastAPI, client: Client) -> str:
    """A version whose learner keeps rates beside the policy: its path."""
    assert client is not None, "the application has started"
    learner = MetaSGD(MetaSGDConfig(), POLICY)
    params = learner.initialise(0).params | some_params()
    manifest, parameters = pack(learner.config, POLICY, params, {})
    files = {MANIFEST_FILE: app.state.store.put(manifest), PARAMETERS_FILE: app.state.store.put(parameters)}
    with app.state.database.transaction() as session:
        publish_version(session, "nav", json.loads(manifest), files, None)
    return "/v1/models/nav/versions/1"


@pytest.fixture
def policy(app: FastAPI, client: Client) -> str:
    assert client is not None, "the application has started"
    return put_policy(app, save_policy(POLICY, some_params()))


@pytest.fixture(params=["policy", "version"])
def subject(request: pytest.FixtureRequest) -> str:
    """The path of what can be taken away."""
    path: str = request.getfixturevalue(request.param)
    return path


def answer_of(client: Client, subject: str, **body: object) -> dict[str, np.ndarray]:
    response = client.post(f"{subject}:act", json={"observations": OBSERVATIONS.tolist()} | body)
    assert response.status_code == 200, response.text
    return {name: np.array(response.json()[name]) for name in ("actions", "log_probs", "values")}


def test_the_graph_acts_as_the_service_does(client: Client, subject: str) -> None:
    graph = onnxruntime.InferenceSession(client.get(f"{subject}/files/policy.onnx").content)
    drawn = np.random.default_rng(3).standard_normal((len(OBSERVATIONS), 2), dtype=np.float32)
    for body, noise in (({}, {}), ({"deterministic": False, "seed": 3}, {"noise": drawn})):
        expected = answer_of(client, subject, **body)
        answer = graph.run(["action", "log_prob", "value"], {"observation": OBSERVATIONS, **noise})
        for value, name in zip(answer, expected, strict=True):
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)


def test_a_local_policy_acts_as_the_service_does(client: Client, subject: str) -> None:
    local = LocalPolicy.from_bytes(client.get(f"{subject}/files/policy.safetensors").content)
    for body, rng in (({}, None), ({"deterministic": False, "seed": 3}, np.random.default_rng(3))):
        expected = answer_of(client, subject, **body)
        for value, name in zip(local.act(OBSERVATIONS, rng), expected, strict=False):
            np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_served_by_the_digest_of_its_bytes(client: Client, subject: str, name: str) -> None:
    path = f"{subject}/files/{name}"
    file, head = client.get(path), client.head(path)
    etag = f'"sha256-{hashlib.sha256(file.content).hexdigest()}"'
    assert (file.status_code, file.headers["etag"]) == (200, etag)
    assert client.get(path).content == file.content, "the same policy, the same bytes"
    assert (head.status_code, head.content, dict(head.headers)) == (200, b"", dict(file.headers))
    for method in (client.get, client.head):
        assert method(path, headers={"If-None-Match": etag}).status_code == 304
    part = client.get(path, headers={"Range": "bytes=8-15", "If-Range": etag})
    assert (part.status_code, part.content) == (206, file.content[8:16])
    assert part.headers["content-range"] == f"bytes 8-15/{len(file.content)}"
    assert client.get(path, headers={"Range": "bytes=8-15", "If-Range": '"old"'}).status_code == 200
    assert client.get(path, headers={"Range": f"bytes={len(file.content)}-"}).status_code == 416


@pytest.mark.databases("sqlite", "postgresql")
def test_only_what_is_stored_is_listed(client: Client, policy: str, version: str) -> None:
    assert [file["name"] for file in client.get(policy).json()["files"]] == ["policy.safetensors"]
    assert [file["name"] for file in client.get(version).json()["files"]] == [MANIFEST_FILE, PARAMETERS_FILE]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_bytes_that_were_changed_is_never_served(
    app: FastAPI, client: Client, subject: str, name: str
) -> None:
    files = {file["name"]: file["sha256"] for file in client.get(subject).json()["files"]}
    sha256 = files.get("policy.safetensors") or files[PARAMETERS_FILE]
    path = app.state.store.path(sha256)
    whole = path.read_bytes()
    for damaged in (whole[:-1] + b"\1", whole[:-1], b""):
        path.write_bytes(damaged)
        for headers in ({}, {"Range": "bytes=0-9"}):
            answer = client.get(f"{subject}/files/{name}", headers=headers)
            assert answer.status_code == 500
            assert answer.json()["type"] == "/problems/corrupt"
            assert sha256 in answer.json()["detail"]
    path.unlink()
    assert sha256 in client.get(f"{subject}/files/{name}").json()["detail"]


def test_a_version_whose_manifest_was_changed_is_not_made_a_file_of(app: FastAPI, client: Client, version: str) -> None:
    sha256 = {file["name"]: file["sha256"] for file in client.get(version).json()["files"]}[MANIFEST_FILE]
    path = app.state.store.path(sha256)
    path.write_bytes(path.read_bytes().replace(b'"gelu"', b'"tanh"'))
    for name in NAMES:
        answer = client.get(f"{version}/files/{name}")
        assert (answer.status_code, answer.json()["type"]) == (500, "/problems/corrupt")
        assert sha256 in answer.json()["detail"]


@pytest.mark.databases("sqlite", "postgresql")
def test_a_policy_that_an_older_service_stored_acts_and_is_exported(app: FastAPI, client: Client, policy: str) -> None:
    older = put_policy(app, save_params(some_params()))
    for name, value in answer_of(client, policy).items():
        assert np.array_equal(answer_of(client, older)[name], value)
    graphs = [client.get(f"{each}/files/policy.onnx").content for each in (policy, older)]
    assert graphs[0] == graphs[1]
    file = client.get(f"{older}/files/policy.safetensors").content
    with pytest.raises(InvalidPolicyFile, match="an older service made it"):
        LocalPolicy.from_bytes(file)
    local = LocalPolicy.from_bytes(file, client.get(older).json())
    np.testing.assert_allclose(local.act(OBSERVATIONS).actions, answer_of(client, older)["actions"], rtol=1e-6)


@pytest.mark.usefixtures("version")
@pytest.mark.databases("sqlite", "postgresql")
def test_a_policy_that_was_adapted_says_in_its_file_what_it_is(client: Client, settings) -> None:
    task = {"environment": "Navigation2D-v0", "horizon": 5}
    method = {"name": "inner-loop", "steps": 1, "episodes": 2, "evaluation_episodes": 1}
    body = {"model": "nav", "task": task, "method": method}
    adaptation = client.post("/v1/adaptations", json=body, headers={"Prefer": "wait=0"}).json()["id"]
    worker = Worker(settings, "adaptations")
    worker.work_once()
    worker.close()
    policy = client.get(f"/v1/adaptations/{adaptation}").json()["policy"]
    local = LocalPolicy.from_bytes(client.get(f"/v1/policies/{policy}/files/policy.safetensors").content)
    assert local.spec == policy_to_json(POLICY)
    expected = answer_of(client, f"/v1/policies/{policy}")
    np.testing.assert_allclose(local.act(OBSERVATIONS).actions, expected["actions"], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.databases("sqlite", "postgresql")
def test_what_does_not_stand_has_no_files(app: FastAPI, client: Client, policy: str, name: str) -> None:
    with app.state.database.transaction() as session:
        session.get(tables.Policy, policy.rpartition("/")[2]).deleted_at = now()
    assert client.get(f"{policy}/files/{name}").status_code == 410
    for subject in ("/v1/policies/none", "/v1/models/none/versions/1", "/v1/models/nav/versions/7"):
        assert client.get(f"{subject}/files/{name}").status_code == 404
    assert client.get(f"{policy}/files/policy.txt").status_code == 404


def test_files_need_a_key(client: Client, subject: str) -> None:
    for name in NAMES:
        answer = client.get(f"{subject}/files/{name}", headers={"Authorization": "Bearer hs_nobody"})
        assert answer.status_code == 401


def test_making_a_file_keeps_nobody_waiting(client: Client, subject: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def outside(make: Callable[..., bytes]) -> Callable[..., bytes]:
        def made(*args: object) -> bytes:
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            return make(*args)

        return made

    for name in ("policy_onnx", "version_onnx", "version_policy"):
        monkeypatch.setattr(export, name, outside(getattr(export, name)))
    for name in NAMES:
        assert client.get(f"{subject}/files/{name}").status_code == 200
