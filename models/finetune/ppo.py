"""Proximal policy optimisation, of N policies at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from models import random, returns
from models.finetune.base import FineTuneConfig, FineTuner, LearningRate, Metrics, Statistics
from models.finetune.gradients import head, pull_head, trunk
from models.finetune.networks import Networks
from models.finetune.stream import Segment
from models.policy import Policy
from models.tasks import TaskBatch
from models.types import Params

_SHUFFLE = 3
_ROWS_FOR_VALUES = 4096


@dataclass(frozen=True, kw_only=True)
class PPOConfig(FineTuneConfig):
    """Proximal policy optimisation (Schulman et al. 2017), with a critic of its own.

    The critic starts as a copy of the policy's trunk and value head. In the end the policy's value head is the linear
    fit of what the critic says of the last states, on the trunk's features. Where a horizon cuts an episode off, the
    critic's value of the state after it counts as what would have followed.

    Advantage actor-critic (A2C) is this with one epoch and no clipping; REINFORCE that with ``gae_decay`` 1.
    """

    name: Literal["ppo"] = "ppo"

    steps: Annotated[int, Ge(2), Le(100_000)] = 32
    """Steps that each of the episodes takes in a round."""

    learning_rate: LearningRate = 1e-3
    """Of Adam."""

    value_learning_rate: LearningRate | None = None
    """That of the critic; null for `learning_rate`. Where returns are large, a critic that is to learn them soon needs
    more than a policy bears."""

    schedule: Literal["linear", "constant"] = "linear"
    """`linear`: the rates and `clip_ratio` fall to 0 along with the budget. `constant`: they do not."""

    epochs: Annotated[int, Ge(1), Le(1000)] = 20
    """Passes through the steps of one round."""

    minibatches: Annotated[int, Ge(1), Le(1024)] = 1
    """Parts that each pass is cut into, at random; each makes one update."""

    clip_ratio: Annotated[float, Gt(0), Le(100)] | None = 0.2
    """ε of the clipped objective (eq. 7); null does not clip."""

    value_clip: Annotated[float, Gt(0), Le(1e9)] | None = None
    """Most by which the critic's value of a state counts as changed in a round, in reward units; null for any."""

    gae_decay: Annotated[float, Ge(0), Le(1)] = 0.9
    """λ of the generalised advantage estimate (Schulman et al. 2016, eq. 16)."""

    normalise_advantages: bool = True
    """Give each task's advantages of a round mean 0 and standard deviation 1."""

    entropy_coefficient: Annotated[float, Ge(0), Le(10)] = 0.0
    """Weight of the policy's entropy (nats) in the objective."""

    kl_limit: Annotated[float, Gt(0), Le(100)] | None = None
    """A policy is updated no further in a round that has moved it farther than this, in nats (mean divergence,
    estimated from the actions taken); null for no limit."""

    max_gradient_norm: Annotated[float, Gt(0), Le(1e6)] | None = 0.5
    """Length to which the gradients of policy and critic are cut, each on its own; null for no limit."""


@dataclass(frozen=True)
class _Batch:
    """Rows of a round, M of each task: constants to gradients."""

    observation: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    value: Tensor
    target: Tensor

    def select(self, which: Tensor, rows: Tensor) -> _Batch:
        """Some rows [N, m] of each task."""
        return _Batch(**{name: value[which, rows] for name, value in vars(self).items()})


@final
class ActorCritic:
    """N policies and their critics, which learn from segments wherever those come from.

    Args:
        config: The hyperparameters.
        policy: The architecture.
        params: N policies to start from.
        statistics: Of observations; whoever acts keeps them up to date.
        discount: γ, [N].
        keys: [N] int64: minibatches of task n are drawn from stream n.
        seen: Observations [N, M, O] that the policies' value heads are fitted on before anything was learned.
        state: Where to go on: what :meth:`state` gave, among other things.
    """

    def __init__(
        self,
        config: PPOConfig,
        policy: Policy,
        params: Params,
        statistics: Statistics,
        discount: Tensor,
        keys: Tensor,
        seen: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.count = len(discount)
        self.config = config
        self.policy = policy
        self._observed = statistics
        self._discount = discount
        self._keys = keys
        moved = [name for name in policy.trainable() if not name.startswith("value.")]
        # The critic is another policy, as it were, whose head has the value in its first place: so that both trunks
        # and both heads are one product each.
        critic = {name: params[name] for name in moved}
        spare = policy.head_size - 1
        critic["policy.weight"] = torch.nn.functional.pad(params["value.weight"], (0, spare))
        critic["policy.bias"] = torch.nn.functional.pad(params["value.bias"], (0, spare))
        self._networks = Networks.of({name: torch.cat([params[name], critic[name]]) for name in moved})
        self._last = seen
        if state is not None:
            self._networks.restore("networks", state)
            self._last = state["last"].clone()

    @property
    def actors(self) -> Params:
        """Copies of the N policies as they are now; they have no value heads."""
        return self._networks.rows(slice(self.count)) | self._observed.values

    @property
    def policies(self) -> Params:
        """The N policies as they are now, their value heads fitted to their critics."""
        actor = self.actors
        with torch.no_grad():
            value = self._values(self._last)
            features = self.policy.features(actor, self._last)
        return actor | returns.fitted_value_head(features, value, torch.ones_like(value))

    def state(self) -> Params:
        """All that learning changes, by name: with it another goes on bit for bit."""
        return self._networks.state("networks") | {"last": self._last}

    def learn(self, segment: Segment, used: Tensor, time: int, log_prob: Tensor | None = None) -> Metrics:
        """Make the updates of a round.

        Args:
            segment: Its steps.
            used: Share of each task's budget that was used up before, [N] in [0, 1].
            time: When the round began: what minibatches are drawn by.
            log_prob: Of the actions, under the policies that took them, [N, T, B]; by default these very policies did.

        Returns:
            Means over tasks of what there is to tell.
        """
        config = self.config
        batch = self._prepare(segment, log_prob)
        rates = config.learning_rate, config.value_learning_rate or config.learning_rate
        rate = torch.cat([config.scheduled(each, used) for each in rates])
        clip = None if config.clip_ratio is None else config.scheduled(config.clip_ratio, used)
        active = None if config.kl_limit is None else torch.ones_like(rate, dtype=torch.bool)
        for epoch in range(config.epochs):
            for part in self._parts(batch, time, epoch):
                gradient, divergence = self._gradient(part, clip)
                if active is not None and config.kl_limit is not None:
                    active[: self.count] &= (divergence <= config.kl_limit).unsqueeze(1)
                norm = self._networks.descend(gradient, rate, config.max_gradient_norm, active)
            if active is not None and not bool(active[: self.count].any()):
                break
        return {
            "divergence": float(divergence.mean()),
            "policy_gradient_norm": float(norm[: self.count].mean()),
            "value_gradient_norm": float(norm[self.count :].mean()),
            "explained_variance": float(_explained(batch.value, batch.target).mean()),
        }

    @torch.no_grad()
    def _prepare(self, segment: Segment, log_prob: Tensor | None) -> _Batch:
        """Log-probabilities, advantages and targets of the steps of a round."""
        observation, action = segment.observation.flatten(1, 2), segment.action.flatten(1, 2)
        self._last = observation[:, -_ROWS_FOR_VALUES:]
        out = self._out(self._networks.params, observation)
        logits, value = out[: self.count], out[self.count :, :, 0]
        if log_prob is None:
            log_prob = self.policy.log_prob(self._actor(self._networks.params), logits, action)
        after = self._values(segment.next_observation.flatten(1, 2)).reshape(segment.reward.shape)
        advantage = segment_advantages(
            segment, value.reshape(segment.reward.shape), after, self._discount, self.config.gae_decay
        ).flatten(1)
        target = advantage + value
        if self.config.normalise_advantages:
            deviation, mean = torch.std_mean(advantage, 1, correction=0, keepdim=True)
            advantage = (advantage - mean) / (deviation + 1e-8)
        return _Batch(observation, action, log_prob.reshape(value.shape), advantage, value, target)

    def _parts(self, batch: _Batch, time: int, epoch: int) -> list[_Batch]:
        if self.config.minibatches == 1:
            return [batch]
        rows = batch.value.shape[1]
        keys = random.fold_in(random.fold_in(random.fold_in(self._keys, _SHUFFLE), time), epoch)
        order = random.uniform(keys, rows, torch.float64).argsort(1)
        which = torch.arange(self.count, device=order.device).unsqueeze(1)
        return [batch.select(which, part) for part in order.tensor_split(self.config.minibatches, 1)]

    def _gradient(self, batch: _Batch, clip: Tensor | None) -> tuple[Params, Tensor]:
        """Gradient of each network's loss by its tensors, and how far the policies have moved, [N]."""
        networks = self._networks.params
        observation = batch.observation.repeat(2, 1, 1)
        features, pull = trunk(self.policy, networks, self._twice(self._observed.values), observation)
        leaves = {"out": head(networks, "policy", features).requires_grad_()}
        if "log_std" in networks:
            leaves["log_std"] = networks["log_std"].detach().requires_grad_()
        loss, divergence = self._loss(batch, leaves["out"], leaves.get("log_std"), clip)
        by_out, *by_log_std = torch.autograd.grad(loss.sum(), list(leaves.values()))
        by_features, gradient = pull_head(networks, "policy", features, by_out)
        return gradient | pull(by_features) | dict(zip(["log_std"], by_log_std, strict=False)), divergence

    def _loss(self, batch: _Batch, out: Tensor, log_std: Tensor | None, clip: Tensor | None) -> tuple[Tensor, Tensor]:
        """Loss of each network from its head [2N, M, head_size], and how far the policies have moved, [N]."""
        logits, value = out[: self.count], out[self.count :, :, 0]
        actor = {} if log_std is None else {"log_std": log_std[: self.count]}
        change = self.policy.log_prob(actor, logits, batch.action) - batch.log_prob
        ratio = change.exp()
        gain = ratio * batch.advantage
        if clip is not None:
            bounded = torch.maximum(torch.minimum(ratio, 1 + clip), 1 - clip)
            gain = torch.minimum(gain, bounded * batch.advantage)
        loss = -gain.mean(1)
        if self.config.entropy_coefficient:
            loss = loss - self.config.entropy_coefficient * self.policy.entropy(actor, logits).mean(1)
        error = (value - batch.target).square()
        if self.config.value_clip is not None:
            near = batch.value + (value - batch.value).clamp(-self.config.value_clip, self.config.value_clip)
            error = torch.maximum(error, (near - batch.target).square())
        # The mean of ρ - 1 - log ρ: never below zero, and less noisy than that of -log ρ (Schulman 2020).
        divergence = (ratio - 1 - change).detach().mean(1)
        return torch.cat([loss, 0.5 * error.mean(1)]), divergence

    @staticmethod
    def _twice(statistics: Params) -> Params:
        """For the policies, and for their critics."""
        return {name: value.repeat(2, 1) for name, value in statistics.items()}

    def _out(self, networks: Params, observation: Tensor) -> Tensor:
        """Heads of actors and critics, [2N, M, head_size]."""
        networks = networks | self._twice(self._observed.values)
        return self.policy.head(networks, self.policy.features(networks, observation.repeat(2, 1, 1)))

    def _actor(self, networks: Params) -> Params:
        return {"log_std": networks["log_std"][: self.count]} if "log_std" in networks else {}

    def _values(self, observation: Tensor) -> Tensor:
        """What the critics say of observations [N, M, O]."""
        critic = self._networks.rows(slice(self.count, None)) | self._observed.values
        return self.policy.head(critic, self.policy.features(critic, observation))[..., 0]


@final
class PPO(FineTuner[PPOConfig]):
    """See :class:`PPOConfig`."""

    def __init__(
        self,
        config: PPOConfig,
        policy: Policy,
        params: Params,
        tasks: TaskBatch,
        keys: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(config, policy, params, tasks, keys, state)
        seen = self.stream.observation
        self._learning = ActorCritic(config, policy, params, self.observed, tasks.discount, keys, seen, state)

    @property
    @override
    def policies(self) -> Params:
        return self._learning.policies

    @override
    def state(self) -> Params:
        return super().state() | self._learning.state()

    @override
    def round(self, used: Tensor) -> tuple[Segment, Metrics]:
        time = self.stream.time
        segment = self._act()
        return segment, self._learning.learn(segment, used, time)

    @torch.no_grad()
    def _act(self) -> Segment:
        actor = self._learning.actors
        noise = self.stream.noise(actor, self.config.steps)
        decide = self.policy.acting(actor)
        return self.stream.advance(
            self.config.steps, lambda observation, t: self.policy.choose(decide(observation, t), noise[:, t])
        )


def segment_advantages(segment: Segment, value: Tensor, after: Tensor, discount: Tensor, decay: float) -> Tensor:
    """Generalised advantage estimates across the episodes of a segment.

        δ_t = r_t + γ V(s_{t+1}) - V(s_t),   A_t = δ_t + γλ A_{t+1}

    where V of a terminal state is 0, and A_{t+1} too where an episode ended at t.

    Args:
        segment: The steps.
        value: V before each, [N, T, B].
        after: V after each, of the same episode, [N, T, B].
        discount: γ, [N].
        decay: λ.

    Returns:
        [N, T, B].
    """
    gamma = discount.reshape(-1, 1, 1)
    delta = segment.reward + gamma * after.masked_fill(segment.terminated, 0.0) - value
    goes_on = (gamma * decay) * (~(segment.terminated | segment.truncated)).to(value.dtype)
    for t in range(delta.shape[1] - 2, -1, -1):
        delta[:, t].addcmul_(goes_on[:, t], delta[:, t + 1])
    return delta


def _explained(value: Tensor, target: Tensor) -> Tensor:
    """Share of the targets' variance that the values explain, [N]; at most 1."""
    return 1.0 - (target - value).var(1) / (target.var(1) + 1e-8)
