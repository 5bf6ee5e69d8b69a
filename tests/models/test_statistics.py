from __future__ import annotations

import numpy as np
import pytest

from models import statistics
from models.types import ShapeError


def scores(seeds: int = 5, tasks: int = 8, shift: float = 0.0) -> statistics.Scores:
    rng = np.random.default_rng(seeds * 100 + tasks)
    return rng.normal(size=(seeds, tasks)) + 3.0 * np.arange(tasks) + shift


def resampled(data: statistics.Scores, statistic, draws: int = 4000) -> np.ndarray:
    """By a plain loop: the seeds of each task drawn again, or with one seed the tasks."""
    rng = np.random.default_rng(1)
    seeds, tasks = data.shape
    found = []
    for _ in range(draws):
        if seeds == 1:
            found.append(statistic(data[:, rng.integers(tasks, size=tasks)]))
        else:
            found.append(statistic(np.stack([data[rng.integers(seeds, size=seeds), n] for n in range(tasks)], 1)))
    return np.percentile(found, [2.5, 97.5])


def middle(data: statistics.Scores) -> float:
    ordered = np.sort(data, None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_intervals_are_those_of_a_plain_stratified_bootstrap(seeds: int) -> None:
    data = scores(seeds)
    for ours, plain in ((statistics.mean, np.mean), (statistics.interquartile_mean, middle)):
        found = ours(data)
        assert found.estimate == pytest.approx(plain(data))
        low, high = resampled(data, plain)
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        found = statistics.mean(rng.normal(size=(10, 4)), seed=trial)
        held += found.low <= 0.0 <= found.high
    # The percentile bootstrap of ten seeds is a little narrow.
    assert 0.87 <= held / 200 <= 0.98


def test_the_same_scores_give_the_same_interval() -> None:
    assert statistics.mean(scores()) == statistics.mean(scores())


def test_what_never_varies_has_an_interval_of_no_width() -> None:
    assert statistics.mean(np.full((3, 4), 7.0)) == statistics.Interval(7.0, 7.0, 7.0)
    assert statistics.interquartile_mean(np.array([[2.0]])) == statistics.Interval(2.0, 2.0, 2.0)


def test_a_share_counts_runs() -> None:
    assert statistics.share(np.array([[True, False], [True, True]])).estimate == 0.75


def test_a_difference_is_shown_only_where_the_whole_interval_is_on_one_side() -> None:
    assert statistics.compare(scores(shift=1.5), scores()).verdict == "better"
    assert statistics.compare(scores(), scores(shift=1.5)).verdict == "worse"
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(size=(2, 5, 8))
    assert statistics.compare(ours, theirs).verdict == "no difference shown"


def test_a_difference_is_taken_pair_by_pair() -> None:
    # Tasks differ by far more than the two do, and so do seeds; the pairs differ by the same in each.
    data = scores() * 100
    found = statistics.compare(data + 0.5, data)
    assert (found.difference.low, found.difference.high) == pytest.approx((0.5, 0.5))
    assert found.verdict == "better"


def test_the_probability_of_improvement_is_that_of_all_pairs_of_runs() -> None:
    first, second = scores(4, 3, 0.4), scores(4, 3) + np.random.default_rng(9).normal(size=(4, 3))
    counted = [
        (first[i, n] > second[j, n]) + 0.5 * (first[i, n] == second[j, n])
        for n in range(3)
        for i in range(4)
        for j in range(4)
    ]
    found = statistics.compare(first, second).probability
    assert found.estimate == pytest.approx(np.mean(counted))
    assert found.low <= found.estimate <= found.high
    assert statistics.compare(first, first).probability.estimate == 0.5


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_profile_is_the_share_at_each_threshold_with_the_interval_of_a_plain_bootstrap(seeds: int) -> None:
    data, thresholds = scores(seeds, 12), np.array([-9.0, 8.0, 20.0, 99.0])
    found = statistics.profile(data, thresholds)
    assert found.share.tolist() == [(data >= threshold).mean() for threshold in thresholds]
    assert (found.share[0], found.low[0], found.share[-1], found.high[-1]) == (1.0, 1.0, 0.0, 0.0)
    for p, threshold in enumerate(thresholds):
        low, high = resampled(data >= threshold, np.mean)
        # Of so few runs a bound is one of few values; two draws may differ by one of them.
        assert (found.low[p], found.high[p]) == pytest.approx((low, high), abs=1 / data.size + 1e-9)


def test_scores_of_different_tasks_are_not_compared() -> None:
    with pytest.raises(ShapeError, match=r"\(5, 8\) and \(5, 7\)"):
        statistics.compare(scores(), scores(5, 7))
