from __future__ import annotations

import json

import pytest
import torch

from models.checkpoint import InvalidArtefact, load_state, pack, save_params, save_state, unpack
from models.environments import ENVIRONMENTS
from models.learners import MAML, MAMLConfig
from models.learners.cavia import CAVIAConfig
from models.policy import Policy, PolicyConfig
from models.training import TrainingState
from models.types import Params


def policy_and_params(environment: str) -> tuple[Policy, Params]:
    model = ENVIRONMENTS[environment]
    policy = Policy(PolicyConfig(hidden=(8, 4), activation="relu"), model.observation_space, model.action_space)
    return policy, policy.initialise(3)


def packed(environment: str = "CartPole-v1") -> tuple[bytes, bytes]:
    policy, params = policy_and_params(environment)
    return pack(MAMLConfig(inner_steps=2), policy, params, {"environment": environment, "seed": 3})


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_version_comes_back_as_it_was_written(environment: str) -> None:
    policy, params = policy_and_params(environment)
    artefact = unpack(*packed(environment))
    assert artefact.learner == MAMLConfig(inner_steps=2)
    assert artefact.policy.config == policy.config
    assert artefact.policy.observation_space == policy.observation_space
    assert artefact.policy.action_space == policy.action_space
    assert artefact.manifest["seed"] == 3
    for name, value in params.items():
        assert torch.equal(artefact.params[name], value)


@pytest.mark.parametrize(
    "config",
    [
        PolicyConfig((5,), log_std="state", context_size=3, layer_norm=True),
        PolicyConfig((5, 4), "gelu", "clip", -1.0, normalise_observations=True, initialisation="orthogonal"),
    ],
)
def test_every_member_of_an_architecture_comes_back(config: PolicyConfig) -> None:
    model = ENVIRONMENTS["Navigation2D-v0"]
    policy = Policy(config, model.observation_space, model.action_space)
    learner = CAVIAConfig() if config.context_size else MAMLConfig()
    artefact = unpack(*pack(learner, policy, policy.initialise(0), {}))
    assert artefact.policy.config == config
    assert artefact.policy.shapes() == policy.shapes()


def test_an_architecture_written_before_its_newer_members_is_read_with_their_defaults() -> None:
    manifest, parameters = packed()
    data = json.loads(manifest)
    for newer in ("log_std", "context_size", "layer_norm", "initialisation"):
        del data["policy"][newer]
    artefact = unpack(json.dumps(data).encode(), parameters)
    assert artefact.policy.config == PolicyConfig(hidden=(8, 4), activation="relu")


def test_a_training_state_that_has_made_no_step_comes_back() -> None:
    policy, params = policy_and_params("CartPole-v1")
    state = MAML(MAMLConfig(), policy).initialise(3)
    loaded = load_state(save_state(TrainingState(state)))
    assert loaded.learner.optimiser.step == loaded.iterations == 0
    for name, value in params.items():
        assert torch.equal(loaded.learner.params[name], value)


def test_equal_content_gives_equal_bytes() -> None:
    assert packed() == packed()


def changed(**members: object) -> bytes:
    return json.dumps(json.loads(packed()[0]) | members).encode()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (changed(format=2), "format 2 is unknown"),
        (changed(files={"parameters.safetensors": {"sha256": "0" * 64}}), "sha256"),
        (changed(policy={"hidden": [9, 4], "activation": "relu"}), "but should be"),
        (changed(policy={"hidden": [8], "activation": "relu"}), "tensors"),
        (changed(policy={"hidden": [8, 4], "activaton": "relu"}), "activaton"),
        (changed(action_space={"type": "discrete"}), "malformed"),
        (b"{", "malformed"),
    ],
)
def test_a_manifest_that_disagrees_is_refused(manifest: bytes, message: str) -> None:
    with pytest.raises(InvalidArtefact, match=message):
        unpack(manifest, packed()[1])


def test_changed_truncated_and_foreign_bytes_are_refused() -> None:
    manifest, parameters = packed()
    for broken in (parameters[:-1], parameters[:-1] + b"\xff", b"", b"PK\x03\x04"):
        with pytest.raises(InvalidArtefact):
            unpack(manifest, broken)
    with pytest.raises(InvalidArtefact):
        load_state(b"\x80\x04 a pickle")
    with pytest.raises(InvalidArtefact):
        load_state(save_params({"a": torch.zeros(1)}))


def test_parameters_that_are_not_finite_are_refused() -> None:
    policy, params = policy_and_params("CartPole-v1")
    broken = params | {"policy.bias": torch.tensor([float("nan"), 0.0])}
    with pytest.raises(InvalidArtefact, match="NaN"):
        unpack(*pack(MAMLConfig(), policy, broken, {}))
