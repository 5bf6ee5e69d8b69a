"""Adapting to environments of gymnasium that are here, over a service that does all but learn."""

from __future__ import annotations

import asyncio
import io
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from learning_service import LearningService, wild
from policy_files import CONTINUOUS, CONTINUOUS_TENSORS, DISCRETE, DISCRETE_TENSORS, policy_file

from headstart_client import AdaptationFailed, AsyncClient, Client, LocalPolicy, RemoteProgress, Retry, _sync, remote

RETRY = Retry(first_s=0.001)


def cartpole() -> gym.Env[Any, Any]:
    return TimeLimit(CartPoleEnv(), 14)


def pendulum() -> gym.Env[Any, Any]:
    return TimeLimit(PendulumEnv(), 9)


def parts(make: Any = cartpole, count: int = 3, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> Any:
    return SyncVectorEnv([make] * count, autoreset_mode=mode)


def assert_whole(episodes: list[dict[str, Any]], make: Any) -> None:
    """Every episode has happened: its actions are those of what was seen, and the environment does as it says."""
    for episode in episodes:
        observations = np.array(episode["observations"])
        draw = wild(observations[:-1])
        assert len(observations) == len(episode["actions"]) + 1
        np.testing.assert_allclose(episode["log_probs"], -draw)
        env = make().unwrapped
        env.reset()
        for before, action, after in zip(observations, episode["actions"], observations[1:], strict=False):
            state = before if isinstance(env, CartPoleEnv) else [np.arctan2(before[1], before[0]), before[2]]
            env.state = np.array(state)
            env.steps_beyond_terminated = None
            taken = action if isinstance(action, int) else np.array(action, np.float32)
            np.testing.assert_allclose(env.step(taken)[0], after, atol=1e-4)


@pytest.mark.parametrize("mode", [None, *AutoresetMode])
@pytest.mark.parametrize("make", [cartpole, pendulum])
def test_each_step_gets_exactly_the_episodes_that_it_wants(make: Any, mode: AutoresetMode | None) -> None:
    env = make() if mode is None else parts(make, 3, mode)
    with LearningService(steps=3, episodes=4) as service, Client(service.url, "hs_test", retry=RETRY) as client:
        policy = client.adapt("m@champion", env, steps=3, episodes=4, seed=7, discount=0.9, horizon=50)
        assert (policy.id, policy.adaptation.state, policy.adaptation.revision) == ("p1", "succeeded", 3)
        policy.close()
    assert [len(upload["episodes"]) for upload in service.uploads] == [4, 4, 4]
    assert [each["revision"] for each in service.episodes] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({each["id"] for each in service.episodes}) == 12
    assert_whole(service.episodes, make)
    asked = service.created["task"]["remote"]
    assert (asked["discount"], asked["horizon"], service.created["seed"]) == (0.9, 50, 7)
    assert service.created["method"] == {"name": "inner-loop", "steps": 3, "episodes": 4}
    assert service.connections == 1
    first, second = service.messages[0], service.messages[1]
    assert (first["seed"], first["episode_start"], first["deterministic"]) == (7, True, False)
    assert "seed" not in second
    assert len(first["observations"]) == (1 if mode is None else 3)
    if make is pendulum:
        np.testing.assert_allclose(
            service.episodes[0]["actions"], np.clip(service.episodes[0]["policy_actions"], -2.0, 2.0)
        )
        assert all(each["truncated"] and not each["terminated"] for each in service.episodes)
    else:
        assert all("policy_actions" not in each for each in service.episodes)


def test_the_policy_is_called_like_a_function_and_answers_as_the_environment_takes_it() -> None:
    for env, kind in ((cartpole(), int), (pendulum(), np.ndarray)):
        with (
            LearningService(1, 1) as service,
            Client(service.url, "hs_test", retry=RETRY) as client,
            client.adapt(None, env) as policy,
        ):
            observation, _ = env.reset(seed=1)
            action = policy(observation)
            assert isinstance(action, kind)
            assert env.action_space.contains(action)
            many = policy(np.array([observation] * 3))
            assert len(many) == 3
            assert (many == action).all()
            service.breaks.append((len(service.messages), 4408))
            assert np.all(policy(observation) == action)
            assert "deterministic" not in service.messages[-1]
            policy(observation, deterministic=False)
            assert service.messages[-1]["deterministic"] is False


def test_a_method_that_wants_steps_gets_whole_episodes_with_as_many_and_what_is_under_way_goes_on() -> None:
    with LearningService(3, 1, environment_steps=100) as service, Client(service.url, "k", retry=RETRY) as client:
        client.adapt("m", parts(cartpole, 5), method={"name": "ppo"}, episodes=10, evaluation_episodes=2).close()
    for upload in service.uploads[:3]:
        lengths = [len(each["rewards"]) for each in upload["episodes"]]
        assert sum(lengths) >= 100 > sum(lengths[:-1])
    numbers = [int(each["id"].rpartition("/")[2]) for each in service.episodes]
    revisions = [each["revision"] for each in service.episodes]
    assert numbers[:-2] == [*range(len(numbers) - 2)]
    assert revisions == sorted(revisions)
    assert revisions[len(service.uploads[0]["episodes"])] == 0
    assert revisions[-2:] == [3, 3]
    assert_whole(service.episodes, cartpole)


def test_episodes_that_measure_the_result_are_acted_by_the_last_revision() -> None:
    with LearningService(1, 2) as service, Client(service.url, "hs_test", retry=RETRY) as client:
        client.adapt("m", parts(), evaluation_episodes=5).close()
    assert [each["revision"] for each in service.episodes] == [0, 0] + [1] * 5


@pytest.mark.parametrize("code", [1001, 1013, 4408])
def test_a_stream_that_breaks_is_opened_again_and_no_step_is_lost(code: int) -> None:
    with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:
        service.breaks.extend([(3, code), (9, code)])
        client.adapt("m", parts(), seed=1).close()
    assert service.connections == 3
    assert len(service.episodes) == 8
    assert_whole(service.episodes, cartpole)


@pytest.mark.parametrize("status", [429, 503])
def test_an_upload_whose_answer_is_lost_is_brought_again_and_counted_once(status: int) -> None:
    with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:
        service.faults.extend([status, status, 0, status])
        client.adapt("m", parts()).close()
    assert len(service.uploads) == 5
    assert len(service.episodes) == 8
    assert [each["revision"] for each in service.episodes] == [0] * 4 + [1] * 4


def test_more_parts_than_a_message_holds_are_acted_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sync.remote, "MOST_OBSERVATIONS", 2)
    for make in (cartpole, pendulum):
        with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:
            client.adapt("m", parts(make, 5)).close()
        assert [len(message["observations"]) for message in service.messages[:4]] == [2, 2, 1, 2]
        assert_whole(service.episodes, make)


def test_observations_of_many_numbers_are_acted_in_messages_that_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sync.remote, "LARGEST_MESSAGE", 11)
    with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:
        client.adapt("m", parts(cartpole, 5)).close()
    assert [len(message["observations"]) for message in service.messages[:4]] == [2, 2, 1, 2]
    assert_whole(service.episodes, cartpole)


def test_a_step_that_takes_long_is_waited_for() -> None:
    with LearningService(slow=True) as service, Client(service.url, "hs_test", retry=RETRY) as client:
        client.adapt("m", parts()).close()
    assert [each["revision"] for each in service.episodes] == [0] * 4 + [1] * 4


def test_large_episodes_are_brought_in_pieces_and_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:
        client.adapt("m", pendulum(), seed=3).close()
        whole = service.episodes
    monkeypatch.setattr(remote, "LARGEST_UPLOAD", 24)
    with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:
        client.adapt("m", pendulum(), seed=3).close()
    assert [[piece["offset"] for piece in upload["episodes"]] for upload in service.uploads[:3]] == [[0], [3], [6]]
    for one, other in zip(whole, service.episodes, strict=True):
        assert {**one, "id": 0} == {**other, "id": 0}


ZERO = [[1, 0], [0, 1], [0, 0], [0, 0]]
CART_FILE = policy_file(
    {**DISCRETE, "observation_space": {"type": "box", "low": [None] * 4, "high": [None] * 4}},
    {**DISCRETE_TENSORS, "trunk.0.weight": ZERO},
)
PENDULUM_FILE = policy_file(
    {
        "policy": CONTINUOUS["policy"],
        "observation_space": {"type": "box", "low": [None] * 3, "high": [None] * 3},
        "action_space": {"type": "box", "low": [-2.0], "high": [2.0]},
    },
    {**CONTINUOUS_TENSORS, "trunk.0.weight": ZERO[:3]},
)


@pytest.mark.parametrize(("make", "file"), [(cartpole, CART_FILE), (pendulum, PENDULUM_FILE)])
def test_a_local_policy_acts_in_place_of_the_stream(make: Any, file: bytes) -> None:
    with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:
        service.file = file
        with client.adapt("m", parts(make), local=True, seed=3) as policy:
            local = policy.local()
            observation = [0.1, 0.2, 0.3, 0.4][: local.observation_size]
            assert local(observation) == pytest.approx(LocalPolicy.from_bytes(file)(observation))
    assert service.files_asked == ["0", "1", None]
    assert service.messages == []
    assert [each["revision"] for each in service.episodes] == [0] * 4 + [1] * 4
    policy_here = LocalPolicy.from_bytes(file)
    for episode in service.episodes:
        observations = np.array(episode["observations"][:-1])
        if make is cartpole:
            assert "policy_actions" not in episode
            x = np.maximum(observations[:, :2], 0.0)
            log_probs = x - np.log(np.exp(x).sum(1, keepdims=True))
            np.testing.assert_allclose(
                episode["log_probs"], log_probs[range(len(x)), episode["actions"]], rtol=1e-5, atol=1e-6
            )
        else:
            drawn, mean = np.array(episode["policy_actions"]), policy_here.act(observations).policy_actions
            log_density = -0.5 * ((drawn - mean) ** 2 + np.log(2 * np.pi)).sum(1)
            np.testing.assert_allclose(episode["log_probs"], log_density, rtol=1e-4, atol=1e-5)


def test_the_same_seed_draws_the_same_episodes_here() -> None:
    brought = []
    for seed in (3, 3, 4):
        with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:
            service.file = CART_FILE
            client.adapt("m", parts(), local=True, seed=seed).close()
            brought.append([{**each, "id": 0} for each in service.episodes])
    assert brought[0] == brought[1] != brought[2]


def test_an_environment_that_fails_leaves_no_adaptation_behind() -> None:
    class Failing(CartPoleEnv):
        def step(self, action: Any) -> Any:
            raise RuntimeError(f"the robot fell when it did {action}")

    with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:
        with pytest.raises(RuntimeError, match="the robot fell"):
            client.adapt("m", Failing())
        assert service.state == "cancelled"


def test_an_adaptation_that_fails_meanwhile_is_raised() -> None:
    with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:

        def show(progress: RemoteProgress) -> None:
            if progress.episodes == 2:
                service.state = "failed"

        with pytest.raises(AdaptationFailed):
            client.adapt("m", cartpole(), progress=show)


def test_a_function_is_told_how_far_it_is() -> None:
    told: list[RemoteProgress] = []
    with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:
        client.adapt("m", cartpole(), progress=told.append).close()
    assert [each.revision for each in told] == sorted(each.revision for each in told)
    assert {each.episodes for each in told} == {*range(9)}
    assert (told[0].mean_return, told[-1].state, told[-1].fraction) == (None, "succeeded", 1.0)
    lengths = [len(each["rewards"]) for each in service.episodes]
    assert told[-1].environment_steps == sum(lengths)
    assert told[-1].mean_return == pytest.approx(np.mean(lengths[4:]))


def test_a_pipe_gets_lines_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in (None, False, True):
        monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
        with LearningService() as service, Client(service.url, "hs_test", retry=RETRY) as client:
            client.adapt("m", cartpole(), progress=wanted).close()
        lines = pipe.getvalue().splitlines()
        assert len(lines) == (3 if wanted else 0)
    assert lines[0].startswith("inner-loop   0%  revision 0  0 episodes  0 steps")
    assert "succeeded after" in lines[-1]


def test_an_unsuitable_environment_is_refused_before_the_service_is_asked() -> None:
    with Client("http://127.0.0.1:1", retry=RETRY) as client, pytest.raises(ValueError, match="FlattenObservation"):
        client.adapt("m", gym.make("Taxi-v4"))
    with Client("http://127.0.0.1:1", retry=RETRY) as client, pytest.raises(TypeError, match="a list has not"):
        client.adapt("m", [1])  # type: ignore[call-overload]


def test_the_asynchronous_client_adapts_while_others_have_their_turn() -> None:
    async def adapt(service: LearningService) -> int:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async with AsyncClient(service.url, "hs_test", retry=RETRY) as client:
            other = asyncio.create_task(others())
            async with await client.adapt("m", parts(pendulum), seed=1) as policy:
                assert policy.adaptation.state == "succeeded"
                assert (await policy([1.0, 0.0, 0.0])).shape == (1,)
            other.cancel()
        return turns

    with LearningService() as service:
        assert asyncio.run(adapt(service)) > len(service.messages)
    assert_whole(service.episodes, pendulum)


def test_an_asynchronous_adaptation_can_be_cancelled() -> None:
    async def adapt(service: LearningService) -> None:
        async with AsyncClient(service.url, "hs_test", retry=RETRY) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.adapt("m", parts(), episodes=10_000)
            assert (await client.adaptations.get("a1")).state == "cancelled"

    with LearningService(1, 10_000) as service:
        asyncio.run(adapt(service))
        assert service.messages
