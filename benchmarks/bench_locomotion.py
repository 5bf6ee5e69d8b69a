"""Environment steps a second of HalfCheetah-v5, batched, against Gymnasium's scalar loop on one core.

Both take turns, so that a machine that drifts slows both. Batched: 400 episodes (20 tasks of 20) on the threads that
torch has by default, with what a rollout asks of the environment: next states, observations and ends of every step
as tensors, and the rewards of all. Gymnasium: `gymnasium.make`, one episode, actions drawn beforehand.

Run:    python benchmarks/bench_locomotion.py [--environment HalfCheetah-v5] [--rounds 5] [--steps 100]
Prints: steps per second of each (medians) and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time

import gymnasium
import numpy as np
import torch

import models.environments.physics  # noqa: F401  # before Gymnasium's: no file of the engine's warnings here
from models import random
from models.environments import ENVIRONMENTS
from models.presets import PRESETS
from models.tasks import TaskBatch

TASKS, EPISODES = 20, 20
FAMILIES = {
    "HalfCheetah-v5": "halfcheetah-velocity",
    "Ant-v5": "ant-goal",
    "Hopper-v5": "hopper-params",
    "Walker2d-v5": "walker2d-params",
}


@torch.no_grad()
def batched(tasks: TaskBatch, steps: int) -> float:
    """Steps a second of all episodes together; one that has ended takes no more."""
    environment, params = ENVIRONMENTS[tasks.environment.id], tasks.params
    assert environment.action_size is not None
    keys = random.fold_in(random.key(0), torch.arange(TASKS * EPISODES)).reshape(TASKS, EPISODES)
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(TASKS, steps, EPISODES, environment.action_size, generator=generator) * 2 - 1
    states, ends = [environment.initial(keys, params)], [torch.zeros(TASKS, EPISODES, dtype=torch.bool)]
    start = time.perf_counter()
    for t in range(steps):
        states.append(environment.transition(states[-1], actions[:, t], keys, params))
        environment.observation(states[-1], None, params)
        ends.append(environment.terminal(states[-1], None, params))
    state = torch.stack(states, 1)
    per_step = {name: value.unsqueeze(1) for name, value in params.items()}
    environment.reward(state[:, :-1], actions, state[:, 1:], None, per_step)
    return int((~torch.stack(ends[:-1])).sum()) / (time.perf_counter() - start)


def scalar(environment: gymnasium.Env[np.ndarray, np.ndarray], steps: int) -> float:
    """Steps a second of one environment, begun again wherever an episode ends."""
    low, high = environment.action_space.low, environment.action_space.high  # type: ignore[attr-defined]
    actions = np.random.default_rng(0).uniform(low, high, (steps, *low.shape)).astype(np.float32)
    environment.reset(seed=0)
    start = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = environment.step(action)
        if terminated or truncated:
            environment.reset()
    return steps / (time.perf_counter() - start)


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", choices=FAMILIES, default="HalfCheetah-v5")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    tasks = TaskBatch.of(PRESETS[FAMILIES[options.environment]].sample("train", 0, range(TASKS)))
    twin = gymnasium.make(options.environment)
    batched(tasks, 5)
    scalar(twin, 500)
    rates = [(batched(tasks, options.steps), scalar(twin, 4000)) for _ in range(options.rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
    print(f"{options.environment}, {TASKS} tasks of {EPISODES} episodes of {options.steps} steps")
    print(f"batched, {torch.get_num_threads()} threads  {ours:10,.0f} steps/s")
    print(f"Gymnasium, one core  {theirs:10,.0f} steps/s")
    print(f"ratio                {ours / theirs:10.2f}")


if __name__ == "__main__":
    main()
