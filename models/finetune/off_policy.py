"""What methods share that learn again and again from what happened before."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from models.finetune.base import FineTuneConfig, FineTuner, Metrics, within
from models.finetune.replay import Replay
from models.finetune.stream import Segment
from models.policy import Policy
from models.tasks import TaskBatch
from models.types import Params


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(FineTuneConfig):
    """What every such method has: steps that are kept, and updates on samples of them."""

    updates: Annotated[int, Ge(1), Le(100_000)] = 8
    """Updates of a round."""

    batch_size: Annotated[int, Ge(1), Le(100_000)] = 128
    """Samples of an update."""

    buffer_size: Annotated[int, Ge(2), Le(10_000_000)] = 50_000
    """Steps that are kept to learn from, the newest."""

    warm_up_steps: Annotated[int, Ge(0), Le(10_000_000)] = 1_000
    """Environment steps before the first update."""

    n_steps: Annotated[int, Ge(1), Le(100)] = 1
    """Rewards that a target sums before it trusts a network."""

    max_gradient_norm: Annotated[float, Gt(0), Le(1e6)] | None = None
    """Length to which gradients are cut; null for no limit."""


Config = TypeVar("Config", bound=OffPolicyConfig, covariant=True)


class OffPolicy(FineTuner[Config]):
    """Rounds of acting and, after the warm-up, of updates on samples of what was kept.

    Args:
        priority_exponent: α of :class:`models.finetune.replay.Replay`.

    The others are those of :class:`models.finetune.base.FineTuner`.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        params: Params,
        tasks: TaskBatch,
        keys: Tensor,
        state: Mapping[str, Tensor] | None = None,
        priority_exponent: float = 0.0,
    ) -> None:
        super().__init__(config, policy, params, tasks, keys, state)
        places, discount = config.parallel_episodes, tasks.discount
        self._replay = Replay(config.buffer_size, places, config.n_steps, discount, priority_exponent)
        if state is not None:
            self._replay.restore(within("replay", state))

    @override
    def state(self) -> Params:
        return super().state() | {f"replay.{name}": value for name, value in self._replay.state().items()}

    @override
    def round(self, used: Tensor) -> tuple[Segment, Metrics]:
        segment = self._act(used)
        self._replay.add(segment)
        if self.stream.time * self.config.parallel_episodes < self.config.warm_up_steps or not self._replay.size:
            return segment, {}
        return segment, self._learn(used)

    @abstractmethod
    def _act(self, used: Tensor) -> Segment:
        """Take the steps of a round."""

    @abstractmethod
    def _learn(self, used: Tensor) -> Metrics:
        """Make the updates of a round."""
