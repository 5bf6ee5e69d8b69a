"""A whole policy as one ONNX graph: pre-processing, trunk, heads, sampling and what makes an action the environment's.

Beside the observations the graph takes noise, whose default is none: an initialiser of an input's name is its default
value (ONNX IR, "Graphs"). So one graph gives the most likely action and, with noise, a sampled one.
"""

from __future__ import annotations

import math
from typing import Any, Final, final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.checkpoint import numpy_params, policy_to_json
from models.layers import NORM_EPSILON
from models.policy import LOG_STD_RANGE, Policy, PolicyConfig
from models.runtime import Architecture, Array, Arrays
from models.types import Params, canonical_json

OPSET: Final = 18
"""Version of ONNX's operators that a graph is written in."""

IR_VERSION: Final = 8
"""Version of ONNX's file format: the one that came with the operators, so that no reader of those is too old."""

_BATCH = "batch"
# Rows of noise. Not the batch's name: who plans memory takes equal names for equal sizes, and the default has one row.
_DRAWS = "draws"


def to_onnx(policy: Policy, params: Params) -> bytes:
    """The policy as an ONNX model; the same policy gives the same bytes.

    Inputs: ``observation`` [batch, O] float32, in environment units; ``noise`` [batch, A] float32, which may be left
    out: Gumbel noise for discrete actions, else standard normal noise. Zeros, the default, give the most likely action.

    Outputs: ``action``, in environment units ([batch] int64 or [batch, A] float32); its ``log_prob`` [batch] (a density
    in policy units); the ``value`` [batch] of the observation; for continuous actions ``policy_action`` [batch, A], the
    action in policy units, before it is clipped or squashed. The model's metadata hold the policy's description as JSON
    (:func:`models.checkpoint.policy_to_json`) under ``policy``.

    They are those of :class:`models.runtime.NumpyPolicy` to float32 precision, unless a sum overflows: what a sum of
    terms above 3.4e38 comes to depends on the order in which a library adds them.

    Args:
        policy: The architecture.
        params: One policy's tensors.
    """
    architecture = Architecture(policy)
    arrays = architecture.arrange(numpy_params(params))
    graph = _Graph()
    features = _trunk(graph, policy.config, arrays)
    graph.node("Gemm", features, *graph.layer("heads", arrays["heads"]), to="out")
    graph.split("out", {"head": policy.head_size, "values": 1})
    graph.node("Squeeze", "values", graph.axis, to="value")
    outputs: list[tuple[str, list[str | int]]] = [("log_prob", [_BATCH]), ("value", [_BATCH])]
    if policy.discrete:
        _choose(graph)
        action = helper.make_tensor_value_info("action", TensorProto.INT64, [_BATCH])
    else:
        _draw(graph, arrays.get("log_std"), policy.action_size)
        _scale(graph, architecture, policy.config.action_scaling)
        action = helper.make_tensor_value_info("action", TensorProto.FLOAT, [_BATCH, policy.action_size])
        outputs.append(("policy_action", [_BATCH, policy.action_size]))
    graph.constant("noise", np.zeros((1, policy.action_size)))
    inputs = _floats([("observation", [_BATCH, policy.observation_size]), ("noise", [_DRAWS, policy.action_size])])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "policy", inputs, [action, *_floats(outputs)], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="headstart",
    )
    helper.set_model_props(model, {"policy": canonical_json(policy_to_json(policy))})
    data: bytes = model.SerializeToString(deterministic=True)
    return data


@final
class _Graph:
    """Nodes and constants in the order in which they were added; a name is both a value and what it is of."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.axis = self.sizes("axis", [1])

    def node(self, operator: str, *inputs: str, to: str, **attributes: Any) -> str:
        """Add an operator; the name of what it gives."""
        self.nodes.append(helper.make_node(operator, inputs, [to], name=to, **attributes))
        return to

    def split(self, matrix: str, sizes: dict[str, int]) -> None:
        """Cut a matrix into ones of these names and numbers of columns."""
        columns = self.sizes(f"{matrix}.sizes", list(sizes.values()))
        self.nodes.append(helper.make_node("Split", [matrix, columns], list(sizes), name=f"{matrix}.split", axis=1))

    def constant(self, name: str, value: NDArray[Any] | float) -> str:
        """Add a float32 constant; its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def sizes(self, name: str, value: list[int]) -> str:
        """Add a list of whole numbers; its name."""
        self.constants.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def layer(self, name: str, array: Array) -> tuple[str, str]:
        """Add an affine map's weights and, from the last row, its biases; their names."""
        return self.constant(f"{name}.weight", array[:-1]), self.constant(f"{name}.bias", array[-1])


def _trunk(graph: _Graph, config: PolicyConfig, arrays: Arrays) -> str:
    """The features of ``observation``."""
    x = "observation"
    if "normaliser" in arrays:
        mean, scale = arrays["normaliser"]
        centred = graph.node("Sub", x, graph.constant("observation.mean", mean), to="observation.centred")
        scaled = graph.node("Mul", centred, graph.constant("observation.scale", scale), to="observation.scaled")
        bounds = graph.constant("observation.low", -10.0), graph.constant("observation.high", 10.0)
        x = graph.node("Clip", scaled, *bounds, to="observation.normalised")
    for i in range(len(config.hidden)):
        x = graph.node("Gemm", x, *graph.layer(f"trunk.{i}", arrays[f"layer.{i}"]), to=f"trunk.{i}.affine")
        if config.layer_norm:
            x = _normalise(graph, f"trunk.{i}", x, *arrays[f"norm.{i}"])
        if config.activation == "gelu":
            x = _gelu(graph, f"trunk.{i}", x)
        else:
            x = graph.node({"tanh": "Tanh", "relu": "Relu"}[config.activation], x, to=f"trunk.{i}.output")
    return x


def _normalise(graph: _Graph, name: str, z: str, scale: Array, shift: Array) -> str:
    """Layer normalisation in two passes: the operator of that name may take the variance as E z² - (E z)²."""
    mean = graph.node("ReduceMean", z, graph.axis, to=f"{name}.mean", keepdims=1)
    centred = graph.node("Sub", z, mean, to=f"{name}.centred")
    square = graph.node("Mul", centred, centred, to=f"{name}.square")
    variance = graph.node("ReduceMean", square, graph.axis, to=f"{name}.variance", keepdims=1)
    padded = graph.node("Add", variance, graph.constant(f"{name}.epsilon", NORM_EPSILON), to=f"{name}.padded")
    unit = graph.node("Div", centred, graph.node("Sqrt", padded, to=f"{name}.std"), to=f"{name}.unit")
    scaled = graph.node("Mul", unit, graph.constant(f"{name}.scale", scale), to=f"{name}.scaled")
    return graph.node("Add", scaled, graph.constant(f"{name}.shift", shift), to=f"{name}.normalised")


def _gelu(graph: _Graph, name: str, x: str) -> str:
    """The hyperbolic tangent's approximation, as :mod:`models.runtime` has it: the operator came with opset 20."""
    cubic = graph.node("Mul", graph.constant(f"{name}.cubic", 0.044715), x, to=f"{name}.linear")
    for power in ("second", "third"):
        cubic = graph.node("Mul", cubic, x, to=f"{name}.{power}")
    sum_ = graph.node("Add", x, cubic, to=f"{name}.sum")
    slope = graph.constant(f"{name}.slope", math.sqrt(2.0 / math.pi))
    bent = graph.node("Tanh", graph.node("Mul", slope, sum_, to=f"{name}.inner"), to=f"{name}.bent")
    gate = graph.node("Add", graph.constant(f"{name}.one", 1.0), bent, to=f"{name}.gate")
    half = graph.node("Mul", graph.constant(f"{name}.half", 0.5), x, to=f"{name}.halved")
    return graph.node("Mul", half, gate, to=f"{name}.output")


def _choose(graph: _Graph) -> None:
    """``action`` and ``log_prob`` of logits: the Gumbel-max trick."""
    greatest = graph.node("ReduceMax", "head", graph.axis, to="greatest", keepdims=1)
    graph.node("Sub", "head", greatest, to="relative")
    total = graph.node("ReduceSum", graph.node("Exp", "relative", to="exponential"), graph.axis, to="total", keepdims=0)
    graph.node("ArgMax", graph.node("Add", "relative", "noise", to="noisy"), to="action", axis=1, keepdims=0)
    index = graph.node("Unsqueeze", "action", graph.axis, to="index")
    chosen = graph.node("GatherElements", "relative", index, to="chosen", axis=1)
    logit = graph.node("Squeeze", chosen, graph.axis, to="logit")
    graph.node("Sub", logit, graph.node("Log", total, to="log_total"), to="log_prob")


def _draw(graph: _Graph, free: Array | None, size: int) -> None:
    """``policy_action`` and ``log_prob`` of a Gaussian's head; without free log-deviations they are in the head."""
    log_stds = 0.0 if free is None else float(free.sum())
    density = graph.constant("log_density", -(log_stds + 0.5 * math.log(2 * math.pi) * size))
    mean = "head"
    if free is None:
        mean = "mean"
        graph.split("head", {mean: size, "spread": size})
        low, high = LOG_STD_RANGE
        bounds = graph.constant("log_std.low", low), graph.constant("log_std.high", high)
        log_std = graph.node("Clip", "spread", *bounds, to="log_std")
        std = graph.node("Exp", log_std, to="std")
        total = graph.node("ReduceSum", log_std, graph.axis, to="log_stds", keepdims=0)
        density = graph.node("Sub", density, total, to="mean_density")
    else:
        std = graph.constant("std", np.exp(free))
    graph.node("Add", mean, graph.node("Mul", std, "noise", to="deviation"), to="policy_action")
    square = graph.node("Mul", "noise", "noise", to="square")
    total = graph.node("ReduceSum", square, graph.axis, to="total", keepdims=0)
    loss = graph.node("Mul", graph.constant("half", 0.5), total, to="loss")
    single = graph.node("Sub", density, loss, to="density")
    # One for each observation, also where neither noise nor standard deviations have as many rows.
    rows = graph.node("Shape", "value", to="rows")
    graph.node("Expand", single, rows, to="log_prob")


def _scale(graph: _Graph, architecture: Architecture, scaling: str) -> None:
    """``action`` of ``policy_action``."""
    if scaling == "clip":
        above = graph.node("Max", "policy_action", graph.constant("action.low", architecture.low), to="above")
        graph.node("Min", above, graph.constant("action.high", architecture.high), to="action")
        return
    if scaling == "squash":
        bounded = graph.node("Tanh", "policy_action", to="bounded")
    else:
        ends = graph.constant("minus_one", -1.0), graph.constant("one", 1.0)
        bounded = graph.node("Clip", "policy_action", *ends, to="bounded")
    raised = graph.node("Add", bounded, graph.constant("raise", 1.0), to="raised")
    stretched = graph.node("Mul", raised, graph.constant("action.half", architecture.half), to="stretched")
    graph.node("Add", graph.constant("action.low", architecture.low), stretched, to="action")


def _floats(shapes: list[tuple[str, list[str | int]]]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
