"""What is known of a run that is watched: its position, its speed, its curves."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, final

from headstart_client.curve import Series

if TYPE_CHECKING:
    from headstart_client.runs import Metric, Progress, RunRecord

WINDOW_S = 10.0
COUNTABLE = ("iterations", "environment_steps", "seconds")
"""Stop conditions that come nearer at a steady pace; of any other, nobody knows when it will hold."""


@final
class History:
    """A run and its metrics so far, fed with what the service tells; times are those of one steady clock.

    Attributes:
        run: The run as it was told last.
        iterations: Outer-loop steps taken.
        environment_steps: Steps taken in environments.
        values: The newest numbers: ``return_before``, ``return_after``, ...
        before: Return before adapting, over iterations.
        after: Return after adapting, over iterations.
    """

    def __init__(self) -> None:
        self.run: RunRecord | None = None
        self.iterations = 0
        self.environment_steps = 0
        self.values: dict[str, float] = {}
        self.before = Series()
        self.after = Series()
        self._seconds = 0.0
        self._heard_s: float | None = None
        self._window: deque[tuple[float, int, int]] = deque()

    def take_run(self, run: RunRecord, now_s: float) -> None:
        """Bring the run up to date."""
        if self.run is not None and run.attempts != self.run.attempts:
            # Another worker goes on from the newest checkpoint, which lies behind.
            self.iterations = -1
            self._window.clear()
        if self.run is None or run.state != self.run.state:
            self._heard_s = now_s
        self.run = run
        if run.progress.iterations >= self.iterations:
            self.values |= run.metrics
        self._move(run.progress, run.progress.iterations, now_s)

    def take_metric(self, metric: Metric, now_s: float) -> None:
        """Append a row; rows come in order."""
        for series, name in ((self.before, "return_before"), (self.after, "return_after")):
            if name in metric.values:
                series.add(metric.iteration, metric.values[name])
        if metric.iteration >= self.iterations:
            self.values |= metric.values
        else:
            self.values = {**metric.values, **self.values}
        self._window.append((metric.seconds, metric.iteration, metric.environment_steps))
        while len(self._window) > 2 and self._window[-1][0] - self._window[1][0] >= WINDOW_S:
            self._window.popleft()
        self._move(metric, metric.iteration, now_s)

    def _move(self, to: Metric | Progress, iterations: int, now_s: float) -> None:
        if iterations > self.iterations or self._heard_s is None:
            self.iterations, self.environment_steps, self._seconds = iterations, to.environment_steps, to.seconds
            self._heard_s = now_s

    def elapsed_s(self, now_s: float) -> float:
        """Time spent training, with the time since the last news while it is running."""
        if self.run is None:
            return 0.0
        if self.run.state != "running":
            return self.run.progress.seconds
        return self._seconds + self._silent_s(now_s)

    def _silent_s(self, now_s: float) -> float:
        return 0.0 if self._heard_s is None else now_s - self._heard_s

    def rates(self) -> tuple[float, float] | None:
        """Iterations and environment steps a second over the last ten seconds; ``None`` before there are any.

        Of a run that has ended: over all of it.
        """
        if self.run is not None and self.run.finished:
            start, end = (0.0, 0, 0), (self._seconds, self.iterations, self.environment_steps)
        elif self._window:
            start = self._window[0] if len(self._window) > 1 else (0.0, 0, 0)
            end = self._window[-1]
        else:
            return None
        passed_s = end[0] - start[0]
        return ((end[1] - start[1]) / passed_s, (end[2] - start[2]) / passed_s) if passed_s > 0 else None

    def fraction(self, now_s: float) -> float | None:
        """Of the way to the nearest countable stop condition, in [0, 1]; ``None`` where there is none."""
        if self.run is None:
            return None
        if self.run.state == "succeeded":
            return 1.0
        shares = [reached / limit for reached, limit, _ in self._limits(now_s) if limit > 0]
        return min(1.0, max(shares)) if shares else self.run.progress.fraction or None

    def left_s(self, now_s: float) -> float | None:
        """Time until the first countable stop condition holds, at the present speed; ``None`` if unknown."""
        if self.run is None or self.run.state != "running":
            return None
        left: list[float] = []
        for reached, limit, rate in self._limits(now_s):
            if rate is None:
                left.append(limit - reached)
            elif rate > 0:
                left.append((limit - reached) / rate - self._silent_s(now_s))
        return max(0.0, min(left)) if left else None

    def _limits(self, now_s: float) -> list[tuple[float, float, float | None]]:
        """For each countable condition: how much of it is reached, the limit, and its rate; ``None``: the clock's."""
        stop = self.run.stop if self.run is not None else {}
        iterations_rate, steps_rate = self.rates() or (0.0, 0.0)
        counted = (
            (self.iterations, iterations_rate),
            (self.environment_steps, steps_rate),
            (self.elapsed_s(now_s), None),
        )
        return [
            (reached, limit, rate)
            for name, (reached, rate) in zip(COUNTABLE, counted, strict=True)
            if (limit := stop.get(name)) is not None
        ]
