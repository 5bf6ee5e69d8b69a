"""What the framework leaves out of the OpenAPI document; and the document as a text that does not depend on the day."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.validation import Schema
from models.adaptation import InnerLoop
from models.finetune import CONFIGS as METHODS
from models.learners import CONFIGS as LEARNERS

LEARNER_EXAMPLES: tuple[dict[str, Any], ...] = (
    {"name": "maml", "outer_step": "promp", "inner_kl_target": 0.01},
    {"name": "maml", "outer_step": "trpo", "kl_limit": 0.01},
    {"name": "e-maml", "exploration_coefficient": 1.0},
    {"name": "dice", "inner_steps": 2, "inner_learning_rate": [0.1, 0.05]},
    {"name": "reptile", "inner_steps": 3, "outer_learning_rate": 0.5},
    {"name": "anil", "inner_learning_rate": 0.5},
    {"name": "meta-sgd", "rates": "layer", "inner_steps": 2},
    {"name": "cavia", "inner_learning_rate": 1.0},
    {"name": "multitask", "outer_learning_rate": 0.003},
)
"""Learners to ask for, beside that of the first example of a run."""

_POLICIES = {"cavia": {"hidden": [64, 32], "context_size": 4}}
"""Policies of learners that do not work with every one."""


PATH_PARAMETERS = {
    "adaptation_id": "Id of the adaptation.",
    "alias": "Name of the alias, such as `champion`.",
    "environment_id": "Id of the environment model, such as `CartPole-v1`.",
    "evaluation_id": "Id of the evaluation.",
    "event_id": "Id of the recorded act, as it was answered.",
    "key_id": "Id of the key, which is not its secret.",
    "model": "Name of the model.",
    "policy": "Id of the policy.",
    "policy_id": "Id of the policy.",
    "run_id": "Id of the run.",
    "version": "Number of the version: 1, 2, ...",
}
"""What is meant in every path that has a parameter of this name; a route may say it itself."""

_PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "What is wrong, after RFC 9457; `errors` names the members at fault, where there are any.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "description": "The kind of problem, for programs."},
        "title": {"type": "string", "description": "The kind of problem, for people."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What is wrong and what would be right."},
        "error": {"type": "string", "description": "The same, under `/v2` only: there it is called so."},
        "errors": {
            "type": "array",
            "items": {
                "title": "FieldProblem",
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "JSON pointer into the request (RFC 6901)."},
                    "detail": {"type": "string", "description": "What is wrong there."},
                },
            },
        },
    },
    "examples": [
        {
            "type": "/problems/invalid",
            "title": "The request is not valid",
            "status": 422,
            "detail": "/stop/seconds: must be greater than 0",
            "errors": [{"pointer": "/stop/seconds", "detail": "must be greater than 0"}],
        }
    ],
}

_PROBLEM_CONTENT = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def complete(schema: dict[str, Any]) -> dict[str, Any]:
    """Complete an OpenAPI document in place: examples, configs, problems, answers that may grow, parameters."""
    document_examples(schema)
    document_configs(schema)
    document_problems(schema)
    open_answers(schema)
    for operation in operations(schema):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path" and parameter["name"] in PATH_PARAMETERS:
                parameter.setdefault("description", PATH_PARAMETERS[parameter["name"]])
    return schema


def render(schema: dict[str, Any]) -> str:
    """An OpenAPI document as `docs/openapi.json` has it: equal documents are equal texts."""
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def operations(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every operation of an OpenAPI document."""
    for methods in schema["paths"].values():
        yield from methods.values()


def describe_operation(
    name: str, tag: str, summary: str, about: str, schemas: str, examples: Sequence[Any], path: Mapping[str, str]
) -> dict[str, Any]:
    """A POST that acts, which the framework does not serve and so does not know.

    Args:
        name: Its `operationId`.
        tag: What it is listed under.
        summary: In a few words.
        about: In full.
        schemas: Of the bodies: what comes before `Request` and `Response` in their names.
        examples: Of the request and of the answer.
        path: Parameters of the path, and what they are.
    """
    request, response = (
        {"application/json": {"schema": {"$ref": f"#/components/schemas/{schemas}{kind}"}, "example": example}}
        for kind, example in zip(("Request", "Response"), examples, strict=True)
    )
    timeout = {"type": "number", "exclusiveMinimum": 0}
    within = "Seconds within which an answer is of use; after them 503 is answered."
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "description": about,
        "security": [{"api_key": []}],
        "parameters": [
            *(describe_parameter("path", each, {"type": "string"}, what) for each, what in path.items()),
            describe_parameter("header", "Headstart-Timeout", timeout, within),
        ],
        "requestBody": {"required": True, "content": request},
        "responses": {"200": {"description": "The actions", "content": response}},
    }


def describe_parameter(where: str, name: str, schema: dict[str, Any], about: str) -> dict[str, Any]:
    """A parameter of such an operation."""
    return {"in": where, "name": name, "required": where == "path", "schema": schema, "description": about}


def document_examples(schema: dict[str, Any]) -> None:
    """Write the examples of the wire's classes into an OpenAPI document: the framework drops their nulls."""
    components = schema["components"]["schemas"]
    for body in _descendants(Schema):
        extra = body.model_config.get("json_schema_extra")
        if isinstance(extra, dict) and body.__name__ in components:
            components[body.__name__] |= extra


def _descendants(parent: type[Schema]) -> Iterator[type[Schema]]:
    for child in parent.__subclasses__():
        yield child
        yield from _descendants(child)


def document_problems(schema: dict[str, Any]) -> None:
    """Say of every operation of an OpenAPI document that its errors are problems."""
    components = schema["components"]
    components["schemas"]["Problem"] = _PROBLEM_SCHEMA
    components["responses"] = {"Problem": {"description": "A problem", "content": _PROBLEM_CONTENT}}
    for operation in operations(schema):
        responses = operation["responses"]
        for status, response in responses.items():
            if status >= "400":
                response.setdefault("content", _PROBLEM_CONTENT)
        for status in ("4XX", "5XX"):
            responses[status] = {"$ref": "#/components/responses/Problem"}


def open_answers(schema: dict[str, Any]) -> None:
    """Let answers have more members than an OpenAPI document knows, so that a new one breaks no client that checks.

    What requests are made of stays closed: there an unknown member is an error.
    """
    components = schema["components"]["schemas"]
    asked: set[str] = set()
    found = _references([operation.get("requestBody") for operation in operations(schema)])
    while new := found - asked:
        asked |= new
        found = _references([components[name] for name in new])
    for name in components.keys() - asked:
        if components[name].get("additionalProperties") is False:
            del components[name]["additionalProperties"]


def _references(part: object) -> set[str]:
    return set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(part)))


def document_configs(schema: dict[str, Any]) -> None:
    """Complete the core's configs in an OpenAPI document, and add a run with each learner to its examples.

    The framework takes no field's docstring that a config inherits; and what a learner is and where it comes from is
    said by the docstring of its module.
    """
    components = schema["components"]["schemas"]
    for config in (*LEARNERS.values(), *METHODS.values(), InnerLoop):
        component = components[config.__name__]
        for name, text in ({"name": "Which one it is."} | field_docstrings(config)).items():
            component["properties"][name]["description"] = text
        # OpenAPI wants the member that tells configs apart to be required, though whoever omits it is understood.
        component["required"] = ["name", *component.get("required", ())]
    for config in LEARNERS.values():
        components[config.__name__]["description"] = inspect.cleandoc(sys.modules[config.__module__].__doc__ or "")
    first = components["NewRun"]["examples"][0]
    components["NewRun"]["examples"] = [first] + [
        first | {"learner": learner, "policy": _POLICIES.get(learner["name"], first["policy"])}
        for learner in LEARNER_EXAMPLES
    ]


def field_docstrings(config: type) -> dict[str, str]:
    """The text below each field of a dataclass, inherited fields included, its lines joined."""
    found: dict[str, str] = {}
    for parent in reversed(config.__mro__[:-1]):
        found |= _own_docstrings(parent)
    return found


@functools.cache
def _own_docstrings(config: type) -> dict[str, str]:
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in itertools.pairwise(definition.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
