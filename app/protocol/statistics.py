"""What was inferred through `/v2` in this process, and how long it took: Triton's statistics extension."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

MOST_MODELS = 1000
"""Models that are counted; of more, those that were asked last."""

MOST_BATCH_SIZES = 16
"""Batch sizes that are counted of one model; of more, those that came last."""

Phase = Literal["queue", "compute_input", "compute_infer", "compute_output"]


@dataclass(slots=True)
class Duration:
    """How often something was done, and for how many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Once more, for so long."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class InferenceStatistics:
    """Requests that were answered and refused, and the parts of answering; there is no cache to hit or miss."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class BatchStatistics:
    """What requests of so many observations took."""

    batch_size: int
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class ModelStatistics:
    """What was asked of one version of a model, or one revision of a policy.

    ``last_inference`` is in milliseconds since 1970, ``inference_count`` counts observations, ``execution_count``
    requests, of those that were answered.
    """

    name: str
    version: str
    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    inference_stats: InferenceStatistics = field(default_factory=InferenceStatistics)
    batch_stats: list[BatchStatistics] = field(default_factory=list)

    def batch(self, size: int) -> BatchStatistics:
        """The statistics of batches of this size."""
        sizes = [each.batch_size for each in self.batch_stats]
        found = self.batch_stats.pop(sizes.index(size)) if size in sizes else BatchStatistics(size)
        self.batch_stats.append(found)
        del self.batch_stats[:-MOST_BATCH_SIZES]
        return found


class Stopwatch:
    """What the parts of one request take."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter_ns()
        self.ns: dict[Phase, int] = {"queue": 0, "compute_input": 0, "compute_infer": 0, "compute_output": 0}

    def lap(self, phase: Phase) -> None:
        """The time since the last lap was this part's."""
        now = time.perf_counter_ns()
        self.ns[phase] += now - self._last
        self._last = now

    @property
    def total_ns(self) -> int:
        """The time up to the last lap."""
        return self._last - self._started


class Statistics:
    """The statistics of the models that were asked last; use it on the event loop."""

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[str, str], ModelStatistics] = OrderedDict()

    def succeeded(self, name: str, version: str, observations: int, watch: Stopwatch) -> None:
        """A request for so many observations was answered."""
        model = self._asked(name, version)
        model.inference_count += observations
        model.execution_count += 1
        stats, batch = model.inference_stats, model.batch(observations)
        stats.success.add(watch.total_ns)
        stats.queue.add(watch.ns["queue"])
        for each in (stats, batch):
            each.compute_input.add(watch.ns["compute_input"])
            each.compute_infer.add(watch.ns["compute_infer"])
            each.compute_output.add(watch.ns["compute_output"])

    def failed(self, name: str, version: str, watch: Stopwatch) -> None:
        """A request that reached the model was not answered."""
        self._asked(name, version).inference_stats.fail.add(watch.total_ns)

    def of(self, name: str, version: str = "") -> list[ModelStatistics]:
        """The statistics of a version of a model; without one, of all its versions that were asked."""
        return [
            model
            for (name_asked, version_asked), model in self._models.items()
            if name_asked == name and version in ("", version_asked)
        ]

    def all(self) -> list[ModelStatistics]:
        """The statistics of all, the one that was asked last at the end."""
        return list(self._models.values())

    def _asked(self, name: str, version: str) -> ModelStatistics:
        model = self._models.setdefault((name, version), ModelStatistics(name, version))
        model.last_inference = time.time_ns() // 1_000_000
        self._models.move_to_end((name, version))
        if len(self._models) > MOST_MODELS:
            self._models.popitem(last=False)
        return model
