"""What happened lately, to learn from again: a ring of the last transitions of N tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from models.finetune.base import within
from models.finetune.stream import Segment
from models.types import Params

_EPSILON = 1e-6


@dataclass(frozen=True)
class Transitions:
    """``M`` samples of each of ``N`` tasks, each of up to n steps.

    Attributes:
        observation: [N, M, O].
        action: In policy units, [N, M] or [N, M, A].
        reward: Discounted sum of the rewards of its steps, [N, M].
        next_observation: After the last of them, [N, M, O].
        discount: What the value of that counts, [N, M]: γ to the number of steps, 0 where the state is terminal.
        weight: Of each in a loss, [N, M]; at most 1.
        place: Where in the ring it is, [N, M].
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    discount: Tensor
    weight: Tensor
    place: Tensor


@final
class Replay:
    """The last transitions of N tasks, from B episodes of each side by side.

    A transition begins at any step that has n steps behind it (or its episode's end). Samples are drawn uniformly, or
    in proportion to a power of their priority: how wrong what was learned was about them last.

    Args:
        capacity: Transitions kept of each task, all episodes together; rounded up to whole rows of B.
        places: B.
        n_steps: Longest sum of rewards.
        discount: γ, [N].
        priority_exponent: α; 0 samples uniformly.

    Attributes:
        size: Transitions of each task that are there.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning"; Schaul et al. 2016,
    "Prioritized experience replay", the proportional variant.
    """

    def __init__(
        self, capacity: int, places: int, n_steps: int, discount: Tensor, priority_exponent: float = 0.0
    ) -> None:
        self.size = 0
        self._rows = -(-capacity // places)
        self._capacity = self._rows * places
        self._n_steps = n_steps
        self._discount = discount.unsqueeze(1)
        self._exponent = priority_exponent
        self._first = torch.arange(len(discount), device=discount.device).unsqueeze(1) * self._capacity
        self._ring: Params = {}
        self._next = 0
        # Steps that do not have n steps behind them yet.
        self._recent: Params = {}

    def add(self, segment: Segment) -> None:
        """Take in a segment that goes on where the last one ended, [N, T, B, ...]."""
        steps = {
            "observation": segment.observation,
            "action": segment.action,
            "reward": segment.reward,
            "next_observation": segment.next_observation,
            "terminated": segment.terminated,
            "ended": segment.terminated | segment.truncated,
        }
        if self._recent:
            steps = {name: torch.cat([self._recent[name], value], 1) for name, value in steps.items()}
        whole = max(0, steps["reward"].shape[1] - self._n_steps + 1)
        self._recent = {name: value[:, whole:].clone() for name, value in steps.items()}
        if whole:
            self._keep({name: value[:, -self._rows :].flatten(1, 2) for name, value in self._sums(steps).items()})

    def _sums(self, steps: Params) -> Params:
        """Transitions that begin at each step with n steps behind it, [N, T - n + 1, B, ...]."""
        ended, reward = (steps[name].unfold(1, self._n_steps, 1) for name in ("ended", "reward"))
        # A transition goes on as long as its episode does.
        goes_on = (~ended).cumprod(-1).roll(1, -1)
        goes_on[..., 0] = 1
        discount = self._discount.reshape(-1, 1, 1, 1)
        count = goes_on.sum(-1)
        begin = torch.arange(count.shape[1], device=count.device).reshape(1, -1, 1)
        last = begin + count - 1
        terminated = steps["terminated"].take_along_dim(last, 1)
        return {
            "observation": steps["observation"][:, : count.shape[1]],
            "action": steps["action"][:, : count.shape[1]],
            "reward": (reward * goes_on * discount ** torch.arange(self._n_steps, device=count.device)).sum(-1),
            "next_observation": steps["next_observation"].take_along_dim(last.unsqueeze(-1), 1),
            "discount": (discount[..., 0] ** count).masked_fill(terminated, 0.0),
        }

    def _keep(self, new: Params) -> None:
        """Put transitions [N, M, ...] where the oldest are."""
        tasks, count = new["reward"].shape
        if self._exponent:
            # What was never learned from is learned from soon.
            highest = self._ring["priority"].amax(1, keepdim=True) if self._ring else new["reward"].new_zeros(tasks, 1)
            new["priority"] = torch.where(highest > 0, highest, torch.ones_like(highest)).expand(tasks, count)
        if not self._ring:
            self._ring = {name: value.new_zeros(tasks, self._capacity, *value.shape[2:]) for name, value in new.items()}
        at = (torch.arange(count, device=self._first.device) + self._next) % self._capacity
        for name, value in new.items():
            self._ring[name][:, at] = value
        self._next = (self._next + count) % self._capacity
        self.size = min(self.size + count, self._capacity)

    def latest(self, count: int) -> Tensor | None:
        """Observations of about so many transitions of each task, the newest, [N, M, O]; None if there are none yet."""
        count = min(self.size, count)
        at = (self._next - count + torch.arange(count, device=self._first.device)) % self._capacity
        return self._ring["observation"][:, at] if count else None

    def sample(self, draws: Tensor, weight_exponent: float | Tensor = 0.0) -> Transitions:
        """Samples at random.

        Args:
            draws: Uniform numbers in (0, 1), [N, M].
            weight_exponent: β, one or [N, 1]: how far weights make up for unequal chances, where they are unequal.
        """
        if self._exponent:
            place, weight = self._by_priority(draws, weight_exponent)
        else:
            place = (draws * self.size).long().clamp(max=self.size - 1)
            weight = torch.ones_like(draws)
        at = (self._first + place).flatten()
        taken = {
            name: value.flatten(0, 1).index_select(0, at).reshape(*place.shape, *value.shape[2:])
            for name, value in self._ring.items()
            if name != "priority"
        }
        return Transitions(**taken, weight=weight, place=place)

    def judge(self, transitions: Transitions, error: Tensor) -> None:
        """Note how wrong what was learned is about samples: |error| [N, M]; the most, of one that is there twice."""
        if self._exponent:
            priority = self._ring["priority"]
            judged = (error.abs() + _EPSILON).to(priority.dtype) ** self._exponent
            priority.scatter_reduce_(1, transitions.place, judged, "amax", include_self=False)

    def state(self) -> Params:
        """All that is kept."""
        kept = {f"ring.{name}": value[:, : self.size].clone() for name, value in self._ring.items()}
        recent = {f"recent.{name}": value for name, value in self._recent.items()}
        return kept | recent | {"next": torch.tensor([self._next])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self._next = int(state["next"])
        self._recent = within("recent", state)
        for name, value in within("ring", state).items():
            self.size = value.shape[1]
            self._ring[name] = value.new_zeros(value.shape[0], self._capacity, *value.shape[2:])
            self._ring[name][:, : self.size] = value

    def _by_priority(self, draws: Tensor, weight_exponent: float | Tensor) -> tuple[Tensor, Tensor]:
        priority = self._ring["priority"][:, : self.size]
        total = priority.double().cumsum(1)
        place = torch.searchsorted(total, draws * total[:, -1:]).clamp(max=self.size - 1)
        chance = priority.gather(1, place) / total[:, -1:]
        weight = (self.size * chance) ** -weight_exponent
        return place, (weight / weight.amax(1, keepdim=True)).to(priority.dtype)
