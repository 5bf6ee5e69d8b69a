"""Rollouts of policies over HTTP, against Gymnasium's own environments."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as iio
import numpy as np
import pytest
from fastapi import FastAPI
from httpx import Client, Response

from app import tables
from app.database import now
from app.policies import rollouts
from app.settings import Settings
from models.checkpoint import numpy_params, policy_to_json, save_params
from models.environments import ENVIRONMENTS, bridge
from models.policy import Policy, PolicyConfig
from models.runtime import NumpyPolicy
from models.tasks import define_task, environment_of

# Episodes and films are computed; only what they are computed of is looked up.
pytestmark = pytest.mark.databases("sqlite")

MODULE = "gymnasium_samples"
SHORT = 25

Adapt = Callable[..., str]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Iterator[Settings]:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    yield Settings(data=tmp_path / "var", database_url=database_url, environment_modules=(MODULE,))
    bridge.configure([])


@pytest.fixture
def adapt(app: FastAPI, client: Client) -> Adapt:
    """Store a policy as if it had been adapted to a task: its id."""
    assert client is not None, "the application has started"

    def adapt(environment: str, *, horizon: int = SHORT, reward: str | None = None, **parameters: Any) -> str:
        task = define_task(environment, parameters, reward, horizon=horizon)
        policy = network(environment, parameters)
        sha256, size_bytes = app.state.store.put(save_params(policy.initialise(0)))
        with app.state.database.transaction() as session:
            adaptation = tables.Adaptation(request={}, task_definition=task.definition(), method={}, seed=0)
            session.add(adaptation)
            session.flush()
            row = tables.Policy(
                adaptation_id=adaptation.id, spec=policy_to_json(policy), sha256=sha256, size_bytes=size_bytes
            )
            session.add(row)
            session.flush()
            return row.id

    return adapt


def network(environment: str, parameters: dict[str, Any] | None = None) -> Policy:
    model = environment_of(define_task(environment, parameters or {}))
    return Policy(PolicyConfig(hidden=(8,)), model.observation_space, model.action_space)


def roll_out(client: Client, policy: str, **query: Any) -> Response:
    return client.get(f"/v1/policies/{policy}/rollout", params=query)


def episodes(client: Client, policy: str, **query: Any) -> list[dict[str, Any]]:
    response = roll_out(client, policy, **query)
    assert response.status_code == 200, response.text
    return response.json()["episodes"]


def refused(response: Response, pointer: str, status: int = 422) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    [error] = response.json()["errors"]
    assert error["pointer"] == pointer
    return error["detail"]


TWINS: dict[str, dict[str, float]] = {
    "CartPole-v1": {"length": 1.2},
    "Acrobot-v1": {"link_mass_2": 0.5},
    "Pendulum-v1": {"mass": 0.3, "max_torque": 1.0},
    "MountainCar-v0": {"gravity": 0.003},
    "MountainCarContinuous-v0": {"power": 0.002},
}


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("environment", TWINS)
def test_an_episode_is_what_gymnasium_makes_of_its_actions(
    client: Client, adapt: Adapt, environment: str, deterministic: bool
) -> None:
    parameters = TWINS[environment]
    policy = adapt(environment, **parameters)
    twin: Any = gymnasium.make(environment).unwrapped
    for ours, value in parameters.items():
        setattr(twin, ENVIRONMENTS[environment].attributes[ours], value)
    if environment == "CartPole-v1":
        twin.polemass_length = twin.masspole * twin.length
    acting = network(environment)
    numpy_policy = NumpyPolicy(acting, numpy_params(acting.initialise(0)))
    for episode in episodes(client, policy, episodes=3, deterministic=deterministic):
        seen, actions = np.array(episode["observations"]), np.array(episode["actions"])
        steps = len(actions)
        assert len(seen) == steps + 1
        assert [len(episode[name]) for name in ("rewards", "values", "log_probs")] == [steps] * 3
        twin.reset(seed=0)
        twin.state = np.array(episode["states"][0])
        assert len(episode["states"]) == steps + 1
        for t, action in enumerate(actions):
            observation, reward, terminated, _, _ = twin.step(action)
            np.testing.assert_allclose(seen[t + 1], observation, atol=2e-4)
            np.testing.assert_allclose(np.cos(episode["states"][t + 1]), np.cos(twin.state), atol=2e-4)
            assert episode["rewards"][t] == pytest.approx(reward, abs=2e-4)
            assert terminated == (episode["terminated"] and t + 1 == steps)
        assert episode["truncated"] is not episode["terminated"]
        assert episode["truncated"] == (steps == SHORT and not terminated)
        assert episode["return"] == pytest.approx(sum(episode["rewards"]))
        expected, log_probs, values, _ = numpy_policy.act(seen[:-1].astype(np.float32), None)
        np.testing.assert_allclose(episode["values"], values, atol=1e-5)
        if deterministic:
            np.testing.assert_allclose(actions, expected, atol=1e-5)
            np.testing.assert_allclose(episode["log_probs"], log_probs, atol=1e-5)


def test_the_policy_that_acts_over_http_takes_the_same_actions(client: Client, adapt: Adapt) -> None:
    policy = adapt("CartPole-v1")
    [episode] = episodes(client, policy)
    acted = client.post(f"/v1/policies/{policy}:act", json={"observations": episode["observations"][:-1]}).json()
    assert acted["actions"] == episode["actions"]
    assert acted["values"] == pytest.approx(episode["values"], abs=1e-5)


def test_the_same_seed_gives_the_same_episodes_and_another_gives_others(client: Client, adapt: Adapt) -> None:
    policy = adapt("CartPole-v1")
    three = episodes(client, policy, episodes=3, seed=7, deterministic=False)
    assert episodes(client, policy, episodes=3, seed=7, deterministic=False) == three
    assert len({str(episode["observations"][0]) for episode in three}) == 3
    [alone] = episodes(client, policy, seed=7, deterministic=False)
    assert alone["observations"][0] == three[0]["observations"][0]
    assert episodes(client, policy, episodes=3, seed=8, deterministic=False) != three
    assert episodes(client, policy, episodes=3, seed=7) != three


def test_the_answer_says_what_the_episodes_follow_from(client: Client, adapt: Adapt) -> None:
    policy = adapt("CartPole-v1", length=0.7)
    body = roll_out(client, policy, seed=2**63 - 1, deterministic=False).json()
    task = define_task("CartPole-v1", {"length": 0.7}, horizon=SHORT).definition()
    del body["episodes"]
    assert body == {"policy": policy, "task": task, "seed": 2**63 - 1, "deterministic": False}


@pytest.mark.databases("sqlite", "postgresql")
def test_another_task_is_played_by_name_or_id(client: Client, adapt: Adapt) -> None:
    policy = adapt("CartPole-v1")
    definition = {"name": "short", "environment": "CartPole-v1", "horizon": 3, "reward": {"expression": "reward + 1"}}
    task = client.post("/v1/tasks", json=definition).json()["id"]
    for reference in ("short", task):
        body = roll_out(client, policy, task=reference).json()
        assert body["task"] == task
        assert body["episodes"][0]["rewards"] == [2.0] * 3
        assert body["episodes"][0]["truncated"] is True


def test_a_task_of_other_spaces_is_refused_with_both(client: Client, adapt: Adapt) -> None:
    policy = adapt("CartPole-v1")
    client.post("/v1/tasks", json={"name": "pendulum", "environment": "Pendulum-v1"})
    detail = refused(roll_out(client, policy, task="pendulum"), "/task")
    assert f"policy {policy} has observations of 4 numbers and 2 discrete actions" in detail
    assert "Pendulum-v1, which has observations of 3 numbers and actions of 1 numbers" in detail


def test_a_bridged_environment_is_played_and_drawn(client: Client, adapt: Adapt) -> None:
    policy = adapt("FrozenLake-v1", is_slippery=False, horizon=8)
    [episode] = episodes(client, policy, deterministic=False)
    assert episode["states"] is None
    twin = gymnasium.make("FrozenLake-v1", is_slippery=False)
    twin.reset(seed=0)
    for t, action in enumerate(episode["actions"]):
        place, reward, terminated, _, _ = twin.step(action)
        assert np.argmax(episode["observations"][t + 1]) == place
        assert episode["rewards"][t] == reward
    assert episode["terminated"] == terminated
    film = roll_out(client, policy, deterministic=False, format="gif")
    assert len(iio.imread(film.content, extension=".gif")) == len(episode["actions"]) + 1


@pytest.mark.parametrize(("format", "media_type", "begins"), [("gif", "image/gif", 0), ("mp4", "video/mp4", 4)])
def test_a_film_shows_the_episodes_that_json_has(
    client: Client, adapt: Adapt, format: str, media_type: str, begins: int
) -> None:
    policy = adapt("CartPole-v1")
    response = roll_out(client, policy, format=format, episodes=2, seed=3)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == media_type
    assert response.headers["content-disposition"] == f'inline; filename="rollout-{policy}-seed-3.{format}"'
    assert response.content[begins:].startswith({"gif": b"GIF89a", "mp4": b"ftyp"}[format])
    if format == "gif":
        steps = sum(len(episode["actions"]) for episode in episodes(client, policy, episodes=2, seed=3))
        assert len(iio.imread(response.content, extension=".gif")) == steps + 2
    assert roll_out(client, policy, format=format, episodes=2, seed=3).content == response.content


@pytest.mark.parametrize(
    ("query", "pointer", "detail"),
    [
        ({"episodes": 0}, "/episodes", "greater"),
        ({"episodes": 101}, "/episodes", "less"),
        ({"episodes": "many"}, "/episodes", "integer"),
        ({"episodes": 11, "format": "mp4"}, "/episodes", "at most 10 fit"),
        ({"format": "avi"}, "/format", "'json', 'gif' or 'mp4'"),
        ({"seed": -1}, "/seed", "greater"),
        ({"seed": 2**63}, "/seed", "less"),
        ({"deterministic": "perhaps"}, "/deterministic", "boolean"),
        ({"task": "ghost"}, "/task", "no task 'ghost'"),
        ({"colour": 1}, "/colour", "known: deterministic, episodes, format, seed, task"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_with_a_pointer(
    client: Client, adapt: Adapt, query: dict[str, Any], pointer: str, detail: str
) -> None:
    assert detail in refused(roll_out(client, adapt("CartPole-v1"), **query), pointer)


def test_more_than_fits_in_one_answer_is_refused_with_what_fits(client: Client, adapt: Adapt) -> None:
    long, longer = adapt("CartPole-v1", horizon=999), adapt("CartPole-v1", horizon=100_000)
    assert "4 episodes of up to 1000 frames in a film are too many; at most 3 fit" in refused(
        roll_out(client, long, format="gif", episodes=4), "/episodes"
    )
    assert "a shorter horizon" in refused(roll_out(client, longer, format="mp4"), "/task")
    assert "at most 2 fit" in refused(roll_out(client, longer, episodes=3), "/episodes")
    assert len(episodes(client, longer, episodes=2)) == 2


@pytest.mark.parametrize("environment", ["Bandit-v0", "TabularMDP-v0", "Navigation2D-v0", f"{MODULE}:Rooms-v0"])
def test_what_has_no_renderer_is_still_played_as_json(client: Client, adapt: Adapt, environment: str) -> None:
    policy = adapt(environment)
    detail = refused(roll_out(client, policy, format="mp4"), "/format")
    assert detail == f"{environment} has no renderer; json gives its episodes as numbers"
    [episode] = episodes(client, policy)
    assert len(episode["observations"]) == len(episode["actions"]) + 1


def test_a_reward_that_is_no_number_is_the_tasks_fault(client: Client, adapt: Adapt) -> None:
    policy = adapt("CartPole-v1", reward="1 / (reward - reward)")
    for format in ("json", "mp4"):
        assert "the reward became NaN or infinite" in refused(roll_out(client, policy, format=format), "/task")


@pytest.mark.parametrize("how", ["raise", "die"])
def test_an_environment_that_fails_is_told_and_the_next_one_is_played(client: Client, adapt: Adapt, how: str) -> None:
    assert f"how={how}, when=3) failed at step 3" in refused(
        roll_out(client, adapt(f"{MODULE}:Bad-v0", how=how)), "/task"
    )
    assert "cannot be drawn" in refused(roll_out(client, adapt(f"{MODULE}:Screen-v0", how=how), format="gif"), "/task")
    assert episodes(client, adapt("FrozenLake-v1"))


def test_what_is_missing_on_the_server_is_a_501_that_names_it(client: Client, adapt: Adapt) -> None:
    response = roll_out(client, adapt(f"{MODULE}:Screen-v0", how="import"), format="gif")
    assert (response.status_code, response.json()["type"]) == (501, "/problems/cannot-draw")
    assert "No module named 'a_library_of_paints'" in response.json()["detail"]
    assert "headstart[video]" in response.json()["detail"]


@pytest.mark.databases("sqlite", "postgresql")
def test_a_policy_that_is_unknown_is_not_found_and_one_that_is_over_is_gone(
    client: Client, app: FastAPI, adapt: Adapt
) -> None:
    deleted, expired = adapt("CartPole-v1"), adapt("CartPole-v1")
    client.delete(f"/v1/policies/{deleted}")
    with app.state.database.transaction() as session:
        session.get(tables.Policy, expired).expires_at = now() - timedelta(seconds=1)
    for policy, status in (("ghost", 404), (deleted, 410), (expired, 410)):
        for format in ("json", "mp4"):
            assert roll_out(client, policy, format=format).status_code == status


@pytest.mark.databases("sqlite", "postgresql")
def test_who_may_not_act_may_not_roll_out(client: Client, adapt: Adapt) -> None:
    policy = adapt("CartPole-v1")
    for scope, status in (("tasks:write", 403), ("policies:act", 200)):
        key = client.post("/v1/api-keys", json={"name": scope, "scopes": [scope]}).json()["key"]
        headers = {"Authorization": f"Bearer {key}"}
        assert client.get(f"/v1/policies/{policy}/rollout", headers=headers).status_code == status


def test_two_films_at_a_time_and_the_service_answers_meanwhile(
    client: Client, adapt: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "WAIT_S", 1.0)
    policy = adapt(f"{MODULE}:Screen-v0", horizon=3, delay_s=1.5)  # six seconds of drawing
    numbers = adapt("CartPole-v1")
    with ThreadPoolExecutor(3) as executor:
        films = [executor.submit(roll_out, client, policy, format="gif") for _ in range(3)]
        time.sleep(2.0)
        started = time.monotonic()
        assert client.get("/v2/health/live").status_code == 200
        assert roll_out(client, numbers).status_code == 200
        assert time.monotonic() - started < 2
        assert sum(film.done() for film in films) <= 1
    answers = sorted((film.result() for film in films), key=lambda answer: answer.status_code)
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert answers[2].headers["retry-after"]
    assert "films are being made for others" in answers[2].json()["detail"]


def test_the_document_says_what_a_rollout_is(client: Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/policies/{policy_id}/rollout"]["get"]
    content = operation["responses"]["200"]["content"]
    assert set(content) == {"application/json", "image/gif", "video/mp4"}
    assert content["video/mp4"]["schema"] == {"type": "string", "format": "binary"}
    episode = document["components"]["schemas"]["EpisodeBody"]["properties"]
    assert {"return", "observations", "actions", "log_probs"} < set(episode)
    named = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert set(named) == {"policy_id", "episodes", "format", "seed", "deterministic", "task"}
    assert all("description" in parameter for name, parameter in named.items() if name != "policy_id")
