"""What has come in for a remote adaptation, what was made of it, and what it still waits for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from app.tables import Adaptation


@dataclass(frozen=True)
class Counts:
    """What is known of a remote adaptation without looking at its episodes.

    Attributes:
        episodes: Complete ones.
        environment_steps: Of these.
        episodes_used: Of these, those that were learned from.
        environment_steps_used: Of those.
        steps_taken: Inner steps, or rounds of PPO.
        revision: Of the policy.
        sequence: Number of the newest episode, complete or not.
        off_policy: Mean divergence of the newest step's episodes, in nats.
        events_expired: Recorded actions whose reward never came.
    """

    episodes: int = 0
    environment_steps: int = 0
    episodes_used: int = 0
    environment_steps_used: int = 0
    steps_taken: int = 0
    revision: int = 0
    sequence: int = 0
    off_policy: float | None = None
    events_expired: int = 0

    @classmethod
    def of(cls, row: Adaptation) -> Counts:
        """What a row says; of one that is no remote adaptation's, that nothing has come in."""
        return cls(**(row.counts or {}))

    def to_json(self) -> dict[str, Any]:
        """For the row."""
        return asdict(self)

    def fraction(self, method: Mapping[str, Any]) -> float:
        """Share of the method's budget that is used up, in [0, 1]."""
        if method["name"] == "inner-loop":
            return min(1.0, self.steps_taken / float(method["steps"]))
        return min(1.0, max(amount / limit for _, amount, limit in self._budget(method)))

    def stopped_by(self, method: Mapping[str, Any]) -> str | None:
        """Name of the limit because of which no further step is taken; None while there is one to take."""
        if method["name"] == "inner-loop":
            return "steps" if self.steps_taken >= method["steps"] else None
        return next((name for name, amount, limit in self._budget(method) if amount >= limit), None)

    def episodes_needed(self, method: Mapping[str, Any], horizon: int) -> int:
        """Episodes that must still come in before the next step, at least; 0 where one is due or none is taken."""
        if self.stopped_by(method):
            return 0
        if method["name"] == "inner-loop":
            return max(0, int(method["episodes"]) - (self.episodes - self.episodes_used))
        return math.ceil(self.environment_steps_needed(method) / horizon)

    def environment_steps_needed(self, method: Mapping[str, Any]) -> int:
        """Steps of whole episodes that must still come in before the next round of PPO; 0 where none must."""
        if method["name"] == "inner-loop" or self.stopped_by(method):
            return 0
        waiting = self.environment_steps - self.environment_steps_used
        return max(0, int(method["parallel_episodes"] * method["steps"]) - waiting)

    def is_due(self, method: Mapping[str, Any]) -> bool:
        """Whether enough is in for a step."""
        return self.stopped_by(method) is None and self.episodes_needed(method, 1) == 0

    def _budget(self, method: Mapping[str, Any]) -> list[tuple[str, int, int]]:
        """Every limit of a PPO's budget: its name, how much is used, and the limit."""
        used = {"environment_steps": self.environment_steps_used, "episodes": self.episodes_used}
        return [(name, amount, method[name]) for name, amount in used.items() if method[name] is not None]
