"""The OpenAPI document is committed, valid and whole, and what it shows is true."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documented import COMMITTED, DOCUMENT
from evaluating import adapt, train
from fastapi import FastAPI
from httpx import Client, Response
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from app.cli import main
from app.documentation import operations
from app.policies.examples import POLICY
from app.registry.service import publish_version
from app.settings import Settings
from app.tasks.examples import ENVIRONMENT, FAMILY, NEW_TASK, TASK
from models.checkpoint import MANIFEST_FILE, PARAMETERS_FILE, pack
from models.environments import ENVIRONMENTS
from models.learners import CONFIGS, LEARNERS
from models.policy import Policy, PolicyConfig


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The operations and schemas of a document that were removed, added and changed, and how."""
    by_name = [
        {f"operation {each['operationId']}": each for each in operations(document)}
        | {f"schema {name}": schema for name, schema in document["components"]["schemas"].items()}
        for document in (old, new)
    ]
    return "\n".join(_changes(*by_name)) or "only what is neither an operation nor a schema"


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"- {name}"
        elif name not in old:
            yield f"+ {name}"
        elif old[name] != new[name]:
            texts = [json.dumps(each[name], indent=1, sort_keys=True).splitlines() for each in (old, new)]
            lines = [line for line in difflib.ndiff(*texts) if line[0] in "+-"]
            yield f"! {name}"
            yield from (f"    {line}" for line in lines[:6])
            if len(lines) > 6:
                yield f"    and {len(lines) - 6} more lines"


def test_the_service_is_as_the_committed_document_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path / "elsewhere"))
    assert main(["openapi"]) == 0
    served = capsys.readouterr().out
    if served != COMMITTED.read_text():
        pytest.fail(
            f"The API is not what docs/openapi.json says:\n{changes(DOCUMENT, json.loads(served))}\n"
            "Where that is meant, renew it with `make openapi`; docs/api.md says which changes break clients.",
            pytrace=False,
        )


def test_a_change_is_told_by_operation_and_schema() -> None:
    changed = copy.deepcopy(DOCUMENT)
    del changed["paths"]["/v1/tasks"]["get"]
    changed["components"]["schemas"]["NewTask"]["properties"]["colour"] = {"type": "string"}
    told = changes(DOCUMENT, changed)
    assert told.startswith("- operation list_tasks\n! schema NewTask\n")
    assert '+   "colour": {' in told
    assert changes(DOCUMENT, DOCUMENT).startswith("only what is neither")


def test_the_document_is_valid() -> None:
    validate(DOCUMENT)


def test_every_operation_has_a_name_of_its_own() -> None:
    names = [operation["operationId"] for operation in operations(DOCUMENT)]
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []
    assert len(set(names)) == len(names)


def test_every_parameter_is_described() -> None:
    for operation in operations(DOCUMENT):
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), f"{operation['operationId']}: {parameter['name']}"


def test_every_error_is_a_problem() -> None:
    for operation in operations(DOCUMENT):
        assert {"4XX", "5XX"} < set(operation["responses"])
        for status, response in operation["responses"].items():
            if status[0] in "45":
                assert set(resolve(response)["content"]) == {"application/problem+json"}, operation["operationId"]


def test_files_and_streams_say_what_they_are() -> None:
    kinds = {
        operation["operationId"]: set(operation["responses"]["200"]["content"])
        for operation in operations(DOCUMENT)
        if "206" in operation["responses"] or operation["operationId"].startswith("stream_")
    }
    assert kinds["stream_run_events"] == kinds["stream_adaptation_events"] == {"text/event-stream"}
    assert kinds["get_policy_file"] == kinds["get_run_checkpoint"] == {"application/octet-stream"}
    assert kinds["get_version_file"] == {"application/octet-stream", "application/json"}
    assert kinds["get_evaluation_file"] == {"application/json", "text/html", "text/csv", "image/png"}


def resolve(part: dict[str, Any]) -> dict[str, Any]:
    """A part of the document, or the one that it refers to."""
    for name in part.get("$ref", "#").split("/")[1:]:
        part = DOCUMENT[name] if name == "components" else part[name]
    return part


def examples_of(content: dict[str, Any]) -> list[Any]:
    if "example" in content:
        return [content["example"]]
    if "examples" in content:
        return [example["value"] for example in content["examples"].values()]
    return list(resolve(content["schema"]).get("examples", []))


CLOSED = {
    name: {"additionalProperties": False} | schema if "properties" in schema else schema
    for name, schema in DOCUMENT["components"]["schemas"].items()
}
"""The schemas without the leave that answers have to grow."""


def faults(schema: dict[str, Any], value: object) -> list[str]:
    """What about a value is against a schema of the document, or is not in it."""
    validator = Draft202012Validator(
        schema | {"components": {"schemas": CLOSED}}, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def json_bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON body, of a request or of an answer that is no error; files are none."""
    for operation in operations(DOCUMENT):
        name, responses = operation["operationId"], operation["responses"]
        if "requestBody" in operation:
            yield f"{name} request", operation["requestBody"]["content"]["application/json"]
        for status, response in responses.items():
            content = resolve(response).get("content", {})
            if status[0] == "2" and "application/json" in content and "206" not in responses:
                yield f"{name} {status}", content["application/json"]


BODIES = dict(json_bodies())


@pytest.mark.parametrize("body", BODIES)
def test_every_body_has_examples_that_are_valid(body: str) -> None:
    examples = examples_of(BODIES[body])
    assert examples, "show what it looks like: json_schema_extra of its class"
    for example in examples:
        assert faults(BODIES[body]["schema"], example) == []


def test_requests_are_closed_and_answers_may_grow() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["NewTask"]["additionalProperties"] is False
    assert schemas["TaskDefinition"]["additionalProperties"] is False, "it is asked for and answered"
    assert "additionalProperties" not in schemas["TaskBody"]


def publish(app: FastAPI, model: str, learner: str) -> None:
    environment = ENVIRONMENTS["CartPole-v1"]
    policy = Policy(PolicyConfig(hidden=(8,)), environment.observation_space, environment.action_space)
    built = LEARNERS[learner](CONFIGS[learner](), policy)
    manifest, parameters = pack(built.config, policy, built.initialise(0).params, {"environment": "CartPole-v1"})
    store = app.state.store
    files = {MANIFEST_FILE: store.put(manifest), PARAMETERS_FILE: store.put(parameters)}
    with app.state.database.transaction() as session:
        publish_version(session, model, json.loads(manifest), files, None)


@pytest.fixture
def places(app: FastAPI, client: Client, settings: Settings) -> dict[str, str]:
    """A service that has what the examples of requests are about: what stands where in a path."""
    for task in (NEW_TASK, NEW_TASK | {"name": "cartpole-short", "parameters": {"length": 0.25}}):
        client.post("/v1/tasks", json=task)
    for _ in range(4):
        publish(app, "cartpole", "maml")
    publish(app, "cartpole-multitask", "multitask")
    for version in (2, 3):
        client.put("/v1/models/cartpole/aliases/champion", json={"version": version})
    policy = adapt(client, settings, "cartpole@champion", "cartpole-long")
    train(client, settings, tasks={"family": "navigation-2d"}, evaluation={"tasks": 2})
    evaluation = {"subjects": ["cartpole"], "tasks": {"ids": ["cartpole-short"]}}
    remote = next(
        example for example in examples_of(BODIES["create_adaptation request"]) if "remote" in example["task"]
    )
    collecting = client.post("/v1/adaptations", json=remote).json()
    act = {"observations": [[0.01, 0.0, 0.02, 0.0]], "record": True}
    return {
        "adaptation_id": collecting["id"],
        "event_id": client.post(f"/v1/policies/{collecting['policy']}:act", json=act).json()["event_id"],
        "alias": "champion",
        "environment_id": "CartPole-v1",
        "evaluation_id": client.post("/v1/evaluations", json=evaluation).json()["id"],
        "key_id": client.get("/v1/api-keys").json()["api_keys"][0]["id"],
        "model": "cartpole",
        "name": "cartpole-physics",
        "policy": policy,
        "policy_id": policy,
        "reference": "cartpole-long",
        "run_id": client.get("/v1/runs").json()["runs"][0]["id"],
        "version": "3",
    }


def against_the_document(operation: dict[str, Any], response: Response) -> list[str]:
    """What about an answer is not as the document says; an error is."""
    documented = operation["responses"].get(str(response.status_code))
    if not response.is_success or documented is None:
        return [f"{response.status_code} {response.text}"]
    return faults(documented["content"]["application/json"]["schema"], response.json())


@pytest.mark.databases("sqlite")
def test_every_example_of_a_request_is_accepted_and_answered_as_documented(
    client: Client, places: dict[str, str]
) -> None:
    wrong = {}
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            body = BODIES.get(f"{operation['operationId']} request")
            for number, example in enumerate(examples_of(body) if body else (), start=1):
                # The policy of the examples is one that stands here.
                sent = json.dumps(example).replace(POLICY["id"], places["policy_id"])
                headers = {"Content-Type": "application/json", "Prefer": "wait=0"}
                response = client.request(method, path.format_map(places), content=sent, headers=headers)
                wrong[f"{operation['operationId']} {number}"] = against_the_document(operation, response)
    assert {name.partition(" ")[0] for name in wrong} == {
        operation["operationId"] for operation in operations(DOCUMENT) if "requestBody" in operation
    }
    assert {name: what for name, what in wrong.items() if what} == {}


@pytest.mark.databases("sqlite")
def test_every_get_is_answered_as_documented(client: Client, places: dict[str, str]) -> None:
    wrong = {}
    for path, methods in DOCUMENT["paths"].items():
        if "get" in methods and (name := f"{methods['get']['operationId']} 200") in BODIES:
            wrong[name] = against_the_document(methods["get"], client.get(path.format_map(places)))
    assert len(wrong) > 20
    assert {name: what for name, what in wrong.items() if what} == {}


@pytest.mark.databases("sqlite")
def test_what_can_be_compared_of_the_examples_is_what_a_service_answers(client: Client) -> None:
    assert client.get(f"/v1/environments/{ENVIRONMENT['id']}").json() == ENVIRONMENT
    family = client.get(f"/v1/task-families/{FAMILY['name']}").json()
    assert family | {"created_at": FAMILY["created_at"]} == FAMILY
    task = client.post("/v1/tasks", json=NEW_TASK).json()
    assert task | {"id": TASK["id"], "created_at": TASK["created_at"]} == TASK
