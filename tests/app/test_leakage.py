"""What a version was trained on: the gap to it, the range of it, and held-out tasks that were among it."""

import pytest
from evaluating import TASK, adapt, ask, evaluated, inner_loop, train, warned

from app.auth import OPERATOR
from app.tasks.service import create_family
from models.families import define_family

pytestmark = pytest.mark.usefixtures("good_and_bad")


def test_the_gap_is_measured_on_tasks_that_the_version_was_trained_on(client, evaluator, settings):
    train(client, settings)
    body = evaluated(client, evaluator, subjects=["trained", "good"])
    assert [task["name"] for task in body["result"]["training_tasks"]] == ["train-0", "train-1"]
    trained, good = (inner_loop(body)["subjects"][name] for name in ("trained", "good"))
    expected = trained["gap"]["training"]["mean"]["estimate"] - trained["after"]["mean"]["estimate"]
    assert trained["gap"]["estimate"] == pytest.approx(expected)
    assert good["gap"] is None
    assert body["progress"] == {"done": 22, "total": 22}
    assert warned(body, "only trained was trained on tasks of this kind (3 of 3 tasks)")


def test_tasks_in_and_out_of_the_training_range_are_told_apart(client, evaluator, settings):
    train(client, settings)
    body = evaluated(client, evaluator, subjects=["trained"], tasks={"family": "far", "count": 8}, seeds=1)
    inside = [task["parameters"]["goal_x"] <= 0.5 for task in body["result"]["tasks"]]
    assert [task["in_range"] for task in body["result"]["tasks"]] == inside
    assert 0 < sum(inside) < 8
    trained = inner_loop(body)["subjects"]["trained"]
    after = [row["after"] for row, within in zip(trained["tasks"], inside, strict=True) if within]
    assert trained["groups"]["in_range"]["after"]["mean"]["estimate"] == pytest.approx(sum(after) / len(after))
    assert warned(body, f"{8 - sum(inside)} of the 8 tasks are outside the range")


def test_held_out_tasks_that_were_trained_on_are_leakage(client, settings):
    train(client, settings)
    leaked = ask(client, subjects=["trained", "good"], tasks={"family": "near", "split": "train", "count": 3})
    assert [(leak["subject"], len(leak["tasks"])) for leak in leaked["leakage"]] == [("trained", 3)]
    assert warned(leaked, "only trained was trained on these tasks")
    # A registered task of the split that fresh tasks were drawn from, and one that a run was given by id.
    task = TASK | {"parameters": {"goal_x": 0.4, "goal_y": 0.0}}
    client.post("/v1/tasks", json=task | {"name": "of-train", "family": "near", "split": "train"})
    client.post("/v1/tasks", json=task | {"name": "of-test", "family": "near", "split": "test"})
    assert ask(client, subjects=["trained"], tasks={"ids": ["of-train", "of-test"]})["leakage"][0]["tasks"] == [
        "of-train"
    ]
    train(client, settings, model="by-id", tasks={"ids": ["of-test"]})
    assert ask(client, subjects=["by-id"], tasks={"ids": ["of-test"]})["leakage"][0]["tasks"] == ["of-test"]
    assert ask(client, subjects=["good"], tasks={"ids": ["of-test"]})["leakage"] == []


def test_the_splits_of_a_family_with_a_few_tasks_only_leak(client, settings, database):
    few = define_family("few", "Navigation2D-v0", {"goal_x": 0.4, "goal_y": 0.0}, horizon=10)
    with database.transaction() as session:
        create_family(session, OPERATOR, few)
    train(client, settings, tasks={"family": "few"})
    assert len(ask(client, subjects=["trained"], tasks={"family": "few", "count": 2})["leakage"][0]["tasks"]) == 2


def test_a_version_that_came_of_a_policy_has_seen_what_its_ancestors_have(client, settings):
    train(client, settings)
    client.post("/v1/tasks", json=TASK | {"parameters": {"goal_x": -0.4}, "name": "adapted-to"})
    policy = adapt(client, settings, "trained", "adapted-to")
    client.post(f"/v1/policies/{policy}:publish", json={"model": "tuned"})
    assert ask(client, subjects=["tuned"], tasks={"ids": ["adapted-to"]})["leakage"][0]["subject"] == "tuned"
    leaked = ask(client, subjects=["tuned"], tasks={"family": "near", "split": "train"})["leakage"]
    assert len(leaked[0]["tasks"]) == 20


def test_a_version_that_was_chosen_by_the_very_tasks_is_warned_of(client, settings):
    train(client, settings, evaluation={"tasks": 2, "every_iterations": 1, "episodes": 2}, seed=7)
    chosen = ask(client, subjects=["trained"], tasks={"family": "near", "count": 2, "seed": 7})
    assert warned(chosen, "best of its run by its return on these very held-out tasks")
    assert chosen["leakage"] == []
    other = ask(client, subjects=["trained"], tasks={"family": "near", "count": 2, "seed": 8})
    assert not warned(other, "very held-out tasks")
