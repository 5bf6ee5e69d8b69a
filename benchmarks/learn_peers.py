"""`ppo` and `dqn` from scratch on CartPole-v1 beside Stable-Baselines3 with its published tuned settings.

Each learns alone, with the same number of threads, for the same number of environment steps. Every `--every` steps the
clock stops, and its greedy policy is measured on 100 fresh episodes of at most 500 steps: it has reached the goal at
the first measurement of at least 475, and holds it if the last one, at the end of the budget, is too.

Needs the extra `headstart[peers]`.

Run:    python benchmarks/learn_peers.py [--methods ppo dqn] [--seeds 5] [--who ours theirs] [--json FILE]
Prints: for each method and seed the steps to the goal (`-` where it was not reached), the return at the end, and the
        seconds of learning; then medians, and the ratios of ours to theirs of steps and of seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from learning import add_json
from reporting import keep, run_as_worker, say, table

from models import random
from models.finetune import DQNConfig, MethodConfig, PPOConfig, finetune
from models.policy import Policy, PolicyConfig
from models.rollout import collect
from models.tasks import TaskBatch, define_task
from models.types import stack_params

GOAL = 475.0
EPISODES = 100
STEPS = {"ppo": 100_000, "dqn": 50_000}

OURS: dict[str, tuple[MethodConfig, PolicyConfig, float]] = {
    "ppo": (
        PPOConfig(environment_steps=STEPS["ppo"], parallel_episodes=16, steps=16, epochs=10, learning_rate=3e-3),
        PolicyConfig(hidden=(64, 64)),
        0.98,
    ),
    "dqn": (DQNConfig(environment_steps=STEPS["dqn"]), PolicyConfig(hidden=(64, 64)), 0.99),
}
"""Method, architecture and discount of ours."""

THEIRS: dict[str, dict[str, Any]] = {
    "ppo": {
        "n_steps": 32,
        "batch_size": 256,
        "n_epochs": 20,
        "gamma": 0.98,
        "gae_lambda": 0.8,
        "ent_coef": 0.0,
        "learning_rate": lambda left: 1e-3 * left,
        "clip_range": lambda left: 0.2 * left,
    },
    "dqn": {
        "learning_rate": 2.3e-3,
        "batch_size": 64,
        "buffer_size": 100_000,
        "learning_starts": 1_000,
        "gamma": 0.99,
        "target_update_interval": 10,
        "train_freq": 256,
        "gradient_steps": 128,
        "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04,
        "policy_kwargs": {"net_arch": [256, 256]},
    },
}
"""Published with RL Baselines3 Zoo."""


@dataclass
class Outcome:
    """What came of one seed.

    Attributes:
        steps: Environment steps at which each measurement was made.
        returns: What it gave.
        seconds: Of learning.
    """

    steps: list[int]
    returns: list[float]
    seconds: float = 0.0

    @property
    def reached(self) -> int | None:
        """Steps to the goal; None where it was not reached."""
        return next((steps for steps, value in zip(self.steps, self.returns, strict=True) if value >= GOAL), None)

    @property
    def holds(self) -> bool:
        """Whether the goal is still reached at the end."""
        return self.returns[-1] >= GOAL


def ours(method: str, seed: int, every: int) -> Outcome:
    """Headstart's."""
    config, architecture, discount = OURS[method]
    tasks = TaskBatch.of([define_task("CartPole-v1", discount=discount)])
    policy = Policy(architecture, tasks.environment.observation_space, tasks.environment.action_space)
    params = stack_params(policy.initialise(seed), 1)
    # What the method measures itself is left out: one episode at the start and one at the end.
    config = type(config)(**asdict(config) | {"evaluate_every": 10**9, "evaluation_episodes": 1})
    key = random.key(seed, "peers").reshape(1)
    outcome = Outcome([], [])
    begun = time.perf_counter()
    for progress in finetune(config, policy, params, tasks, key):
        steps = int(progress.environment_steps[0])
        if steps // every <= len(outcome.steps) - 1 and not progress.is_last:
            continue
        outcome.seconds += time.perf_counter() - begun
        fresh = collect(
            policy, progress.policies(), tasks, EPISODES, random.fold_in(key, steps + 1), deterministic=True
        )
        outcome.steps.append(steps)
        outcome.returns.append(float(fresh.mean_return))
        begun = time.perf_counter()
    return outcome


def theirs(method: str, seed: int, every: int) -> Outcome:
    """Stable-Baselines3's."""
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    outcome = Outcome([], [])

    class Measure(BaseCallback):  # type: ignore[misc]
        begun = time.perf_counter()

        def measure(self) -> None:
            outcome.seconds += time.perf_counter() - self.begun
            outcome.steps.append(self.num_timesteps)
            outcome.returns.append(_greedy_return(self.model.predict, seed + len(outcome.steps)))
            Measure.begun = time.perf_counter()

        def _on_step(self) -> bool:
            if self.num_timesteps // every > len(outcome.steps) - 1:
                self.measure()
            return True

    count = 8 if method == "ppo" else 1
    environments = make_vec_env("CartPole-v1", n_envs=count, seed=seed)
    model = (PPO if method == "ppo" else DQN)("MlpPolicy", environments, seed=seed, device="cpu", **THEIRS[method])
    callback = Measure()
    model.learn(STEPS[method], callback=callback)
    callback.measure()
    return outcome


def _greedy_return(predict: Callable[..., Any], seed: int) -> float:
    """Mean return of 100 episodes side by side."""
    environments = gymnasium.make_vec("CartPole-v1", EPISODES, vectorization_mode="vector_entry_point")
    observation, _ = environments.reset(seed=seed)
    alive, total = np.ones(EPISODES, bool), np.zeros(EPISODES)
    while alive.any():
        action, _ = predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = environments.step(action)
        total += alive * reward
        alive &= ~(terminated | truncated)
    environments.close()
    return float(total.mean())


def main() -> None:
    """Learn and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--who", nargs="+", choices=("ours", "theirs"), default=("ours", "theirs"))
    parser.add_argument("--every", type=int, default=1024, help="environment steps between measurements")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for both")
    parser.add_argument("--set", type=json.loads, default={}, metavar="JSON", help="members of our config to change")
    parser.add_argument("--policy", type=json.loads, default={}, metavar="JSON", help="members of our policy to change")
    add_json(parser)
    options = parser.parse_args()
    run_as_worker()
    torch.set_num_threads(options.threads)
    runs: dict[str, dict[str, list[Outcome]]] = {}
    for method in options.methods:
        config, policy, discount = OURS[method]
        changed = type(config)(**asdict(config) | options.set)
        OURS[method] = (changed, PolicyConfig(**asdict(policy) | options.policy), discount)
        for seed in range(options.seeds):
            for who in options.who:
                outcome = (ours if who == "ours" else theirs)(method, seed, options.every)
                runs.setdefault(method, {}).setdefault(who, []).append(outcome)
                reached = outcome.reached or "-"
                say(f"{method} {who} {seed}: goal {reached}, end {outcome.returns[-1]:.0f}, {outcome.seconds:.1f} s")
        keep(options.json, {m: {w: [asdict(o) for o in each] for w, each in by.items()} for m, by in runs.items()})
    rows = [
        [method, who, *summary(outcomes, STEPS[method])]
        for method, by_who in runs.items()
        for who, outcomes in by_who.items()
    ]
    print(table(["method", "", "reached", "held", "median steps to 475", "median s", "us a step"], rows))
    for method, by in runs.items():
        if len(by) == 2:
            mine, other = (median_seconds(by[who]) for who in ("ours", "theirs"))
            print(f"{method}: {mine / other:.3f} of the time")


def summary(outcomes: list[Outcome], budget: int) -> list[str]:
    """A row of the table."""
    steps = [outcome.reached or budget * 10 for outcome in outcomes]
    median = statistics.median(steps)
    seconds = median_seconds(outcomes)
    return [
        f"{sum(outcome.reached is not None for outcome in outcomes)}/{len(outcomes)}",
        f"{sum(outcome.holds for outcome in outcomes)}/{len(outcomes)}",
        f"{median:,.0f}" if median <= budget * 1.1 else "-",
        f"{seconds:.1f}",
        f"{1e6 * seconds / budget:.0f}",
    ]


def median_seconds(outcomes: list[Outcome]) -> float:
    """Of learning."""
    return statistics.median(outcome.seconds for outcome in outcomes)


if __name__ == "__main__":
    main()
