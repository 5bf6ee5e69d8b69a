"""Fine-tuning on episodes that were acted elsewhere: one round at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models import random
from models.adaptation import AdaptationDiverged
from models.experience import Transitions
from models.finetune.base import Metrics, Statistics
from models.finetune.loop import learning_keys
from models.finetune.ppo import ActorCritic, PPOConfig
from models.policy import Policy
from models.types import Params, all_finite, stack_params


@dataclass(frozen=True)
class Improvement:
    """What a round gave.

    Attributes:
        params: The policy after it.
        state: With which the next goes on, as tensors by name.
        metrics: What the method has to tell of the round.
    """

    params: Params
    state: Params
    metrics: Metrics


def improve(
    config: PPOConfig,
    policy: Policy,
    params: Params,
    transitions: Transitions,
    discount: float,
    seed: int,
    used: float,
    time: int,
    state: Mapping[str, Tensor] | None = None,
) -> Improvement:
    """One round of proximal policy optimisation on whole episodes of one task.

    Args:
        config: The hyperparameters; what they say of acting and measuring is passed over.
        policy: The architecture.
        params: The policy that the first round starts from; the later ones go by ``state``.
        transitions: The episodes of the round. Where other revisions acted, their log-probabilities weigh the steps.
        discount: γ.
        seed: Of all randomness.
        used: Share of the budget that was used up before, in [0, 1].
        time: Steps of all rounds before.
        state: What the round before left.

    Raises:
        AdaptationDiverged: If a parameter became NaN or infinite.
    """
    stacked = {name: value.clone() for name, value in stack_params(params, 1).items()}
    observed = Statistics(policy, stacked, state)
    seen = transitions.observation[:1].unsqueeze(0)
    keys = learning_keys(random.key(seed, "finetune").reshape(1))
    discounts = torch.tensor([discount])
    learning = ActorCritic(config, policy, stacked, observed, discounts, keys, seen, state)
    segment = transitions.segment()
    log_prob = transitions.log_prob.reshape(segment.reward.shape)
    metrics = learning.learn(segment, torch.tensor([used]), time, log_prob)
    observed.observe(segment)
    after = {name: value[0] for name, value in learning.policies.items()}
    if not all_finite(after):
        raise AdaptationDiverged("a round gave NaN or infinite parameters; try a smaller learning_rate")
    return Improvement(after, learning.state() | observed.state(), metrics)
