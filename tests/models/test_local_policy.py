"""The client's runtime holds the same mathematics as the service's, which it may not import: here they are compared."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from gymnasium.spaces import Box, Discrete
from headstart_client import InvalidPolicyFile, LocalPolicy
from headstart_client.policy_file import FORMAT
from numpy.typing import NDArray
from test_export import EXTREMES, RANDOM, architectures, run, session_of, settled
from test_runtime import ACTIONS, BOX, OBSERVATIONS, some_params

from models.checkpoint import POLICY_FORMAT, metadata_of, numpy_params, policy_to_json, save_params, save_policy
from models.layers import LAYERS
from models.policy import Policy, PolicyConfig
from models.runtime import NumpyPolicy


def generators(seed: int | None) -> tuple[np.random.Generator | None, np.random.Generator | None]:
    return (None, None) if seed is None else (np.random.default_rng(seed), np.random.default_rng(seed))


@pytest.mark.parametrize("hidden", [(8,), (8, 6), (5, 7, 4)], ids=str)
@pytest.mark.parametrize("activation", LAYERS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_a_local_policy_answers_as_the_services_runtime_does(
    actions: str, activation: str, hidden: tuple[int, ...]
) -> None:
    for policy in architectures(actions, activation, hidden):
        params = some_params(policy)
        runtime = NumpyPolicy(policy, numpy_params(params))
        local = LocalPolicy.from_bytes(save_policy(policy, params))
        assert (local.observation_size, local.discrete, local.action_size) == (3, policy.discrete, policy.action_size)
        extremes = EXTREMES[settled(policy, params, EXTREMES)]
        for x in (RANDOM, *extremes[:, None], *RANDOM[:3, None]):
            for seed in (None, 1):
                ours, theirs = generators(seed)
                with np.errstate(over="ignore"):
                    expected, answer = runtime.act(x, ours), local.act(x, theirs)
                drawn = expected.action if policy.discrete else expected.drawn
                for value, value_ in zip(answer, (*expected[:3], drawn), strict=True):
                    assert (value.dtype, value.shape) == (value_.dtype, value_.shape)
                    np.testing.assert_allclose(value, value_, rtol=1e-5, atol=1e-5, err_msg=str(policy.config))


@pytest.mark.parametrize("actions", [name for name, (space, *_) in ACTIONS.items() if isinstance(space, Box)])
def test_actions_in_policy_units_are_those_of_the_graph(actions: str) -> None:
    space, scaling, log_std = ACTIONS[actions]
    config = PolicyConfig((8,), action_scaling=scaling, log_std=log_std)  # type: ignore[arg-type]
    policy = Policy(config, OBSERVATIONS, space)
    params = some_params(policy)
    noise: NDArray[np.float32] = np.random.default_rng(1).standard_normal((len(RANDOM), 2), dtype=np.float32)
    graph = run(session_of(policy, params), observation=RANDOM, noise=noise)
    local = LocalPolicy.from_bytes(save_policy(policy, params)).act(RANDOM, np.random.default_rng(1))
    np.testing.assert_allclose(local.policy_actions, graph["policy_action"], rtol=1e-5, atol=1e-5)


def test_many_actions_are_chosen_alike_for_one_observation_and_for_many() -> None:
    policy = Policy(PolicyConfig((8,)), OBSERVATIONS, Discrete(40))
    params = some_params(policy)
    local, runtime = LocalPolicy.from_bytes(save_policy(policy, params)), NumpyPolicy(policy, numpy_params(params))
    for seed in (None, 1):
        ours, theirs = generators(seed)
        for row in RANDOM[:20]:
            answer, expected = local.act(row, ours), runtime.act(row[None], theirs)
            assert np.array_equal(answer.actions, expected.action)
            np.testing.assert_allclose(answer.log_probs, expected.log_prob, atol=1e-6)


def test_equal_policies_are_equal_files_that_other_readers_can_read() -> None:
    policy = Policy(PolicyConfig((8,), context_size=2, normalise_observations=True), OBSERVATIONS, BOX)
    first, again, other = (save_policy(policy, some_params(policy, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert metadata_of(first)["format"] == POLICY_FORMAT == FORMAT
    tensors = safetensors.numpy.load(first)
    params = numpy_params(some_params(policy))
    assert tensors.keys() == params.keys()
    assert all(np.array_equal(tensors[name], params[name]) for name in params)


def test_what_a_learner_keeps_beside_a_policy_is_not_in_its_file() -> None:
    policy = Policy(PolicyConfig((8,)), OBSERVATIONS, BOX)
    params = some_params(policy)
    assert save_policy(policy, params | {"inner_rate.log_std": params["log_std"]}) == save_policy(policy, params)


def test_a_file_of_an_older_service_is_read_with_its_description() -> None:
    policy = Policy(PolicyConfig((8,)), OBSERVATIONS, BOX)
    data = save_params(some_params(policy))
    with pytest.raises(InvalidPolicyFile, match=r"spec=client\.policies\.get\(ID\)\.raw"):
        LocalPolicy.from_bytes(data)
    local = LocalPolicy.from_bytes(data, policy_to_json(policy))
    described = LocalPolicy.from_bytes(save_policy(policy, some_params(policy)))
    for value, value_ in zip(local.act(RANDOM), described.act(RANDOM), strict=True):
        assert np.array_equal(value, value_)
