from __future__ import annotations

import numpy as np
import pytest
import torch

from models import statistics
from models.adaptation import InnerLoop
from models.evaluation import (
    MOST_PLACES,
    Grid,
    Point,
    Run,
    Subject,
    by_task,
    compare,
    measure,
    oracle,
    runs_from_json,
    runs_to_json,
    steps_to,
    summarise,
)
from models.finetune import PPOConfig
from models.learners import MAML, MAMLConfig
from models.policy import Policy, PolicyConfig
from models.tasks import TaskBatch, define_task
from models.types import Params

TASKS = [define_task("CartPole-v1", {"length": length}, horizon=30) for length in (0.3, 0.5, 0.7)]
PPO = PPOConfig(environment_steps=400, steps=20, parallel_episodes=4, epochs=2, evaluation_episodes=2)
INNER = InnerLoop(steps=2, episodes=3, evaluation_episodes=2)


def learner() -> MAML:
    environment = TaskBatch.of(TASKS).environment
    return MAML(
        MAMLConfig(), Policy(PolicyConfig(hidden=(4,)), environment.observation_space, environment.action_space)
    )


def curve(*points: tuple[int, float]) -> Run:
    return tuple(Point(steps // 10, steps, value) for steps, value in points)


@pytest.mark.parametrize("method", [PPO, INNER], ids=["ppo", "inner-loop"])
def test_runs_are_repeated_by_their_seed_and_depend_on_their_task_alone(method: PPOConfig | InnerLoop) -> None:
    subject = Subject(learner(), learner().initialise(1).params)
    whole = measure(subject, TaskBatch.of(TASKS), method, seed=3)
    assert measure(subject, TaskBatch.of(TASKS), method, seed=3) == whole
    assert measure(subject, TaskBatch.of(TASKS), method, seed=4) != whole
    [alone] = measure(subject, TaskBatch.of(TASKS[:1]), method, seed=3)
    assert alone[0] == whole[0][0]
    assert [point.episodes for point in alone] == [point.episodes for point in whole[0]]


def test_a_new_policy_is_another_with_every_seed_and_one_that_is_given_is_not() -> None:
    def starts(subject: Subject) -> list[Params]:
        return [subject.start(seed) for seed in (0, 1)]

    new, given = starts(Subject(learner(), None)), starts(Subject(learner(), learner().initialise(0).params))
    assert not torch.equal(new[0]["trunk.0.weight"], new[1]["trunk.0.weight"])
    assert torch.equal(given[0]["trunk.0.weight"], given[1]["trunk.0.weight"])


def test_a_run_that_ended_early_stands_at_what_it_ended_with() -> None:
    runs = [[curve((0, 1.0), (100, 5.0)), curve((0, 2.0), (100, 3.0), (200, 4.0))]]
    grid = Grid.of(runs, "ppo")
    assert grid.places.tolist() == [0, 100, 200]
    assert grid.returns.tolist() == [[[1.0, 5.0, 5.0], [2.0, 3.0, 4.0]]]
    assert Grid.of([[run[:2] for run in runs[0]]], "inner-loop").places.tolist() == [0, 1]


def test_a_threshold_that_was_never_reached_is_censored_and_no_budget() -> None:
    runs = [
        [curve((0, 1.0), (100, 9.0)), curve((0, 9.5), (100, 9.9))],
        [curve((0, 1.0), (100, 2.0)), curve((0, 1.0), (50, 2.0), (100, 9.0))],
    ]
    assert steps_to(runs[1][0], 9.0) is None
    found = summarise(runs, "ppo", [None, None], threshold=9.0)["threshold"]
    assert found["environment_steps"] == [[100, 0], [None, 100]]
    assert (found["censored"], found["reached"]["estimate"]) == (1, 0.75)
    assert found["median_environment_steps"] == 100
    few = summarise(runs, "ppo", [None, None], threshold=9.6)["threshold"]
    assert (few["censored"], few["median_environment_steps"]) == (3, None)


def test_the_summary_is_what_plain_numbers_say() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 5, 2)).cumsum(-1)
    runs = [[curve((0, float(a)), (100, float(b))) for a, b in by_task] for by_task in values]
    summary = summarise(runs, "ppo", [3.0, None, 3.0, 3.0, None], training=runs)
    before, after = values[..., 0], values[..., 1]
    assert summary["before"]["mean"]["estimate"] == pytest.approx(before.mean())
    assert summary["after"]["interquartile_mean"]["estimate"] == pytest.approx(np.sort(after, None)[5:-5].mean())
    assert summary["gain"]["mean"]["estimate"] == pytest.approx((after - before).mean())
    assert summary["worse"]["estimate"] == pytest.approx((after < before).mean())
    assert summary["regret"]["tasks"] == 3
    assert summary["regret"]["mean"]["estimate"] == pytest.approx((3.0 - after[:, [0, 2, 3]]).mean())
    assert summary["gap"]["estimate"] == pytest.approx(0.0)
    assert [each["place"] for each in summary["curve"]] == [0, 100]
    assert summary["threshold"] is None


def test_two_subjects_are_compared_by_what_their_runs_end_with() -> None:
    rng = np.random.default_rng(1)
    ends = rng.normal(size=(3, 6))
    first = [[curve((0, 0.0), (100, float(b) + 1.0)) for b in by_task] for by_task in ends]
    second = [[curve((0, 9.0), (100, float(b))) for b in by_task] for by_task in ends]
    found = compare(first, second, "ppo")
    assert found["verdict"] == "better"
    assert found["difference"]["estimate"] == pytest.approx(1.0)
    assert found["probability"]["estimate"] == statistics.compare(ends + 1.0, ends).probability.estimate


def test_what_is_possible_is_told_where_it_is_known() -> None:
    goals = [define_task("Navigation2D-v0", {"goal_x": x}) for x in (0.1, 0.3)]
    known = oracle(TaskBatch.of(goals))
    assert known[0] is not None
    assert known[1] is not None
    assert 0.0 > known[0] > known[1]
    assert oracle(TaskBatch.of(TASKS)) == [None] * 3
    paid = [define_task("Navigation2D-v0", reward="1")]
    assert oracle(TaskBatch.of(paid)) == [None]


def test_runs_are_written_and_read_back() -> None:
    runs = [[curve((0, 1.5), (100, -2.25))], [curve((0, 0.1))]]
    assert runs_from_json(runs_to_json(runs)) == runs


def test_results_task_by_task_are_means_over_seeds_and_a_threshold_is_never_reached_by_its_budget() -> None:
    runs = [[curve((0, 1.0), (10, 5.0)), curve((0, 3.0), (10, 2.0))], [curve((0, 2.0), (10, 2.0))] * 2]
    first, second = by_task(runs, "ppo", [6.0, None], threshold=5.0)
    assert first == {
        "before": 1.5,
        "after": 3.5,
        "gain": 2.0,
        "worse": 0.0,
        "regret": 2.5,
        "median_environment_steps": None,
    }
    assert (second["gain"], second["worse"], second["regret"]) == (-0.5, 0.5, None)


def test_a_long_curve_is_reported_at_some_of_its_places_its_ends_among_them() -> None:
    run = curve(*((step, float(step)) for step in range(0, 1000, 2)))
    places = Grid.of([[run]], "dqn").places
    assert len(places) == MOST_PLACES
    assert (places[0], places[-1]) == (0, 998)


def test_tasks_that_are_measured_in_parts_come_out_as_together() -> None:
    subject = Subject(learner(), learner().initialise(1).params)
    whole = measure(subject, TaskBatch.of(TASKS), INNER, seed=3)
    parts = measure(subject, TaskBatch.of(TASKS[:2]), INNER, 3) + measure(subject, TaskBatch.of(TASKS[2:]), INNER, 3, 2)
    assert parts == whole
