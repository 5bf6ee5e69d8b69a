"""Deep Q-learning, of N policies at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from models import random
from models.finetune.base import Metrics, falling
from models.finetune.gradients import head, pull_head, trunk
from models.finetune.networks import Networks
from models.finetune.off_policy import OffPolicy, OffPolicyConfig
from models.finetune.replay import Transitions
from models.finetune.stream import Segment
from models.policy import Policy
from models.tasks import TaskBatch
from models.types import Params

_EXPLORE, _SAMPLE = 3, 4


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

    temperature: Annotated[float, Gt(0), Le(1e6)] = 1.0
    """τ: what one nat of the policy's logits is worth, in reward units."""

    double: bool = True
    """The network chooses the action whose value the target network tells (van Hasselt et al. 2016)."""

    target_rate: Annotated[float, Gt(0), Le(1)] = 0.01
    """Share of the way that the target network follows in an update; 1 for no target network."""

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
        # One product gives both heads, and one what the online and the target networks think of a next state.
        weights = {name: params[name] for name in policy.trainable() if not name.startswith(("policy.", "value."))}
        weights["heads.weight"] = torch.cat([params["policy.weight"], params["value.weight"]], -1)
        weights["heads.bias"] = torch.cat([params["policy.bias"], params["value.bias"]], -1)
        self._both = Networks.of({name: value.repeat(2, *[1] * (value.dim() - 1)) for name, value in weights.items()})
        self._online, self._target = self._both.part(slice(self.count)), self._both.part(slice(self.count, None))
        self.keep({"online": self._online, "target": self._target}, state)

    @property
    @override
    def policies(self) -> Params:
        policies = self._online.rows(slice(None))
        weight, bias = policies.pop("heads.weight"), policies.pop("heads.bias")
        policies |= {"policy.weight": weight[..., :-1], "policy.bias": bias[..., :-1]}
        return policies | {"value.weight": weight[..., -1:], "value.bias": bias[..., -1:]} | self.statistics

    @override
    def _learn(self, used: Tensor) -> Metrics:
        config = self.config
        rate = self.scheduled(config.learning_rate, used)
        correction = falling(config.priority_correction, 1.0, used)
        keys = random.fold_in(random.fold_in(self.keys, _SAMPLE), self.stream.time)
        draws = random.uniform(keys, config.updates * config.batch_size, self.discount.dtype)
        samples: Iterable[Transitions]
        if config.priority_exponent:
            samples = (self._replay.sample(part, correction) for part in torch.split(draws, config.batch_size, 1))
        else:
            # What is drawn depends on nothing that is learned meanwhile.
            samples = self._replay.sample(draws).split(config.batch_size)
        for sample in samples:
            gradient, error = self._gradient(sample)
            norm = self._online.descend(gradient, rate, config.max_gradient_norm)
            self._replay.judge(sample, error)
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

    @torch.no_grad()
    def _gradient(self, sample: Transitions) -> tuple[Params, Tensor]:
        """Gradient of each network's loss by its tensors, and each sample's error, [N, M].

            L = mean w huber(Q(s, a) - y),    y = Σ γ^k r_k + γ^n max_b Q(s', b)

        where double Q-learning has the online network choose b and the target network value it.
        """
        online = self._online.params
        statistics = {name: value.repeat(2, 1) for name, value in self.statistics.items()}
        seen = sample.next_observation.repeat(2, 1, 1)
        by, after = self._action_values(self._both.params, statistics, seen).reshape(
            2, self.count, *seen.shape[1:2], -1
        )
        choice = (by if self.config.double else after).argmax(-1, keepdim=True)
        target = sample.reward + sample.discount * after.gather(-1, choice).squeeze(-1)
        features, pull = trunk(self.policy, online, self.statistics, sample.observation)
        out = head(online, "heads", features)
        logits, value = out[..., :-1], out[..., -1:]
        highest, greedy = logits.max(-1, keepdim=True)
        taken = sample.action.unsqueeze(-1)
        advantage = logits.gather(-1, taken) - highest
        error = (value + self.config.temperature * advantage).squeeze(-1) - target
        # Of the Huber loss; it reaches V, the logit of the action taken and, with the other sign, the highest one.
        slope = (error.clamp(-1.0, 1.0) * sample.weight / error.shape[1]).unsqueeze(-1)
        by_out = torch.zeros_like(out)
        scaled = self.config.temperature * slope
        by_out.scatter_add_(-1, taken, scaled).scatter_add_(-1, greedy, -scaled)
        by_out[..., -1:] = slope
        by_features, gradient = pull_head(online, "heads", features, by_out)
        return gradient | pull(by_features), error

    def _action_values(self, networks: Params, statistics: Params, observation: Tensor) -> Tensor:
        """Q(s, a) of observations [K, M, O] by K networks, [K, M, A]."""
        out = head(networks, "heads", self.policy.features(networks | statistics, observation))
        logits = out[..., :-1]
        return out[..., -1:] + self.config.temperature * (logits - logits.amax(-1, keepdim=True))
