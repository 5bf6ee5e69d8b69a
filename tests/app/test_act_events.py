"""Actions that are recorded when they are taken, and rewarded later."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
from acting import CARTPOLE, METHOD, NAVIGATION, act, begin, finish, look, policy_of, remote_task, upload
from sqlalchemy import func, select, update

from app.adaptations.act_events import expire_events, record_act
from app.database import now
from app.errors import Conflict, Gone, NotFound
from app.tables import ActEvent, Policy
from models.checkpoint import numpy_params
from models.runtime import NumpyPolicy


def record(database, adaptation, action=1, policy_action=None, log_prob=-0.7, revision=0, observation=(0.1,) * 4):
    with database.transaction() as session:
        return record_act(session, adaptation["policy"], observation, action, policy_action, log_prob, revision)


def reward(client, event, value=1.0):
    return client.post(f"/v1/events/{event}:reward", json={"reward": value})


def test_an_action_with_its_reward_is_an_episode_of_one_step(client, database):
    adaptation = begin(client)
    event = record(database, adaptation)
    assert look(client, adaptation)["remote"]["episodes"] == 0
    answer = reward(client, event, 0.5)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "event_id": event,
        "adaptation": adaptation["id"],
        "policy": adaptation["policy"],
        "reward": 0.5,
    }
    line = client.get(f"/v1/adaptations/{adaptation['id']}/episodes?format=jsonl").json()
    assert line == {
        "id": f"event-{event}",
        "revision": 0,
        "observations": [[0.1] * 4] * 2,
        "actions": [1],
        "rewards": [0.5],
        "log_probs": [-0.7],
        "terminated": True,
        "truncated": False,
        "offset": 0,
    }
    refused = upload(client, adaptation, [line])
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/episodes/0/id")
    assert upload(client, begin(client), [line | {"id": "of-my-own"}]).json()["accepted"] == 1
    assert look(client, adaptation)["remote"]["episodes"] == 1


def test_a_reward_may_be_told_again_but_not_changed(client, database):
    event = record(database, begin(client))
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda _: reward(client, event), range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    changed = reward(client, event, 2.0)
    assert changed.status_code == 409
    assert "has the reward 1 already" in changed.json()["detail"]


@pytest.mark.databases("sqlite")
def test_rewards_that_cannot_be_are_refused(client, database):
    event = record(database, begin(client))
    assert reward(client, "nothing").status_code == 404
    for value in ("1", None, 1e39, True):
        assert reward(client, event, value).status_code == 422
    path, json_type = f"/v1/events/{event}:reward", {"Content-Type": "application/json"}
    assert client.post(path, content=b'{"reward": NaN}', headers=json_type).status_code == 422
    assert reward(client, event).status_code == 200


@pytest.mark.databases("sqlite")
def test_recorded_actions_teach_the_policy(client, idle):
    """A bandit with two arms, of which the first pays."""
    adaptation = begin(client, method=METHOD | {"steps": 5, "episodes": 40, "learning_rate": 3.0})
    generator, observation = np.random.default_rng(0), np.full((1, 4), 0.5, np.float32)

    def first_arm():
        policy, params = policy_of(client, adaptation)
        actions = NumpyPolicy(policy, numpy_params(params)).act(np.repeat(observation, 2000, 0), generator)[0]
        return float((actions == 0).mean())

    before = first_arm()
    for revision in range(5):
        for _ in range(40):
            body = {"observations": observation.tolist(), "deterministic": False, "record": True, "revision": revision}
            answer = client.post(f"/v1/policies/{adaptation['policy']}:act", json=body).json()
            event, actions = answer["event_id"], answer["actions"]
            assert reward(client, event, float(actions[0] == 0)).status_code == 200
        assert idle.work_once()
    assert look(client, adaptation)["revision"] == 5
    assert before < 0.7
    assert first_arm() > 0.9


def test_an_action_for_an_observation_of_many_numbers_is_recorded_too(client):
    space = {"type": "box", "low": [None] * 9000, "high": [None] * 9000}
    body = {"model": None, "policy": {"hidden": [8]}, "task": remote_task(CARTPOLE, observation_space=space)}
    adaptation = client.post("/v1/adaptations", json=body | {"method": METHOD}).json()
    body = {"observations": [[0.125] * 9000], "deterministic": False, "record": True}
    answer = client.post(f"/v1/policies/{adaptation['policy']}:act", json=body).json()
    assert reward(client, answer["event_id"]).status_code == 200


def test_continuous_actions_are_recorded_in_both_units(client, database):
    adaptation = begin(client, NAVIGATION)
    event = record(database, adaptation, [0.05, -0.05], [0.5, -0.5], 1.5, observation=[0.1, 0.2])
    assert reward(client, event).status_code == 200
    line = client.get(f"/v1/adaptations/{adaptation['id']}/episodes?format=jsonl").json()
    assert (line["actions"], line["policy_actions"], line["log_probs"]) == ([[0.05, -0.05]], [[0.5, -0.5]], [1.5])


def test_a_reward_that_comes_too_late_is_gone_counted_and_forgotten_after_a_day(client, database):
    adaptation = begin(client, task=CARTPOLE)
    late, told = record(database, adaptation), record(database, adaptation)
    reward(client, told)
    with database.transaction() as session:
        session.execute(update(ActEvent).values(expires_at=now() - timedelta(seconds=1)))
    gone = reward(client, late)
    assert gone.status_code == 410
    assert "expired at 20" in gone.json()["detail"]
    assert reward(client, told).status_code == 200  # it has come in time
    for _ in range(2):
        expire_events(database)
        assert look(client, adaptation)["remote"]["events_expired"] == 1
    with database.transaction() as session:
        session.execute(update(ActEvent).values(expires_at=now() - timedelta(days=1, seconds=1)))
    expire_events(database)
    with database.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(ActEvent)) == 0
    assert reward(client, late).status_code == 404
    assert look(client, adaptation)["remote"]["events_expired"] == 1


def test_the_time_for_a_reward_is_the_tasks(client, database):
    body = {"model": None, "policy": {"hidden": [4]}, "task": remote_task(CARTPOLE, reward_seconds=5)}
    adaptation = client.post("/v1/adaptations", json=body).json()
    event = record(database, adaptation)
    with database.snapshot() as session:
        row = session.get(ActEvent, event)
        assert (row.expires_at - row.created_at).total_seconds() == pytest.approx(5, abs=1)


def test_only_policies_of_remote_adaptations_that_are_not_over_are_recorded_for(client, database, idle):
    over = begin(client)
    event = record(database, over)
    upload(client, over, act(client, over))
    finish(client, over, 0)
    with pytest.raises(Conflict, match="is being finished"):
        record(database, over)
    while idle.work_once():
        pass
    with pytest.raises(Conflict, match="is over"):
        record(database, over)
    assert reward(client, event).status_code == 409

    body = {"model": None, "task": NAVIGATION, "policy": {"hidden": [4]}}
    asked = client.post("/v1/adaptations", json=body, headers={"Prefer": "wait=0"}).json()
    idle.work_once()
    with pytest.raises(Conflict, match="no remote adaptation"):
        record(database, look(client, asked))
    with pytest.raises(NotFound):
        record(database, {"policy": "nothing"})

    expired = begin(client)
    with database.transaction() as session:
        session.execute(update(Policy).values(expires_at=now() - timedelta(seconds=1)))
    with pytest.raises(Gone, match="expired at"):
        record(database, expired)
    assert upload(client, expired, []).status_code == 410
