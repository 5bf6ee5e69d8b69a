"""Policies as ONNX graphs, run by ONNX Runtime, against the runtime that answers over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from test_runtime import ACTIONS, BOX, OBSERVATIONS, SWITCHES, some_params

from models.checkpoint import numpy_params, policy_from_json
from models.export import IR_VERSION, OPSET, to_onnx
from models.layers import LAYERS
from models.policy import Policy, PolicyConfig
from models.runtime import Architecture, NumpyPolicy
from models.types import Params

MAX = float(np.finfo(np.float32).max)
HUGE = 3.4e38
RANDOM = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
EXTREMES = np.array(
    [
        [0.0, 0.0, 0.0],
        [1e-30, 0.0, -1e-30],
        [1e-45, 1.0, -1e-40],
        [1e6, -1e6, 1e6],
        [-1e6, 0.0, 0.0],
        [1e15, 1e15, -1e15],
        [HUGE, 0.0, 0.0],
        [0.0, -HUGE, 0.0],
        [HUGE, -HUGE, HUGE],
    ],
    np.float32,
)

onnxruntime.set_default_logger_severity(3)  # it warns of inputs with a default, which are meant


def session_of(policy: Policy, params: Params) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(to_onnx(policy, params), providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, **inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def noise_of(policy: Policy, rows: int, seed: int) -> NDArray[np.float32]:
    """What the runtime draws from a generator of this seed."""
    generator, shape = np.random.default_rng(seed), (rows, policy.action_size)
    if policy.discrete:
        return generator.gumbel(size=shape).astype(np.float32)
    return generator.standard_normal(shape, dtype=np.float32)


def settled(policy: Policy, params: Params, x: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Rows of whose sums none can overflow: what such a sum comes to depends on the order of its terms."""
    arrays = Architecture(policy).arrange(numpy_params(params))
    size = np.abs(x.astype(np.float64))
    if "normaliser" in arrays:
        size = np.full_like(size, 10.0)
    rows = np.ones(len(x), bool)
    for layer, norm in [*((f"layer.{i}", f"norm.{i}") for i in range(len(policy.config.hidden))), ("heads", "")]:
        size = size @ np.abs(arrays[layer][:-1]) + np.abs(arrays[layer][-1])
        rows &= (size < MAX).all(1)
        if norm in arrays:
            rows &= size.sum(1) < MAX  # as the mean over the units takes it
            scale, shift = arrays[norm]
            size = np.sqrt(size.shape[1]) * np.abs(scale) + np.abs(shift) + 0 * size
        if policy.config.activation == "tanh":
            size = np.minimum(size, 1.0)
    return rows


def require_agreement(policy: Policy, params: Params, *batches: NDArray[np.float32]) -> None:
    """Graph and runtime answer the same to 1e-5, greedily and with the same noise."""
    runtime, session = NumpyPolicy(policy, numpy_params(params)), session_of(policy, params)
    # Actions in environment units are as many times as far apart as their unit is larger.
    plain = policy.discrete or policy.config.action_scaling == "clip"
    unit = 1.0 if plain else float(runtime.architecture.half.max())
    for x in batches:
        for seed in (None, 1):
            inputs = {} if seed is None else {"noise": noise_of(policy, len(x), seed)}
            answer = run(session, observation=x, **inputs)
            expected = runtime.act(x, None if seed is None else np.random.default_rng(seed))
            for name, value in zip(("action", "log_prob", "value"), expected[:3], strict=True):
                assert (answer[name].dtype, answer[name].shape) == (value.dtype, value.shape)
                assert np.isfinite(value).all()
                bound = 1e-5 * (unit if name == "action" else 1.0)
                message = f"{name} {policy.config}"
                np.testing.assert_allclose(answer[name], value, rtol=1e-5, atol=bound, err_msg=message)
            if not policy.discrete:
                scaled = policy.to_environment(torch.from_numpy(answer["policy_action"])).numpy()
                np.testing.assert_allclose(answer["action"], scaled, rtol=1e-6, atol=1e-6)


def architectures(actions: str, activation: str, hidden: tuple[int, ...]) -> Iterator[Policy]:
    space, scaling, log_std = ACTIONS[actions]
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
        yield Policy(config, OBSERVATIONS, space)


@pytest.mark.parametrize("hidden", [(8,), (64, 64)], ids=str)
@pytest.mark.parametrize("activation", LAYERS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_the_graph_answers_as_the_runtime_does(actions: str, activation: str, hidden: tuple[int, ...]) -> None:
    for policy in architectures(actions, activation, hidden):
        params = some_params(policy)
        certain = settled(policy, params, EXTREMES)
        assert certain[:6].all()
        assert certain.all() or not policy.config.normalise_observations
        require_agreement(policy, params, RANDOM, RANDOM[:1], EXTREMES[certain])


@pytest.mark.parametrize("activation", LAYERS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_they_answer_the_same_up_to_the_largest_numbers_where_no_sum_overflows(actions: str, activation: str) -> None:
    for policy in architectures(actions, activation, (8, 6)):
        params = some_params(policy)
        params |= {name: 0.02 * value for name, value in params.items() if name.startswith("trunk.")}
        assert settled(policy, params, EXTREMES).all()
        require_agreement(policy, params, EXTREMES)


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_graph_is_valid_and_says_what_it_takes_and_gives(actions: str) -> None:
    space, scaling, log_std = ACTIONS[actions]
    config = PolicyConfig((8,), "gelu", scaling, log_std=log_std, layer_norm=True)  # type: ignore[arg-type]
    policy = Policy(config, OBSERVATIONS, space)
    model = onnx.load_from_string(to_onnx(policy, some_params(policy)))
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    session = session_of(policy, some_params(policy))
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [("observation", ["batch", 3], "tensor(float)")]
    (noise,) = session.get_overridable_initializers()
    assert (noise.name, noise.shape[1]) == ("noise", policy.action_size)
    outputs = {output.name: (output.shape, output.type) for output in session.get_outputs()}
    action = (["batch"], "tensor(int64)") if policy.discrete else (["batch", 2], "tensor(float)")
    single = (["batch"], "tensor(float)")
    further = {} if policy.discrete else {"policy_action": action}
    assert outputs == {"action": action, "log_prob": single, "value": single} | further
    described = policy_from_json(json.loads(session.get_modelmeta().custom_metadata_map["policy"]))
    assert (described.config, described.action_space) == (policy.config, policy.action_space)


def test_equal_policies_are_equal_bytes() -> None:
    policy = Policy(PolicyConfig((8,), context_size=2), OBSERVATIONS, BOX)
    first, again, other = (to_onnx(policy, some_params(policy, seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("space", [Discrete(4), BOX], ids=["discrete", "continuous"])
def test_no_noise_is_noise_of_zero(space: Discrete | Box) -> None:
    policy = Policy(PolicyConfig((8,)), OBSERVATIONS, space)
    session = session_of(policy, some_params(policy))
    greedy = run(session, observation=RANDOM)
    zeros = run(session, observation=RANDOM, noise=np.zeros((len(RANDOM), policy.action_size), np.float32))
    for name, value in greedy.items():
        assert np.array_equal(value, zeros[name])


def test_of_equally_likely_actions_the_first_is_taken_everywhere() -> None:
    policy = Policy(PolicyConfig((8,)), OBSERVATIONS, Discrete(4))
    params = policy.initialise(0)  # biases are zero: so are the logits of a zero observation
    x = np.zeros((2, 3), np.float32)
    assert run(session_of(policy, params), observation=x)["action"].tolist() == [0, 0]
    assert NumpyPolicy(policy, numpy_params(params)).act(x, None)[0].tolist() == [0, 0]


def test_noise_decides_between_logits_that_are_large_and_near_each_other() -> None:
    policy = Policy(PolicyConfig((8,)), OBSERVATIONS, Discrete(2))
    params = {name: torch.zeros_like(value) for name, value in policy.initialise(0).items()}
    params["policy.bias"] = torch.tensor([1e8, 1e8])  # float32 adds 8 at least, or nothing
    x = np.zeros((1000, 3), np.float32)
    answer = run(session_of(policy, params), observation=x, noise=noise_of(policy, len(x), 0))
    actions, log_probs, *_ = NumpyPolicy(policy, numpy_params(params)).act(x, np.random.default_rng(0))
    assert 400 < actions.sum() < 600
    assert np.array_equal(answer["action"], actions)
    np.testing.assert_allclose([answer["log_prob"], log_probs], np.log(0.5), rtol=1e-6)


def test_actions_without_bounds_come_out_as_they_are() -> None:
    space = Box(np.array([-np.inf, -1.0], np.float32), np.array([np.inf, np.inf], np.float32))
    policy = Policy(PolicyConfig((8,), action_scaling="clip"), OBSERVATIONS, space)
    answer = run(session_of(policy, some_params(policy)), observation=RANDOM)
    assert np.array_equal(answer["action"][:, 0], answer["policy_action"][:, 0])
    assert np.array_equal(answer["action"][:, 1], np.maximum(answer["policy_action"][:, 1], -1.0))
    assert (answer["policy_action"][:, 1] < -1.0).any()
