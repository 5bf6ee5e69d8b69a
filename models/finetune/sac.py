"""Soft actor-critic, of N policies at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from torch.autograd import Function
from typing_extensions import override

from models import random, returns, weights
from models.finetune.base import Metrics
from models.finetune.gradients import head, pull_head, trunk
from models.finetune.networks import Networks
from models.finetune.off_policy import OffPolicy, OffPolicyConfig
from models.finetune.replay import Transitions
from models.finetune.stream import Segment
from models.policy import Policy
from models.tasks import TaskBatch
from models.types import Params

_SAMPLE, _CRITIC = 4, 5
_ROWS_FOR_VALUES = 4096


@dataclass(frozen=True, kw_only=True)
class SACConfig(OffPolicyConfig):
    """Soft actor-critic with twin critics and a tuned temperature (Haarnoja et al. 2018), for continuous actions.

    The actor is the policy that it starts from. Each critic starts as a copy of its trunk and value head, with the
    action as a further input whose weights are new: it values states as that policy did, and learns what actions add.

    With the ``action_scaling`` "squash" actions are the hyperbolic tangents of Gaussian ones, as published; with
    "scale" and "clip" they are cut off at the bounds, where gradients pass that lead back inside (after Hausknecht &
    Stone 2016, section 4), and the entropy is that of the Gaussian before it is cut. In the end the policy's value head
    is the linear fit of what the critics say of the last states.
    """

    name: Literal["sac"] = "sac"

    parallel_episodes: Annotated[int, Ge(1), Le(1024)] = 4
    """Episodes that run side by side."""

    steps: Annotated[int, Ge(1), Le(100_000)] = 2
    """Steps that each of them takes in a round, before what is learned from them."""

    schedule: Literal["linear", "constant"] = "constant"
    """`linear`: `learning_rate` falls to 0 along with the budget. `constant`: it does not."""

    batch_size: Annotated[int, Ge(1), Le(100_000)] = 256
    """Samples of an update."""

    buffer_size: Annotated[int, Ge(2), Le(10_000_000)] = 100_000
    """Steps that are kept to learn from, the newest."""

    warm_up_steps: Annotated[int, Ge(0), Le(10_000_000)] = 500
    """Environment steps before the first update; the policy acts as it is."""

    target_rate: Annotated[float, Gt(0), Le(1)] = 0.005
    """Share of the way that the target critics follow in an update."""

    temperature: Annotated[float, Gt(0), Le(1e6)] = 0.2
    """α at first: what one nat of entropy is worth, in reward units."""

    target_entropy: Annotated[float, Ge(-1e4), Le(1e4)] | None = None
    """Entropy in nats that the temperature is tuned to; null for minus the number of action dimensions."""

    tune_temperature: bool = True
    """Whether α moves."""


class _Cut(Function):
    """clamp(u, -1, 1), whose gradient also passes beyond the bounds where a step down it leads back inside."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return u.clamp(-1.0, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return torch.where((u.abs() <= 1.0) | (u * grad > 0.0), grad, torch.zeros_like(grad))


@final
class SAC(OffPolicy[SACConfig]):
    """See :class:`SACConfig`."""

    def __init__(
        self,
        config: SACConfig,
        policy: Policy,
        params: Params,
        tasks: TaskBatch,
        keys: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(config, policy, params, tasks, keys, state)
        self._value_head = {name: params[name] for name in ("value.weight", "value.bias")}
        moved = [name for name in policy.trainable() if not name.startswith("value.")]
        self._actor = Networks.of({name: params[name] for name in moved})
        self._critic = _critic_of(policy)
        critics = self._first_critics(params)
        self._critics, self._targets = Networks.of(critics), Networks.of(critics)
        like = params["policy.bias"][:, :1]
        self._temperature = Networks.of({"log": torch.full_like(like, math.log(config.temperature))})
        wanted = config.target_entropy
        self._target_entropy = -float(policy.action_size) if wanted is None else wanted
        learning = {"actor": self._actor, "critics": self._critics, "targets": self._targets}
        self.keep(learning | {"temperature": self._temperature}, state)

    def _first_critics(self, params: Params) -> Params:
        """Twin critics of every policy, [2N, ...]: the N first ones, then the N second ones."""
        critics = {}
        for name, shape in self._critic.shapes().items():
            if name.startswith("policy."):
                continue
            start = params[name]
            pair = [start, start]
            if name == "trunk.0.weight":
                # What differs between the twins is how they see actions at first.
                pair = [torch.cat([start, self._action_weights(twin, shape).to(start)], 1) for twin in range(2)]
            critics[name] = torch.cat(pair)
        return critics

    def _action_weights(self, twin: int, shape: tuple[int, ...]) -> Tensor:
        """A critic's first weights of the actions, [N, A, H]."""
        keys = random.fold_in(random.fold_in(self.keys, _CRITIC), twin)
        size = self.policy.action_size
        return torch.stack([weights.glorot_uniform(key, *shape)[-size:] for key in keys])

    @property
    @override
    def policies(self) -> Params:
        actor, seen = self._acting(), self._replay.latest(_ROWS_FOR_VALUES)
        if seen is None:
            seen = self.stream.observation
        with torch.no_grad():
            features = self.policy.features(actor, seen)
            head = self.policy.head(actor, features)
            action = self._bounded(self.policy.choose(head, None))
            value = self._judge(self._critics.params, seen, action).amin(0)
        return actor | returns.fitted_value_head(features, value, torch.ones_like(value))

    @override
    def _learn(self, used: Tensor) -> Metrics:
        config = self.config
        rate = config.scheduled(config.learning_rate, used)
        keys = random.fold_in(random.fold_in(self.keys, _SAMPLE), self.stream.time)
        rows = config.updates * config.batch_size
        draws = random.uniform(random.fold_in(keys, 0), rows, self.discount.dtype)
        at = torch.arange(2 * rows, device=keys.device)
        noise = random.normal(random.fold_in(random.fold_in(keys, 1).unsqueeze(1), at), self.policy.action_size)
        noise = noise.to(self.discount.dtype).reshape(self.count, 2, rows, -1)
        for i in range(config.updates):
            part = slice(i * config.batch_size, (i + 1) * config.batch_size)
            sample = self._replay.sample(draws[:, part])
            loss = self._update_critics(sample, noise[:, 0, part], rate)
            entropy = self._update_actor(sample, noise[:, 1, part], rate)
        return {
            "critic_loss": float(loss.mean()),
            "entropy": float(entropy.mean()),
            "temperature": float(self._temperature.params["log"].exp().mean()),
        }

    @override
    @torch.no_grad()
    def _act(self, used: Tensor) -> Segment:
        actor, steps = self._acting(), self.config.steps
        noise = self.stream.noise(actor, steps)
        decide = self.policy.acting(actor)
        return self.stream.advance(
            steps, lambda observation, t: self.policy.choose(decide(observation, t), noise[:, t])
        )

    def _acting(self) -> Params:
        return self._actor.rows(slice(None)) | self.statistics | self._value_head

    def _update_critics(self, sample: Transitions, noise: Tensor, rate: Tensor) -> Tensor:
        with torch.no_grad():
            actor = self._actor.params | self.statistics
            action, log_prob = self._sampled(actor, sample.next_observation, noise)
            after = self._judge(self._targets.params, sample.next_observation, action).amin(0)
            soft = after - self._temperature.params["log"].exp() * log_prob
            target = sample.reward + sample.discount * soft
        taken = self._bounded(sample.action)
        seen = torch.cat([self.policy.normalised(self.statistics, sample.observation), taken], -1).repeat(2, 1, 1)
        critics = self._critics.params
        features, pull = trunk(self._critic, critics, {}, seen)
        error = head(critics, "value", features).reshape(2, self.count, -1) - target
        slope = (error * sample.weight / error.shape[-1]).reshape(2 * self.count, -1, 1)
        by_features, gradient = pull_head(critics, "value", features, slope)
        gradient |= pull(by_features)
        self._critics.descend(gradient, torch.cat([rate, rate]), self.config.max_gradient_norm)
        self._targets.follow(self._critics, self.config.target_rate)
        return 0.5 * error.square().mean(-1)

    def _update_actor(self, sample: Transitions, noise: Tensor, rate: Tensor) -> Tensor:
        leaves = {name: value.detach().requires_grad_() for name, value in self._actor.params.items()}
        action, log_prob = self._sampled(leaves | self.statistics, sample.observation, noise)
        value = self._judge(self._critics.params, sample.observation, action).amin(0)
        temperature = self._temperature.params["log"].exp()
        loss = (temperature * log_prob - value).mean(1)
        gradient = torch.autograd.grad(loss.sum(), list(leaves.values()))
        self._actor.descend(dict(zip(leaves, gradient, strict=True)), rate, self.config.max_gradient_norm)
        entropy = -log_prob.detach().mean(1, keepdim=True)
        if self.config.tune_temperature:
            # By the logarithm: what is tuned stays above zero.
            self._temperature.descend({"log": entropy - self._target_entropy}, rate)
        return entropy

    def _sampled(self, actor: Params, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions in [-1, 1] by standard normal noise, [N, M, A], and their log-probabilities, [N, M]."""
        head = self.policy.head(actor, self.policy.features(actor, observation))
        mean, log_std = self.policy.gaussian(actor, head)
        u = mean + log_std.exp() * noise
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        if self.policy.config.action_scaling == "squash":
            # log(1 - tanh² u), without the difference of nearly equal numbers.
            density = density - 2.0 * (math.log(2.0) - u - torch.nn.functional.softplus(-2.0 * u))
        return self._bounded(u), density.sum(-1)

    def _bounded(self, u: Tensor) -> Tensor:
        """Actions as critics see them: in [-1, 1] where there are bounds, in environment units where not."""
        if self.policy.config.action_scaling == "squash":
            return torch.tanh(u)
        if self.policy.config.action_scaling == "clip":
            assert isinstance(self.policy.action_space, Box)
            if not self.policy.action_space.is_bounded():
                return u
            low, high = (
                u.new_tensor(x.tolist()) for x in (self.policy.action_space.low, self.policy.action_space.high)
            )
            u = (u - low) * (2.0 / (high - low)) - 1.0
        cut: Tensor = _Cut.apply(u)  # type: ignore[no-untyped-call]
        return cut

    def _judge(self, critics: Params, observation: Tensor, action: Tensor) -> Tensor:
        """What both critics say of actions [N, M, A], [2, N, M]."""
        seen = self.policy.normalised(self.statistics, observation)
        x = torch.cat([seen, action], -1).repeat(2, 1, 1)
        return self._critic.value(critics, self._critic.features(critics, x)).reshape(2, self.count, -1)


def _critic_of(policy: Policy) -> Policy:
    """The architecture of a critic: the policy's trunk, on observations that are normalised already and actions."""
    config = dataclasses.replace(policy.config, normalise_observations=False, log_std="free")
    space = Box(-np.inf, np.inf, (policy.observation_size + policy.action_size,), np.float32)
    return Policy(config, space, Discrete(2))
