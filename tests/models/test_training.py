from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from models.adaptation import InnerLoop, adapt
from models.checkpoint import load_state, save_state
from models.learners import CONFIGS, LEARNERS, LearnerConfig, MAMLConfig, base
from models.learners.base import Diverged, LearnerState
from models.policy import PolicyConfig
from models.presets import PRESETS
from models.rollout import NonFiniteReward
from models.tasks import TaskBatch, define_task
from models.training import FamilyTasks, FixedTasks, HeldOut, Plateau, Stop, Training, TrainingState, train
from models.types import InvalidValue, stack_params

SMALL = MAMLConfig(tasks_per_iteration=3, episodes_per_task=4, inner_learning_rate=0.5)
TINY = PolicyConfig(hidden=(8,))
CARTPOLE = FamilyTasks(PRESETS["cartpole-reversed"], "train")


def training(**changes: object) -> Training:
    base = Training(SMALL, TINY, CARTPOLE, Stop(iterations=4))
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def same(a: TrainingState, b: TrainingState) -> bool:
    return all(torch.equal(value, b.learner.params[name]) for name, value in a.learner.params.items())


def small(learner: str, **variant: object) -> LearnerConfig:
    """A learner's config with those of the members that it has."""
    config = CONFIGS[learner]
    members = {"tasks_per_iteration": 3, "episodes_per_task": 4, "inner_learning_rate": 0.5} | variant
    known = {field.name for field in dataclasses.fields(config)}
    return config(**{name: value for name, value in members.items() if name in known})  # type: ignore[arg-type]


def small_policy(learner: str) -> PolicyConfig:
    return PolicyConfig(hidden=(8,), normalise_observations=True, context_size=3 if learner == "cavia" else 0)


def require_same_ends(run: Training) -> None:
    states = [progress.state for progress in train(run)]
    for state in states[:-1]:
        *_, last = train(run, load_state(save_state(state)))
        assert same(last.state, states[-1])
        assert last.state.environment_steps == states[-1].environment_steps
        assert (last.state.best is None) == (states[-1].best is None)
        if last.state.best and states[-1].best:
            assert last.state.best.iteration == states[-1].best.iteration
            assert all(torch.equal(x, states[-1].kept[name]) for name, x in last.state.kept.items())


VARIANTS: dict[str, dict[str, object]] = {
    "defaults": {},
    "two first-order steps": {"inner_steps": 2, "first_order": True, "outer_epochs": 1, "clip_ratio": None},
    "value head": {"baseline": "value", "gae_decay": 0.9, "inner_learning_rate": (0.5, 0.25), "inner_steps": 2},
    "entropy": {"entropy_coefficient": 0.01, "normalise_advantages": False, "max_gradient_norm": None},
    "every step counts": {"inner_steps": 3, "intermediate_weight": 1.0},
    "promp": {"outer_step": "promp"},
    "trpo": {"outer_step": "trpo"},
    "layer rates": {"rates": "layer"},
    "plain dice": {"variance_reduction": False},
}


def configs() -> list[Any]:
    """Every learner with every variant that makes a difference to it."""
    found: dict[LearnerConfig, Any] = {}
    for learner in LEARNERS:
        for name, variant in VARIANTS.items():
            config = small(learner, **variant)
            found.setdefault(config, pytest.param(config, id=f"{learner}, {name}"))
    return list(found.values())


@pytest.mark.parametrize("config", configs())
def test_training_resumed_from_any_checkpoint_ends_bit_for_bit_the_same(config: LearnerConfig) -> None:
    held_out = HeldOut(tuple(PRESETS["cartpole-reversed"].sample("test", 0, range(2))), 2, 2, 2)
    tasks = FamilyTasks(dataclasses.replace(PRESETS["cartpole-reversed"], horizon=20), "train")
    require_same_ends(training(learner=config, tasks=tasks, policy=small_policy(config.name), held_out=held_out))


@pytest.mark.parametrize("family", PRESETS)
def test_training_resumes_bit_for_bit_in_every_family(family: str) -> None:
    preset = PRESETS[family]
    tasks = FamilyTasks(dataclasses.replace(preset, horizon=min(20, preset.horizon)), "train")
    require_same_ends(training(tasks=tasks, policy=small_policy("maml")))


def test_the_seed_decides_the_result() -> None:
    ends = [list(train(training(seed=seed)))[-1].state for seed in (1, 1, 2)]
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


@pytest.mark.parametrize(
    ("stop", "name"),
    [
        (Stop(iterations=2, environment_steps=10**9), "iterations"),
        (Stop(iterations=100, environment_steps=300), "environment_steps"),
        (Stop(seconds=0.01), "seconds"),
        (Stop(return_at_least=1.0), "return_at_least"),
        (Stop(plateau=Plateau(2, 1e6), iterations=100), "plateau"),
    ],
)
def test_the_first_stop_condition_that_holds_ends_the_run(stop: Stop, name: str) -> None:
    progress = list(train(training(stop=stop)))
    assert [p.stopped_by for p in progress[:-1]] == [None] * (len(progress) - 1)
    assert progress[-1].stopped_by == name
    assert progress[-1].fraction == 1
    assert all(0 <= p.fraction <= 1 for p in progress)


def test_a_plateau_compares_two_windows_of_returns() -> None:
    stop = Stop(plateau=Plateau(iterations=2, improvement=1.0))
    state = TrainingState(training().build().initialise(0))
    for history, reached in [((0, 9, 9), None), ((0, 0, 1, 1.0), None), ((0, 0, 0.5, 1), "plateau")]:
        assert stop.reached(dataclasses.replace(state, history=history)) == reached


def test_a_run_without_an_end_is_refused() -> None:
    with pytest.raises(InvalidValue, match="at least one of iterations") as caught:
        Stop()
    assert caught.value.pointer == "/stop"


def test_resuming_a_finished_training_reports_it_finished_and_computes_nothing() -> None:
    run = training()
    end = list(train(run))[-1]
    again = list(train(run, end.state))
    assert len(again) == 1
    assert again[0].stopped_by == "iterations"
    assert same(again[0].state, end.state)


def test_held_out_tasks_are_measured_and_do_not_change_the_training() -> None:
    held_out = HeldOut(tuple(PRESETS["cartpole-reversed"].sample("test", 0, range(3))), 2, steps=1, episodes=4)
    measured = list(train(training(held_out=held_out)))
    assert ["held_out_return_after" in p.metrics for p in measured] == [False, True, False, True]
    assert same(measured[-1].state, list(train(training()))[-1].state)


def test_environment_steps_are_those_of_the_episodes() -> None:
    tasks = FixedTasks((define_task("MountainCar-v0", horizon=7),) * 2)
    state = next(train(training(tasks=tasks))).state
    # Two tasks, four episodes of seven steps, before and after adapting.
    assert state.environment_steps == 2 * 2 * 4 * 7


def test_fixed_tasks_are_drawn_without_replacement_and_by_iteration() -> None:
    source = FixedTasks(tuple(define_task("CartPole-v1", {"length": 0.1 + 0.01 * i}) for i in range(10)))
    draws = [tuple(t.parameters["length"] for t in source.draw(0, i, 4)) for i in range(5)]
    assert all(len(set(draw)) == 4 for draw in draws)
    assert len(set(draws)) == 5
    assert source.draw(0, 3, 4) == source.draw(0, 3, 4)


def test_an_empty_selection_and_one_of_mixed_environments_are_refused() -> None:
    with pytest.raises(InvalidValue, match="empty"):
        FixedTasks(())
    with pytest.raises(InvalidValue, match=r"CartPole-v1.*MountainCar-v0"):
        training(tasks=FixedTasks((define_task("CartPole-v1"), define_task("MountainCar-v0"))))


def test_a_rollout_that_would_not_fit_in_memory_is_refused() -> None:
    tasks = FixedTasks((define_task("CartPole-v1", horizon=100_000),))
    with pytest.raises(InvalidValue, match="too many"):
        training(tasks=tasks, learner=dataclasses.replace(SMALL, episodes_per_task=1000))


def test_a_policy_too_large_for_its_rollouts_is_refused() -> None:
    tasks = FixedTasks((define_task("CartPole-v1", horizon=100_000),))
    with pytest.raises(InvalidValue, match="at most 4 fit") as caught:
        training(
            tasks=tasks, learner=dataclasses.replace(SMALL, episodes_per_task=5), policy=PolicyConfig(hidden=(500,))
        )
    assert caught.value.pointer == "/learner/episodes_per_task"


def test_training_is_the_same_whether_graphs_are_kept_or_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list(train(training()))[-1].state
    monkeypatch.setattr(base, "KEPT_ACTIVATIONS", 0)
    again = list(train(training()))[-1].state
    for name, value in kept.learner.params.items():
        # A fitted value head, in hundreds, is what rounding shows in most.
        torch.testing.assert_close(value, again.learner.params[name], rtol=1e-4, atol=1e-4)


def test_activations_are_kept_only_where_there_is_memory_for_those_of_all_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = training(learner=dataclasses.replace(SMALL, max_tasks_in_memory=2)).build()
    learner, tasks = training().build(), TaskBatch.of(CARTPOLE.draw(0, 0, 3))
    params, keys = stack_params(learner.initialise(0).params, 3), torch.arange(3)
    assert learner.inner_step(params, tasks, keys)[0].trace is not None
    assert few.inner_step(params, tasks, keys)[0].trace is None
    monkeypatch.setattr(base, "KEPT_ACTIVATIONS", 3 * 4 * 200 * 8 - 1)
    assert learner.inner_step(params, tasks, keys)[0].trace is None
    assert learner.inner_step(params, tasks, keys, episodes=3)[0].trace is not None


def test_a_diverged_step_is_an_error_and_leaves_the_state_before_it_good() -> None:
    run = training(learner=dataclasses.replace(SMALL, entropy_coefficient=10.0))
    learner, state = run.build(), TrainingState(run.build().initialise(0))
    broken = {n: v * float("inf") if n == "policy.bias" else v for n, v in state.learner.params.items()}
    tasks = TaskBatch.of(run.tasks.draw(0, 0, 3))
    keys = torch.arange(3)
    with pytest.raises((Diverged, NonFiniteReward)):
        learner.outer_step(LearnerState(broken, state.learner.optimiser), tasks, keys)
    assert all(bool(torch.isfinite(v).all()) for v in state.learner.params.values())


def test_a_reward_that_turns_nan_ends_the_training_with_its_reason() -> None:
    tasks = FixedTasks((define_task("CartPole-v1", reward="sqrt(0.3 - abs(observation[1]))"),))
    with pytest.raises(NonFiniteReward, match="sqrt"):
        list(itertools.islice(train(training(tasks=tasks, stop=Stop(iterations=50))), 50))


def test_adapting_more_than_one_task_gives_each_what_it_gets_alone_with_its_own_stream() -> None:
    learner = training().build()
    params = learner.initialise(0).params
    tasks = TaskBatch.of(PRESETS["cartpole-reversed"].sample("test", 0, range(3)))
    result = adapt(learner, params, tasks, InnerLoop(steps=2, episodes=4), seed=5)
    first = adapt(learner, params, tasks.select([0]), InnerLoop(steps=2, episodes=4), seed=5)
    torch.testing.assert_close(result.params["policy.weight"][0], first.params["policy.weight"][0])
    assert [point.episodes.unique().tolist() for point in result.curve] == [[0], [4], [8]]
    assert result.curve[0].environment_steps.tolist() == [0, 0, 0]
    assert bool((result.curve[2].environment_steps > result.curve[1].environment_steps).all())


def test_measuring_does_not_change_what_is_adapted() -> None:
    learner = training().build()
    params = learner.initialise(0).params
    tasks = TaskBatch.of(PRESETS["cartpole-reversed"].sample("test", 0, range(2)))
    few, many = (adapt(learner, params, tasks, InnerLoop(evaluation_episodes=n), seed=5) for n in (1, 50))
    torch.testing.assert_close(few.params["policy.weight"], many.params["policy.weight"], rtol=0, atol=0)


def test_the_adapted_value_head_predicts_the_returns_of_its_policy() -> None:
    task = define_task("MountainCar-v0", horizon=30, discount=0.9)
    learner = training(tasks=FixedTasks((task,))).build()
    result = adapt(learner, learner.initialise(0).params, TaskBatch.of([task]), InnerLoop(), seed=0)
    start = torch.tensor([[[-0.5, 0.0]]])
    value = learner.policy.value(result.params, learner.policy.features(result.params, start))
    # Every step costs one; the mean reward-to-go over an episode of thirty steps lies between that of its ends.
    assert -10 < float(value) < -5


@pytest.mark.slow
def test_maml_learns_to_tell_reversed_carts_apart_in_one_step() -> None:
    learner = MAMLConfig(inner_learning_rate=1.0)
    run = Training(learner, PolicyConfig(), CARTPOLE, Stop(iterations=25), seed=0)
    *_, last = train(run)
    tasks = TaskBatch.of(PRESETS["cartpole-reversed"].sample("test", 0, range(20)))
    curve = adapt(run.build(), last.state.learner.params, tasks, InnerLoop(), seed=1).curve
    assert float(curve[0].mean_return.mean()) < 60
    assert float(curve[1].mean_return.mean()) > 180
