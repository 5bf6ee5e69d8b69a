"""Episodes out of gymnasium's own environments, held against a plain loop over one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from headstart_client import Action
from headstart_client.collecting import CollectedEpisode, Collector
from headstart_client.spaces import read_spaces
from headstart_client.stepping import SubEnvironments

SEED = 5
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]

Make = Callable[[], gym.Env[Any, Any]]


def cartpole() -> gym.Env[Any, Any]:
    """Some episodes end in a terminal state, and some in 14 steps."""
    return TimeLimit(CartPoleEnv(), 14)


def pendulum() -> gym.Env[Any, Any]:
    return TimeLimit(PendulumEnv(), 9)


def wild(observations: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M], in [0, 1): the same for the same observation, and else as good as random."""
    return np.abs(np.sin(1e3 * observations.sum(1)) * 1e3) % 1.0


def act(observations: NDArray[np.float64], discrete: bool) -> Action:
    draw = wild(observations)
    policy_actions = None if discrete else (6.0 * draw - 3.0)[:, None]
    return Action(
        actions=(draw < 0.7).astype(np.int64) if policy_actions is None else np.clip(policy_actions, -2.0, 2.0),
        log_probs=-draw,
        values=draw * 2.0,
        policy="p1",
        revision=3,
        policy_actions=policy_actions,
    )


@dataclass
class Reference:
    """One episode of the plain loop."""

    begins_at: int
    slot: int
    observations: list[NDArray[np.float32]]
    actions: list[Any]
    rewards: list[float]
    terminated: bool = False
    truncated: bool = False


def plain_loop(make: Make, slot: int, steps: int, pause: int, horizon: int) -> Iterator[Reference]:
    """The episodes of one environment that begin within so many steps, if a reset takes ``pause`` of them."""
    env = make()
    observation, _ = env.reset(seed=SEED + slot)
    begins_at = 0
    discrete = isinstance(env.action_space, Discrete)
    while begins_at < steps:
        episode = Reference(begins_at, slot, [observation], [], [])
        while not (episode.terminated or episode.truncated):
            action = act(np.array([observation], np.float64), discrete).actions[0]
            taken = int(action) if discrete else action.astype(np.float32)
            observation, reward, episode.terminated, episode.truncated, _ = env.step(taken)
            episode.truncated |= len(episode.rewards) + 1 == horizon and not episode.terminated
            episode.actions.append(action)
            episode.rewards.append(float(reward))
            episode.observations.append(observation)
        yield episode
        begins_at += len(episode.rewards) + pause
        observation, _ = env.reset()


def expected(make: Make, count: int, episodes: int, pause: int = 0, horizon: int = 1000) -> list[Reference]:
    """The first episodes of so many environments side by side, in the order in which they begin."""
    found = [each for slot in range(count) for each in plain_loop(make, slot, 40 * episodes, pause, horizon)]
    return sorted(found, key=lambda each: (each.begins_at, each.slot))[:episodes]


def collected(
    env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any], *needs: tuple[int, int], horizon: int = 1000
) -> list[CollectedEpisode]:
    parts = SubEnvironments(env)
    collector = Collector(parts.count, parts.autoreset, horizon)
    collector.begin(parts.reset(SEED))
    taken = []
    for need in needs:
        while not collector.ready(*need)[1]:
            if collector.ended.any():
                collector.restart(parts.restart(collector.ended))
            action = act(collector.observations, parts.spaces.discrete)
            collector.step(action, *parts.step(action.actions))
        taken += collector.take(*need)
    env.close()
    return taken


def assert_same(found: list[CollectedEpisode], references: list[Reference]) -> None:
    assert len(found) == len(references)
    for number, (episode, reference) in enumerate(zip(found, references, strict=True)):
        assert episode.number == number
        observations = np.array(reference.observations, np.float64)
        draw = wild(observations[:-1])
        np.testing.assert_array_equal(episode.observations, observations)
        np.testing.assert_array_equal(episode.actions, np.array(reference.actions))
        np.testing.assert_array_equal(episode.rewards, np.array(reference.rewards))
        np.testing.assert_array_equal(episode.log_probs, -draw)
        np.testing.assert_array_equal(episode.values, 2.0 * draw)
        assert (episode.terminated, episode.truncated) == (reference.terminated, reference.truncated)
        assert episode.episode_return == sum(reference.rewards)
        assert episode.revision == 3
        if episode.actions.ndim == 1:
            assert episode.policy_actions is None
        else:
            np.testing.assert_array_equal(episode.policy_actions, (6.0 * draw - 3.0)[:, None])


@pytest.mark.parametrize("make", [cartpole, pendulum])
def test_one_environment_gives_the_episodes_of_a_plain_loop(make: Make) -> None:
    references = expected(make, 1, 12)
    assert_same(collected(make(), (12, 0)), references)
    assert {each.truncated for each in references} == ({True, False} if make is cartpole else {True})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("make", [cartpole, pendulum])
def test_a_vector_environment_gives_the_episodes_of_its_parts(make: Make, count: int, mode: AutoresetMode) -> None:
    env = SyncVectorEnv([make] * count, autoreset_mode=mode)
    pause = 1 if mode is AutoresetMode.NEXT_STEP else 0
    assert_same(collected(env, (20, 0)), expected(make, count, 20, pause))


@pytest.mark.parametrize("mode", MODES)
def test_parts_in_processes_of_their_own_give_the_same(mode: AutoresetMode) -> None:
    env = AsyncVectorEnv([cartpole] * 3, autoreset_mode=mode)
    pause = 1 if mode is AutoresetMode.NEXT_STEP else 0
    assert_same(collected(env, (9, 0)), expected(cartpole, 3, 9, pause))


@pytest.mark.parametrize("mode", MODES)
def test_observations_that_are_overwritten_are_copied(mode: AutoresetMode) -> None:
    env = SyncVectorEnv([pendulum] * 3, autoreset_mode=mode, copy=False)
    pause = 1 if mode is AutoresetMode.NEXT_STEP else 0
    assert_same(collected(env, (9, 0)), expected(pendulum, 3, 9, pause))


@pytest.mark.parametrize("mode", MODES)
def test_what_is_under_way_is_there_for_who_asks_for_more(mode: AutoresetMode) -> None:
    env = SyncVectorEnv([cartpole] * 4, autoreset_mode=mode)
    pause = 1 if mode is AutoresetMode.NEXT_STEP else 0
    assert_same(collected(env, (3, 0), (1, 0), (0, 30), (7, 40)), expected(cartpole, 4, 17, pause)[: 3 + 1 + 3 + 7])


def test_as_many_episodes_are_taken_as_have_so_many_steps() -> None:
    found = collected(cartpole(), (1, 100))
    lengths = [len(each) for each in found]
    assert sum(lengths) >= 100 > sum(lengths[:-1])


@pytest.mark.parametrize("make", [CartPoleEnv, PendulumEnv])
def test_an_episode_is_cut_off_at_the_horizon(make: Make) -> None:
    references = expected(make, 1, 8, horizon=10)
    assert {len(each.rewards) for each in references if each.truncated} == {10}
    assert_same(collected(make(), (8, 0), horizon=10), references)
    env = SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode.DISABLED)
    assert_same(collected(env, (8, 0), horizon=10), expected(make, 3, 8, horizon=10))


@pytest.mark.parametrize("mode", MODES[:2])
def test_a_vector_environment_that_cannot_be_cut_off_is_refused_at_the_horizon(mode: AutoresetMode) -> None:
    with pytest.raises(ValueError, match="TimeLimit"):
        collected(SyncVectorEnv([PendulumEnv] * 2, autoreset_mode=mode), (2, 0), horizon=10)
    # At the horizon by itself is in time.
    assert len(collected(SyncVectorEnv([pendulum] * 2, autoreset_mode=mode), (2, 0), horizon=9)) == 2


def test_gymnasiums_own_batch_of_carts_is_stepped_by_its_dynamics() -> None:
    found = collected(gym.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point"), (12, 0))
    single = CartPoleEnv()
    for episode in found:
        single.reset()
        for before, action, after in zip(episode.observations, episode.actions, episode.observations[1:], strict=False):
            single.state, single.steps_beyond_terminated = tuple(before), None
            np.testing.assert_allclose(single.step(int(action))[0], after, atol=1e-5)
        assert episode.terminated


def test_a_new_beginning_drops_what_is_under_way() -> None:
    parts = SubEnvironments(SyncVectorEnv([cartpole] * 3))
    collector = Collector(3, parts.autoreset, 1000)
    collector.begin(parts.reset(SEED))
    while not collector.ready(1)[1]:
        action = act(collector.observations, True)
        collector.step(action, *parts.step(action.actions))
    collector.take(1)
    collector.begin(parts.reset(SEED))
    while not collector.ready(5)[1]:
        action = act(collector.observations, True)
        collector.step(action, *parts.step(action.actions))
    for episode, reference in zip(collector.take(5), expected(cartpole, 3, 5, 1), strict=True):
        np.testing.assert_array_equal(episode.observations, np.array(reference.observations))


def test_steps_before_a_reset_and_episodes_that_are_not_there_are_refused() -> None:
    parts = SubEnvironments(cartpole())
    collector = Collector(1, parts.autoreset, 1000)
    action = act(np.zeros((1, 4)), True)
    with pytest.raises(ValueError, match="must be reset"):
        collector.step(action, np.zeros((1, 4)), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool), {})
    collector.begin(parts.reset(SEED))
    with pytest.raises(ValueError, match="not complete"):
        collector.take(1)


@pytest.mark.parametrize("where", ["observations", "rewards"])
def test_numbers_that_are_not_finite_are_refused(where: str) -> None:
    parts = SubEnvironments(cartpole())
    collector = Collector(1, parts.autoreset, 1000)
    collector.begin(parts.reset(SEED))
    observations, rewards = np.zeros((1, 4)), np.zeros(1)
    (observations if where == "observations" else rewards).flat[0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        collector.step(act(observations * 0, True), observations, rewards, np.zeros(1, bool), np.zeros(1, bool), {})


BOX = Box(-1.0, 1.0, (3,))


@pytest.mark.parametrize(
    ("observation_space", "action_space", "words"),
    [
        (Discrete(4), Discrete(2), "observations must be of a Box, not of Discrete"),
        (Dict({"a": BOX}), Discrete(2), "FlattenObservation"),
        (Box(0, 255, (8, 8, 3), np.uint8), Discrete(2), "one axis, not the shape"),
        (Box(-1.0, 1.0, ()), Discrete(2), "one axis"),
        (BOX, Discrete(2, start=1), "start at 0, not at 1"),
        (BOX, MultiDiscrete([2, 2]), "Discrete or a Box, not of MultiDiscrete"),
        (BOX, Box(-1.0, 1.0, (2, 2)), "on one axis"),
        (BOX, Box(0, 9, (2,), np.int64), "floating point"),
    ],
)
def test_spaces_that_a_policy_cannot_act_in_are_refused(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read_spaces(observation_space, action_space)


def test_spaces_are_said_as_the_service_takes_them() -> None:
    low, high = np.array([-1.0, -np.inf]), np.array([np.inf, 2.5])
    spaces = read_spaces(Box(low, high, dtype=np.float64), Box(-2.0, 2.0, (1,)))
    assert spaces.observation_space == {"type": "box", "low": [-1.0, None], "high": [None, 2.5]}
    assert spaces.action_space == {"type": "box", "low": [-2.0], "high": [2.0]}
    assert spaces.to_environment(np.array([[0.1]])).dtype == np.float32
    assert read_spaces(BOX, Discrete(7)).action_space == {"type": "discrete", "n": 7}


def test_a_vector_environment_must_say_how_it_begins_again() -> None:
    env = SyncVectorEnv([cartpole] * 2)
    env.metadata = {}
    with pytest.raises(ValueError, match="autoreset_mode"):
        SubEnvironments(env)
    assert SubEnvironments(gym.make("CartPole-v1")).horizon == 500
    assert SubEnvironments(gym.make_vec("Pendulum-v1", 2)).horizon == 200
    assert SubEnvironments(CartPoleEnv()).horizon == 1000
