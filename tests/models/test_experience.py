"""Episodes that were acted elsewhere: what learning makes of them, against what it makes of its own."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from models import random
from models.checkpoint import load_params, save_params
from models.experience import Episode, read_episodes
from models.finetune import PPOConfig, finetune
from models.finetune.stream import Stream
from models.finetune.uploaded import improve
from models.learners import CONFIGS, LEARNERS, MAML, MAMLConfig
from models.policy import Policy, PolicyConfig
from models.rollout import collect
from models.tasks import TaskBatch, define_task
from models.types import Params, Rollout, stack_params

CARTPOLE = define_task("CartPole-v1", horizon=30)
PENDULUM = define_task("Pendulum-v1", horizon=8)
KEYS = random.key(5).reshape(1)
LEARNER_OPTIONS: dict[str, dict[str, Any]] = {
    "cavia": {"inner_learning_rate": 5.0, "baseline": "value"},
    "meta-sgd": {"normalise_advantages": False},
    "reptile": {"baseline": "none", "gae_decay": 0.9},
}
BOX = Box(np.array([-0.1, -2.0, 1.0], np.float32), np.array([0.1, 6.0, 1.0], np.float32))


def some_policy(task: Any = CARTPOLE, **config: Any) -> Policy:
    environment = TaskBatch.of([task]).environment
    return Policy(PolicyConfig(hidden=(8,), **config), environment.observation_space, environment.action_space)


def moved(params: Params, by: float = 0.1) -> Params:
    """The same parameters, each a little off."""
    g = torch.Generator().manual_seed(1)
    return {name: value + by * torch.randn(value.shape, generator=g) for name, value in params.items()}


def told(policy: Policy, rollout: Rollout, log_probs: bool = True, originals: bool = True) -> list[Episode]:
    """A rollout of one task as its actor tells it."""
    observations = torch.cat([rollout.observation, rollout.final_observation.unsqueeze(1)], 1).double().numpy()[0]
    actions = policy.to_environment(rollout.action)[0].numpy()
    return [
        Episode(
            observation=observations[: length + 1, b],
            action=actions[:length, b],
            reward=rollout.reward[0, :length, b].double().numpy(),
            terminated=bool(rollout.terminated[0, b]),
            revision=3,
            log_prob=rollout.log_prob[0, :length, b].double().numpy() if log_probs else None,
            policy_action=None if policy.discrete or not originals else rollout.action[0, :length, b].double().numpy(),
        )
        for b, length in enumerate(rollout.lengths[0].tolist())
    ]


@pytest.mark.parametrize("scaling", ["scale", "clip", "squash"])
def test_an_action_is_taken_back_to_one_that_gives_it_again(scaling: Any) -> None:
    policy = Policy(PolicyConfig((4,), action_scaling=scaling), Box(-1, 1, (2,), np.float32), BOX)
    drawn = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    if scaling == "clip":
        drawn = drawn * 0.05 + torch.tensor([0.0, 2.0, 1.0])
    performed = policy.to_environment(drawn)
    back = policy.from_environment(performed.double())
    again = policy.to_environment(back.float())
    torch.testing.assert_close(again, performed, rtol=1e-6, atol=1e-6)
    # Within the bounds there is but one.
    inside = (performed > torch.tensor(BOX.low)) & (performed < torch.tensor(BOX.high))
    inside &= drawn.abs() < 3
    torch.testing.assert_close(back[inside].float(), drawn[inside], rtol=1e-3, atol=1e-3)
    bounds = policy.from_environment(torch.stack([torch.tensor(BOX.low), torch.tensor(BOX.high)]))
    assert bool(torch.isfinite(bounds).all())
    if scaling == "scale":
        assert bounds[:, :2].tolist() == [[-1.0, -1.0], [1.0, 1.0]]


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("task", [CARTPOLE, PENDULUM], ids=lambda task: task.environment)
def test_an_inner_step_on_told_episodes_is_the_learners_own(name: str, task: Any) -> None:
    policy = some_policy(task, context_size=2 if name == "cavia" else 0)
    learner = LEARNERS[name](CONFIGS[name](**LEARNER_OPTIONS.get(name, {})), policy)
    tasks = TaskBatch.of([task])
    params = stack_params(learner.initialise(0).params, 1)
    rollout, expected = learner.inner_step(params, tasks, KEYS, 0, episodes=6)
    single = {label: value[0] for label, value in params.items()}
    for log_probs in (True, False):
        transitions = read_episodes(policy, told(policy, rollout, log_probs), {3: single})
        received = transitions.rollout()
        assert received.environment_steps == rollout.environment_steps
        torch.testing.assert_close(received.episode_return, rollout.episode_return)
        assert torch.equal(received.terminated, rollout.terminated)
        adapted = learner.update(params, tasks.discount, received)
        for label, value in expected.items():
            torch.testing.assert_close(adapted[label], value, rtol=1e-4, atol=1e-5)


def test_a_step_on_others_episodes_is_the_gradient_that_a_plain_loop_finds() -> None:
    policy = some_policy()
    learner = MAML(MAMLConfig(baseline="none", normalise_advantages=False, inner_learning_rate=0.5), policy)
    acting = policy.initialise(0)
    learning = moved(acting)
    tasks = TaskBatch.of([CARTPOLE])
    rollout = collect(policy, stack_params(acting, 1), tasks, 4, KEYS)
    episodes = told(policy, rollout, log_probs=False)
    transitions = read_episodes(policy, episodes, {3: acting})
    adapted = learner.update(stack_params(learning, 1), tasks.discount, transitions.rollout())

    leaves = {name: value.double().requires_grad_() for name, value in learning.items()}
    fixed = {name: value.double() for name, value in acting.items()}
    total, count = torch.zeros((), dtype=torch.float64), 0
    for episode in episodes:
        for t in range(len(episode.reward)):
            to_go = sum(CARTPOLE.discount ** (u - t) * episode.reward[u] for u in range(t, len(episode.reward)))
            logs = []
            for params in (leaves, fixed):
                x = torch.tensor(episode.observation[t], dtype=torch.float32).double()
                x = torch.tanh(x @ params["trunk.0.weight"] + params["trunk.0.bias"])
                logits = x @ params["policy.weight"] + params["policy.bias"]
                logs.append((logits - logits.logsumexp(0))[int(episode.action[t])])
            total = total - torch.exp(logs[0] - logs[1]) * to_go
            count += 1
    (total / count).backward()
    for name, leaf in leaves.items():
        gradient = leaf.grad
        expected = leaf.detach() if gradient is None else leaf.detach() - 0.5 * gradient
        torch.testing.assert_close(adapted[name][0].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_divergence_from_who_acted_is_that_of_a_plain_loop_and_zero_from_itself() -> None:
    policy = some_policy(PENDULUM, log_std="state", action_scaling="squash")
    acting = policy.initialise(0)
    learning = moved(acting)
    rollout = collect(policy, stack_params(acting, 1), TaskBatch.of([PENDULUM]), 5, KEYS)
    transitions = read_episodes(policy, told(policy, rollout), {})
    assert transitions.divergences(policy, acting) == pytest.approx([0.0] * 5, abs=1e-9)
    found = transitions.divergences(policy, learning)
    stacked = stack_params(learning, 1)
    for b in range(5):
        head = policy.head(stacked, policy.features(stacked, rollout.observation[:, :, b]))
        logs = (policy.log_prob(stacked, head, rollout.action[:, :, b]) - rollout.log_prob[:, :, b])[0].tolist()
        terms = [math.exp(log) - 1 - log for log in logs]
        assert found[b] == pytest.approx(sum(terms) / len(terms), rel=1e-4)
        assert found[b] > 0


def test_probabilities_that_cannot_be_leave_the_divergence_a_number() -> None:
    policy = some_policy()
    params = policy.initialise(0)
    [episode] = told(policy, collect(policy, stack_params(params, 1), TaskBatch.of([CARTPOLE]), 1, KEYS))
    episode = dataclasses.replace(episode, log_prob=np.full(len(episode.reward), -1e6))
    [found] = read_episodes(policy, [episode], {}).divergences(policy, params)
    assert math.isfinite(found)


def test_a_segment_tells_where_each_episode_ended_and_how() -> None:
    policy = Policy(PolicyConfig((4,)), Box(-1, 1, (1,), np.float32), Discrete(2))
    lengths = ((2, True), (3, False))
    episodes = [
        Episode(
            observation=np.arange(length + 1.0).reshape(-1, 1) + 10 * i,
            action=np.zeros(length, np.int64),
            reward=np.full(length, float(i)),
            terminated=terminated,
            revision=0,
            log_prob=np.full(length, -0.5),
        )
        for i, (length, terminated) in enumerate(lengths)
    ]
    transitions = read_episodes(policy, episodes, {})
    segment = transitions.segment()
    assert segment.observation.flatten().tolist() == [0.0, 1.0, 10.0, 11.0, 12.0]
    assert segment.next_observation.flatten().tolist() == [1.0, 2.0, 11.0, 12.0, 13.0]
    assert segment.terminated.flatten().tolist() == [False, True, False, False, False]
    assert segment.truncated.flatten().tolist() == [False, False, False, False, True]
    rollout = transitions.rollout()
    assert rollout.mask[0].tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]
    assert rollout.reward[0].tolist() == [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    assert rollout.observation[0, :, 0].flatten().tolist() == [0.0, 1.0, 1.0]
    assert rollout.final_observation.flatten().tolist() == [2.0, 13.0]
    assert rollout.terminated.tolist() == [[True, False]]


PPO = PPOConfig(
    environment_steps=64, steps=16, parallel_episodes=1, epochs=3, minibatches=2, evaluation_episodes=1, value_clip=0.5
)


@pytest.mark.parametrize("normalised", [False, True], ids=["as they are", "normalised"])
def test_rounds_of_ppo_on_told_episodes_are_those_of_a_server_that_acts_itself(normalised: bool) -> None:
    # Two whole episodes a round, as the horizon is half of it and nothing terminates.
    policy = some_policy(PENDULUM, normalise_observations=normalised)
    start = policy.initialise(0)
    key = random.key(9, "finetune").reshape(1)
    tasks = TaskBatch.of([PENDULUM])
    segments: list[Any] = []
    advance = Stream.advance

    def remembered(self: Any, steps: int, act: Any) -> Any:
        segments.append(advance(self, steps, act))
        return segments[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "advance", remembered)
        expected = [progress.policies() for progress in finetune(PPO, policy, stack_params(start, 1), tasks, key)]
    params, state = start, None
    for number, segment in enumerate(segments):
        episodes = [
            Episode(
                observation=torch.cat([segment.observation[0, rows, 0], segment.next_observation[0, rows, 0][-1:]])
                .double()
                .numpy(),
                action=policy.to_environment(segment.action[0, rows, 0]).numpy(),
                reward=segment.reward[0, rows, 0].double().numpy(),
                terminated=False,
                revision=number,
                policy_action=segment.action[0, rows, 0].double().numpy(),
            )
            for rows in (slice(0, 8), slice(8, 16))
        ]
        transitions = read_episodes(policy, episodes, {number: params})
        used = 16 * number / 64
        rounds = [
            improve(PPO, policy, start, transitions, PENDULUM.discount, 9, used, 16 * number, kept)
            for kept in (state, None if state is None else load_params(save_params(state)))
        ]
        for label, value in rounds[0].params.items():
            assert torch.equal(value, rounds[1].params[label])  # a state that was stored is the same
            torch.testing.assert_close(value, expected[number + 1][label][0], rtol=2e-3, atol=2e-4)
        params, state = rounds[0].params, rounds[0].state
    assert len(segments) == 4
    assert len({tuple(each["policy.weight"].flatten().tolist()) for each in expected}) == 5
