"""Deep Q-learning, of N policies at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from models import random
from models.finetune.base import LearningRate, Metrics, falling
from models.finetune.gradients import head, pull_head, trunk
from models.finetune.networks import Networks
from models.finetune.off_policy import OffPolicy, OffPolicyConfig
from models.finetune.replay import Transitions
from models.finetune.stream import Segment
from models.policy import Policy
from models.tasks import TaskBatch
from models.types import Params

_EXPLORE, _SAMPLE = 3, 4
_ROWS_AT_ONCE = 8192  # samples that are drawn, and whose targets are worked out, together


@dataclass(frozen=True, kw_only=True)
class DQNConfig(OffPolicyConfig):
    """Deep Q-learning with a target network (Mnih et al. 2015), for discrete actions.

    It learns the very tensors of the policy. With logits ℓ(s, a), value head V(s) and temperature τ,

        Q(s, a) = V(s) + τ (ℓ(s, a) - max_b ℓ(s, b)),

    the dueling form of Wang et al. 2016 (eq. 8). A policy that it starts from thus says what is best where (its most
    likely action has the highest value, V), and by how much: τ for every nat (as in O'Donoghue et al. 2017, "PGQL",
    eq. 8). What it ends with is a policy again: its most likely action is the greedy one, V its value, and sampled
    actions follow exp(Q / τ).
    """

    name: Literal["dqn"] = "dqn"

    learning_rate: LearningRate = 3e-3
    """Of Adam."""

    n_steps: Annotated[int, Ge(1), Le(100)] = 10
    """Rewards that a target sums before it trusts a network."""

    temperature: Annotated[float, Gt(0), Le(1e6)] = 1.0
    """τ: what one nat of the policy's logits is worth, in reward units."""

    double: bool = True
    """The network chooses the action whose value the target network tells (van Hasselt et al. 2016)."""

    target_rate: Annotated[float, Gt(0), Le(1)] = 0.1
    """Share of the way that the target network follows in a round. The targets of a round's updates are worked out
    together as it begins (of 8,192 samples at a time where there are more)."""

    initial_exploration: Annotated[float, Ge(0), Le(1)] = 1.0
    """Share of actions that are random at first."""

    final_exploration: Annotated[float, Ge(0), Le(1)] = 0.04
    """Share of actions that are random once it has fallen."""

    exploration_fraction: Annotated[float, Gt(0), Le(1)] = 0.16
    """Share of the budget over which it falls."""

    priority_exponent: Annotated[float, Ge(0), Le(1)] = 0.0
    """α: samples are drawn in proportion to this power of how wrong the network was about them (Schaul et al. 2016);
    0 draws uniformly."""

    priority_correction: Annotated[float, Ge(0), Le(1)] = 0.4
    """β at first, 1 in the end: how far the weights of samples make up for that."""

    max_gradient_norm: Annotated[float, Gt(0), Le(1e6)] | None = 10.0
    """Length to which gradients are cut; null for no limit."""


@final
class DQN(OffPolicy[DQNConfig]):
    """See :class:`DQNConfig`."""

    def __init__(
        self,
        config: DQNConfig,
        policy: Policy,
        params: Params,
        tasks: TaskBatch,
        keys: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(config, policy, params, tasks, keys, state, config.priority_exponent)
        # One product gives both heads.
        weights = {name: params[name] for name in policy.trainable() if not name.startswith(("policy.", "value."))}
        weights["heads.weight"] = torch.cat([params["policy.weight"], params["value.weight"]], -1)
        weights["heads.bias"] = torch.cat([params["policy.bias"], params["value.bias"]], -1)
        self._online, self._target = Networks.of(weights), Networks.of(weights)
        self.keep({"online": self._online, "target": self._target}, state)

    @property
    @override
    def policies(self) -> Params:
        policies = self._online.rows(slice(None))
        weight, bias = policies.pop("heads.weight"), policies.pop("heads.bias")
        policies |= {"policy.weight": weight[..., :-1], "policy.bias": bias[..., :-1]}
        return policies | {"value.weight": weight[..., -1:], "value.bias": bias[..., -1:]} | self.statistics

    @override
    @torch.no_grad()
    def _learn(self, used: Tensor) -> Metrics:
        config = self.config
        rate = config.scheduled(config.learning_rate, used)
        correction = falling(config.priority_correction, 1.0, used)
        keys = random.fold_in(random.fold_in(self.keys, _SAMPLE), self.stream.time)
        draws = random.uniform(keys, config.updates * config.batch_size, self.discount.dtype)
        for some in torch.split(draws, config.batch_size * max(1, _ROWS_AT_ONCE // config.batch_size), 1):
            sample = self._replay.sample(some, correction)
            columns = (sample.observation, self._parts(sample.action), sample.weight, self._targets(sample))
            errors = []
            for part in zip(*(torch.split(column, config.batch_size, 1) for column in columns), strict=True):
                gradient, error = self._gradient(*part)
                norm = self._online.descend(gradient, rate, config.max_gradient_norm)
                errors.append(error)
            self._replay.judge(sample, torch.cat(errors, 1))
        self._target.follow(self._online, config.target_rate)
        return {
            "exploration": float(self._exploration(used).mean()),
            "error": float(error.abs().mean()),
            "gradient_norm": float(norm.mean()),
        }

    def _exploration(self, used: Tensor) -> Tensor:
        """Share of actions that are random, [N, 1]."""
        config = self.config
        return falling(config.initial_exploration, config.final_exploration, used / config.exploration_fraction)

    @override
    @torch.no_grad()
    def _act(self, used: Tensor) -> Segment:
        steps, actions = self.config.steps, self.policy.action_size
        decide = self.policy.acting(self.policies)
        draws = random.uniform(random.fold_in(self.stream.keys(steps), _EXPLORE), 2, self.discount.dtype)
        explores = draws[..., 0] < self._exploration(used).unsqueeze(1)
        anything = (draws[..., 1] * actions).long().clamp(max=actions - 1)

        def act(observation: Tensor, t: int) -> Tensor:
            return torch.where(explores[:, t], anything[:, t], self.policy.choose(decide(observation, t), None))

        return self.stream.advance(steps, act)

    def _targets(self, sample: Transitions) -> Tensor:
        """What the values of samples are to become, [N, M].

            y = Σ γ^k r_k + γ^n max_b Q(s', b)

        where double Q-learning has the online network choose b and the target network value it.
        """
        values = self._action_values(self._target.params, sample.next_observation)
        choosing = values
        if self.config.double:
            choosing = self._action_values(self._online.params, sample.next_observation)
        best = values.gather(-1, choosing.argmax(-1, keepdim=True)).squeeze(-1)
        return torch.addcmul(sample.reward, sample.discount, best)

    def _action_values(self, networks: Params, observation: Tensor) -> Tensor:
        """Q(s, a) of observations [N, M, O], [N, M, A]."""
        out = head(networks, "heads", self.policy.features(networks | self.statistics, observation))
        logits = out[..., :-1]
        return out[..., -1:] + self.config.temperature * (logits - logits.amax(-1, keepdim=True))

    def _parts(self, action: Tensor) -> Tensor:
        """What each output of the heads counts in V(s) + τ ℓ(s, a), for actions [N, M], [N, M, A + 1]."""
        parts = self.discount.new_zeros(*action.shape, self.policy.action_size + 1)
        parts[..., -1] = 1.0
        return parts.scatter_(-1, action.unsqueeze(-1), self.config.temperature)

    def _gradient(self, observation: Tensor, parts: Tensor, weight: Tensor, target: Tensor) -> tuple[Params, Tensor]:
        """Gradient of each network's loss by its tensors, and each sample's error, [N, M].

            L = mean w huber(Q(s, a) - y)

        Args:
            observation: s, [N, M, O].
            parts: Of a, [N, M, A + 1].
            weight: w, [N, M].
            target: y, [N, M].
        """
        online, temperature = self._online.params, self.config.temperature
        features, pull = trunk(self.policy, online, self.statistics, observation)
        out = head(online, "heads", features)
        highest, greedy = out[..., :-1].max(-1, keepdim=True)
        error = (out * parts).sum(-1).sub_(highest.squeeze(-1), alpha=temperature).sub_(target)
        # Of the Huber loss; it reaches V, the logit of the action taken and, with the other sign, the highest one.
        slope = (error.clamp(-1.0, 1.0) * weight).div_(error.shape[1]).unsqueeze(-1)
        by_out = (slope * parts).scatter_add_(-1, greedy, slope * -temperature)
        by_features, gradient = pull_head(online, "heads", features, by_out)
        return gradient | pull(by_features), error
