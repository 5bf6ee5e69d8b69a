from __future__ import annotations

import math

import pytest
import torch

from models.environments import ENVIRONMENTS
from models.tasks import MAX_HORIZON, TaskBatch, define_task
from models.types import InvalidValue, canonical_json


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_task_of_nothing_but_its_environment_has_every_default(environment: str) -> None:
    task = define_task(environment)
    assert task.parameters == {each.name: each.default for each in ENVIRONMENTS[environment].parameters}
    assert (task.reward, task.discount) == (None, 0.99)
    assert task.horizon == ENVIRONMENTS[environment].default_horizon


def test_equal_tasks_written_differently_have_equal_definitions() -> None:
    one = define_task("CartPole-v1", {"length": 1, "gravity": 9.8}, " reward ", 1, 200)
    other = define_task("CartPole-v1", {"length": 1.0}, "reward", 1.0, 200)
    assert canonical_json(one.definition()) == canonical_json(other.definition())
    assert one == other


@pytest.mark.parametrize(
    ("arguments", "pointer", "detail"),
    [
        ({"environment": "CartPole-v99"}, "/environment", ", ".join(ENVIRONMENTS)),
        ({"environment": None}, "/environment", "unknown environment None"),
        ({"environment": ["CartPole-v1"]}, "/environment", "unknown environment a list"),
        ({"environment": "x" * 10**6}, "/environment", "unknown environment 'xxx"),
        ({"parameters": {"mass": 1.0}}, "/parameters/mass", "gravity, masscart, masspole, length, force_mag"),
        ({"parameters": {"length": 0.0}}, "/parameters/length", "from 0.01 to 100 m, not 0.0"),
        ({"parameters": {"length": math.nan}}, "/parameters/length", "not nan"),
        ({"parameters": {"length": "0.5"}}, "/parameters/length", "not '0.5'"),
        ({"parameters": {"length": None}}, "/parameters/length", "not None"),
        ({"reward": "1 +"}, "/reward/expression", "invalid syntax"),
        ({"reward": "observation[4]"}, "/reward/expression", "from 0 to 3"),
        ({"reward": {"expression": "1"}}, "/reward/expression", "must be a text, not a dict"),
        ({"discount": 0.0}, "/discount", "above 0 and at most 1, not 0.0"),
        ({"discount": 1.01}, "/discount", "not 1.01"),
        ({"discount": math.nan}, "/discount", "not nan"),
        ({"discount": True}, "/discount", "not True"),
        ({"discount": 10**400}, "/discount", "not an integer of 1329 bits"),
        ({"horizon": 0}, "/horizon", f"from 1 to {MAX_HORIZON}, not 0"),
        ({"horizon": MAX_HORIZON + 1}, "/horizon", "not 100001"),
        ({"horizon": 10.0}, "/horizon", "not 10.0"),
        ({"horizon": True}, "/horizon", "not True"),
        ({"horizon": 10**400}, "/horizon", "not an integer of 1329 bits"),
    ],
)
def test_an_unsound_task_is_refused_where_it_is_wrong(arguments: dict[str, object], pointer: str, detail: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        define_task(**({"environment": "CartPole-v1"} | arguments))  # type: ignore[arg-type]
    assert refused.value.pointer == pointer
    assert detail in refused.value.detail


def test_a_batch_holds_its_tasks_as_tensors() -> None:
    tasks = [
        define_task("Navigation2D-v0", {"goal_x": 0.25}, discount=0.5, horizon=7),
        define_task("Navigation2D-v0", {"goal_y": -0.75, "reward": "sparse"}),
    ]
    batch = TaskBatch.of(tasks, torch.float64)
    assert len(batch) == 2
    assert batch.environment is ENVIRONMENTS["Navigation2D-v0"]
    assert batch.params["goal_x"].tolist() == [[0.25], [0.5]]
    assert batch.params["reward"].tolist() == [[0.0], [1.0]]
    assert batch.params["goal"].tolist() == [[[0.25, 0.5]], [[0.5, -0.75]]]
    assert batch.discount.tolist() == [0.5, 0.99]
    assert batch.horizon.tolist() == [7, 100]
    assert batch.horizon.dtype == torch.int64
    assert batch.params["goal_x"].dtype == batch.discount.dtype == torch.float64
    assert TaskBatch.of(tasks).params["goal_x"].dtype == torch.float32


def test_a_batch_of_two_environments_is_refused_and_both_tasks_are_named() -> None:
    tasks = [define_task("CartPole-v1"), define_task("CartPole-v1"), define_task("MountainCar-v0")]
    with pytest.raises(InvalidValue) as refused:
        TaskBatch.of(tasks)
    assert refused.value.pointer == "/tasks"
    for words in ("task 0 in CartPole-v1", "task 2 in MountainCar-v0", "4 numbers, 2 actions", "2 numbers, 3 actions"):
        assert words in refused.value.detail
    with pytest.raises(InvalidValue, match=r"left in CartPole-v1 .* hilly in MountainCar-v0"):
        TaskBatch.of(tasks, names=["left", "right", "hilly"])


def test_a_batch_of_no_tasks_is_refused() -> None:
    with pytest.raises(InvalidValue, match="there is no task"):
        TaskBatch.of([])


def test_a_selection_keeps_tasks_names_and_dtype() -> None:
    tasks = [define_task("CartPole-v1", {"length": length}, "2 * reward") for length in (0.1, 0.2, 0.3)]
    picked = TaskBatch.of(tasks, torch.float64, names=["a", "b", "c"]).select([2, 0, 2])
    assert picked.params["length"].squeeze(1).tolist() == [0.3, 0.1, 0.3]
    assert picked.params["total_mass"].shape == (3, 1)
    assert picked.names == ("c", "a", "c")
    assert picked.discount.dtype == torch.float64


def test_a_task_is_described_by_its_name_and_definition() -> None:
    batch = TaskBatch.of([define_task("Navigation2D-v0", reward="reward / 2")], names=["near"])
    for words in ("near (Navigation2D-v0", "goal_x=0.5", "reward=dense", "'reward / 2'"):
        assert words in batch.describe(0)


def test_without_expressions_the_environments_reward_passes_untouched() -> None:
    batch = TaskBatch.of([define_task("CartPole-v1")] * 3)
    reward = torch.randn(3, 5)
    end = torch.zeros(3, 5, dtype=torch.bool)
    observation = torch.zeros(3, 5, 4)
    assert batch.reward(observation, torch.zeros(3, 5, dtype=torch.int64), observation, reward, end) is reward


@pytest.mark.parametrize("axes", [(5,), (7, 5)])
@pytest.mark.parametrize(
    "rewards", [[None, "2 * reward", None, "observation[1] + action", "2 * reward"], ["2 * reward"] * 5]
)
def test_each_task_is_paid_by_its_own_expression(rewards: list[str | None], axes: tuple[int, ...]) -> None:
    batch = TaskBatch.of([define_task("CartPole-v1", reward=reward) for reward in rewards])
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(5, *axes, 4, generator=generator)
    action = torch.randint(2, (5, *axes), generator=generator)
    reward = torch.randn(5, *axes, generator=generator)
    before = reward.clone()
    paid = batch.reward(observation, action, observation, reward, torch.zeros(5, *axes, dtype=torch.bool))
    for n, expression in enumerate(rewards):
        expected = {
            None: reward[n],
            "2 * reward": 2 * reward[n],
            "observation[1] + action": observation[n, ..., 1] + action[n],
        }[expression]
        assert torch.equal(paid[n], expected)
    assert torch.equal(reward, before)
