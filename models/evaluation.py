"""How well initialisations and policies adapt: measured run by run, and summed up from the runs alone.

A run is one adaptation of one subject to one task with one seed. Everything that is reported is a function of the runs
(:func:`summarise`), so that whoever has them can work it out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models import random, statistics
from models.adaptation import CurvePoint, InnerLoop, adapt
from models.finetune import MethodConfig, finetune
from models.learners import Learner
from models.tasks import TaskBatch
from models.types import Params, stack_params

Method = InnerLoop | MethodConfig
"""Any way to adapt."""

Json = dict[str, Any]

WORSE: Final = 0.0
"""Gain below which adapting has made a task worse, in reward units."""


MOST_PLACES: Final = 50
"""Places of a curve that are reported."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        learner: What adapts it.
        params: One policy, with what its learner has learned beside it; None for a new one with every seed.
    """

    learner: Learner[Any]
    params: Params | None

    def start(self, seed: int) -> Params:
        """The policy that adapting begins with."""
        return self.learner.initialise(seed).params if self.params is None else self.params


@dataclass(frozen=True)
class Point:
    """Performance in a run after some experience.

    Attributes:
        episodes: Of experience used.
        environment_steps: Of those episodes.
        mean_return: Mean undiscounted return of fresh episodes.
    """

    episodes: int
    environment_steps: int
    mean_return: float


Run = tuple[Point, ...]
"""The learning curve of one adaptation; the first point is before it."""


def measure(subject: Subject, tasks: TaskBatch, method: Method, seed: int, first: int = 0) -> list[Run]:
    """Adapt a subject to each of N tasks: one run of each.

    Runs of different subjects with the same seed share their random numbers, task by task.

    Args:
        subject: What is evaluated.
        tasks: N tasks.
        method: How it is adapted.
        seed: Of all randomness.
        first: Place of the first of these tasks among all, where they are measured in parts.

    Raises:
        AdaptationDiverged: If a parameter became NaN or infinite.
        InvalidValue: If the method does not fit.
        NonFiniteReward: If a task's reward became so.
    """
    keys = random.fold_in(random.key(seed, "evaluation"), torch.arange(first, first + len(tasks)))
    params = stack_params(subject.start(seed), len(tasks))
    if isinstance(method, InnerLoop):
        curve = adapt(subject.learner, params, tasks, method, keys.tolist()).curve
        return [tuple(_point(point.of(n)) for point in curve) for n in range(len(tasks))]
    policy = subject.learner.policy
    own = {name: params[name] for name in policy.shapes()}
    *_, last = finetune(method, policy, own, tasks, keys)
    return [tuple(map(_point, run)) for run in last.curve]


def _point(point: CurvePoint) -> Point:
    return Point(int(point.episodes), int(point.environment_steps), float(point.mean_return))


def oracle(tasks: TaskBatch) -> list[float | None]:
    """Expected return of the best policy that knows each task, where that can be worked out."""
    if all(task.reward is None for task in tasks.tasks):
        known = tasks.environment.optimal_return(tasks.params, tasks.horizon)
        if known is not None:
            return [float(value) if torch.isfinite(value) else None for value in known]
    return [None] * len(tasks)


@dataclass(frozen=True)
class Grid:
    """Runs on common places.

    Attributes:
        axis: What the places count: `step` of the inner loop, or `environment_steps`.
        places: [P], the first is 0; of more than :data:`MOST_PLACES`, evenly some of them and the last.
        returns: [S, N, P]; after a run's end, what it ended with.
    """

    axis: str
    places: NDArray[np.int64]
    returns: NDArray[np.float64]

    @staticmethod
    def of(runs: Sequence[Sequence[Run]], method_name: str) -> Grid:
        """Runs of S seeds of N tasks, as :func:`measure` gives them for each seed."""
        if method_name == "inner-loop":
            every = [[[point.mean_return for point in run] for run in by_task] for by_task in runs]
            return Grid("step", np.arange(len(runs[0][0])), np.array(every))
        places = np.unique([point.environment_steps for by_task in runs for run in by_task for point in run])
        places = places[np.unique(np.linspace(0, len(places) - 1, MOST_PLACES).round().astype(np.int64))]
        returns = [[_held(run, places) for run in by_task] for by_task in runs]
        return Grid("environment_steps", places, np.array(returns))


def _held(run: Run, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """The return of a run at each place: that of its last point up to there."""
    steps = np.array([point.environment_steps for point in run])
    returns = np.array([point.mean_return for point in run])
    return returns[np.searchsorted(steps, places, side="right") - 1]


def summarise(
    runs: Sequence[Sequence[Run]],
    method_name: str,
    oracles: Sequence[float | None],
    threshold: float | None = None,
    training: Sequence[Sequence[Run]] | None = None,
) -> Json:
    """What runs of one subject come to.

    Args:
        runs: Of S seeds, each of N tasks.
        method_name: Of the method.
        oracles: What is possible in each task, None where it is not known.
        threshold: Return that is to be reached.
        training: Runs of as many seeds on tasks that it was trained on.

    Returns:
        JSON values. `curve`: by place, mean and interquartile mean with intervals. `before`, `after`: the same of the
        first and the last place. `gain`: of the last over the first. `worse`: share of runs that adapting made worse.
        `regret` to the oracle where one is known, `gap` of training tasks over these where there are some, `threshold`:
        steps to it, where one was given.
    """
    grid = Grid.of(runs, method_name)
    before, after = grid.returns[..., 0], grid.returns[..., -1]
    summary: Json = {
        "axis": grid.axis,
        "curve": [{"place": int(place), **_described(grid.returns[..., p])} for p, place in enumerate(grid.places)],
        "before": _described(before),
        "after": _described(after),
        "gain": _described(after - before),
        "worse": asdict(statistics.share(after - before < WORSE)),
        "regret": None,
        "gap": None,
        "threshold": None,
    }
    known = [n for n, value in enumerate(oracles) if value is not None]
    if known:
        best = np.array([oracles[n] for n in known], np.float64)
        summary["regret"] = {"tasks": len(known), **_described(best - after[:, known])}
    if training is not None:
        trained = Grid.of(training, method_name).returns[..., -1]
        summary["gap"] = {"training": _described(trained), "estimate": float(trained.mean() - after.mean())}
    if threshold is not None:
        summary["threshold"] = _reached(runs, threshold)
    return summary


def by_task(
    runs: Sequence[Sequence[Run]],
    method_name: str,
    oracles: Sequence[float | None],
    threshold: float | None = None,
) -> list[Json]:
    """What runs of one subject come to in each task; arguments as of :func:`summarise`.

    Returns:
        JSON values of each task: means over seeds `before`, `after` and their difference `gain`; `worse`: the share of
        seeds that adapting made worse; `regret` and `median_environment_steps` to the threshold, null where there is
        none or more than half of the seeds never reached it.
    """
    returns = Grid.of(runs, method_name).returns
    before, after = returns[..., 0], returns[..., -1]
    rows = []
    for n, best in enumerate(oracles):
        achieved = float(after[:, n].mean())
        steps = [None if threshold is None else steps_to(by_seed[n], threshold) for by_seed in runs]
        rows.append(
            {
                "before": float(before[:, n].mean()),
                "after": achieved,
                "gain": float((after - before)[:, n].mean()),
                "worse": float((after - before < WORSE)[:, n].mean()),
                "regret": None if best is None else best - achieved,
                "median_environment_steps": _median(steps),
            }
        )
    return rows


def _median(steps: Sequence[int | None]) -> int | None:
    """Of all runs, known as long as more than half of them got there."""
    reached = sorted(each for each in steps if each is not None)
    middle = len(steps) // 2
    return reached[middle] if middle < len(reached) else None


def _described(scores: statistics.Scores) -> Json:
    return {
        "mean": asdict(statistics.mean(scores)),
        "interquartile_mean": asdict(statistics.interquartile_mean(scores)),
    }


def steps_to(run: Run, threshold: float) -> int | None:
    """Environment steps of a run until its return was at least so much; None where it never was."""
    return next((point.environment_steps for point in run if point.mean_return >= threshold), None)


def _reached(runs: Sequence[Sequence[Run]], threshold: float) -> Json:
    """Steps to a return. A run that never reached it is censored: it is counted, and its budget is not."""
    steps = [[steps_to(run, threshold) for run in by_task] for by_task in runs]
    flat = [each for by_task in steps for each in by_task]
    return {
        "return": threshold,
        "reached": asdict(statistics.share(np.array([[each is not None for each in by_task] for by_task in steps]))),
        "censored": flat.count(None),
        "median_environment_steps": _median(flat),
        "environment_steps": steps,
    }


def compare(first: Sequence[Sequence[Run]], second: Sequence[Sequence[Run]], method_name: str) -> Json:
    """Two subjects by the returns that their runs on the same tasks with the same seeds end with, as JSON values."""
    ours, theirs = (Grid.of(runs, method_name).returns[..., -1] for runs in (first, second))
    return asdict(statistics.compare(ours, theirs))


def runs_to_json(runs: Sequence[Sequence[Run]]) -> list[Any]:
    """Runs as JSON values: of each seed, of each task, of each point, episodes, environment steps and return."""
    return [
        [[[point.episodes, point.environment_steps, point.mean_return] for point in run] for run in by_task]
        for by_task in runs
    ]


def runs_from_json(values: Sequence[Any]) -> list[list[Run]]:
    """The inverse of :func:`runs_to_json`."""
    return [[tuple(Point(*point) for point in run) for run in by_task] for by_task in values]
