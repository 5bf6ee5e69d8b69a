"""The runtime that answers over HTTP against the policy that was trained, the latter in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from models.checkpoint import numpy_params
from models.layers import LAYERS
from models.policy import Policy, PolicyConfig
from models.runtime import Architecture, NumpyPolicy
from models.types import Params, stack_params

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
BOX = Box(np.array([-0.1, -2.0], np.float32), np.array([0.1, 6.0], np.float32))
# Action space, action scaling, and where the standard deviation comes from.
ACTIONS = {
    "discrete": (Discrete(4), "scale", "free"),
    "scaled": (BOX, "scale", "free"),
    "clipped": (BOX, "clip", "free"),
    "scaled by state": (BOX, "scale", "state"),
    "clipped by state": (BOX, "clip", "state"),
    "squashed by state": (BOX, "squash", "state"),
}
SWITCHES = list(itertools.product([False, True], [0, 2], [False, True]))
EXTREMES = np.array([[1e6, -1e6, 0.0], [1e15, 1e15, -1e15], [0.0, 0.0, 0.0], [1e-30, 0.0, -1e-30]], np.float32)


def some_params(policy: Policy, seed: int = 0) -> Params:
    g = torch.Generator().manual_seed(seed)
    params = {name: torch.randn(shape, generator=g) * 0.5 for name, shape in policy.shapes().items()}
    return params | {n: v.abs() + 0.1 for n, v in params.items() if n in ("observation.count", "observation.variance")}


def expected(
    policy: Policy, params: Params, x: NDArray[np.float32], noise: NDArray[np.float32] | None
) -> tuple[NDArray[np.float64], ...]:
    """Actions, log-probabilities and values by the policy itself, in float64."""
    batch = {name: value.double() for name, value in stack_params(params, 1).items()}
    features = policy.features(batch, torch.tensor(x, dtype=torch.float64).unsqueeze(0))
    head = policy.head(batch, features)
    spread = None if noise is None else torch.tensor(noise, dtype=torch.float64)
    if spread is not None and "log_std" in params:
        spread = spread * batch["log_std"].exp()
    action = policy.choose(head, spread)
    centred = head.clone()
    if not policy.discrete:
        # A density does not depend on the mean, but beside a mean of 1e15 even float64 loses the noise.
        centred[..., : policy.action_size] = 0
    log_prob = policy.log_prob(batch, centred, policy.choose(centred, spread))
    answer = (policy.to_environment(action), log_prob, policy.value(batch, features))
    return tuple(each[0].numpy() for each in answer)


@pytest.mark.parametrize("hidden", [(8,), (8, 6), (5, 7, 4)], ids=str)
@pytest.mark.parametrize("activation", LAYERS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_the_numpy_runtime_answers_as_torch_does(actions: str, activation: str, hidden: tuple[int, ...]) -> None:
    space, scaling, log_std = ACTIONS[actions]
    x = np.concatenate([np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), EXTREMES])
    for layer_norm, context_size, normalise in SWITCHES:
        config = PolicyConfig(
            hidden,
            activation,  # type: ignore[arg-type]
            scaling,  # type: ignore[arg-type]
            log_std=log_std,  # type: ignore[arg-type]
            normalise_observations=normalise,
            context_size=context_size,
            layer_norm=layer_norm,
        )
        policy = Policy(config, OBSERVATIONS, space)
        params = some_params(policy)
        runtime = NumpyPolicy(policy, numpy_params(params))
        cases: list[tuple[np.random.Generator | None, NDArray[np.float32] | None]] = [(None, None)]
        if not policy.discrete:
            drawn = np.random.default_rng(1).standard_normal((len(x), 2), dtype=np.float32)
            cases.append((np.random.default_rng(1), drawn))
        for generator, noise in cases:
            action, log_prob, value, _ = runtime.act(x, generator)
            action_, log_prob_, value_ = expected(policy, params, x, noise)
            np.testing.assert_allclose(action, action_, rtol=1e-4, atol=2e-5, err_msg=str(config))
            np.testing.assert_allclose(log_prob, log_prob_, rtol=1e-4, atol=2e-5, err_msg=str(config))
            np.testing.assert_allclose(value, value_, rtol=1e-4, atol=2e-5, err_msg=str(config))


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_numpy_runtime_samples_from_the_policys_distribution(actions: str) -> None:
    space, _, log_std = ACTIONS[actions]
    config = PolicyConfig((8,), action_scaling="clip", log_std=log_std)  # type: ignore[arg-type]
    policy = Policy(config, OBSERVATIONS, space)
    params = some_params(policy)
    if "log_std" in params:
        params["log_std"] = torch.full((2,), -3.0)
    if log_std == "state":
        params["policy.bias"][2:] -= 3.0
    x = np.zeros((20_000, 3), np.float32)
    action, log_prob, _, _ = NumpyPolicy(policy, numpy_params(params)).act(x, np.random.default_rng(0))
    batch = stack_params(params, 1)
    head = policy.head(batch, policy.features(batch, torch.zeros(1, 1, 3)))[0, 0]
    if policy.discrete:
        share = np.bincount(action.astype(int), minlength=4) / len(action)
        np.testing.assert_allclose(share, head.softmax(0).numpy(), atol=5 * 0.5 / math.sqrt(20_000))
        np.testing.assert_allclose(log_prob, head.log_softmax(0).numpy()[action.astype(int)], atol=1e-5)
    else:
        std = math.exp(-3.0 if log_std == "free" else float(head[3]))
        assert abs(float(head[1])) + 6 * std < 2.0, "the second dimension is not clipped: its moments can be compared"
        assert action[:, 1].mean() == pytest.approx(float(head[1]), abs=5 * std / 141)
        assert action[:, 1].std() == pytest.approx(std, rel=0.05)


def test_one_observation_is_answered_as_among_many() -> None:
    x = np.concatenate([np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), EXTREMES])
    for (space, scaling, log_std), activation, switches in itertools.product(ACTIONS.values(), LAYERS, SWITCHES):
        layer_norm, context_size, normalise = switches
        config = PolicyConfig(
            (8, 6),
            activation,  # type: ignore[arg-type]
            scaling,  # type: ignore[arg-type]
            log_std=log_std,  # type: ignore[arg-type]
            normalise_observations=normalise,
            context_size=context_size,
            layer_norm=layer_norm,
        )
        policy = Policy(config, OBSERVATIONS, space)
        runtime = NumpyPolicy(policy, numpy_params(some_params(policy)))
        for seed in (None, 3):
            for row in x:
                both = [None if seed is None else np.random.default_rng(seed) for _ in range(2)]
                one, many = runtime.act_one(row.tolist(), both[0]), runtime.act(row[None], both[1])
                for name, a, b in zip(one._fields, one, many, strict=True):
                    assert (a is None) == (b is None)
                    if a is not None:
                        np.testing.assert_allclose(a, b[0], rtol=1e-5, atol=1e-5, err_msg=f"{name} of {config}")


@pytest.mark.parametrize("log_std", [85.0, 89.0, 700.0, 710.0, 3e38])
@pytest.mark.parametrize("scaling", ["scale", "clip"])
def test_of_boundless_deviations_one_observation_is_answered_as_among_many(scaling: str, log_std: float) -> None:
    space = Box(-np.inf, np.inf, (2,), np.float32) if scaling == "clip" else BOX
    policy = Policy(PolicyConfig((8,), action_scaling=scaling), OBSERVATIONS, space)  # type: ignore[arg-type]
    params = some_params(policy) | {"log_std": torch.tensor([log_std, 0.0])}
    runtime, x = NumpyPolicy(policy, numpy_params(params)), [0.1, 0.2, 0.3]
    for seed in (None, 3, 4):
        both = [None if seed is None else np.random.default_rng(seed) for _ in range(2)]
        one, many = runtime.act_one(x, both[0]), runtime.act(np.array([x], np.float32), both[1])
        assert seed is None or math.isinf(one.drawn[0]) == (log_std > 88.8)
        for a, b in zip(one, many, strict=True):
            np.testing.assert_allclose(a, b[0], rtol=1e-5, atol=1e-5)


def test_many_actions_and_wide_heads_are_answered_one_by_one_too() -> None:
    policy = Policy(PolicyConfig((8,)), OBSERVATIONS, Discrete(100))
    runtime = NumpyPolicy(policy, numpy_params(some_params(policy)))
    one, many = runtime.act_one([0.1, 0.2, 0.3], None), runtime.act(np.array([[0.1, 0.2, 0.3]], np.float32), None)
    assert one.action == many.action[0]
    assert one.log_prob == pytest.approx(many.log_prob[0], abs=1e-5)


@pytest.mark.parametrize("actions", ACTIONS)
def test_many_policies_act_together_as_each_does_alone(actions: str) -> None:
    space, scaling, log_std = ACTIONS[actions]
    for layer_norm, context_size, normalise in SWITCHES:
        config = PolicyConfig(
            (8, 6),
            action_scaling=scaling,  # type: ignore[arg-type]
            log_std=log_std,  # type: ignore[arg-type]
            normalise_observations=normalise,
            context_size=context_size,
            layer_norm=layer_norm,
        )
        policy = Policy(config, OBSERVATIONS, space)
        several = [NumpyPolicy(policy, numpy_params(some_params(policy, seed))) for seed in range(5)]
        arrays = {name: np.concatenate([each.arrays[name] for each in several]) for name in several[0].arrays}
        x = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
        together = Architecture(policy).decide(arrays, x, None)
        for place, alone in enumerate(several):
            for a, b in zip(together, alone.act(x[place], None), strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    np.testing.assert_allclose(a[place], b, rtol=1e-5, atol=1e-6)


def test_what_a_continuous_policy_draws_is_told_before_it_is_clipped() -> None:
    policy = Policy(PolicyConfig((8,)), OBSERVATIONS, BOX)
    params = some_params(policy) | {"log_std": torch.full((2,), 2.0)}
    decision = NumpyPolicy(policy, numpy_params(params)).act(np.zeros((100, 3), np.float32), np.random.default_rng(0))
    assert np.abs(decision.drawn).max() > 1
    expected_action = policy.to_environment(torch.tensor(decision.drawn)).numpy()
    np.testing.assert_allclose(decision.action, expected_action, atol=1e-6)


def test_the_size_in_memory_counts_every_array() -> None:
    config = PolicyConfig((8, 6), context_size=5, layer_norm=True, log_std="state")
    policy = Policy(config, OBSERVATIONS, BOX)
    numbers = (3 * 8 + 3 * 8) + (8 * 6 + 3 * 6) + (6 + 1) * 5  # the context is folded into a bias
    assert Architecture(policy).size_bytes == 4 * numbers


def test_acting_moves_nothing() -> None:
    config = PolicyConfig((8,), normalise_observations=True, context_size=2, layer_norm=True, log_std="state")
    policy = Policy(config, OBSERVATIONS, BOX)
    arrays = numpy_params(some_params(policy))
    for array in arrays.values():
        array.flags.writeable = False
    runtime = NumpyPolicy(policy, arrays)
    first = runtime.act(np.ones((1, 3), np.float32), None)
    runtime.act(np.full((1000, 3), 50.0, np.float32), np.random.default_rng(0))
    for before, after in zip(first, runtime.act(np.ones((1, 3), np.float32), None), strict=True):
        assert np.array_equal(before, after)
    one = runtime.act_one([1.0, 1.0, 1.0], None)
    runtime.act_one([50.0, -50.0, 5.0], np.random.default_rng(0))
    assert runtime.act_one([1.0, 1.0, 1.0], None) == one
