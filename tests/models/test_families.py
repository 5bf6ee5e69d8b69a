from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models import random
from models.distributions import Choice, LogUniform, Uniform
from models.environments import NEEDED_EXTRAS, FunctionalEnvironment
from models.families import SPLITS, TaskFamily, define_family
from models.learners import MAMLConfig
from models.policy import PolicyConfig
from models.presets import PRESETS
from models.tasks import TaskBatch, define_task
from models.training import FamilyTasks, Stop, Training, train
from models.types import InvalidValue, all_finite, canonical_json

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


def test_whole_numbers_are_drawn_alike_from_both_ends_and_all_between() -> None:
    family = define_family("w", "Bandit-v0", {"instance": {"uniform": [3, 8]}})
    assert family.definition()["parameters"]["instance"] == {"uniform": [3, 8]}  # type: ignore[index]
    values = [task.parameters["instance"] for task in family.sample("train", 0, range(6000))]
    assert {type(value) for value in values} == {int}
    # A sixth of 6000 draws spreads by sqrt(6000 * 5 / 36) = 29: four of those.
    assert {value: abs(values.count(value) - 1000) < 116 for value in set(values)} == dict.fromkeys(range(3, 9), True)


def test_whole_numbers_of_all_53_bits_are_drawn_and_kept_exactly() -> None:
    tasks = PRESETS["bandit-5"].sample("train", 0, range(2000))
    values = [task.parameters["instance"] for task in tasks]
    assert len(set(values)) == 2000
    assert all(isinstance(value, int) and 0 <= value < 2**53 for value in values)
    assert max(values) > 2**53 * 0.99
    assert min(values) < 2**53 * 0.01
    assert {int(value) % 4 for value in values} == {0, 1, 2, 3}
    assert TaskBatch.of(tasks).params["instance"].squeeze(1).tolist() == values


@pytest.mark.parametrize(
    ("name", "value", "pointer", "detail"),
    [
        ("instance", {"uniform": [0.5, 3]}, "/parameters/instance/uniform/0", "a whole number from 0"),
        ("instance", {"uniform": [0, 2**53]}, "/parameters/instance/uniform/1", "not 9007199254740992"),
        ("instance", {"uniform": [-1, 3]}, "/parameters/instance/uniform/0", "not -1"),
        ("instance", {"uniform": [4, 3]}, "/parameters/instance/uniform", "low 4 is above high 3"),
        ("instance", {"loguniform": [1, 3]}, "/parameters/instance/loguniform", "use uniform or choice"),
        ("instance", {"cos": [1, 0, 1]}, "/parameters/instance/cos", "use uniform or choice"),
        ("instance", {"choice": [1, 2.5]}, "/parameters/instance/choice/1", "not 2.5"),
        ("arms", {"uniform": [1, 4]}, "/parameters/arms/uniform/0", "from 2 to 1000, not 1"),
        ("arms", {"uniform": [3, 4]}, "/parameters/arms", "arms decides the spaces, which all tasks of a family"),
        ("arms", {"choice": [3, 3, 4]}, "/parameters/arms", "give it one value"),
    ],
)
def test_an_unsound_distribution_of_whole_numbers_is_refused_where_it_is_wrong(
    name: str, value: object, pointer: str, detail: str
) -> None:
    with pytest.raises(InvalidValue) as refused:
        define_family("f", "Bandit-v0", {name: value})
    assert refused.value.pointer == pointer
    assert detail in refused.value.detail


def test_a_reward_of_a_family_may_use_the_spaces_that_its_parameters_decide() -> None:
    family = define_family("f", "Bandit-v0", {"arms": 7}, "reward + observation[13]")
    assert family.sample("train", 0, [0])[0].parameters["arms"] == 7
    with pytest.raises(InvalidValue, match="from 0 to 9"):
        define_family("f", "Bandit-v0", {}, "reward + observation[13]")


def test_arcs_of_one_task_are_the_coordinates_of_one_point() -> None:
    tasks = PRESETS["navigation-2d-sparse"].sample("train", 0, range(4000))
    points = [(float(task.parameters["goal_x"]), float(task.parameters["goal_y"])) for task in tasks]
    assert all(math.hypot(x, y) == pytest.approx(1.0, abs=1e-12) for x, y in points)
    assert min(y for _, y in points) >= 0.0
    angles = [math.atan2(y, x) for x, y in points]
    assert statistics.fmean(angles) == pytest.approx(math.pi / 2, abs=4 * math.pi / math.sqrt(12 * 4000))
    assert statistics.stdev(angles) == pytest.approx(math.pi / math.sqrt(12), rel=0.03)


@pytest.mark.parametrize(
    ("value", "pointer", "detail"),
    [
        ({"cos": [1.0, 0.0]}, "/parameters/goal_velocity/cos", "[radius, from, to], not 2 values"),
        ({"cos": [0.0, 0.0, 1.0]}, "/parameters/goal_velocity/cos/0", "radius must be"),
        ({"sin": [0.1, 1.0, 0.0]}, "/parameters/goal_velocity/sin", "from 1 is above to 0"),
        ({"sin": [0.1, 0.0, math.inf]}, "/parameters/goal_velocity/sin/2", "angle must be"),
        ({"sin": [0.1, 0.0, 3.0]}, "/parameters/goal_velocity/sin", "from -0.07 to 0.07 per step, not 0.1"),
        ({"cos": [0.1, -0.1, 3.2]}, "/parameters/goal_velocity/cos", "not -0.1"),
        ({"cos": [0.1, 0.9, 2.5]}, "/parameters/goal_velocity/cos", "not -0.08"),
    ],
)
def test_an_arc_that_leaves_the_range_is_refused_where_it_is_wrong(value: object, pointer: str, detail: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        define_family("f", "MountainCar-v0", {"goal_velocity": value})
    assert refused.value.pointer == pointer
    assert detail in refused.value.detail


def test_an_arc_may_turn_inside_the_range_only() -> None:
    family = define_family("f", "MountainCar-v0", {"goal_velocity": {"cos": [0.1, 0.9, 2.2]}})
    values = column(family, "goal_velocity", 500)
    assert min(values) >= 0.1 * math.cos(2.2)
    assert max(values) <= 0.1 * math.cos(0.9)


def test_a_categorical_parameter_has_no_range() -> None:
    with pytest.raises(InvalidValue, match="one of dense, sparse, within, which has no range: use choice"):
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
        "acrobot-lengths": ("Acrobot-v1", 300),
        "bandit-5": ("Bandit-v0", 10),
        "cartpole-physics": ("CartPole-v1", 200),
        "cartpole-reversed": ("CartPole-v1", 200),
        "mountaincar-continuous-hills": ("MountainCarContinuous-v0", 200),
        "mountaincar-hills": ("MountainCar-v0", 200),
        "navigation-2d": ("Navigation2D-v0", 100),
        "navigation-2d-sparse": ("Navigation2D-v0", 20),
        "pendulum-mass-length": ("Pendulum-v1", 200),
        "tabular-mdp": ("TabularMDP-v0", 10),
        **({} if NEEDED_EXTRAS else locomotion),
    }
    assert set(column(PRESETS["cartpole-reversed"], "force_mag", 50)) == {10.0, -10.0}


@families
def test_a_learner_can_take_a_step_on_every_preset(family: TaskFamily) -> None:
    learner = MAMLConfig(tasks_per_iteration=2, episodes_per_task=2)
    run = Training(learner, PolicyConfig((8,)), FamilyTasks(family, "train"), Stop(iterations=1))
    *_, last = train(run)
    assert all_finite(last.state.learner.params)


def corners_and_samples(name: str, count: int) -> TaskBatch:
    """The tasks at the ends of every range of a family, and others that it draws."""
    family = PRESETS[name]
    ends = {key: each.support() for key, each in family.parameters.items() if isinstance(each, Uniform)}
    corners = [
        define_task(family.environment, dict(zip(ends, values, strict=True)), horizon=family.horizon)
        for values in itertools.product(*ends.values())
    ]
    return TaskBatch.of([*corners, *family.sample("train", 0, range(count))])


def play(tasks: TaskBatch, episodes: int, choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Which episodes reached a terminal state within their horizon, [N, B], and their last states."""
    assert isinstance(tasks.environment, FunctionalEnvironment)
    keys = random.fold_in(random.key("starts"), torch.arange(len(tasks) * episodes)).reshape(len(tasks), episodes)
    state = tasks.environment.initial(keys, tasks.params)
    arrived = torch.zeros(len(tasks), episodes, dtype=torch.bool)
    for step in range(int(tasks.horizon.max())):
        state, _, terminated = tasks.environment.step(state, choose(state), random.fold_in(keys, step), tasks.params)
        arrived |= terminated
    return arrived, state


@pytest.mark.parametrize("name", ["mountaincar-hills", "mountaincar-continuous-hills"])
def test_every_hill_of_the_mountain_car_families_can_be_climbed_within_its_horizon(name: str) -> None:
    def push(state: Tensor) -> Tensor:
        along = state[..., 1] >= 0
        return torch.where(along, 2, 0) if name == "mountaincar-hills" else torch.where(along, 1.0, -1.0).unsqueeze(-1)

    arrived, _ = play(corners_and_samples(name, 300), 40, push)
    assert bool(arrived.all())


def test_nearly_every_acrobot_of_the_family_swings_up_when_its_joint_is_turned_along() -> None:
    arrived, _ = play(
        corners_and_samples("acrobot-lengths", 100), 10, lambda state: torch.where(state[..., 3] >= 0, 2, 0)
    )
    assert float(arrived.double().mean()) > 0.98


def test_every_pendulum_of_the_family_can_be_swung_up_and_held() -> None:
    tasks = corners_and_samples("pendulum-mass-length", 50)
    weight = 10.0 * tasks.params["mass"] * tasks.params["length"] / 2
    inertia = tasks.params["mass"] * tasks.params["length"] ** 2 / 3

    def swing(state: Tensor) -> Tensor:
        angle, speed = (state[..., 0] + math.pi) % (2 * math.pi) - math.pi, state[..., 1]
        lacking = weight * (1 - angle.cos()) - inertia * speed**2 / 2
        hold = -weight * angle.sin() - inertia * (30 * angle + 6 * speed)
        near = (angle.abs() < 0.35) & (speed.abs() < 3)
        return torch.where(near, hold, torch.where(speed * lacking >= 0, 2.0, -2.0)).unsqueeze(-1)

    _, state = play(tasks, 10, swing)
    assert float(state[..., 0].cos().min()) > 0.98


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


def test_a_family_holds_its_tasks_and_none_of_another_range_value_or_reward() -> None:
    family = define_family(
        "mixed",
        "Navigation2D-v0",
        {"goal_x": {"uniform": [0.1, 0.4]}, "goal_y": {"choice": [-0.2, 0.2]}, "radius": {"loguniform": [0.1, 0.5]}},
    )
    assert all(family.holds(task) for task in family.sample("test", 3, range(50)))
    inside = {"goal_x": 0.4, "goal_y": 0.2, "radius": 0.1}
    for changes, held in (
        ({}, True),
        ({"goal_x": 0.41}, False),
        ({"goal_y": 0.1}, False),
        ({"radius": 0.09}, False),
        ({"reward": "sparse"}, False),
    ):
        assert family.holds(define_task("Navigation2D-v0", inside | changes)) == held
    assert not family.holds(define_task("Navigation2D-v0", inside, reward="2 * reward"))
    assert not family.holds(define_task("CartPole-v1"))


def test_the_coordinates_of_an_arc_are_held_where_the_arc_reaches() -> None:
    family = define_family(
        "arc", "Navigation2D-v0", {"goal_x": {"cos": [0.4, 0, 3.2]}, "goal_y": {"sin": [0.4, 0, 3.2]}}
    )
    assert all(family.holds(task) for task in family.sample("train", 0, range(50)))
    assert not family.holds(define_task("Navigation2D-v0", {"goal_x": 0.0, "goal_y": -0.3}))


def test_a_family_of_constants_and_choices_is_finite() -> None:
    few = define_family("few", "Navigation2D-v0", {"goal_x": {"choice": [0.1, 0.2]}})
    assert few.is_finite
    assert not define_family("many", "Navigation2D-v0", {"goal_x": {"uniform": [0.1, 0.2]}}).is_finite
