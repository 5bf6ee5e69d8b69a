"""Honest numbers from few runs: interquartile means, intervals by a stratified bootstrap, comparisons.

Scores are [S, N]: S seeds of each of N tasks. Intervals are the percentile bootstrap's, at 95 %. With two seeds or
more, the seeds of each task are drawn again and the tasks are taken as they are; with a single seed there is nothing to
draw from within a task, and the tasks themselves are drawn again.

Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from models.types import ShapeError

Scores = NDArray[np.float64]

Verdict = Literal["better", "worse", "no difference shown"]
"""What a comparison shows of the first of two."""

RESAMPLES: Final = 2000
"""Draws of a bootstrap."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95 % interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """The first of two against the second, on the same tasks with the same seeds.

    Attributes:
        difference: Mean of the differences, pair by pair.
        probability: That a run of the first scores higher than one of the second on a task, ties counting half; the
            mean over tasks.
        verdict: Whether the interval of the difference leaves out zero, and on which side.
    """

    difference: Interval
    probability: Interval
    verdict: Verdict


@dataclass(frozen=True)
class Profile:
    """Shares at P thresholds with the bounds of their 95 % intervals, point by point, [P] each."""

    share: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def mean(scores: Scores, seed: int = 0) -> Interval:
    """Mean of all scores."""
    return _interval([scores], lambda drawn: drawn[0].mean((-2, -1)), seed)


def interquartile_mean(scores: Scores, seed: int = 0) -> Interval:
    """Mean of the middle half of all scores: less noisy than a median, less moved by outliers than a mean."""
    return _interval([scores], lambda drawn: _trimmed_mean(drawn[0]), seed)


def share(held: NDArray[np.bool_], seed: int = 0) -> Interval:
    """Share of runs [S, N] of which something holds."""
    return mean(held.astype(np.float64), seed)


def compare(first: Scores, second: Scores, seed: int = 0) -> Comparison:
    """Two sets of scores, [S, N] each, of the same tasks and seeds.

    Raises:
        ShapeError: If they are of different shapes.
    """
    if first.shape != second.shape:
        raise ShapeError(f"the scores are {first.shape} and {second.shape}; both must be of the same tasks and seeds")
    difference = mean(first - second, seed)
    probability = _interval([first, second], lambda drawn: _superiority(*drawn), seed)
    verdict: Verdict = "no difference shown"
    if difference.low > 0:
        verdict = "better"
    elif difference.high < 0:
        verdict = "worse"
    return Comparison(difference, probability, verdict)


def profile(scores: Scores, thresholds: NDArray[np.float64], seed: int = 0) -> Profile:
    """Performance profile: the share of scores that reach each of P thresholds.

    The bootstrap is that of :func:`share`, drawn as what it comes to: of S seeds of a task that are drawn again, the
    number that reach a threshold is binomial, and so is the sum over tasks in which equally many did.
    """
    seeds, tasks = scores.shape
    held = np.stack([(scores >= threshold).sum(0) for threshold in thresholds])
    rng = np.random.default_rng(seed)
    drawn = np.empty((RESAMPLES, len(thresholds)))
    for p, counts in enumerate(held):
        if seeds == 1:
            drawn[:, p] = rng.binomial(tasks, counts.mean(), RESAMPLES)
        else:
            values, groups = np.unique(counts, return_counts=True)
            drawn[:, p] = rng.binomial(groups * seeds, values / seeds, (RESAMPLES, len(values))).sum(1)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0) / scores.size
    return Profile(held.sum(1) / scores.size, low, high)


def _interval(data: list[Scores], statistic: Callable[[list[Scores]], Any], seed: int) -> Interval:
    """The statistic of several sets of scores, drawn again together.

    Args:
        data: Sets of scores, [S, N] each.
        statistic: Of sets [..., S, N], the same draws of all of them: [...].
        seed: Of the draws.
    """
    seeds, tasks = data[0].shape
    estimate = float(statistic(data))
    if seeds * tasks == 1:
        return Interval(estimate, estimate, estimate)

    def of_places(*places: NDArray[np.float64], axis: int) -> Any:
        # Whole numbers all of them: places of scores, drawn in place of the scores so that pairs stay together.
        del axis
        if seeds == 1:
            drawn = [each[0][places[0].astype(np.int64)][..., None, :] for each in data]
        else:
            rows = np.stack([each.astype(np.int64) for each in places], -1)
            drawn = [each[rows, np.arange(tasks)] for each in data]
        return statistic(drawn)

    # Here and below, not above: it takes half a second, and of the service's processes only one computes statistics.
    from scipy import stats

    strata = (np.arange(tasks),) if seeds == 1 else (np.arange(seeds),) * tasks
    result = stats.bootstrap(
        strata,
        of_places,
        n_resamples=RESAMPLES,
        batch=max(1, 1_000_000 // (seeds * tasks)),
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(estimate, float(low), float(high))


def _trimmed_mean(scores: Scores) -> Any:
    from scipy import stats

    flat = scores.reshape(*scores.shape[:-2], -1)
    return stats.trim_mean(flat, 0.25, axis=-1)


def _superiority(first: Scores, second: Scores) -> Any:
    """Mean over tasks of the share of pairs of runs in which the first is higher, [...]."""
    pairs = np.sign(first[..., :, None, :] - second[..., None, :, :])
    return (0.5 * (pairs + 1.0)).mean((-3, -2, -1))
