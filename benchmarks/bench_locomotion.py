"""Environment steps a second of HalfCheetah-v5, batched, against Gymnasium's scalar loop on one core.

Both take turns, so that a machine that drifts slows both. Batched: 400 episodes (20 tasks of 20) on the threads that
torch has by default, with what a rollout asks of the environment: next states, observations and ends of every step
as tensors, and the rewards of all. Gymnasium: `gymnasium.make`, one episode, actions drawn beforehand.

Run:    python benchmarks/bench_locomotion.py [--families NAME ...] [--rounds 5] [--steps 100] [--json FILE]
Prints: steps per second of each (medians) and their ratio (median over rounds; the goal is 2.5 on two cores).
"""

from __future__ import annotations

import argparse
import time

import gymnasium
import numpy as np
import torch
from learning import add_json
from reporting import in_turns, keep, say, table

import models.environments.physics  # noqa: F401  # before Gymnasium's: no file of the engine's warnings here
from models import random
from models.environments import ENVIRONMENTS
from models.environments.locomotion import Locomotion
from models.presets import PRESETS
from models.tasks import TaskBatch

TASKS, EPISODES = 20, 20
FAMILIES = [name for name, family in PRESETS.items() if isinstance(ENVIRONMENTS.get(family.environment), Locomotion)]
GOAL = 2.5


@torch.no_grad()
def batched(tasks: TaskBatch, steps: int) -> float:
    """Steps a second of all episodes together; one that has ended takes no more."""
    environment, params = tasks.environment, tasks.params
    assert isinstance(environment, Locomotion)
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


def measure(family: str, options: argparse.Namespace) -> list[tuple[float, float]]:
    """Both sides of each round."""
    tasks = TaskBatch.of(PRESETS[family].sample("train", 0, range(TASKS)))
    twin = gymnasium.make(PRESETS[family].environment)
    batched(tasks, 5)
    scalar(twin, 500)
    rounds = []
    for number in range(options.rounds):
        rounds.append((batched(tasks, options.steps), scalar(twin, options.scalar_steps)))
        say(f"{family}, round {number + 1}: {rounds[-1][0]:,.0f} and {rounds[-1][1]:,.0f} steps/s")
    twin.close()
    return rounds


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["halfcheetah-velocity", "halfcheetah-direction"]
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="of each of the 400 episodes in a round")
    parser.add_argument("--scalar-steps", type=int, default=4000, help="of Gymnasium's in a round")
    add_json(parser)
    options = parser.parse_args()
    results = {family: measure(family, options) for family in options.families}
    keep(options.json, {"steps_per_s": results})
    rows = []
    for family, rounds in results.items():
        rows.append([family, *in_turns(rounds), f"{GOAL:g}"])
    header = [f"{TASKS} x {EPISODES} episodes", f"batched, {torch.get_num_threads()} threads", "Gymnasium, one core"]
    print(table([*header, "ratio", "at least"], rows))


if __name__ == "__main__":
    main()
