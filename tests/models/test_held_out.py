"""Evaluation on held-out tasks while training: what is measured, which version is kept, and when a gap ends a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from models.learners import MAMLConfig
from models.learners.reptile import ReptileConfig
from models.policy import PolicyConfig
from models.tasks import define_task
from models.training import Evaluated, FixedTasks, Gap, HeldOut, Progress, Stop, Training, TrainingState, train
from models.types import InvalidValue, Task

STEPS, HELD_OUT = 3, 4


def tasks(shift: float, count: int) -> tuple[Task, ...]:
    """Goals in the plane, every reward shifted: ten steps are ten times as much."""
    reward = f"reward + {shift}" if shift >= 0 else f"reward - {-shift}"
    return tuple(
        define_task("Navigation2D-v0", {"goal_x": 0.3, "goal_y": 0.1 * n}, reward=reward, horizon=10)
        for n in range(count)
    )


def training(shift: float = 0.0, every: int = 2, **changes: Any) -> Training:
    base = Training(
        MAMLConfig(tasks_per_iteration=3, episodes_per_task=4, inner_learning_rate=0.3),
        PolicyConfig((6,)),
        FixedTasks(tasks(0.0, 3)),
        Stop(iterations=6),
        held_out=HeldOut(tasks(shift, HELD_OUT), every, STEPS, 3),
    )
    return dataclasses.replace(base, **changes)


def test_held_out_returns_are_told_before_and_after_every_step_for_each_task_and_in_the_mean() -> None:
    for progress in train(training(every=3, stop=Stop(iterations=4))):
        names = {name for name in progress.metrics if name.startswith(("held_out", "generalisation"))}
        if progress.evaluated is None:
            assert progress.state.iterations in (1, 2)
            assert not names
            continue
        assert progress.state.iterations in (3, 4)  # every third, and the last
        steps = [f"held_out_return_step_{step}" for step in range(1, STEPS + 1)]
        assert names == {"held_out_return_before", "held_out_return_after", "generalisation_gap", *steps}
        returns = torch.tensor(progress.evaluated.mean_return)
        assert returns.shape == (STEPS + 1, HELD_OUT)
        means = returns.mean(1).tolist()
        told = [progress.metrics[name] for name in ("held_out_return_before", *steps)]
        assert told == pytest.approx(means)
        assert progress.metrics["held_out_return_after"] == progress.metrics[steps[-1]]
        gap = progress.metrics["return_after"] - progress.metrics["held_out_return_after"]
        assert progress.metrics["generalisation_gap"] == pytest.approx(gap)


def test_the_metrics_of_an_evaluation_are_means_over_tasks() -> None:
    evaluated = Evaluated(((1.0, 3.0), (4.0, 6.0), (7.0, 9.0)))
    assert evaluated.metrics(return_after=10.0) == {
        "held_out_return_before": 2.0,
        "held_out_return_step_1": 5.0,
        "held_out_return_step_2": 8.0,
        "held_out_return_after": 8.0,
        "generalisation_gap": 2.0,
    }


def test_every_evaluation_has_episodes_of_its_own() -> None:
    # A learner that hardly moves is measured again and again: what differs is the episodes.
    still = ReptileConfig(tasks_per_iteration=3, episodes_per_task=4, inner_steps=1, outer_learning_rate=1e-12)
    evaluations = [p.evaluated for p in train(training(every=1, learner=still)) if p.evaluated]
    assert len({each.mean_return for each in evaluations}) == len(evaluations) == 6


def measured(progress: list[Progress], name: str) -> list[float]:
    return [each.metrics[f"held_out_return_{name}"] for each in progress]


def telling_run() -> list[Progress]:
    """A run that is at its best before its end, and not where it is best before adapting."""
    rough = MAMLConfig(tasks_per_iteration=3, episodes_per_task=4, outer_learning_rate=0.2, outer_epochs=3)
    for seed in range(50):
        progress = list(train(training(every=1, learner=rough, stop=Stop(iterations=6), seed=seed)))
        after, before = measured(progress, "after"), measured(progress, "before")
        best = after.index(max(after))
        if best < len(after) - 1 and best != before.index(max(before)):
            return progress
    raise AssertionError("every one of fifty runs ended at its best")


def test_what_is_kept_is_the_best_on_held_out_tasks_after_the_last_step_and_not_the_newest() -> None:
    progress = telling_run()
    after = measured(progress, "after")
    best = after.index(max(after))
    state = progress[-1].state
    assert state.best is not None
    assert (state.best.iteration, state.best.metrics["held_out_return_after"]) == (best + 1, after[best])
    assert all(torch.equal(value, progress[best].state.learner.params[n]) for n, value in state.kept.items())
    assert any(not torch.equal(value, state.learner.params[n]) for n, value in state.kept.items())
    for i, each in enumerate(progress):  # at any moment, the best so far
        assert each.state.best is not None
        assert each.state.best.metrics["held_out_return_after"] == max(after[: i + 1])


def test_without_held_out_tasks_the_newest_is_kept() -> None:
    *_, last = train(training(held_out=None))
    assert last.state.best is None
    assert last.state.kept is last.state.learner.params


@pytest.mark.parametrize(("evaluations", "every", "iterations"), [(1, 1, 1), (3, 1, 3), (2, 3, 6)])
def test_a_gap_ends_the_run_after_so_many_evaluations_in_a_row(evaluations: int, every: int, iterations: int) -> None:
    # Held-out rewards are ten lower a step: a gap of about a hundred.
    gap = Gap(above=50.0, evaluations=evaluations)
    progress = list(train(training(-10.0, every, stop=Stop(iterations=20, gap=gap))))
    assert [p.stopped_by for p in progress] == [*[None] * (iterations - 1), "gap"]
    assert progress[-1].fraction == 1.0
    assert progress[-1].evaluated is not None


@pytest.mark.parametrize("shift", [-1.0, 10.0], ids=["too small", "the other way"])
def test_a_gap_below_its_limit_ends_nothing(shift: float) -> None:
    *_, last = train(training(shift, every=1, stop=Stop(iterations=5, gap=Gap(above=50.0, evaluations=1))))
    assert (last.state.iterations, last.stopped_by) == (5, "iterations")


def test_only_evaluations_in_a_row_count() -> None:
    stop = Stop(gap=Gap(above=1.0, evaluations=2))
    state = TrainingState(training().build().initialise(0))
    for gaps, reached in [((5.0,), None), ((5.0, 1.0), None), ((1.0, 5.0), None), ((0.0, 1.1, 5.0), "gap")]:
        assert stop.reached(dataclasses.replace(state, gaps=gaps)) == reached


def test_a_run_resumed_between_two_evaluations_remembers_the_first() -> None:
    run = training(-10.0, every=2, stop=Stop(gap=Gap(above=50.0, evaluations=2), iterations=20))
    states = [progress.state for progress in train(run)]
    assert len(states) == 4
    *_, last = train(run, states[2])
    assert (last.state.iterations, last.stopped_by) == (4, "gap")


def test_a_gap_needs_held_out_tasks_to_be_one() -> None:
    with pytest.raises(InvalidValue, match="needs an evaluation") as refused:
        training(held_out=None, stop=Stop(gap=Gap(above=1.0)))
    assert refused.value.pointer == "/stop/gap"
