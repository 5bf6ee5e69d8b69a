from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from models import random
from models.checkpoint import load_params, save_params
from models.finetune.networks import Networks
from models.finetune.ppo import segment_advantages
from models.finetune.replay import Replay
from models.finetune.stream import Segment, Stream
from models.policy import Policy, PolicyConfig
from models.tasks import TaskBatch, define_task

TASKS = [define_task("CartPole-v1", {"length": length}, horizon=15) for length in (0.2, 0.5)]
KEYS = random.fold_in(random.key(1), torch.arange(2))


def policy_for(batch: TaskBatch) -> Policy:
    return Policy(PolicyConfig(hidden=(4,)), batch.environment.observation_space, batch.environment.action_space)


def by_time(observation: torch.Tensor, t: int) -> torch.Tensor:
    """Pushes that change with time and place."""
    places = torch.arange(observation.shape[1]).expand(observation.shape[:2])
    return (t // 2 + places) % 2


def test_a_stream_is_gymnasiums_episodes_one_after_another() -> None:
    batch = TaskBatch.of(TASKS, torch.float64)
    with Stream(policy_for(batch), batch, 3, KEYS) as stream:
        segment = stream.advance(60, by_time)
    ends = segment.terminated | segment.truncated
    assert segment.terminated.any()
    assert segment.truncated.any()
    for n, task in enumerate(TASKS):
        for b in range(3):
            env = CartPoleEnv()
            env.length = task.parameters["length"]
            env.polemass_length = env.masspole * env.length
            age = 0
            for t in range(60):
                if not age:
                    env.reset(seed=0)
                    env.state = segment.observation[n, t, b].numpy()
                observation, _, terminated, _, _ = env.step(int(segment.action[n, t, b]))
                age += 1
                np.testing.assert_allclose(segment.next_observation[n, t, b], observation, rtol=1e-4, atol=1e-5)
                assert segment.terminated[n, t, b] == terminated
                assert ends[n, t, b] == (terminated or age == task.horizon)
                if ends[n, t, b]:
                    age = 0
                elif t < 59:
                    assert torch.equal(segment.observation[n, t + 1, b], segment.next_observation[n, t, b])


def test_returns_of_finished_episodes_are_added_up_across_segments() -> None:
    batch = TaskBatch.of(TASKS)
    with Stream(policy_for(batch), batch, 3, KEYS) as stream:
        segments = [stream.advance(steps, by_time) for steps in (1, 4, 30, 2, 17)]
    finished = sum(segment.finished for segment in segments)
    returned = sum(segment.finished_return for segment in segments)
    # Every step pays 1: what finished episodes returned is every step but those of the last, unfinished ones.
    ends = torch.cat([segment.terminated | segment.truncated for segment in segments], 1)
    steps = torch.arange(1, ends.shape[1] + 1).reshape(1, -1, 1)
    assert torch.equal(finished, ends.sum((1, 2)))
    assert torch.equal(returned, torch.where(ends, steps, 0).amax(1).sum(1).float())


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1", "Bandit-v0", "FrozenLake-v1"])
def test_a_stream_that_was_put_away_goes_on_as_if_it_had_not_been(environment: str) -> None:
    task = define_task(environment, horizon=7)
    batch = TaskBatch.of([task, task])
    policy = policy_for(batch)
    params = {name: torch.stack([value, value]) for name, value in policy.initialise(0).items()}

    def advance(stream: Stream, steps: int) -> Segment:
        noise, head = stream.noise(params, steps), policy.acting(params)
        return stream.advance(steps, lambda observation, t: policy.choose(head(observation, t), noise[:, t]))

    with Stream(policy, batch, 3, KEYS) as stream:
        advance(stream, 9)
        state = load_params(save_params(stream.state()))
        wanted = [advance(stream, steps) for steps in (4, 11)]
    with Stream(policy, batch, 3, KEYS, state) as stream:
        found = [advance(stream, steps) for steps in (4, 11)]
    for ours, theirs in zip(found, wanted, strict=True):
        for name, value in vars(theirs).items():
            assert torch.equal(getattr(ours, name), value), name


def segment_of(steps: int, seed: int = 0) -> Segment:
    g = torch.Generator().manual_seed(seed)
    shape = (2, steps, 3)
    terminated = torch.rand(shape, generator=g) < 0.15
    truncated = (torch.rand(shape, generator=g) < 0.15) & ~terminated
    numbers = torch.rand((*shape, 2), generator=g, dtype=torch.float64)
    return Segment(
        observation=numbers,
        action=torch.randint(0, 5, shape, generator=g),
        reward=torch.randn(shape, generator=g, dtype=torch.float64),
        next_observation=numbers + 10.0,
        terminated=terminated,
        truncated=truncated,
        finished=torch.zeros(2, dtype=torch.int64),
        finished_return=torch.zeros(2),
    )


def test_advantages_stop_at_the_end_of_an_episode_and_look_beyond_a_time_limit() -> None:
    segment, discount, decay = segment_of(12), torch.tensor([0.9, 0.7], dtype=torch.float64), 0.8
    g = torch.Generator().manual_seed(1)
    value, after = (torch.randn(2, 12, 3, generator=g, dtype=torch.float64) for _ in range(2))
    found = segment_advantages(segment, value, after, discount, decay)
    for n in range(2):
        for b in range(3):
            for t in range(12):
                total, weight = 0.0, 1.0
                for u in range(t, 12):
                    bootstrap = 0.0 if segment.terminated[n, u, b] else float(after[n, u, b])
                    gamma = float(discount[n])
                    total += weight * float(segment.reward[n, u, b] + gamma * bootstrap - value[n, u, b])
                    weight *= gamma * decay
                    if segment.terminated[n, u, b] or segment.truncated[n, u, b]:
                        break
                assert float(found[n, t, b]) == pytest.approx(total)


@pytest.mark.parametrize("exponent", [0.0, 0.6])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("lengths", [(20,), (5, 5, 20, 7), (40,)], ids=str)
def test_samples_are_sums_of_consecutive_steps_of_one_episode(
    lengths: tuple[int, ...], n_steps: int, exponent: float
) -> None:
    discount = torch.tensor([0.9, 0.5], dtype=torch.float64)
    replay = Replay(60, 3, n_steps, discount, exponent)
    segments = [segment_of(length, seed) for seed, length in enumerate(lengths)]
    for segment in segments:
        replay.add(segment)
    whole = {
        name: torch.cat([getattr(s, name) for s in segments], 1)[:, -20 - n_steps + 1 :]
        for name in vars(segments[0])
        if "finished" not in name
    }
    kept = whole["reward"].shape[1]
    assert replay.size == (kept - n_steps + 1) * 3
    draws = torch.rand(2, 400, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sample = replay.sample(draws, 0.5)
    begun = set()
    for n in range(2):
        for m in range(400):
            [(t, b)] = (whole["observation"][n] == sample.observation[n, m]).all(-1).nonzero().tolist()
            begun.add((n, t, b))
            reward, power, last = 0.0, 1.0, t
            for u in range(t, t + n_steps):
                reward += power * float(whole["reward"][n, u, b])
                power *= float(discount[n])
                last = u
                if whole["terminated"][n, u, b] or whole["truncated"][n, u, b]:
                    break
            assert float(sample.reward[n, m]) == pytest.approx(reward)
            assert float(sample.discount[n, m]) == pytest.approx(0.0 if whole["terminated"][n, last, b] else power)
            assert torch.equal(sample.next_observation[n, m], whole["next_observation"][n, last, b])
            assert sample.action[n, m] == whole["action"][n, t, b]
    assert len(begun) == 2 * replay.size


def test_samples_follow_priorities_and_weights_make_up_for_it() -> None:
    replay = Replay(10, 1, 1, torch.tensor([0.9]), 1.0)
    one = segment_of(10)
    replay.add(
        Segment(**{name: value[:1, :, :1] if value.dim() > 1 else value[:1] for name, value in vars(one).items()})
    )
    first = replay.sample((torch.arange(10) + 0.5).reshape(1, -1) / 10)
    assert sorted(first.place[0].tolist()) == list(range(10))
    replay.judge(first, torch.where(first.place == 3, 11.0, 1.0).double())
    sample = replay.sample((torch.arange(2000) + 0.5).reshape(1, -1) / 2000, 1.0)
    assert float((sample.place == 3).float().mean()) == pytest.approx(0.55, abs=0.01)
    rare, common = (sample.weight[sample.place == place][0] for place in (0, 3))
    assert float(rare) == 1.0
    assert float(common) == pytest.approx(1 / 11, rel=1e-3)


def test_of_a_step_that_was_drawn_twice_the_larger_error_counts() -> None:
    replay = Replay(15, 3, 1, torch.tensor([0.9, 0.9]), 1.0)
    replay.add(segment_of(5))
    first = replay.sample(torch.tensor([[0.05, 0.05, 0.95], [0.05, 0.95, 0.95]]))
    replay.judge(first, torch.tensor([[3.0, -7.0, 1.0], [2.0, 4.0, 5.0]]).double())
    priority = replay.state()["ring.priority"]
    torch.testing.assert_close(
        priority[:, [0, -1]], torch.tensor([[7.0, 1.0], [2.0, 5.0]]).to(priority), atol=1e-5, rtol=0
    )


def test_a_step_of_many_networks_is_torchs_adam_of_each() -> None:
    g = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(3, 4, 2, generator=g), "b": torch.randn(3, 5, generator=g)}
    networks = Networks.of(start)
    theirs = [{name: value[k].clone().requires_grad_() for name, value in start.items()} for k in range(3)]
    rates = (0.1, 0.01, 0.001)
    optimisers = [torch.optim.Adam(p.values(), lr=rate) for p, rate in zip(theirs, rates, strict=True)]
    for step in range(5):
        gradient = {name: torch.randn(value.shape, generator=g) for name, value in start.items()}
        active = torch.tensor([[True], [step != 2], [True]])
        norm = networks.descend(gradient, torch.tensor(rates).unsqueeze(1), 0.5, active)
        for k, (params, optimiser) in enumerate(zip(theirs, optimisers, strict=True)):
            for value, g_k in zip(params.values(), gradient.values(), strict=True):
                value.grad = g_k[k].clone()
            length = torch.nn.utils.clip_grad_norm_(params.values(), 0.5)
            assert float(norm[k]) == pytest.approx(float(length), rel=1e-5)
            if active[k]:
                optimiser.step()
    for name, value in networks.params.items():
        for k in range(3):
            torch.testing.assert_close(value[k], theirs[k][name].detach(), rtol=1e-4, atol=1e-6)
