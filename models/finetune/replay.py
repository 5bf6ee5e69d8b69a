"""What happened lately, to learn from again: a ring of the last steps of N tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

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
        place: Where in the ring it begins, [N, M].
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
    """The last steps of N tasks, B episodes of each side by side.

    A sample begins at any step that has n steps behind it (or its episode's end), uniformly, or in proportion to a
    power of its priority: how wrong what was learned was about it last.

    Args:
        capacity: Steps kept of each task, all episodes together; rounded up to whole rows of B.
        places: B.
        n_steps: Longest sum of rewards.
        discount: γ, [N].
        priority_exponent: α; 0 samples uniformly.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning"; Schaul et al. 2016,
    "Prioritized experience replay", the proportional variant.
    """

    def __init__(
        self, capacity: int, places: int, n_steps: int, discount: Tensor, priority_exponent: float = 0.0
    ) -> None:
        self._rows = max(n_steps + 1, -(-capacity // places))
        self._places = places
        self._n_steps = n_steps
        self._discount = discount.unsqueeze(1)
        self._exponent = priority_exponent
        self._which = torch.arange(len(discount), device=discount.device).unsqueeze(1)
        self._ring: Params = {}
        self._filled = self._next = 0

    @property
    def size(self) -> int:
        """Steps of each task that a sample can begin at."""
        return max(0, self._filled - self._n_steps + 1) * self._places

    def add(self, segment: Segment) -> None:
        """Keep the steps of a segment in place of the oldest."""
        new = {
            "observation": segment.observation,
            "action": segment.action,
            "reward": segment.reward,
            "next_observation": segment.next_observation,
            "terminated": segment.terminated,
            "ended": segment.terminated | segment.truncated,
        }
        tasks, steps, places = segment.reward.shape
        if not self._ring:
            self._ring = {
                name: value.new_zeros(tasks, self._rows, places, *value.shape[3:]) for name, value in new.items()
            }
            if self._exponent:
                self._ring["priority"] = segment.reward.new_zeros(tasks, self._rows, places)
        if self._exponent:
            # What was never learned from is learned from soon.
            highest = self._ring["priority"].amax((1, 2), keepdim=True)
            new["priority"] = torch.where(highest > 0, highest, torch.ones_like(highest)).expand(tasks, steps, places)
        for start in range(0, steps, self._rows):
            count = min(self._rows, steps - start)
            at = (torch.arange(count, device=segment.reward.device) + self._next) % self._rows
            for name, value in new.items():
                self._ring[name][:, at] = value[:, start : start + count]
            self._next = (self._next + count) % self._rows
            self._filled = min(self._filled + count, self._rows)

    def latest(self, steps: int) -> Tensor | None:
        """Observations of about so many steps of each task, the newest, [N, M, O]; None where there are none yet."""
        rows = min(self._filled, -(-steps // self._places))
        at = (self._next - rows + torch.arange(rows, device=self._which.device)) % self._rows
        return self._ring["observation"][:, at].flatten(1, 2) if rows else None

    def sample(self, draws: Tensor, weight_exponent: float | Tensor = 0.0) -> Transitions:
        """Samples at random.

        Args:
            draws: Uniform numbers in (0, 1), [N, M].
            weight_exponent: β, one or [N, 1]: how far weights make up for unequal chances, where they are unequal.
        """
        if self._exponent:
            age, place, weight = self._by_priority(draws, weight_exponent)
        else:
            begin = (draws * self.size).long().clamp(max=self.size - 1)
            age, place = begin // self._places, begin % self._places
            weight = torch.ones_like(draws)
        steps = torch.arange(self._n_steps, device=draws.device)
        rows = (self._next - self._filled + age.unsqueeze(-1) + steps) % self._rows
        ended = self._take("ended", rows, place.unsqueeze(-1))
        # A sample goes on as long as its episode does.
        goes_on = (~ended).cumprod(-1).roll(1, -1)
        goes_on[..., 0] = 1
        power = (self._discount**steps).unsqueeze(1)
        reward = (self._take("reward", rows, place.unsqueeze(-1)) * goes_on).mul_(power).sum(-1)
        count = goes_on.sum(-1)
        row, last = rows[..., 0], rows.gather(-1, count.unsqueeze(-1) - 1).squeeze(-1)
        terminated = self._take("terminated", last, place)
        return Transitions(
            observation=self._take("observation", row, place),
            action=self._take("action", row, place),
            reward=reward,
            next_observation=self._take("next_observation", last, place),
            discount=(self._discount**count).masked_fill(terminated, 0.0),
            weight=weight,
            place=row * self._places + place,
        )

    def judge(self, transitions: Transitions, error: Tensor) -> None:
        """Note how wrong what was learned is about samples: |error| [N, M]; the most, of a step that is there twice."""
        if self._exponent:
            priority = self._ring["priority"].view(len(error), -1)
            judged = (error.abs() + _EPSILON).to(priority.dtype) ** self._exponent
            priority.scatter_reduce_(1, transitions.place, judged, "amax", include_self=False)

    def state(self) -> Params:
        """All that is kept."""
        kept = {name: value[:, : self._filled].clone() for name, value in self._ring.items()}
        return kept | {"next": torch.tensor([self._next])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self._next = int(state["next"])
        for name, value in state.items():
            if name != "next":
                self._filled = value.shape[1]
                self._ring[name] = value.new_zeros(value.shape[0], self._rows, *value.shape[2:])
                self._ring[name][:, : self._filled] = value

    def _take(self, name: str, row: Tensor, place: Tensor) -> Tensor:
        which = self._which.reshape(-1, *[1] * (row.dim() - 1))
        return self._ring[name][which, row, place]

    def _by_priority(self, draws: Tensor, weight_exponent: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        priority = self._ring["priority"]
        rows = (self._next - self._filled + torch.arange(self._filled, device=draws.device)) % self._rows
        usable = priority[:, rows[: self.size // self._places]].flatten(1)
        total = usable.double().cumsum(1)
        begin = torch.searchsorted(total, draws * total[:, -1:]).clamp(max=self.size - 1)
        chance = usable.gather(1, begin) / total[:, -1:]
        weight = (self.size * chance) ** -weight_exponent
        weight = (weight / weight.amax(1, keepdim=True)).to(priority.dtype)
        return begin // self._places, begin % self._places, weight
