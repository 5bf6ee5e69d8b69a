"""Policies in plain NumPy: the fastest way to answer for a few observations at a time, of one policy or of many.

Policies of one architecture lie side by side in arrays with a leading ``P``, so that many different ones act in one
product a layer. A layer's bias is the last row of its array. What one observation costs is the calling of NumPy, not
arithmetic: for it there is a path with few calls, into buffers that are there already.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from models.layers import NORM_EPSILON
from models.policy import LOG_STD_RANGE, Policy

Array = NDArray[np.float32]

Arrays = Mapping[str, Array]
"""Policies of one architecture: each array of its layout, with a leading P."""

_ONE = np.float32(1.0)
_LOG_2PI = math.log(2 * math.pi)

MOST_ACTIONS_ONE_BY_ONE = 32
"""Numbers of a policy head up to which plain Python decides on an action sooner than NumPy does."""

WIDEST_LOG_STD = 80.0
"""Log of a standard deviation up to which draws are far from the largest float32; above, Python's exp may fail."""


class Decision(NamedTuple):
    """Actions in environment units, their log-probabilities (densities in policy units) and the observations' values.

    Attributes:
        action: [..., ] int64, or [..., A].
        log_prob: [...].
        value: [...].
        drawn: Continuous actions in policy units, before they are clipped and scaled, [..., A]; None for discrete ones.
    """

    action: Any
    log_prob: Any
    value: Any
    drawn: Any


def _relu(x: Any, out: Any = None) -> Any:
    return np.maximum(x, np.float32(0.0), out=out)


def _gelu(x: Any) -> Any:
    half, cubic, slope = np.float32(0.5), np.float32(0.044715), np.float32(math.sqrt(2.0 / math.pi))
    # An infinite cube has the right hyperbolic tangent.
    return half * x * (_ONE + np.tanh(slope * (x + cubic * x * x * x)))


def _layer_norm(z: Array, norm: Array) -> Array:
    centred = z - z.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)  # torch, too, lets an infinite one silence the layer
    result: Array = centred / np.sqrt(variance + np.float32(NORM_EPSILON)) * norm[:, :1] + norm[:, 1:]
    return result


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"tanh": np.tanh, "relu": _relu, "gelu": _gelu}
_IN_PLACE: dict[str, Callable[[Any, Any], Any]] = {"tanh": np.tanh, "relu": _relu}


@final
class Architecture:
    """How policies of one architecture lie in arrays, and how they act.

    Args:
        policy: The architecture.

    Attributes:
        layout: Name and shape of each array of one policy.
        size_bytes: Memory that one policy's arrays take.
        discrete: Whether actions are ids; otherwise they are vectors.
        observation_size: O.
        action_shape: Of one action: () or (A,).
        low: Least continuous action [A]; it, ``high`` and ``half`` are not there where actions are discrete.
        high: Greatest continuous action [A].
        half: Half their distance [A].
    """

    def __init__(self, policy: Policy) -> None:
        config = policy.config
        self.observation_size = policy.observation_size
        self.discrete = policy.discrete
        self.action_shape: tuple[int, ...] = () if policy.discrete else (policy.action_size,)
        self._head_size = policy.head_size
        self._depth = len(config.hidden)
        self._activation = _ACTIVATIONS[config.activation]
        self._context, self._norm = bool(config.context_size), config.layer_norm
        self._normalise, self._free = config.normalise_observations, config.log_std == "free" and not policy.discrete
        sizes = [policy.observation_size, *config.hidden]
        self.layout: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            self.layout[f"layer.{i}"] = (fan_in + 1, fan_out)
            if self._norm:
                self.layout[f"norm.{i}"] = (2, fan_out)
        # Both heads read the same features: one product serves both.
        self.layout["heads"] = (sizes[-1] + 1, policy.head_size + 1)
        if self._normalise:
            self.layout["normaliser"] = (2, policy.observation_size)
        if self._free:
            self.layout["log_std"] = (policy.action_size,)
        self.size_bytes = 4 * sum(math.prod(shape) for shape in self.layout.values())
        if isinstance(policy.action_space, Box):
            low, high = (np.asarray(bound, np.float32) for bound in (policy.action_space.low, policy.action_space.high))
            self.low, self.high, self.half = low, high, np.float32(0.5) * (high - low)
            self._bounds = list(zip(low.tolist(), high.tolist(), self.half.tolist(), strict=True))
            self._scaling = config.action_scaling
        in_place = _IN_PLACE.get(config.activation)
        self.quick: _Quick | None = None
        if in_place is not None and not self._norm and policy.head_size <= MOST_ACTIONS_ONE_BY_ONE:
            self.quick = _quick(sizes, policy.head_size + 1, in_place)

    def arrange(self, params: Arrays) -> dict[str, Array]:
        """One policy's arrays of this layout, from its tensors as float32 arrays."""
        arrays: dict[str, Array] = {}
        for i in range(self._depth):
            bias = params[f"trunk.{i}.bias"]
            if self._context and i == 0:
                bias = bias + params["context"] @ params["trunk.0.context"]
            arrays[f"layer.{i}"] = np.concatenate([params[f"trunk.{i}.weight"], bias[None]])
            if self._norm:
                arrays[f"norm.{i}"] = np.stack([params[f"trunk.{i}.scale"], params[f"trunk.{i}.shift"]])
        weight, bias = (np.concatenate([params[f"policy.{x}"], params[f"value.{x}"]], -1) for x in ("weight", "bias"))
        arrays["heads"] = np.concatenate([weight, bias[None]])
        if self._normalise:
            scale = _ONE / np.sqrt(params["observation.variance"] + np.float32(1e-8))
            arrays["normaliser"] = np.stack([params["observation.mean"], scale])
        if self._free:
            arrays["log_std"] = params["log_std"]
        return {name: np.ascontiguousarray(arrays[name], np.float32) for name in self.layout}

    def noise(self, generator: np.random.Generator, *shape: int) -> Array:
        """What sampling so many actions needs, [*shape, A]: Gumbel noise for discrete actions, else standard normal."""
        if self.discrete:
            return generator.gumbel(size=(*shape, self._head_size)).astype(np.float32)
        normal: Array = generator.standard_normal((*shape, *self.action_shape), np.float32)
        return normal

    @np.errstate(over="ignore", invalid="ignore")
    def decide(self, arrays: Arrays, observations: Array, noise: Array | None) -> Decision:
        """An action for each observation of P policies.

        Args:
            arrays: The policies.
            observations: [P, M, O] float32.
            noise: [P, M, A] to sample with; None takes the most likely action.

        Returns:
            Of leading axes [P, M]; numbers that are not finite where an observation is too large for the policy.
        """
        x = observations
        if self._normalise:
            mean, scale = arrays["normaliser"][:, :1], arrays["normaliser"][:, 1:]
            x = np.clip((x - mean) * scale, np.float32(-10.0), np.float32(10.0))
        for i in range(self._depth):
            x = _affine(x, arrays[f"layer.{i}"])
            if self._norm:
                x = _layer_norm(x, arrays[f"norm.{i}"])
            x = self._activation(x)
        out = _affine(x, arrays["heads"])
        head, value = out[..., :-1], out[..., -1]
        if self.discrete:
            return Decision(*_categorical(head, noise), value, None)
        action, log_prob = self._gaussian(head, arrays, noise)
        return Decision(self._to_environment(action), log_prob, value, action)

    def conclude(self, out: list[float], arrays: Arrays, generator: np.random.Generator | None) -> Decision:
        """What follows from both heads of one observation of one policy: as :meth:`decide`, in plain Python.

        No free standard deviation may be above that of :data:`WIDEST_LOG_STD`.
        """
        *head, value = out
        if self.discrete:
            greatest = max(head)
            normaliser = greatest + math.log(sum([math.exp(each - greatest) for each in head]))
            if generator is None:
                return Decision(head.index(greatest), greatest - normaliser, value, None)
            noisy = [each - greatest + g for each, g in zip(head, self.noise(generator).tolist(), strict=True)]
            action = noisy.index(max(noisy))
            return Decision(action, head[action] - normaliser, value, None)
        (size,) = self.action_shape
        if self._free:
            log_std = arrays["log_std"][0].tolist()
        else:
            low, high = LOG_STD_RANGE
            head, log_std = head[:size], [min(max(each, low), high) for each in head[size:]]
        log_prob = -sum(log_std) - 0.5 * _LOG_2PI * size
        if generator is not None:
            noise = self.noise(generator).tolist()
            head = [mean + math.exp(s) * z for mean, s, z in zip(head, log_std, noise, strict=True)]
            log_prob -= 0.5 * sum([z * z for z in noise])
        return Decision(self._each_to_environment(head), log_prob, value, head)

    def _gaussian(self, head: Array, arrays: Arrays, noise: Array | None) -> tuple[Array, Array]:
        """Actions in policy units [P, M, A] and their log-probabilities [P, M]."""
        (size,) = self.action_shape
        if self._free:
            action, log_std = head, arrays["log_std"][:, None]
        else:
            action, log_std = head[..., :size], np.clip(head[..., size:], *LOG_STD_RANGE)
        log_prob: Array = np.broadcast_to(-log_std.sum(-1) - np.float32(0.5 * _LOG_2PI * size), head.shape[:-1])
        if noise is not None:
            action = np.add(action, np.exp(log_std) * noise, dtype=np.float32)
            log_prob = np.subtract(log_prob, np.float32(0.5) * (noise * noise).sum(-1), dtype=np.float32)
        return action, log_prob

    def _to_environment(self, action: Array) -> Array:
        if self._scaling == "clip":
            return np.clip(action, self.low, self.high)
        bounded = np.tanh(action) if self._scaling == "squash" else np.clip(action, -_ONE, _ONE)
        result: Array = self.low + (bounded + _ONE) * self.half
        return result

    def _each_to_environment(self, action: list[float]) -> list[float]:
        if self._scaling == "clip":
            return [min(max(a, low), high) for a, (low, high, _) in zip(action, self._bounds, strict=True)]
        bounded = map(math.tanh, action) if self._scaling == "squash" else [min(max(a, -1.0), 1.0) for a in action]
        return [min(low + (a + 1.0) * half, high) for a, (low, high, half) in zip(bounded, self._bounds, strict=True)]


@final
class NumpyPolicy:
    """One policy, equal to :class:`models.policy.Policy` to float32 precision.

    Args:
        policy: The architecture.
        params: One policy's tensors as float32 arrays.

    Attributes:
        architecture: How its arrays lie.
        arrays: Its arrays, with a leading axis of 1.
    """

    __slots__ = ("_layers", "_quick", "architecture", "arrays")

    def __init__(self, policy: Policy, params: Arrays) -> None:
        architecture = Architecture(policy)
        self._take(architecture, {name: array[None] for name, array in architecture.arrange(params).items()})

    @classmethod
    def view(cls, architecture: Architecture, arrays: Arrays) -> NumpyPolicy:
        """The policy in these arrays, of a leading axis of 1; they are not copied."""
        policy = cls.__new__(cls)
        policy._take(architecture, arrays)
        return policy

    def _take(self, architecture: Architecture, arrays: Arrays) -> None:
        self.architecture = architecture
        self.arrays = arrays
        self._layers = [array[0] for name, array in arrays.items() if name == "heads" or name.startswith("layer.")]
        log_std = arrays.get("log_std")
        narrow = log_std is None or bool((log_std <= WIDEST_LOG_STD).all())
        self._quick = architecture.quick if narrow else None

    def copy(self) -> NumpyPolicy:
        """The same policy in arrays of its own."""
        return NumpyPolicy.view(self.architecture, {name: array.copy() for name, array in self.arrays.items()})

    def act(self, observations: Array, generator: np.random.Generator | None) -> Decision:
        """An action for each observation [M, O]; as :meth:`Architecture.decide`, with a leading M."""
        noise = None if generator is None else self.architecture.noise(generator, 1, len(observations))
        decision = self.architecture.decide(self.arrays, observations[None], noise)
        return Decision(*(None if each is None else each[0] for each in decision))

    def act_one(self, observation: Sequence[float], generator: np.random.Generator | None) -> Decision:
        """An action for one observation of O numbers, as plain numbers and lists.

        Not to be called from two threads at once for policies of one architecture: they share buffers.
        """
        architecture, arrays = self.architecture, self.arrays
        if self._quick is not None:
            out = self._quick(self._layers, arrays.get("normaliser"), observation)
            return architecture.conclude(out, arrays, generator)
        noise = None if generator is None else architecture.noise(generator, 1, 1)
        decision = architecture.decide(arrays, np.array([[observation]], np.float32), noise)
        return Decision(*(None if each is None else each[0, 0].tolist() for each in decision))


_Quick = Callable[[Sequence[Array], Array | None, Sequence[float]], list[float]]


def _quick(sizes: Sequence[int], outputs: int, activation: Callable[[Any, Any], Any]) -> _Quick:
    """Both heads of one policy for one observation, in as few calls as there are."""
    inputs = [np.ones(size + 1, np.float32) for size in sizes]  # each ends in the one that the bias is multiplied with
    first, units = inputs[0][:-1], [each[:-1] for each in inputs[1:]]
    hidden = list(enumerate(zip(inputs, units, strict=False)))
    last, out = inputs[-1], np.empty(outputs, np.float32)
    least, most = np.float32(-10.0), np.float32(10.0)

    @np.errstate(over="ignore", invalid="ignore")
    def forward(layers: Sequence[Array], normaliser: Array | None, observation: Sequence[float]) -> list[float]:
        first[:] = observation
        if normaliser is not None:
            np.multiply(np.subtract(first, normaliser[0, 0], first), normaliser[0, 1], first)
            np.minimum(np.maximum(first, least, out=first), most, out=first)
        for i, (x, y) in hidden:
            x.dot(layers[i], y)
            activation(y, y)
        last.dot(layers[-1], out)
        numbers: list[float] = out.tolist()
        return numbers

    quick: _Quick = forward
    return quick


def _affine(x: Array, layer: Array) -> Array:
    """The product x W + b, for inputs [P, M, I] and layers [P, I + 1, H]."""
    result: Array = np.matmul(x, layer[:, :-1])
    result += layer[:, -1:]
    return result


def _categorical(logits: Array, noise: Array | None) -> tuple[NDArray[np.int64], Array]:
    relative = logits - logits.max(-1, keepdims=True)
    log_normaliser = np.log(np.exp(relative).sum(-1))
    if noise is None:
        return logits.argmax(-1), -log_normaliser
    # Relative to the greatest, so that noise is not lost beside large logits.
    action = (relative + noise).argmax(-1)
    return action, np.take_along_axis(relative, action[..., None], -1)[..., 0] - log_normaliser
