"""Actor-critic policies as pure functions of named parameters, batched over tasks.

A policy is a trunk shared by a policy head and a value head. Its parameters are a flat dict, so that ``N`` adapted
policies are the same dict with a leading ``N`` and one forward pass of all of them is one ``baddbmm`` a layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import torch
from annotated_types import Ge, Le, Len
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from models import random, weights
from models.layers import LAYERS, by_column, known_tanh_layer, linear, normalised_layer, tanh_layer
from models.types import InvalidValue, Params

_LOG_2PI = math.log(2 * math.pi)
_NEAREST_TO_ONE = 1.0 - 2.0**-24

LOG_STD_RANGE = (-10.0, 3.0)
"""Least and greatest log of a standard deviation, in policy units; one that a state decides is clamped to it."""


@dataclass(frozen=True)
class PolicyConfig:
    """Architecture of a policy: everything but the sizes that the environment gives."""

    hidden: Annotated[tuple[Annotated[int, Ge(1), Le(4096)], ...], Len(1, 8)] = (64, 32)
    """Units of each hidden layer of the trunk, first to last."""

    activation: Literal["tanh", "relu", "gelu"] = "tanh"
    """Nonlinearity after each hidden layer."""

    action_scaling: Literal["scale", "clip", "squash"] = "scale"
    """Continuous actions only. `scale`: the policy acts in [-1, 1], clipped, and is mapped linearly onto the action
    space. `clip`: the policy acts in the environment's own units, clipped to the action space. `squash`: the hyperbolic
    tangent of what the policy draws is mapped onto the action space (Haarnoja et al. 2018, appendix C); densities stay
    those of what it draws."""

    initial_log_std: Annotated[float, Ge(-10), Le(3)] = 0.0
    """Continuous actions only: log of the standard deviation of every action at first, in policy units."""

    log_std: Literal["free", "state"] = "free"
    """Continuous actions only. `free`: a tensor of its own, the same in every state. `state`: further outputs of the
    policy head, clamped to [-10, 3]."""

    normalise_observations: bool = False
    """Centre and scale observations by their running mean and standard deviation over training; the statistics are
    part of the policy and no longer move once a version is made."""

    context_size: Annotated[int, Ge(0), Le(1024)] = 0
    """Inputs that are parameters, zero at first, beside every observation (CAVIA, Zintgraf et al. 2019, section 3.1);
    0 for none."""

    layer_norm: bool = False
    """Centre and scale the inputs of every nonlinearity over the layer's units (layer normalisation, Ba et al. 2016,
    eq. 3 and 4), with a learned scale and shift for each unit."""

    initialisation: Literal["glorot", "orthogonal"] = "glorot"
    """Weights of a new policy. `glorot`: uniform, by fan-in and fan-out (Glorot & Bengio 2010). `orthogonal`: with
    orthonormal rows or columns, times the nonlinearity's gain (Saxe et al. 2014). A new policy head is a hundredth of
    either."""


@final
class Policy:
    """A policy architecture: a :class:`PolicyConfig` and the spaces of an environment.

    Attributes:
        config: The architecture.
        observation_size: O.
        discrete: Whether actions are ids 0..A-1; otherwise they are vectors of A numbers.
        action_size: A.
        head_size: Outputs of the policy head: A logits or A means, then A logs of standard deviations where the
            config's `log_std` is "state".
    """

    def __init__(self, config: PolicyConfig, observation_space: Box, action_space: Box | Discrete[Any]) -> None:
        self.config = config
        self.observation_space = observation_space
        self.action_space = action_space
        self.observation_size = int(observation_space.shape[0])
        self.discrete = isinstance(action_space, Discrete)
        if isinstance(action_space, Box):
            self.action_size = int(action_space.shape[0])
            if config.action_scaling != "clip" and not action_space.is_bounded():
                raise InvalidValue("/policy/action_scaling", "needs an action space with finite bounds; use 'clip'")
        else:
            self.action_size = int(action_space.n)
            if config.log_std == "state":
                raise InvalidValue("/policy/log_std", "discrete actions have no standard deviation; use 'free'")
        self.head_size = self.action_size * (2 if config.log_std == "state" else 1)
        self._layer = LAYERS[config.activation]
        self._depth = len(config.hidden)
        self._bounds: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of one policy."""
        sizes = [self.observation_size, *self.config.hidden]
        shapes: dict[str, tuple[int, ...]] = {}
        if self.config.normalise_observations:
            shapes |= {
                "observation.count": (1,),
                "observation.mean": (self.observation_size,),
                "observation.variance": (self.observation_size,),
            }
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            shapes[f"trunk.{i}.weight"], shapes[f"trunk.{i}.bias"] = (fan_in, fan_out), (fan_out,)
            if self.config.layer_norm:
                shapes[f"trunk.{i}.scale"] = shapes[f"trunk.{i}.shift"] = (fan_out,)
        if self.config.context_size:
            shapes["context"] = (self.config.context_size,)
            shapes["trunk.0.context"] = (self.config.context_size, self.config.hidden[0])
        for head, size in (("policy", self.head_size), ("value", 1)):
            shapes[f"{head}.weight"], shapes[f"{head}.bias"] = (sizes[-1], size), (size,)
        if not self.discrete and self.config.log_std == "free":
            shapes["log_std"] = (self.action_size,)
        return shapes

    def initialise(
        self, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Params:
        """Parameters of one new policy: random weights, zero biases, a small policy head; the same on every device.

        The policy head's weights are a hundredth of the others', so that a new policy is near uniform over actions in
        every state.

        Args:
            seed: Of the weights.
            dtype: Of every tensor.
            device: Where the tensors live; by default with the processor.
        """
        device = "cpu" if device is None else device
        params: Params = {}
        for name, shape in self.shapes().items():
            if len(shape) == 2:
                params[name] = self._weight(name, shape, seed).to(device, dtype)
            elif name == "log_std":
                params[name] = torch.full(shape, self.config.initial_log_std, dtype=dtype, device=device)
            else:
                one = name == "observation.variance" or name.endswith(".scale")
                params[name] = torch.full(shape, 1.0 if one else 0.0, dtype=dtype, device=device)
        if self.config.log_std == "state":
            params["policy.bias"][self.action_size :] = self.config.initial_log_std
        return params

    def _weight(self, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
        key = random.key(seed, "initialise", name, device="cpu")
        gain = 0.01 if name == "policy.weight" else 1.0
        if self.config.initialisation == "glorot":
            return gain * weights.glorot_uniform(key, *shape)
        if name.startswith("trunk."):
            gain = weights.GAINS[self.config.activation]
        return gain * weights.orthogonal(key, *shape)

    def trainable(self) -> list[str]:
        """Names of the tensors that gradients move; the observation statistics are not among them."""
        return [name for name in self.shapes() if not name.startswith("observation.")]

    def observe(self, params: Params, observation: Tensor, mask: Tensor) -> Params:
        """Parameters of one policy whose running statistics also count the observations [..., O] where mask is 1."""
        if not self.config.normalise_observations:
            return params
        rows = observation[mask > 0]
        variance, mean = torch.var_mean(rows, 0, correction=0)
        return params | self.merged(params, rows.shape[0], mean, variance)

    @staticmethod
    def merged(params: Params, count: int, mean: Tensor, variance: Tensor) -> Params:
        """Statistics, of one policy or of N, that also count so many further observations of this mean and variance.

        Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1.
        """
        old_count, old_mean, old_variance = (params[f"observation.{k}"] for k in ("count", "mean", "variance"))
        total = old_count + count
        share = count / total
        spread = (mean - old_mean) ** 2 * share * (1.0 - share)
        # The unit variance of a new policy counts for nothing: its count is zero.
        return {
            "observation.count": total,
            "observation.mean": old_mean + (mean - old_mean) * share,
            "observation.variance": old_variance * (1.0 - share) + variance * share + spread,
        }

    @property
    def traceable(self) -> bool:
        """Whether hidden outputs that are known need not be computed again."""
        return self.config.activation == "tanh" and not self.config.layer_norm

    def features(self, params: Params, observation: Tensor, trace: Sequence[Tensor] | None = None) -> Tensor:
        """Output of the trunk, [N, M, H], for observations [N, M, O] and parameters of N policies.

        Args:
            params: N policies.
            observation: [N, M, O].
            trace: Every hidden layer's output, [N, M, H_i], as these very parameters gave it, where that is known and
                the policy is :attr:`traceable`. It is not computed again, yet gradients of every order flow.
        """
        x = self.normalised(params, observation)
        for i in range(self._depth):
            weight, bias = params[f"trunk.{i}.weight"], self._bias(params, i)
            if trace is not None:
                x = known_tanh_layer(x, weight, bias, trace[i])
            elif self.config.layer_norm:
                scale, shift = params[f"trunk.{i}.scale"], params[f"trunk.{i}.shift"]
                x = normalised_layer(self.config.activation, x, weight, bias, scale, shift)
            else:
                x = self._layer(x, weight, bias)
        return x

    def normalised(self, params: Params, observation: Tensor) -> Tensor:
        """Observations [N, M, O] as the first layer sees them, by the statistics of N policies."""
        if not self.config.normalise_observations:
            return observation
        scale = torch.rsqrt(params["observation.variance"] + 1e-8).unsqueeze(1)
        return ((observation - params["observation.mean"].unsqueeze(1)) * scale).clamp(-10.0, 10.0)

    def _bias(self, params: Params, layer: int) -> Tensor:
        bias = params[f"trunk.{layer}.bias"]
        if layer or not self.config.context_size:
            return bias
        # An input that is the same in every row is a bias: its product is taken once for each policy.
        context = params["context"].unsqueeze(1)
        return torch.baddbmm(bias.unsqueeze(1), context, params["trunk.0.context"]).squeeze(1)

    def acting(self, params: Params, trace: Sequence[Tensor] | None = None) -> Callable[[Tensor, int], Tensor]:
        """The head of N policies as a function of observations [N, B, O] and the step t, for many calls; no gradients.

        Args:
            params: N policies.
            trace: Where to write each hidden layer's output at step t, [N, T, B, H_i]; only if :attr:`traceable`.
        """
        if not self.traceable:
            return lambda observation, _: self.head(params, self.features(params, observation))
        head_weight, head_bias = by_column(params["policy.weight"]), params["policy.bias"].unsqueeze(1)
        layers = [(params[f"trunk.{i}.weight"], self._bias(params, i)) for i in range(self._depth)]

        def head(observation: Tensor, t: int) -> Tensor:
            x = self.normalised(params, observation)
            for i, (weight, bias) in enumerate(layers):
                x = tanh_layer(x, weight, bias, None if trace is None else trace[i][:, t])
            return torch.baddbmm(head_bias, x, head_weight)

        return head

    def head(self, params: Params, features: Tensor) -> Tensor:
        """What decides the action distribution of each state, [N, M, head_size].

        Logits; or means in policy units, followed by logs of standard deviations, not yet clamped, where the state
        decides those too.
        """
        return linear(features, params["policy.weight"], params["policy.bias"])

    def value(self, params: Params, features: Tensor) -> Tensor:
        """Expected discounted return from each state, [N, M], in reward units."""
        return linear(features, params["value.weight"], params["value.bias"]).squeeze(-1)

    def noise(self, params: Params, keys: Tensor) -> Tensor:
        """What :meth:`choose` needs to sample actions of N policies: [N, ..., A] for keys [N, ...].

        Gumbel noise for discrete actions, else normal noise: of the policies' standard deviations, or standard normal
        where the state decides those.
        """
        dtype = params["policy.bias"].dtype
        if self.discrete:
            return -torch.log(-torch.log(random.uniform(keys, self.action_size, dtype)))
        noise = random.normal(keys, self.action_size, dtype)
        if self.config.log_std == "state":
            return noise
        return noise * params["log_std"].exp().reshape(-1, *[1] * (keys.dim() - 1), self.action_size)

    def choose(self, head: Tensor, noise: Tensor | None) -> Tensor:
        """An action for each row of ``head`` [N, M, head_size]: sampled with ``noise``, the most likely one without.

        Returns:
            [N, M] int64 for discrete actions (the Gumbel-max trick), else [N, M, A] in policy units.
        """
        if self.config.log_std == "state":
            mean, log_std = self._split(head)
            return mean if noise is None else torch.addcmul(mean, log_std.exp(), noise)
        action = head if noise is None else head + noise
        return action.argmax(-1) if self.discrete else action

    def log_prob(self, params: Params, head: Tensor, action: Tensor) -> Tensor:
        """Log-probability (density) of actions, summed over action dimensions, [N, M]."""
        if self.discrete:
            return _log_softmax(head).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        mean, log_std = self.gaussian(params, head)
        z = (action - mean) * torch.exp(-log_std)
        return -0.5 * (z * z).sum(-1) - (log_std.sum(-1) + 0.5 * _LOG_2PI * self.action_size)

    def entropy(self, params: Params, head: Tensor) -> Tensor:
        """Entropy of the action distribution in every state, in nats, [N, M]."""
        if self.discrete:
            log_p = _log_softmax(head)
            return -(log_p.exp() * log_p).sum(-1)
        per_dimension = self.gaussian(params, head)[1] + 0.5 * (_LOG_2PI + 1.0)
        return per_dimension.sum(-1).expand(head.shape[:-1])

    def divergence(self, old_params: Params, old_head: Tensor, params: Params, head: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the action distribution in every state from what it was, in nats, [N, M].

            KL(π_old || π) = Σ_a π_old(a) (log π_old(a) - log π(a)),   discrete;
            Σ_i log σ_i - log σ_old,i + (σ_old,i² + (μ_old,i - μ_i)²) / 2σ_i² - 1/2,   continuous, in policy units.

        Exact, and can be differentiated any number of times. The old distribution is a constant: gradients flow through
        ``params`` and ``head`` alone.

        Args:
            old_params: N policies as they were.
            old_head: Their heads in the states, [N, M, head_size].
            params: N policies.
            head: Their heads in the same states.
        """
        if self.discrete:
            old_log_p = _log_softmax(old_head.detach())
            return (old_log_p.exp() * (old_log_p - _log_softmax(head))).sum(-1)
        old_mean, old_log_std = (each.detach() for each in self.gaussian(old_params, old_head))
        mean, log_std = self.gaussian(params, head)
        z, narrowing = (old_mean - mean) * torch.exp(-log_std), old_log_std - log_std
        return (0.5 * (z * z + torch.expm1(2.0 * narrowing)) - narrowing).sum(-1)

    def gaussian(self, params: Params, head: Tensor) -> tuple[Tensor, Tensor]:
        """Means [N, M, A] and logs of standard deviations, [N, M, A] or [N, 1, A]."""
        return self._split(head) if self.config.log_std == "state" else (head, params["log_std"].unsqueeze(1))

    def _split(self, head: Tensor) -> tuple[Tensor, Tensor]:
        return head[..., : self.action_size], head[..., self.action_size :].clamp(*LOG_STD_RANGE)

    def to_environment(self, action: Tensor) -> Tensor:
        """The environment's action for a policy's action, of the same shape."""
        if self.discrete:
            return action
        low, high, half = self._bounds.get((action.dtype, action.device)) or self._place_bounds(action)
        if self.config.action_scaling == "clip":
            return action.clamp(low, high)
        bounded = action.tanh() if self.config.action_scaling == "squash" else action.clamp(-1.0, 1.0)
        return low + (bounded + 1.0) * half

    def from_environment(self, action: Tensor) -> Tensor:
        """The policy's action that :meth:`to_environment` makes of these, [..., A] in environment units.

        Where several give the same, at a bound, it is the bound itself; of a `squash`, whose bounds no action reaches,
        the largest that float32 tells from them.
        """
        if self.discrete or self.config.action_scaling == "clip":
            return action
        low, _, half = self._bounds.get((action.dtype, action.device)) or self._place_bounds(action)
        bounded = torch.where(half > 0, (action - low) / half - 1.0, torch.zeros_like(action)).clamp(-1.0, 1.0)
        if self.config.action_scaling == "scale":
            return bounded
        return bounded.clamp(-_NEAREST_TO_ONE, _NEAREST_TO_ONE).atanh()

    def _place_bounds(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lower and upper bounds and half their distance, as tensors like ``action``: made once, not at every step."""
        assert isinstance(self.action_space, Box)
        low, high = (action.new_tensor(bound.tolist()) for bound in (self.action_space.low, self.action_space.high))
        bounds = self._bounds[action.dtype, action.device] = (low, high, 0.5 * (high - low))
        return bounds


def _log_softmax(head: Tensor) -> Tensor:
    """Log-probabilities [N, M, A] of logits: row by row the library takes ten times as long, with few actions."""
    return head.transpose(-1, -2).log_softmax(-2).transpose(-1, -2)
