"""One policy in plain NumPy: the fastest way to answer for a few observations at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from models.policy import Policy

Array = NDArray[np.float32]


def _relu(x: Any) -> Any:
    return np.maximum(x, np.float32(0.0))


def _gelu(x: Any) -> Any:
    half, cubic, slope = np.float32(0.5), np.float32(0.044715), np.float32(math.sqrt(2.0 / math.pi))
    return half * x * (np.float32(1.0) + np.tanh(slope * (x + cubic * x * x * x)))


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"tanh": np.tanh, "relu": _relu, "gelu": _gelu}


@final
class NumpyPolicy:
    """Actions, log-probabilities and values of one policy, equal to :class:`models.policy.Policy` to float32 precision.

    Args:
        policy: The architecture.
        params: One policy's tensors as float32 arrays.
    """

    def __init__(self, policy: Policy, params: Mapping[str, Array]) -> None:
        self.observation_size = policy.observation_size
        self.discrete = policy.discrete
        self._activation = _ACTIVATIONS[policy.config.activation]
        self._trunk = [
            (np.ascontiguousarray(params[f"trunk.{i}.weight"]), params[f"trunk.{i}.bias"])
            for i in range(len(policy.config.hidden))
        ]
        # Both heads read the same features: one product serves both.
        self._heads = np.ascontiguousarray(np.concatenate([params["policy.weight"], params["value.weight"]], 1))
        self._bias = np.concatenate([params["policy.bias"], params["value.bias"]])
        self._normaliser: tuple[Array, Array] | None = None
        if policy.config.normalise_observations:
            scale = 1.0 / np.sqrt(params["observation.variance"] + np.float32(1e-8))
            self._normaliser = (params["observation.mean"], scale.astype(np.float32))
        if isinstance(policy.action_space, Box):
            low, high = (np.asarray(bound, np.float32) for bound in (policy.action_space.low, policy.action_space.high))
            self._low, self._high, self._half = low, high, np.float32(0.5) * (high - low)
            self._scaled = policy.config.action_scaling == "scale"
            self._std = np.exp(params["log_std"])
            self._log_density = -float(params["log_std"].sum() + 0.5 * math.log(2 * math.pi) * policy.action_size)

    @property
    def size_bytes(self) -> int:
        """Memory that the parameters take."""
        return sum(w.nbytes + b.nbytes for w, b in self._trunk) + self._heads.nbytes + self._bias.nbytes

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
        if self._normaliser is not None:
            mean, scale = self._normaliser
            x = np.clip((x - mean) * scale, np.float32(-10.0), np.float32(10.0))
        for weight, bias in self._trunk:
            x = self._activation(x @ weight + bias)
        out = x @ self._heads + self._bias
        head, value = out[:, :-1], out[:, -1]
        if self.discrete:
            return (*_categorical(head, generator), value)
        return (*self._gaussian(head, generator), value)

    def _gaussian(self, mean: Array, generator: np.random.Generator | None) -> tuple[Array, Array]:
        log_prob = np.full(len(mean), self._log_density, np.float32)
        action = mean
        if generator is not None:
            noise = generator.standard_normal(mean.shape, dtype=np.float32)
            action = np.add(mean, self._std * noise, dtype=np.float32)
            log_prob -= np.float32(0.5) * (noise * noise).sum(1)
        if self._scaled:
            one = np.float32(1.0)
            return self._low + (np.clip(action, -one, one) + one) * self._half, log_prob
        return np.clip(action, self._low, self._high), log_prob


def _categorical(logits: Array, generator: np.random.Generator | None) -> tuple[NDArray[np.int64], Array]:
    relative = logits - logits.max(1, keepdims=True)
    log_normaliser = np.log(np.exp(relative).sum(1))
    if generator is None:
        return logits.argmax(1), -log_normaliser
    action = (logits + generator.gumbel(size=logits.shape)).argmax(1)
    return action, relative[np.arange(len(action)), action] - log_normaliser
