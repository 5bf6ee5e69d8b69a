from __future__ import annotations

import json
import math
import statistics

import pytest
import torch

from models import random
from models.environments import NEEDED_EXTRAS
from models.families import PRESETS, SPLITS, Choice, LogUniform, TaskFamily, Uniform, define_family
from models.tasks import TaskBatch, define_task
from models.types import InvalidValue, canonical_json

families = pytest.mark.parametrize("family", PRESETS.values(), ids=PRESETS.keys())


def column(family: TaskFamily, parameter: str, count: int, split: str = "train", seed: int = 0) -> list[float]:
    return [float(task.parameters[parameter]) for task in family.sample(split, seed, range(count))]


@families
def test_the_same_call_gives_the_same_tasks(family: TaskFamily) -> None:
    again = define_family(**family_arguments(family))
    assert family.sample("train", 3, range(5)) == again.sample("train", 3, range(5))


def family_arguments(family: TaskFamily) -> dict[str, object]:
    """What ``define_family`` takes, from a definition that has been through JSON."""
    arguments = json.loads(json.dumps(family.definition()))
    reward = arguments.pop("reward")
    return {**arguments, "reward": None if reward is None else reward["expression"]}


@families
def test_a_definition_read_back_is_the_same_family(family: TaskFamily) -> None:
    again = define_family(**family_arguments(family))  # type: ignore[arg-type]
    assert again == family
    assert canonical_json(again.definition()) == canonical_json(family.definition())


@families
def test_every_sampled_task_is_one_that_could_be_defined(family: TaskFamily) -> None:
    for task in family.sample("test", 1, range(50)):
        assert task == define_task(task.environment, task.parameters, task.reward, task.discount, task.horizon)


@families
def test_a_task_does_not_depend_on_which_others_are_drawn(family: TaskFamily) -> None:
    together = family.sample("train", 0, range(100))
    assert family.sample("train", 0, [97, 3, 3]) == [together[97], together[3], together[3]]
    assert family.sample("train", 0, [2**63 - 1])
    assert family.sample("train", 0, []) == []


@families
def test_splits_and_seeds_have_tasks_of_their_own(family: TaskFamily) -> None:
    streams = [family.sample(split, seed, range(20)) for split in SPLITS for seed in (0, 1)]
    definitions = [canonical_json(task.definition()) for stream in streams for task in stream]
    if any(isinstance(each, Uniform | LogUniform) for each in family.parameters.values()):
        assert len(set(definitions)) == len(streams) * 20
    else:  # a handful of tasks, in another order in each stream
        assert len({tuple(definitions[i : i + 20]) for i in range(0, len(definitions), 20)}) == len(streams)


def test_families_of_other_names_draw_other_tasks() -> None:
    one, other = (define_family(name, "CartPole-v1", {"length": Uniform(0.1, 1.0)}) for name in ("a", "b"))
    assert not set(column(one, "length", 20)) & set(column(other, "length", 20))


def test_a_parameter_is_drawn_alike_whatever_the_others_are() -> None:
    alone = define_family("a", "CartPole-v1", {"length": Uniform(0.1, 1.0)})
    beside = define_family("a", "CartPole-v1", {"gravity": Uniform(5.0, 9.0), "length": Uniform(0.1, 1.0)})
    assert column(alone, "length", 20) == column(beside, "length", 20)
    assert column(beside, "gravity", 20) != column(beside, "length", 20)


def test_the_first_tasks_of_a_preset_are_these_for_ever() -> None:
    lengths = column(PRESETS["cartpole-reversed"], "length", 3)
    forces = column(PRESETS["cartpole-reversed"], "force_mag", 8)
    assert lengths == pytest.approx([0.6834686419964007, 0.3063923195682482, 0.44420210224932577], abs=1e-12)
    assert forces == [10.0, -10.0, 10.0, 10.0, 10.0, -10.0, -10.0, -10.0]


def test_uniform_values_fill_their_range() -> None:
    values = column(define_family("u", "CartPole-v1", {"length": {"uniform": [0.25, 1.0]}}), "length", 4000)
    assert 0.25 <= min(values) < 0.252
    assert 0.998 < max(values) <= 1.0
    # The mean spreads by 0.75 / sqrt(12 * 4000) = 0.0034: four of those.
    assert statistics.fmean(values) == pytest.approx(0.625, abs=0.014)
    assert statistics.stdev(values) == pytest.approx(0.75 / math.sqrt(12), rel=0.03)


def test_loguniform_values_have_uniform_logarithms() -> None:
    family = define_family("l", "CartPole-v1", {"masspole": {"loguniform": [0.01, 10.0]}})
    values = column(family, "masspole", 4000)
    assert min(values) >= 0.01
    assert max(values) <= 10.0
    for bound, share in ((0.1, 1 / 3), (1.0, 2 / 3)):
        assert sum(value < bound for value in values) / 4000 == pytest.approx(share, abs=0.03)


def test_choices_come_with_equal_chance_and_mix_with_constants() -> None:
    family = define_family(
        "c", "Navigation2D-v0", {"reward": {"choice": ["dense", "sparse"]}, "goal_x": Choice((-1, 0, 2)), "goal_y": 1}
    )
    tasks = family.sample("train", 0, range(3000))
    assert {task.parameters["goal_y"] for task in tasks} == {1.0}
    assert {task.parameters["goal_x"] for task in tasks} == {-1.0, 0.0, 2.0}
    for name, value, share in (("reward", "sparse", 1 / 2), ("goal_x", 0.0, 1 / 3), ("goal_x", 2.0, 1 / 3)):
        assert sum(task.parameters[name] == value for task in tasks) / 3000 == pytest.approx(share, abs=0.035)


def test_a_range_of_one_value_and_a_range_up_to_the_limits_stay_inside() -> None:
    family = define_family(
        "edges",
        "CartPole-v1",
        {"length": Uniform(0.3, 0.3), "gravity": LogUniform(100.0, 100.0), "tau": LogUniform(0.0001, 0.2)},
    )
    for task in family.sample("train", 0, range(500)):
        assert task == define_task("CartPole-v1", task.parameters, horizon=task.horizon)
        assert (task.parameters["length"], task.parameters["gravity"]) == (0.3, 100.0)


@pytest.mark.parametrize(
    ("value", "pointer", "detail"),
    [
        ({"uniform": [0.0, 1.0]}, "/parameters/length/uniform/0", "from 0.01 to 100 m, not 0.0"),
        ({"uniform": [0.5, 1e9]}, "/parameters/length/uniform/1", "not 1000000000.0"),
        ({"uniform": [0.5, math.nan]}, "/parameters/length/uniform/1", "not nan"),
        ({"uniform": [0.5, 10**400]}, "/parameters/length/uniform/1", "not an integer of 1329 bits"),
        ({"uniform": [True, 2]}, "/parameters/length/uniform/0", "not True"),
        ({"uniform": [1.0, 0.5]}, "/parameters/length/uniform", "low 1 is above high 0.5"),
        ({"uniform": [1.0]}, "/parameters/length/uniform", "[low, high], not 1 values"),
        ({"uniform": 1.0}, "/parameters/length/uniform", "must be a list, not 1.0"),
        ({"loguniform": ["a", 1]}, "/parameters/length/loguniform/0", "not 'a'"),
        ({"choice": []}, "/parameters/length/choice", "must list 1 to 1000 values, not 0"),
        ({"choice": [0.5] * 1001}, "/parameters/length/choice", "not 1001"),
        ({"choice": [0.5, 0.0]}, "/parameters/length/choice/1", "not 0.0"),
        ({"choice": [[0.5]]}, "/parameters/length/choice/0", "not a list"),
        ({"normal": [0, 1]}, "/parameters/length", '{"uniform": [low, high]}'),
        ({"uniform": [0.1, 1], "choice": [1]}, "/parameters/length", "must be a value, "),
        ({}, "/parameters/length", "must be a value, "),
        ([0.5], "/parameters/length", "not a list"),
        (Uniform(0.0, 1.0), "/parameters/length/uniform/0", "not 0.0"),
    ],
)
def test_an_unsound_distribution_is_refused_where_it_is_wrong(value: object, pointer: str, detail: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        define_family("f", "CartPole-v1", {"length": value})
    assert refused.value.pointer == pointer
    assert detail in refused.value.detail


def test_a_logarithm_needs_values_above_zero() -> None:
    with pytest.raises(InvalidValue, match="low must be above 0") as refused:
        define_family("f", "CartPole-v1", {"gravity": {"loguniform": [0.0, 10.0]}})
    assert refused.value.pointer == "/parameters/gravity/loguniform/0"


def test_a_categorical_parameter_has_no_range() -> None:
    with pytest.raises(InvalidValue, match="one of dense, sparse, which has no range: use choice"):
        define_family("f", "Navigation2D-v0", {"reward": {"uniform": [0, 1]}})


@pytest.mark.parametrize(
    ("arguments", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": 3}, "/name"),
        ({"environment": "Pong"}, "/environment"),
        ({"parameters": {"mass": 1.0}}, "/parameters/mass"),
        ({"reward": "speed"}, "/reward/expression"),
        ({"discount": 2}, "/discount"),
        ({"horizon": -1}, "/horizon"),
    ],
)
def test_an_unsound_family_is_refused_where_it_is_wrong(arguments: dict[str, object], pointer: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        define_family(**({"name": "f", "environment": "CartPole-v1"} | arguments))  # type: ignore[arg-type]
    assert refused.value.pointer == pointer


@pytest.mark.parametrize(
    ("split", "seed", "index", "pointer"),
    [
        ("dev", 0, 0, "/split"),
        ("train", -1, 0, "/seed"),
        ("train", 2**63, 0, "/seed"),
        ("train", 0.5, 0, "/seed"),
        ("train", 0, -1, "/indices"),
        ("train", 0, 2**63, "/indices"),
    ],
)
def test_a_sample_of_no_known_place_is_refused(split: str, seed: int, index: int, pointer: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        PRESETS["navigation-2d"].sample(split, seed, [index])
    assert refused.value.pointer == pointer


def test_the_presets_are_those_that_are_promised() -> None:
    locomotion = {
        "halfcheetah-velocity": ("HalfCheetah-v5", 100),
        "halfcheetah-direction": ("HalfCheetah-v5", 100),
        "ant-direction": ("Ant-v5", 200),
        "ant-goal": ("Ant-v5", 200),
        "hopper-params": ("Hopper-v5", 200),
        "walker2d-params": ("Walker2d-v5", 200),
    }
    assert {name: (each.environment, each.horizon) for name, each in PRESETS.items()} == {
        "cartpole-physics": ("CartPole-v1", 200),
        "cartpole-reversed": ("CartPole-v1", 200),
        "mountaincar-hills": ("MountainCar-v0", 200),
        "navigation-2d": ("Navigation2D-v0", 100),
        **({} if NEEDED_EXTRAS else locomotion),
    }
    assert set(column(PRESETS["cartpole-reversed"], "force_mag", 50)) == {10.0, -10.0}


def test_every_hill_of_the_mountain_car_family_can_be_climbed_within_its_horizon() -> None:
    # The corners of the family beside what it draws, forty starts each, pushing along the motion.
    corners = [
        define_task("MountainCar-v0", {"force": force, "gravity": gravity})
        for force in (0.001, 0.0015)
        for gravity in (0.002, 0.0028)
    ]
    tasks = TaskBatch.of([*corners, *PRESETS["mountaincar-hills"].sample("train", 0, range(300))])
    keys = random.fold_in(random.key("starts"), torch.arange(len(tasks) * 40)).reshape(len(tasks), 40)
    state = tasks.environment.initial(keys, tasks.params)
    arrived = torch.zeros(len(tasks), 40, dtype=torch.bool)
    for _ in range(200):
        action = torch.where(state[..., 1] >= 0, 2, 0)
        state, _, terminated = tasks.environment.step(state, action, keys, tasks.params)
        arrived |= terminated
    assert bool(arrived.all())


def test_every_cart_of_the_cartpole_families_can_be_balanced() -> None:
    for name in ("cartpole-physics", "cartpole-reversed"):
        tasks = TaskBatch.of(PRESETS[name].sample("train", 0, range(100)))
        keys = random.fold_in(random.key("starts"), torch.arange(1000)).reshape(100, 10)
        state = tasks.environment.initial(keys, tasks.params)
        fallen = torch.zeros(100, 10, dtype=torch.bool)
        for _ in range(200):
            x, v, angle, w = state.unbind(-1)
            lean = (angle + 0.3 * w + 0.03 * x + 0.06 * v > 0) == (tasks.params["force_mag"] > 0)
            state, _, terminated = tasks.environment.step(state, lean.long(), keys, tasks.params)
            fallen |= terminated
        assert not bool(fallen.any())
