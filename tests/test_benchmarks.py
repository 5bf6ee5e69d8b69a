"""What the benchmarks compare with is itself right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from bandit_players import PLAYERS, bayes_optimal, play
from bench_scaling import growth
from core_training import FAMILY, LEARNER, POLICY, products
from learn_families import beats, interval
from reporting import mean_and_error, table

from models import random
from models.presets import PRESETS
from models.tasks import TaskBatch
from models.training import FamilyTasks, Stop, Training


def test_the_best_total_of_ten_pulls_of_five_arms_is_known() -> None:
    assert bayes_optimal(5, 10) == pytest.approx(6.660, abs=5e-4)


def test_two_pulls_of_two_arms_are_worth_what_counting_by_hand_gives() -> None:
    # Half at first; then two thirds where it paid, and the other arm's half where it did not.
    assert bayes_optimal(2, 2) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3 + 1 / 2 * 1 / 2)


def test_players_rank_as_they_should_and_none_beats_the_optimum() -> None:
    chances = np.random.default_rng(0).random((20_000, 5))
    totals = {name: play(player, chances, 10, seed=1).mean() for name, player in PLAYERS.items()}
    assert totals["random"] == pytest.approx(5.0, abs=0.05)
    assert totals["random"] + 0.3 < min(totals["UCB1"], totals["Thompson sampling"])
    assert max(totals.values()) < bayes_optimal(5, 10)


@pytest.mark.parametrize("player", ["UCB1", "Thompson sampling"])
def test_a_player_finds_the_only_arm_that_pays(player: str) -> None:
    chances = np.tile([0.0, 0.0, 1.0], (100, 1))
    assert play(PLAYERS[player], chances, 300, seed=0).mean() > 220


def test_an_interval_of_equal_returns_is_their_value() -> None:
    assert interval(np.full((3, 20), 7.0)) == (7.0, 7.0, 7.0)


def test_meta_learning_beats_multitask_only_where_the_whole_difference_is_above_zero() -> None:
    noise = np.random.default_rng(0).normal(size=(3, 4, 20))
    assert beats(noise + 10, [noise, noise - 5], 1).startswith("yes (+10.0")
    assert beats(noise - 10, [noise, noise - 5], 1).startswith("no")
    assert beats(noise, [noise[::-1]], 1).startswith("unclear")


def counted() -> FlopCounterMode:
    def in_place(_: object, x: list[int], y: list[int], **__: object) -> int:
        return 2 * x[0] * x[1] * x[2] * y[2]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: in_place})


def test_the_multiply_adds_of_an_iteration_are_those_that_torch_counts() -> None:
    family = PRESETS[FAMILY]
    learner = Training(LEARNER, POLICY, FamilyTasks(family, "train"), Stop(iterations=1)).build()
    tasks = TaskBatch.of(family.sample("train", 0, range(LEARNER.tasks_per_iteration)))
    keys = random.fold_in(random.key(0), torch.arange(len(tasks)))
    state = learner.initialise(0)
    with counted() as whole:
        trial = learner.meta_gradient.sample(state, tasks, keys)
        learner.meta_gradient.gradient(state.params, trial)
    with counted() as baselines:
        for params, rollout in zip(trial.policies, [*trial.support_rollouts, trial.query_rollout], strict=True):
            learner.experience(params, tasks.discount, rollout)
    assert 2 * products(repetitions=1)[0] == whole.get_total_flops() - baselines.get_total_flops()


def test_growth_is_the_factor_of_a_doubling() -> None:
    assert growth([{"seconds": 1.0}, {"seconds": 1.5}, {"seconds": 9.0}], "seconds") == pytest.approx(3.0)


def test_a_mean_comes_with_its_standard_error_and_a_table_is_aligned() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / np.sqrt(3)))
    assert table(["name", "value"], [["a", 10.0], ["longer", 2]]) == "name    value\na        10.0\nlonger      2"
