"""Local policies against numbers worked out by hand. tests/models compares them with the service's own runtime."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_files import CONTINUOUS, CONTINUOUS_TENSORS, DISCRETE, DISCRETE_TENSORS, packed, policy_file

from headstart_client import HeadstartError, InvalidPolicyFile, LocalPolicy
from headstart_client.policy_file import FORMAT

LOG_DENSITY = -0.5 * math.log(2 * math.pi)


def discrete() -> LocalPolicy:
    return LocalPolicy.from_bytes(policy_file())


def continuous(scaling: str = "scale") -> LocalPolicy:
    spec = CONTINUOUS | {"policy": CONTINUOUS["policy"] | {"action_scaling": scaling}}
    return LocalPolicy.from_bytes(policy_file(spec, CONTINUOUS_TENSORS))


def test_a_policy_is_read_from_a_file_and_says_what_it_takes(tmp_path: Path) -> None:
    (tmp_path / "policy.safetensors").write_bytes(policy_file(CONTINUOUS, CONTINUOUS_TENSORS))
    policy = LocalPolicy.load(tmp_path / "policy.safetensors")
    assert (policy.observation_size, policy.discrete, policy.action_size) == (2, False, 1)
    assert policy.spec == CONTINUOUS


def test_the_likeliest_of_discrete_actions_is_taken() -> None:
    answer = discrete().act([[3.0, 1.0], [-1.0, 2.0], [1.0, 1.0]])
    assert answer.actions.tolist() == [0, 1, 0]
    expected = [-math.log(1 + math.exp(-2)), -math.log(1 + math.exp(-2)), -math.log(2)]
    np.testing.assert_allclose(answer.log_probs, expected, rtol=1e-6)
    assert answer.values.tolist() == [4.5, 2.5, 2.5]
    assert answer.policy_actions.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("scaling", "actions"),
    [
        ("scale", [12.0, 13.0, 14.0]),
        ("clip", [10.0, 10.0, 11.0]),
        ("squash", [12.0, 12 + 2 * math.tanh(0.5), 12 + 2 * math.tanh(11)]),
    ],
)
def test_continuous_actions_come_into_the_environments_units(scaling: str, actions: list[float]) -> None:
    answer = continuous(scaling).act([[1.0, 1.0], [2.5, 2.0], [11.0, 0.0]])
    np.testing.assert_allclose(answer.actions[:, 0], actions, rtol=1e-6)
    assert answer.policy_actions[:, 0].tolist() == [0.0, 0.5, 11.0]
    np.testing.assert_allclose(answer.log_probs, [LOG_DENSITY] * 3, rtol=1e-6)


def test_continuous_actions_are_drawn_around_the_mean() -> None:
    noise = np.random.default_rng(5).standard_normal((2, 1), dtype=np.float32)
    answer = continuous("clip").act([[2.0, 0.0], [0.0, 2.0]], np.random.default_rng(5))
    np.testing.assert_allclose(answer.policy_actions, noise + np.array([[2.0], [-2.0]]), rtol=1e-6)
    np.testing.assert_allclose(answer.log_probs, LOG_DENSITY - 0.5 * noise[:, 0] ** 2, rtol=1e-6)


def test_discrete_actions_are_drawn_as_often_as_they_are_likely() -> None:
    rows = np.tile(np.float32([math.log(3), 0.0]), (10_000, 1))
    answer = discrete().act(rows, np.random.default_rng(0))
    assert (answer.actions == 0).mean() == pytest.approx(0.75, abs=5 * 0.5 / 100)
    np.testing.assert_allclose(np.exp(answer.log_probs), np.where(answer.actions == 0, 0.75, 0.25), rtol=1e-6)


def test_one_observation_after_another_is_drawn_as_often_as_it_is_likely() -> None:
    policy, rng = discrete(), np.random.default_rng(0)
    actions = [policy([math.log(3), 0.0], rng) for _ in range(4000)]
    assert actions.count(0) / 4000 == pytest.approx(0.75, abs=5 * 0.5 / math.sqrt(4000))


@pytest.mark.parametrize("policy", [discrete(), continuous()], ids=["discrete", "continuous"])
def test_one_observation_is_answered_like_one_of_many(policy: LocalPolicy) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    many = policy.act(rows)
    for index, row in enumerate(rows):
        for observations in (row, row[None], row.tolist(), row.astype(np.float64)):
            for value, all_ in zip(policy.act(observations), many, strict=True):
                assert value.shape == all_[:1].shape
                np.testing.assert_allclose(value, all_[index : index + 1], rtol=1e-6)


def test_called_with_one_observation_a_policy_returns_its_action() -> None:
    action = discrete()([0.0, 1.0])
    assert (action, type(action)) == (1, int)
    assert continuous()([1.0, 0.5]).tolist() == [13.0]
    assert discrete()([[0.0, 1.0]]).tolist() == [1]
    assert continuous()([[1.0, 0.5], [0.0, 0.0]]).tolist() == [[13.0], [12.0]]


def test_acting_changes_neither_the_observation_nor_the_policy() -> None:
    policy, row = continuous(), np.float32([1.0, 0.5])
    first = policy.act(row)
    first.actions[:] = first.values[:] = first.policy_actions[:] = 99.0
    assert row.tolist() == [1.0, 0.5]
    assert policy.act(row).actions.tolist() == [[13.0]]


@pytest.mark.parametrize(
    "observations", [[1.0], [1.0, 2.0, 3.0], [[1.0], [2.0]], [], [[]], np.zeros((0, 2)), np.zeros((1, 1, 2)), 1.0]
)
def test_observations_of_another_size_are_refused(observations: Any) -> None:
    with pytest.raises(ValueError, match=r"must be \[B, 2\] or \[2\]"):
        discrete().act(observations)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e39])
def test_observations_that_are_not_finite_are_refused(number: float) -> None:
    for observations in ([number, 0.0], [[0.0, 0.0], [0.0, number]]):
        with pytest.raises(ValueError, match="NaN or an infinity"):
            discrete().act(observations)


def test_the_largest_numbers_are_acted_on() -> None:
    assert discrete()([3.4e38, -3.4e38]) == 0


def test_every_byte_that_changes_is_noticed() -> None:
    whole = policy_file()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        try:
            policy = LocalPolicy.from_bytes(bytes(damaged))
        except InvalidPolicyFile:
            continue
        # White space or the like: it says the same.
        assert policy.spec == DISCRETE
        assert policy.act([3.0, 1.0]).actions.tolist() == [0]
        assert bytes(damaged[-40:]) == whole[-40:]


def test_a_file_that_is_cut_short_is_refused_wherever_it_is_cut() -> None:
    whole = policy_file()
    for length in range(len(whole)):
        with pytest.raises(InvalidPolicyFile):
            LocalPolicy.from_bytes(whole[:length])
    with pytest.raises(InvalidPolicyFile, match="belong to no tensor"):
        LocalPolicy.from_bytes(whole + b"\0")


def changed(**members: Any) -> Mapping[str, Any]:
    return DISCRETE | {"policy": DISCRETE["policy"] | members}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not a safetensors file"),
        (b"PK\x03\x04" * 10, "not a safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "not a safetensors file"),
        (policy_file(format="headstart-policy-2"), "headstart-policy-2"),
        (policy_file(sha256="0" * 64), "damaged"),
        (packed(DISCRETE_TENSORS, {"format": FORMAT, "policy": "\ud800", "sha256": "0" * 64}), "damaged"),
        (packed(DISCRETE_TENSORS), "an older service made it"),
        (packed(DISCRETE_TENSORS, {"format": "pt"}), "an older service made it"),
        (policy_file(changed(memory="gru")), "a newer headstart-client is needed: unknown memory"),
        (policy_file(changed(activation="mish")), "a newer headstart-client is needed: unknown activation 'mish'"),
        (policy_file(changed(hidden=[3])), "policy.weight is (2, 2) where there should be (3, 2)"),
        (policy_file(changed(layer_norm=True)), "trunk.0.scale is none"),
        (policy_file(changed(hidden="2x")), "makes no sense"),
        (policy_file(changed(hidden=[])), "makes no sense"),
        (policy_file(DISCRETE | {"action_space": {"type": "discrete", "n": math.inf}}), "makes no sense"),
        (policy_file(DISCRETE | {"action_space": {"type": "text"}}), "unknown action_space 'text'"),
        (policy_file({"policy": {}}), "makes no sense"),
        (policy_file(CONTINUOUS | {"action_space": {"type": "box", "low": [2], "high": [1]}}), "lie between"),
        (policy_file(CONTINUOUS | {"action_space": {"type": "box", "low": [None], "high": [1]}}), "without bounds"),
        (policy_file([]), "makes no sense"),  # type: ignore[arg-type]
        (policy_file(tensors=DISCRETE_TENSORS | {"value.bias": [math.nan]}), "value.bias holds a NaN"),
        (policy_file(tensors=DISCRETE_TENSORS | {"further": [1.0]}), "further is (1,) where there should be none"),
        (policy_file().replace(b'"F32"', b'"F16"'), "F16"),
    ],
)
def test_what_is_no_policy_that_this_client_can_run_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(InvalidPolicyFile) as raised:
        LocalPolicy.from_bytes(data)
    assert told in str(raised.value)
    assert isinstance(raised.value, HeadstartError)


def test_tensors_without_a_description_act_with_one() -> None:
    assert LocalPolicy.from_bytes(packed(DISCRETE_TENSORS), DISCRETE)([0.0, 1.0]) == 1


def test_neither_torch_nor_gymnasium_is_imported() -> None:
    code = "import headstart_client.local, sys; print(*{'torch', 'gymnasium', 'safetensors'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
