from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest

from headstart_client import InvalidResponse, Run, Task, Version
from headstart_client.wire import encode, encode_numbers, parse

RUN = {
    "id": "r1",
    "state": "running",
    "progress": {"fraction": 1, "iterations": 80, "environment_steps": 6400000, "seconds": 31.2, "gpus": 0},
    "metrics": {"return_before": 21.3},
    "model": "cartpole",
    "version": None,
    "attempts": 1,
    "error": {"type": "diverged", "detail": "a loss was NaN"},
    "created_at": "2025-01-02T03:04:05Z",
    "colour": "blue",
}


def test_a_run_is_parsed_with_its_nested_parts() -> None:
    run = parse(Run, RUN)
    assert run.progress.fraction == 1.0
    assert run.progress.iterations == 80
    assert run.created_at == datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert run.error is not None
    assert run.error.detail == "a loss was NaN"
    assert not run.finished


def test_members_of_a_newer_service_are_kept_in_raw() -> None:
    run = parse(Run, RUN)
    assert run.raw["colour"] == "blue"
    assert run.progress.raw["gpus"] == 0


def test_lists_become_tuples_of_typed_items() -> None:
    version = parse(Version, {"model": "m", "version": 3, "files": [{"name": "a", "sha256": "00"}]})
    assert version.files[0].name == "a"
    assert version.reference == "m/3"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a JSON object"),
        ({"id": "r1"}, "no 'state'"),
        ({"id": 7, "state": "running"}, r"Run\.id: unexpected int"),
        ({"id": "r1", "state": "queued", "created_at": "yesterday"}, r"Run\.created_at"),
        ({"id": "r1", "state": "queued", "progress": {"fraction": "half"}}, r"Progress\.fraction"),
    ],
)
def test_an_answer_of_another_shape_is_named(data: object, message: str) -> None:
    with pytest.raises(InvalidResponse, match=message):
        parse(Run, data)


def test_a_listed_task_can_be_registered_again() -> None:
    listed = {
        "id": "t1",
        "name": "long",
        "environment": "CartPole-v1",
        "parameters": {"length": 1.0},
        "reward": {"expression": "1"},
        "discount": 0.99,
        "horizon": 200,
        "family": None,
        "split": None,
        "labels": {"a": "b"},
        "digest": "d",
        "created_at": "2025-01-02T03:04:05+00:00",
    }
    made_by_service = ("id", "digest", "created_at", "family", "split")
    expected = {name: value for name, value in listed.items() if name not in made_by_service}
    assert parse(Task, listed).definition() == expected


@pytest.mark.parametrize("write", [encode, encode_numbers])
def test_numpy_values_are_sent_as_plain_json(write: Callable[[object], bytes]) -> None:
    body = {"a": np.float32(0.5), "b": np.int64(3), "c": np.array([[1.0, 2.0]]), "d": None, "e": 0.1}
    assert json.loads(write(body)) == {"a": 0.5, "b": 3, "c": [[1.0, 2.0]], "d": None, "e": 0.1}


@pytest.mark.parametrize("write", [encode, encode_numbers])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), [[1.0, float("nan")]], np.array([np.nan])])
def test_what_json_cannot_say_is_not_sent(write: Callable[[object], bytes], value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write({"a": value})
