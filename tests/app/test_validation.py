from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from app.validation import Number, Schema, Whole, field_errors, name_known_fields, pointer_to


@checked(config=ConfigDict(extra="forbid"), frozen=True)
class Maml:
    inner_steps: int = 1
    name: Literal["maml"] = "maml"


@checked(config=ConfigDict(extra="forbid"), frozen=True)
class Reptile:
    outer_steps: Annotated[int, Field(ge=1)] = 1
    name: Literal["reptile"] = "reptile"


class Stop(Schema):
    seconds: Annotated[Number, Field(gt=0)] | None = None
    iterations: Whole | None = None


class Alpha(Schema):
    alpha: int


class Beta(Schema):
    beta: int


class Body(Schema):
    learner: Annotated[Maml | Reptile, Field(discriminator="name")]
    stop: Stop | None = None
    stops: Annotated[list[Stop], Field(default_factory=list)]
    named: Annotated[dict[str, Stop], Field(default_factory=dict)]
    other: Alpha | Beta | None = None


def complaints(body):
    try:
        TypeAdapter(Body).validate_python(body)
    except ValidationError as error:
        errors = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        refusal = RequestValidationError(errors, body=body)
        name_known_fields(refusal, Body)
        return {e.pointer: e.detail for e in field_errors(refusal)}
    return {}


MAML = {"name": "maml"}


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({}, "/learner", "required"),
        ([], "", "must be an object"),
        (None, "", "must be an object"),
        ({"learner": 3}, "/learner", "must be an object"),
        ({"learner": {}}, "/learner/name", "required"),
        ({"learner": {"name": "none"}}, "/learner/name", "unknown; known: 'maml', 'reptile'"),
        ({"learner": {**MAML, "inner_steps": "x"}}, "/learner/inner_steps", "must be a valid integer, unable"),
        ({"learner": {**MAML, "outer_steps": 1}}, "/learner/outer_steps", "unknown field; known: inner_steps, name"),
        ({"learner": {"name": "reptile", "outer_steps": 0}}, "/learner/outer_steps", "must be greater than or"),
        ({"learner": MAML, "stop": {"seconds": 0}}, "/stop/seconds", "must be greater than 0"),
        ({"learner": MAML, "stop": {"seconds": True}}, "/stop/seconds", "must be a valid number"),
        ({"learner": MAML, "stop": {"iterations": 1.0}}, "/stop/iterations", "must be a valid integer"),
        ({"learner": MAML, "stop": {"time": 0}}, "/stop/time", "unknown field; known: iterations, seconds"),
        ({"learner": MAML, "stops": [{}, {"time": 0}]}, "/stops/1/time", "unknown field; known: iterations, seconds"),
        (
            {"learner": MAML, "named": {"a/b": {"t~": 0}}},
            "/named/a~1b/t~0",
            "unknown field; known: iterations, seconds",
        ),
        ({"learner": MAML, "other": {"gamma": 1}}, "/other/gamma", "unknown field; known: "),
        ({"learner": MAML, "more": 1}, "/more", "unknown field; known: learner, named, other, stop, stops"),
    ],
)
def test_a_complaint_points_to_a_member_of_the_document(body, pointer, detail):
    assert complaints(body)[pointer].startswith(detail)


def test_a_good_body_has_no_complaints():
    assert complaints({"learner": MAML, "stop": {"seconds": 1}, "stops": [{"iterations": 2}]}) == {}


def test_a_pointer_is_escaped():
    assert pointer_to("a/b", 3, "~") == "/a~1b/3/~0"


def test_a_plain_dataclass_has_fields_too():
    @dataclass
    class Plain:
        size: int

    error = RequestValidationError([{"type": "extra_forbidden", "loc": ("body", "x"), "msg": ""}], body={"x": 1})
    name_known_fields(error, Plain)
    assert field_errors(error)[0].detail == "unknown field; known: size"
