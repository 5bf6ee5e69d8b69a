"""The forward pass alone: actions, log-probabilities and values of one policy by each runtime there is.

A policy of 4-64-64-(2+1) units, tanh, discrete actions, greedy. Each runtime is given a float32 array and answers with
arrays, on one thread. They take turns, and the least of all rounds is taken: what else the machine does counts least.

Run:    python benchmarks/bench_forward.py [--rounds 20] [--batches 1 32 1024] [--seconds 0.05] [--json FILE]
Prints: microseconds of each at each batch size, and how many times those of NumPy that is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from gymnasium.spaces import Box, Discrete
from headstart_client import LocalPolicy
from learning import add_json
from numpy.typing import NDArray
from reporting import keep, table
from torch import nn

from models.checkpoint import numpy_params, save_policy
from models.export import to_onnx
from models.policy import Policy, PolicyConfig
from models.runtime import NumpyPolicy
from models.types import Params, stack_params

Forward = Callable[[NDArray[np.float32]], Any]
HIDDEN = (64, 64)


class Module(nn.Module):
    """The same network as one would write it in torch."""

    def __init__(self, params: Params) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(len(HIDDEN)):
            layers += [_linear(params, f"trunk.{i}"), nn.Tanh()]
        self.trunk = nn.Sequential(*layers)
        self.policy, self.value = _linear(params, "policy"), _linear(params, "value")

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions, log-probabilities, values."""
        features = self.trunk(x)
        log_p = self.policy(features).log_softmax(-1)
        log_prob, action = log_p.max(-1)
        return action, log_prob, self.value(features).squeeze(-1)


def _linear(params: Params, name: str) -> nn.Linear:
    weight = params[f"{name}.weight"]
    linear = nn.Linear(*weight.shape)
    linear.load_state_dict({"weight": weight.T, "bias": params[f"{name}.bias"]})
    return linear


def runtimes() -> dict[str, Forward]:
    """Every way to ask the same policy, by its name."""
    policy = Policy(PolicyConfig(HIDDEN), Box(-np.inf, np.inf, (4,), np.float32), Discrete(2))
    params = policy.initialise(0)
    numpy_policy = NumpyPolicy(policy, numpy_params(params))
    local = LocalPolicy.from_bytes(save_policy(policy, params))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(to_onnx(policy, params), options, providers=["CPUExecutionProvider"])
    module, stacked = Module(params), stack_params(params, 1)

    def functional(x: NDArray[np.float32]) -> Any:
        features = policy.features(stacked, torch.from_numpy(x).unsqueeze(0))
        head = policy.head(stacked, features)
        action = policy.choose(head, None)
        answer = action, policy.log_prob(stacked, head, action), policy.value(stacked, features)
        return [each[0].numpy() for each in answer]

    return {
        "NumPy": lambda x: numpy_policy.act(x, None),
        "NumPy, as served": lambda x: numpy_policy.act_one(x[0], None) if len(x) == 1 else numpy_policy.act(x, None),
        "LocalPolicy": local.act,
        "ONNX Runtime": lambda x: session.run(["action", "log_prob", "value"], {"observation": x}),
        "torch, models.policy": functional,
        "torch, a module": lambda x: [each.numpy() for each in module(torch.from_numpy(x))],
    }


def microseconds(forward: Forward, x: NDArray[np.float32], seconds: float) -> float:
    """Of one call, over as many as fit in about so many seconds."""
    started, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(10):
            forward(x)
        calls += 10
    return 1e6 * elapsed / calls


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, dict[int, float]]:
    """The least microseconds of each runtime, by batch size."""
    least: dict[str, dict[int, float]] = {name: {} for name in runtimes()}
    for batch in options.batches:
        x = np.random.default_rng(0).normal(size=(batch, 4)).astype(np.float32)
        forwards = runtimes()
        expected = forwards["NumPy"](x)
        for forward in forwards.values():
            for value, value_ in zip(list(forward(x))[:3], expected[:3], strict=True):
                np.testing.assert_allclose(value, value_, rtol=1e-4, atol=1e-5)
        for _ in range(options.rounds):
            for name, forward in forwards.items():
                taken = microseconds(forward, x, options.seconds)
                least[name][batch] = min(taken, least[name].get(batch, taken))
    return least


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 1024])
    parser.add_argument("--seconds", type=float, default=0.05, help="of each runtime in a round")
    add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    least = measure(options)
    keep(options.json, {"microseconds": least})
    rows = []
    for name, taken in least.items():
        cells = [f"{taken[batch]:,.1f} ({taken[batch] / least['NumPy'][batch]:.2f})" for batch in options.batches]
        rows.append([name, *cells])
    print(table(["us a call (times NumPy's)", *[f"batch {batch}" for batch in options.batches]], rows))


if __name__ == "__main__":
    main()
