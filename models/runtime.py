"""One policy in plain NumPy: the fastest way to answer for a few observations at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from models.layers import NORM_EPSILON
from models.policy import LOG_STD_RANGE, Policy

Array = NDArray[np.float32]


def _relu(x: Any) -> Any:
    return np.maximum(x, np.float32(0.0))


def _gelu(x: Any) -> Any:
    half, cubic, slope = np.float32(0.5), np.float32(0.044715), np.float32(math.sqrt(2.0 / math.pi))
    with np.errstate(over="ignore"):  # an infinite cube has the right hyperbolic tangent
        return half * x * (np.float32(1.0) + np.tanh(slope * (x + cubic * x * x * x)))


def _layer_norm(z: Array, scale: Array, shift: Array) -> Array:
    with np.errstate(over="ignore"):  # torch, too, lets an infinite variance silence the layer
        centred = z - z.mean(1, keepdims=True)
        variance = (centred * centred).mean(1, keepdims=True)
    result: Array = centred / np.sqrt(variance + np.float32(NORM_EPSILON)) * scale + shift
    return result


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"tanh": np.tanh, "relu": _relu, "gelu": _gelu}


@final
class NumpyPolicy:
    """Actions, log-probabilities and values of one policy, equal to :class:`models.policy.Policy` to float32 precision.

    What its parameters come down to, once they are known, is for whoever writes the same policy in another form.

    Args:
        policy: The architecture.
        params: One policy's tensors as float32 arrays.

    Attributes:
        observation_size: O.
        discrete: Whether actions are ids.
        normaliser: Mean [O] of observations and the reciprocal of their standard deviation [O]; None where they are
            taken as they are. What it gives is clipped to ±10.
        trunk: Weights [I, H] and biases [H] of every hidden layer; the context is part of the first biases.
        norms: Scale and shift [H] of every hidden layer's normalisation; empty where there is none.
        heads: Weights [H, head_size + 1] and biases [head_size + 1] of both heads, the value last.
        scaling: How continuous actions come into the environment's units.
        bounds: Least and greatest continuous action, and half their distance, each [A].
        std: Standard deviations [A] of continuous actions; None where the state decides them.
        log_density: Log-density of the mean action, save for the standard deviations that the state decides.
    """

    def __init__(self, policy: Policy, params: Mapping[str, Array]) -> None:
        self.observation_size = policy.observation_size
        self.discrete = policy.discrete
        self._activation = _ACTIVATIONS[policy.config.activation]
        layers = [f"trunk.{i}" for i in range(len(policy.config.hidden))]
        self.trunk = [(np.ascontiguousarray(params[f"{i}.weight"]), params[f"{i}.bias"]) for i in layers]
        if policy.config.context_size:
            weight, bias = self.trunk[0]
            self.trunk[0] = (weight, bias + params["context"] @ params["trunk.0.context"])
        self.norms = [(params[f"{i}.scale"], params[f"{i}.shift"]) for i in layers if policy.config.layer_norm]
        # Both heads read the same features: one product serves both.
        self.heads = (
            np.ascontiguousarray(np.concatenate([params["policy.weight"], params["value.weight"]], 1)),
            np.concatenate([params["policy.bias"], params["value.bias"]]),
        )
        self.normaliser: tuple[Array, Array] | None = None
        if policy.config.normalise_observations:
            scale = 1.0 / np.sqrt(params["observation.variance"] + np.float32(1e-8))
            self.normaliser = (params["observation.mean"], scale.astype(np.float32))
        if isinstance(policy.action_space, Box):
            low, high = (np.asarray(bound, np.float32) for bound in (policy.action_space.low, policy.action_space.high))
            self.bounds = (low, high, np.float32(0.5) * (high - low))
            self.scaling = policy.config.action_scaling
            log_std = params.get("log_std")  # none where the state decides it
            self.std = None if log_std is None else np.exp(log_std)
            log_stds = 0.0 if log_std is None else float(log_std.sum())
            self.log_density = -(log_stds + 0.5 * math.log(2 * math.pi) * policy.action_size)

    @property
    def size_bytes(self) -> int:
        """Memory that the parameters take."""
        pairs = [*self.trunk, *self.norms, self.heads]
        return sum(each.nbytes for pair in pairs for each in pair)

    def act(
        self, observations: Array, generator: np.random.Generator | None
    ) -> tuple[NDArray[np.int64] | Array, Array, Array]:
        """An action for each observation.

        Args:
            observations: [M, O] float32.
            generator: Source of the sampling noise; None takes the most likely action.

        Returns:
            Actions in environment units ([M] int64 or [M, A]), their log-probabilities (densities in policy units) [M],
            and the values of the observations [M].
        """
        x = observations
        if self.normaliser is not None:
            mean, scale = self.normaliser
            x = np.clip((x - mean) * scale, np.float32(-10.0), np.float32(10.0))
        for i, (weight, bias) in enumerate(self.trunk):
            x = x @ weight + bias
            if self.norms:
                x = _layer_norm(x, *self.norms[i])
            x = self._activation(x)
        weight, bias = self.heads
        out = x @ weight + bias
        head, value = out[:, :-1], out[:, -1]
        if self.discrete:
            return (*_categorical(head, generator), value)
        return (*self._gaussian(head, generator), value)

    def _gaussian(self, head: Array, generator: np.random.Generator | None) -> tuple[Array, Array]:
        action, std = head, self.std
        log_prob = np.full(len(head), self.log_density, np.float32)
        if std is None:
            size = head.shape[1] // 2
            action, log_std = head[:, :size], np.clip(head[:, size:], *LOG_STD_RANGE)
            std = np.exp(log_std)
            log_prob -= log_std.sum(1)
        if generator is not None:
            noise = generator.standard_normal(action.shape, dtype=np.float32)
            action = np.add(action, std * noise, dtype=np.float32)
            log_prob -= np.float32(0.5) * (noise * noise).sum(1)
        low, high, half = self.bounds
        if self.scaling == "clip":
            return np.clip(action, low, high), log_prob
        one = np.float32(1.0)
        bounded = np.tanh(action) if self.scaling == "squash" else np.clip(action, -one, one)
        return low + (bounded + one) * half, log_prob


def _categorical(logits: Array, generator: np.random.Generator | None) -> tuple[NDArray[np.int64], Array]:
    relative = logits - logits.max(1, keepdims=True)
    log_normaliser = np.log(np.exp(relative).sum(1))
    if generator is None:
        return logits.argmax(1), -log_normaliser
    # Relative to the greatest, so that noise is not lost beside large logits; in float32, as every other form of the
    # policy adds it, so that the same noise gives the same action.
    action = (relative + generator.gumbel(size=logits.shape).astype(np.float32)).argmax(1)
    return action, relative[np.arange(len(action)), action] - log_normaliser
