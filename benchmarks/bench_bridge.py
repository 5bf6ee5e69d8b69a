"""Environment steps a second through the bridge, against `gymnasium.vector.SyncVectorEnv` on one core.

Both run as many copies of one environment, with random actions drawn beforehand, and take turns. The bridge steps a
batch of episodes in processes of its own, with what a rollout asks of it: observations, ends and rewards as tensors. An
episode that has ended takes no more steps until the whole batch is over; Gymnasium's vector begins it again at once.
Only real steps are counted on both sides, not the resets, whose time is.

Run:    python benchmarks/bench_bridge.py [--environments LunarLander-v3 FrozenLake-v1] [--rounds 5] [--json FILE]
Prints: steps per second of each (medians) and their ratio (median over rounds).
"""

from __future__ import annotations

import argparse
import time

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from learning import add_json
from reporting import in_turns, keep, say, table

from models import random
from models.tasks import TaskBatch, define_task


@torch.no_grad()
def bridged(tasks: TaskBatch, episodes: int, batches: int, seed: int) -> float:
    """Steps a second of whole batches of episodes."""
    horizon, steps, seconds = int(tasks.horizon[0]), 0, 0.0
    size = int(tasks.environment.action_space.n)  # type: ignore[union-attr]
    for batch in range(batches):
        keys = random.fold_in(random.key(seed, batch), torch.arange(len(tasks) * episodes)).reshape(-1, episodes)
        actions = (random.uniform(keys, horizon) * size).long().movedim(-1, 1).contiguous()
        alive = torch.ones(keys.shape, dtype=torch.bool)
        started = time.perf_counter()
        with tasks.environment.simulate(keys, tasks) as simulation:
            for t in range(horizon):
                _, _, over = simulation.step(actions[:, t], keys, alive)
                steps += int(alive.sum())
                alive = alive & ~over
                if not bool(alive.any()):
                    break
        simulation.rewards(actions[:, : t + 1])
        seconds += time.perf_counter() - started
    return steps / seconds


def vector(environments: SyncVectorEnv, steps: int) -> float:
    """Steps a second of all environments together, begun again wherever an episode ends."""
    size, count = int(environments.single_action_space.n), environments.num_envs  # type: ignore[attr-defined]
    actions = np.random.default_rng(0).integers(0, size, (steps, count))
    started = time.perf_counter()
    environments.reset(seed=0)
    for action in actions:
        environments.step(action)
    return steps * count / (time.perf_counter() - started)


def measure(name: str, options: argparse.Namespace) -> list[tuple[float, float]]:
    """Both sides of each round."""
    count = options.tasks * options.episodes
    tasks = TaskBatch.of([define_task(name, horizon=options.horizon)] * options.tasks)
    # Begun again within the step that ends an episode, so that every step is a real one.
    environments = SyncVectorEnv(
        [lambda: gymnasium.make(name, max_episode_steps=options.horizon)] * count,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    bridged(tasks, options.episodes, 1, seed=1)
    rounds = []
    for number in range(options.rounds):
        rounds.append((bridged(tasks, options.episodes, options.batches, number), vector(environments, options.steps)))
        say(f"{name}, round {number + 1}: {rounds[-1][0]:,.0f} and {rounds[-1][1]:,.0f} steps/s")
    environments.close()
    return rounds


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", default=["LunarLander-v3", "FrozenLake-v1"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--batches", type=int, default=2, help="batches of episodes in a round, through the bridge")
    parser.add_argument("--steps", type=int, default=50, help="steps of the whole vector in a round")
    add_json(parser)
    options = parser.parse_args()
    results = {name: measure(name, options) for name in options.environments}
    keep(options.json, {"steps_per_s": results})
    rows = []
    for name, rounds in results.items():
        rows.append([name, *in_turns(rounds)])
    copies = options.tasks * options.episodes
    threads = torch.get_num_threads()
    print(table([f"{copies} copies", f"bridge, {threads} processes", "SyncVectorEnv", "ratio"], rows))


if __name__ == "__main__":
    main()
