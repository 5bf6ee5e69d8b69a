"""What every fine-tuning method is: a frozen config with a budget, and rounds of acting and learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from models.finetune.networks import Networks
from models.finetune.stream import Segment, Stream
from models.policy import Policy
from models.tasks import TaskBatch
from models.types import InvalidValue, Params

Metrics = dict[str, float]

LearningRate = Annotated[float, Gt(0), Le(10)]


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """What every method has: a budget, how often the policy is measured, and how it acts and learns by turns.

    The budget is one task's, and the first of its limits that holds ends the adaptation. At least one of
    ``environment_steps``, ``episodes`` and ``seconds`` is needed: a target may never be reached.
    """

    environment_steps: Annotated[int, Ge(1), Le(10**9)] | None = None
    """Budget: steps of the task's episodes, those of evaluations not counted; the round under way is finished."""

    episodes: Annotated[int, Ge(1), Le(10**8)] | None = None
    """Budget: finished episodes of the task."""

    seconds: Annotated[float, Gt(0), Le(10**7)] | None = None
    """Budget: time of the whole computation, evaluations included. What is learned then depends on the machine."""

    target_return: Annotated[float, Ge(-1e30), Le(1e30)] | None = None
    """Ends at the first evaluation whose mean undiscounted return is at least this."""

    reset_values: bool = False
    """Begin with a new value head: where a policy was trained on another reward, its values mean nothing here."""

    evaluate_every: Annotated[int, Ge(1), Le(10**9)] | None = None
    """Environment steps from one evaluation to the next; null: a tenth of `environment_steps`, else 10,000. There is
    one at the start and one at the end in any case."""

    evaluation_episodes: Annotated[int, Ge(1), Le(1000)] = 20
    """Fresh episodes of an evaluation, used for nothing else."""

    greedy: bool = True
    """Evaluate the most likely actions, not sampled ones."""

    parallel_episodes: Annotated[int, Ge(1), Le(1024)] = 8
    """Episodes that run side by side."""

    steps: Annotated[int, Ge(1), Le(100_000)] = 4
    """Steps that each of them takes in a round, before what is learned from them."""

    learning_rate: LearningRate = 1e-3
    """Of Adam."""

    schedule: Literal["linear", "constant"] = "linear"
    """`linear`: `learning_rate` falls to 0 along with the budget. `constant`: it does not."""

    def __post_init__(self) -> None:
        """Refuse an adaptation without an end."""
        if self.environment_steps is None and self.episodes is None and self.seconds is None:
            detail = "give at least one of environment_steps, episodes, seconds"
            raise InvalidValue("", f"{detail}: without one the adaptation may never end")

    @property
    def evaluation_interval(self) -> int:
        """Environment steps from one evaluation to the next."""
        return self.evaluate_every or max(1, (self.environment_steps or 100_000) // 10)

    def scheduled(self, start: float, used: Tensor) -> Tensor:
        """What goes by ``schedule``: it falls from ``start`` to 0 along with the budget, or stays, [N, 1]."""
        return falling(start, 0.0 if self.schedule == "linear" else start, used)


class Statistics:
    """Of observations, of each of N policies.

    Those that a policy comes with move no more; a new policy counts what it sees.

    Args:
        policy: The architecture.
        params: The policies.
        state: Where to go on: what :meth:`state` gave, among other things.

    Attributes:
        values: Tensors by name, [N, ...]; none where observations are not normalised.
    """

    def __init__(self, policy: Policy, params: Params, state: Mapping[str, Tensor] | None = None) -> None:
        self._policy = policy
        self.values = {name: value for name, value in params.items() if name.startswith("observation.")}
        # Of a policy that has seen nothing yet.
        self._counts = bool(self.values) and not bool(self.values["observation.count"].any())
        if state is not None and (saved := within("statistics", state)):
            self.values, self._counts = saved, True

    def observe(self, segment: Segment) -> None:
        """Have new policies count what they have seen in a round, once it is over."""
        if self._counts:
            seen = segment.observation.flatten(1, 2)
            variance, mean = torch.var_mean(seen, 1, correction=0)
            self.values = self._policy.merged(self.values, seen.shape[1], mean, variance)

    def state(self) -> Params:
        """What moves, by names that begin with ``statistics``."""
        return {f"statistics.{name}": value for name, value in self.values.items()} if self._counts else {}


Config = TypeVar("Config", bound=FineTuneConfig, covariant=True)


class FineTuner(ABC, Generic[Config]):
    """N policies, each learning in its own task; :func:`models.finetune.finetune` drives it.

    Args:
        config: The method's hyperparameters.
        policy: The architecture.
        params: N policies to start from.
        tasks: N tasks.
        keys: [N] int64: all randomness of task n comes from stream n.
        state: Where to go on: what :meth:`state` gave.

    Attributes:
        count: N.
        observed: Statistics of observations.
        stream: The episodes.
        discount: γ, [N, 1].
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        params: Params,
        tasks: TaskBatch,
        keys: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.count = len(tasks)
        self.observed = Statistics(policy, params, state)
        self.config = config
        self.policy = policy
        self.tasks = tasks
        self.keys = keys
        stream = None if state is None else within("stream", state)
        self.stream = Stream(policy, tasks, config.parallel_episodes, keys, stream)
        self.discount = tasks.discount.unsqueeze(1)
        self._kept: dict[str, Networks] = {}

    def keep(self, networks: Mapping[str, Networks], state: Mapping[str, Tensor] | None) -> None:
        """Make networks part of the state by their names, as what such a state says of them if there is one."""
        self._kept |= networks
        if state is not None:
            for name, kept in networks.items():
                kept.restore(name, state)

    @property
    @abstractmethod
    def policies(self) -> Params:
        """The N policies as they are now, ready to act."""

    @abstractmethod
    def round(self, used: Tensor) -> tuple[Segment, Metrics]:
        """Take some steps in every task and learn from them.

        Args:
            used: Share of each task's budget that is used up, [N] in [0, 1]: what schedules go by.

        Returns:
            The steps taken, and means over tasks of what the method has to tell.
        """

    @property
    def statistics(self) -> Params:
        """Of observations, of each policy."""
        return self.observed.values

    def state(self) -> Params:
        """All that changes, by name: with it another fine-tuner goes on bit for bit."""
        state = {f"stream.{name}": value for name, value in self.stream.state().items()}
        state |= self.observed.state()
        for name, networks in self._kept.items():
            state |= networks.state(name)
        return state


def within(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The members of a state whose names begin with ``name`` and a dot, without that."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def falling(start: float, end: float, used: Tensor) -> Tensor:
    """A quantity that goes from ``start`` to ``end`` along with the budget, [N, 1]."""
    return (start + (end - start) * used.clamp(0.0, 1.0)).unsqueeze(1)
