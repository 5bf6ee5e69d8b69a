"""Episodes that were acted elsewhere: from what their actors tell to what learning takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.finetune.stream import Segment
from models.policy import Policy
from models.types import Params, Rollout, stack_params

_LARGEST_LOG_RATIO = 100.0
"""Far beyond all that means anything; exponentials of it can still be added up."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of ``T`` steps, as its actor tells it.

    Attributes:
        observation: Before each step and after the last, [T + 1, O].
        action: In environment units, [T] whole numbers or [T, A].
        reward: [T].
        terminated: Whether it ended in a terminal state; otherwise it was cut off.
        revision: Of the policy that acted.
        log_prob: Of the actions under that policy (densities in policy units), [T]; None where they were not kept.
        policy_action: Continuous actions in policy units, [T, A]; None where they were not kept.
    """

    observation: NDArray[np.float64]
    action: NDArray[Any]
    reward: NDArray[np.float64]
    terminated: bool
    revision: int
    log_prob: NDArray[np.float64] | None = None
    policy_action: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Transitions:
    """The steps of ``B`` episodes, one episode after another, ``M`` in all, as one task's.

    Attributes:
        observation: Before each step, [M, O].
        next_observation: After it, [M, O].
        action: [M] int64, or [M, A] in policy units.
        reward: [M].
        log_prob: Of the actions under the policies that took them, [M].
        lengths: Steps of each episode, [B] int64.
        terminated: Of each episode, [B] bool.
    """

    observation: Tensor
    next_observation: Tensor
    action: Tensor
    reward: Tensor
    log_prob: Tensor
    lengths: Tensor
    terminated: Tensor

    def rollout(self) -> Rollout:
        """The episodes side by side, [1, T, B, ...]."""
        time = torch.arange(int(self.lengths.max())).unsqueeze(1)
        alive = time < self.lengths
        first = self.lengths.cumsum(0) - self.lengths
        # After its end an episode's last step is repeated: numbers that no ratio of probabilities makes infinite.
        rows = first + torch.minimum(time, self.lengths - 1)
        return Rollout(
            observation=self.observation[rows].unsqueeze(0),
            action=self.action[rows].unsqueeze(0),
            reward=(self.reward[rows] * alive).unsqueeze(0),
            mask=alive.to(self.reward.dtype).unsqueeze(0),
            log_prob=self.log_prob[rows].unsqueeze(0),
            terminated=self.terminated.unsqueeze(0),
            final_observation=self.next_observation[rows[-1]].unsqueeze(0),
        )

    def segment(self) -> Segment:
        """The episodes one after another at one place, [1, M, 1, ...]."""
        end = torch.zeros(len(self.reward), dtype=torch.bool)
        end[self.lengths.cumsum(0) - 1] = True
        terminated = torch.repeat_interleave(self.terminated, self.lengths) & end
        return Segment(
            observation=self.observation.reshape(1, -1, 1, self.observation.shape[1]),
            action=self.action.reshape(1, -1, 1, *self.action.shape[1:]),
            reward=self.reward.reshape(1, -1, 1),
            next_observation=self.next_observation.reshape(1, -1, 1, self.observation.shape[1]),
            terminated=terminated.reshape(1, -1, 1),
            truncated=(end & ~terminated).reshape(1, -1, 1),
            finished=torch.tensor([len(self.lengths)]),
            finished_return=self.reward.sum().reshape(1),
        )

    @torch.no_grad()
    def divergences(self, policy: Policy, params: Params) -> list[float]:
        """How far one policy is from those that acted, in nats: the mean of ρ - 1 - log ρ over each episode's steps.

            ρ_t = π(a_t | o_t) / π_acted(a_t | o_t)

        Zero for the policy itself, never below it, and in expectation the divergence KL(π_acted || π) (Schulman 2020,
        "Approximating KL divergence").
        """
        by_step = _log_prob(policy, params, self.observation, self.action).double() - self.log_prob.double()
        by_step = by_step.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
        terms = by_step.expm1() - by_step
        return [float(part.mean()) for part in torch.split(terms, self.lengths.tolist())]


def read_episodes(policy: Policy, episodes: Sequence[Episode], behaviour: Mapping[int, Params]) -> Transitions:
    """What learning takes of episodes, in their order.

    Continuous actions without their originals in policy units are taken back through the policy's scaling
    (:meth:`models.policy.Policy.from_environment`). Log-probabilities that were not kept are worked out.

    Args:
        policy: The architecture.
        episodes: At least one.
        behaviour: Parameters of one policy for every revision that an episode without log-probabilities acted with.
    """
    lengths = torch.tensor([len(episode.reward) for episode in episodes])
    observation = _joined([episode.observation[:-1] for episode in episodes])
    transitions = Transitions(
        observation=observation,
        next_observation=_joined([episode.observation[1:] for episode in episodes]),
        action=torch.cat([_action(policy, episode) for episode in episodes]),
        reward=_joined([episode.reward for episode in episodes]),
        log_prob=_joined([np.zeros(len(e.reward)) if e.log_prob is None else e.log_prob for e in episodes]),
        lengths=lengths,
        terminated=torch.tensor([episode.terminated for episode in episodes]),
    )
    unknown = torch.tensor([episode.revision if episode.log_prob is None else -1 for episode in episodes])
    acted_by = torch.repeat_interleave(unknown, lengths)
    for revision in {int(each) for each in unknown if each >= 0}:
        rows = acted_by == revision
        transitions.log_prob[rows] = _log_prob(policy, behaviour[revision], observation[rows], transitions.action[rows])
    return transitions


@torch.no_grad()
def _log_prob(policy: Policy, params: Params, observation: Tensor, action: Tensor) -> Tensor:
    """Of actions [M, ...] in observations [M, O] under one policy, [M]."""
    stacked = stack_params(params, 1)
    head = policy.head(stacked, policy.features(stacked, observation.unsqueeze(0)))
    return policy.log_prob(stacked, head, action.unsqueeze(0))[0]


def _action(policy: Policy, episode: Episode) -> Tensor:
    if policy.discrete:
        return torch.from_numpy(episode.action.astype(np.int64))
    if episode.policy_action is not None:
        return torch.from_numpy(episode.policy_action.astype(np.float32))
    # In double precision: near a squash's bounds the way back stretches every rounding.
    return policy.from_environment(torch.from_numpy(episode.action.astype(np.float64))).float()


def _joined(parts: Sequence[NDArray[np.float64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))
