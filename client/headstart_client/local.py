"""Policies that act here: NumPy alone, without the service and without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart_client.policy_file import Architecture, Array, Tensors, read_policy

_FEW = 16  # actions up to which plain numbers are quicker than arrays, where there is one observation

# Written for one observation as much as for many: products by the method, which is half of the time of the operator,
# and in place what may be. The service's own runtime does the same arithmetic in the same order.


class LocalActions(NamedTuple):
    """What a policy does, for ``B`` observations.

    Attributes:
        actions: [B] int64 where actions are discrete, else [B, A] float32 in environment units.
        log_probs: [B] float32, log-probability of each action (density, in policy units).
        values: [B] float32, what the policy expects from each observation on, in reward units.
        policy_actions: [B, A] float32, continuous actions in policy units, before they are clipped or squashed; where
            actions are discrete, those.
    """

    actions: NDArray[Any]
    log_probs: Array
    values: Array
    policy_actions: NDArray[Any]


def _tanh(x: Array) -> Array:
    return np.tanh(x, out=x)


def _relu(x: Array) -> Array:
    return np.maximum(x, np.float32(0.0), out=x)


def _gelu(x: Any) -> Any:
    half, cubic, slope = np.float32(0.5), np.float32(0.044715), np.float32(math.sqrt(2.0 / math.pi))
    with np.errstate(over="ignore"):  # an infinite cube has the right hyperbolic tangent
        return half * x * (np.float32(1.0) + np.tanh(slope * (x + cubic * x * x * x)))


def _layer_norm(z: Array, scale: Array, shift: Array) -> Array:
    units = np.float32(z.shape[-1])
    with np.errstate(over="ignore"):  # an infinite variance silences the layer
        z -= np.add.reduce(z, -1, keepdims=True) / units
        variance = np.add.reduce(z * z, -1, keepdims=True) / units
    z /= np.sqrt(variance + np.float32(1e-5))
    z *= scale
    z += shift
    return z


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": _tanh, "relu": _relu, "gelu": _gelu}


@final
class LocalPolicy:
    """A policy that was taken away from the service: the same actions as its ``:act``, to float32 precision.

    Threads may share one. Make it with :meth:`load`.

    Args:
        architecture: What it is.
        tensors: Its parameters.

    Attributes:
        spec: Architecture and spaces, as the service describes them.
        observation_size: O.
        discrete: Whether actions are ids 0..A-1; otherwise they are vectors of A numbers.
        action_size: A.
    """

    def __init__(self, architecture: Architecture, tensors: Tensors) -> None:
        config = architecture.config
        self.spec = architecture.spec
        self.observation_size = architecture.observation_size
        self.discrete = architecture.discrete
        self.action_size = architecture.action_size
        self._activation = _ACTIVATIONS[config["activation"]]
        layers = [f"trunk.{i}" for i in range(len(config["hidden"]))]
        self._trunk = [(tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in layers]
        if config["context_size"]:
            weight, bias = self._trunk[0]
            # An input that is always the same is a bias.
            self._trunk[0] = (weight, bias + tensors["context"] @ tensors["trunk.0.context"])
        self._norms = [(tensors[f"{i}.scale"], tensors[f"{i}.shift"]) for i in layers if config["layer_norm"]]
        # Both heads read the same features: one product serves both.
        self._heads = np.ascontiguousarray(np.concatenate([tensors["policy.weight"], tensors["value.weight"]], 1))
        self._bias = np.concatenate([tensors["policy.bias"], tensors["value.bias"]])
        self._normaliser: tuple[Array, Array] | None = None
        if config["normalise_observations"]:
            scale = np.float32(1.0) / np.sqrt(tensors["observation.variance"] + np.float32(1e-8))
            self._normaliser = (tensors["observation.mean"], scale)
        if architecture.bounds is not None:
            self._low, self._high = architecture.bounds
            self._half = np.float32(0.5) * (self._high - self._low)
            self._scaling = config["action_scaling"]
            log_std = tensors.get("log_std")  # none where the state decides it
            self._std = None if log_std is None else np.exp(log_std)
            log_stds = 0.0 if log_std is None else float(log_std.sum())
            self._log_density = np.float32(-(log_stds + 0.5 * math.log(2 * math.pi) * self.action_size))

    @classmethod
    def load(cls, path: str | Path, spec: Mapping[str, Any] | None = None) -> LocalPolicy:
        """The policy in a ``policy.safetensors``.

        Args:
            path: The file.
            spec: Its description, where the file has none because an older service made it:
                ``client.policies.get(ID).raw``.

        Raises:
            InvalidPolicyFile: If the file is no policy, is damaged, or is of a format that this client does not know.
        """
        return cls.from_bytes(Path(path).read_bytes(), spec)

    @classmethod
    def from_bytes(cls, data: bytes, spec: Mapping[str, Any] | None = None) -> LocalPolicy:
        """As :meth:`load`, from the bytes of the file."""
        return cls(*read_policy(data, spec))

    def __call__(self, observation: ArrayLike, rng: np.random.Generator | None = None) -> Any:
        """The action for one observation [O], an int or an array [A]; for many [B, O] an array of them."""
        x = self._read(observation)
        actions = self._act(x, rng).actions
        if np.ndim(observation) == 2:
            return actions
        return int(actions[0]) if self.discrete else actions[0]

    def act(self, observations: ArrayLike, rng: np.random.Generator | None = None) -> LocalActions:
        """An action for each observation.

        Args:
            observations: [B, O], or [O] for one, in environment units.
            rng: Draws actions from the policy's distribution: what the service draws, where both begin with the same
                seed. Without one, the likeliest actions.

        Raises:
            ValueError: If they are of another size than the policy's, none, or not finite.
        """
        return self._act(self._read(observations), rng)

    def _read(self, observations: ArrayLike) -> Array:
        """As float32, [O] where there is one."""
        x = observations
        if type(x) is not np.ndarray or x.dtype != np.float32:
            with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused below
                x = np.asarray(observations, np.float32)
        size = self.observation_size
        if x.ndim == 2 and len(x) == 1:
            x = x[0]
        if x.shape[-1:] != (size,) or x.ndim > 2 or not len(x):
            raise ValueError(f"observations must be [B, {size}] or [{size}], not {list(np.shape(observations))}")
        # Truth values are bytes, which are looked through in a third of the time that the method takes for a few.
        if b"\0" in np.isfinite(x).tobytes():
            raise ValueError("an observation holds a NaN or an infinity")
        return x

    def _act(self, x: Array, rng: np.random.Generator | None) -> LocalActions:
        if self._normaliser is not None:
            mean, scale = self._normaliser
            x = (x - mean) * scale
            x = np.minimum(np.maximum(x, np.float32(-10.0)), np.float32(10.0))
        for i, (weight, bias) in enumerate(self._trunk):
            x = x.dot(weight)
            x += bias
            if self._norms:
                x = _layer_norm(x, *self._norms[i])
            x = self._activation(x)
        out = x.dot(self._heads)
        out += self._bias
        if not self.discrete:
            return self._gaussian(out, rng)
        if out.ndim == 1 and self.action_size <= _FEW:
            return _categorical_of_one(out, rng)
        return _categorical(np.atleast_2d(out), rng)

    def _gaussian(self, out: Array, rng: np.random.Generator | None) -> LocalActions:
        action, std = out[..., : self.action_size], self._std
        log_prob: Any = self._log_density
        if std is None:
            log_std = np.minimum(np.maximum(out[..., self.action_size : -1], np.float32(-10.0)), np.float32(3.0))
            std = np.exp(log_std)
            log_prob = log_prob - np.add.reduce(log_std, -1)
        if rng is not None:
            noise: Any = rng.standard_normal(action.shape, dtype=np.float32)
            action = action + std * noise
            log_prob = log_prob - np.float32(0.5) * np.add.reduce(noise * noise, -1)
        if self._scaling == "clip":
            scaled = np.minimum(np.maximum(action, self._low), self._high)
        else:
            one = np.float32(1.0)
            scaled = np.tanh(action) if self._scaling == "squash" else np.minimum(np.maximum(action, -one), one)
            scaled += one
            scaled *= self._half
            scaled += self._low
        values = out[..., -1].reshape(-1)
        log_probs = np.empty(len(values), np.float32)
        log_probs[:] = log_prob
        shape = (-1, self.action_size)
        return LocalActions(scaled.reshape(shape), log_probs, values, action.reshape(shape))


def _categorical(out: Array, rng: np.random.Generator | None) -> LocalActions:
    relative = out[:, :-1] - out[:, :-1].max(1, keepdims=True)
    noisy = relative if rng is None else relative + rng.gumbel(size=relative.shape).astype(np.float32)
    actions = noisy.argmax(1)
    log_probs = relative[np.arange(len(out)), actions] - np.log(np.exp(relative).sum(1))
    return LocalActions(actions, log_probs, out[:, -1], actions)


def _categorical_of_one(out: Array, rng: np.random.Generator | None) -> LocalActions:
    *logits, _ = out.tolist()
    greatest = max(logits)
    if rng is None:
        action = logits.index(greatest)
    else:
        noise = rng.gumbel(size=len(logits)).astype(np.float32)
        action = int((out[:-1] - np.float32(greatest) + noise).argmax())
    relative = [logit - greatest for logit in logits]
    log_prob = relative[action] - math.log(sum(map(math.exp, relative)))
    actions = np.array([action], np.int64)
    return LocalActions(actions, np.array([log_prob], np.float32), out[-1:], actions)
