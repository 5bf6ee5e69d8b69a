"""`ppo`, `dqn` and `sac` from scratch beside Stable-Baselines3 with its published tuned settings.

`ppo` and `dqn` learn CartPole-v1, `sac` learns Pendulum-v1. Each learns alone, with the same number of threads, for the
same number of environment steps. Every `--every` steps the clock stops, and its greedy policy is measured on 100 fresh
episodes: it has reached the goal (a mean return of 475, of -200) at the first measurement that is at least that, and
holds it if the last one, at the end of the budget, is too.

Needs the extra `headstart[peers]`.

Run:    python benchmarks/learn_peers.py [--methods ppo dqn sac] [--seeds 5] [--who ours theirs] [--json FILE]
Prints: for each method and seed the steps and seconds of learning to the goal (`-` where it was not reached), the
        return at the end, and the seconds of learning; then medians, and the ratios of ours to theirs of seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from learning import add_json
from reporting import keep, run_as_worker, say, table

from models import random
from models.finetune import DQNConfig, MethodConfig, PPOConfig, SACConfig, finetune
from models.policy import Policy, PolicyConfig
from models.rollout import collect
from models.tasks import TaskBatch, define_task
from models.types import stack_params

EPISODES = 100


@dataclass(frozen=True)
class Peers:
    """What both learn, and how.

    Attributes:
        environment: Its id.
        goal: Mean return to reach.
        config: Of our method, with the budget of both.
        policy: Our architecture.
        discount: Ours.
        theirs: Name of their class.
        settings: Its arguments, as published with RL Baselines3 Zoo.
        environments: Episodes that it runs side by side.
    """

    environment: str
    goal: float
    config: MethodConfig
    policy: PolicyConfig
    discount: float
    theirs: str
    settings: dict[str, Any]
    environments: int = 1

    @property
    def steps(self) -> int:
        """Environment steps of the budget."""
        return self.config.environment_steps or 0


PEERS = {
    "ppo": Peers(
        environment="CartPole-v1",
        goal=475.0,
        config=PPOConfig(
            environment_steps=100_000,
            parallel_episodes=16,
            steps=16,
            epochs=10,
            learning_rate=2e-3,
            value_learning_rate=1e-2,
        ),
        policy=PolicyConfig(hidden=(64, 64)),
        discount=0.98,
        theirs="PPO",
        settings={
            "n_steps": 32,
            "batch_size": 256,
            "n_epochs": 20,
            "gamma": 0.98,
            "gae_lambda": 0.8,
            "ent_coef": 0.0,
            "learning_rate": lambda left: 1e-3 * left,
            "clip_range": lambda left: 0.2 * left,
        },
        environments=8,
    ),
    "dqn": Peers(
        environment="CartPole-v1",
        goal=475.0,
        config=DQNConfig(environment_steps=50_000, temperature=10.0),
        policy=PolicyConfig(hidden=(64, 64)),
        discount=0.99,
        theirs="DQN",
        settings={
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
    ),
    "sac": Peers(
        environment="Pendulum-v1",
        goal=-200.0,
        config=SACConfig(environment_steps=20_000),
        policy=PolicyConfig(hidden=(64, 64), action_scaling="squash", log_std="state"),
        discount=0.99,
        theirs="SAC",
        settings={"learning_rate": 1e-3},
    ),
}


@dataclass
class Outcome:
    """What came of one seed.

    Attributes:
        goal: Mean return to reach.
        steps: Environment steps at which each measurement was made.
        returns: What it gave.
        seconds: Of learning until then.
    """

    goal: float
    steps: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def reached(self) -> int | None:
        """The measurement that reached the goal; None where none did."""
        return next((i for i, value in enumerate(self.returns) if value >= self.goal), None)

    @property
    def holds(self) -> bool:
        """Whether the goal is still reached at the end."""
        return self.returns[-1] >= self.goal


def ours(peers: Peers, seed: int, every: int) -> Outcome:
    """Headstart's."""
    tasks = TaskBatch.of([define_task(peers.environment, discount=peers.discount)])
    policy = Policy(peers.policy, tasks.environment.observation_space, tasks.environment.action_space)
    params = stack_params(policy.initialise(seed), 1)
    # What the method measures itself is left out: one episode at the start and one at the end.
    config = replace(peers.config, evaluate_every=10**9, evaluation_episodes=1)
    key = random.key(seed, "peers").reshape(1)
    outcome, seconds = Outcome(peers.goal), 0.0
    begun = time.perf_counter()
    for progress in finetune(config, policy, params, tasks, key):
        steps = int(progress.environment_steps[0])
        if steps // every <= len(outcome.steps) - 1 and not progress.is_last:
            continue
        seconds += time.perf_counter() - begun
        fresh = collect(
            policy, progress.policies(), tasks, EPISODES, random.fold_in(key, steps + 1), deterministic=True
        )
        outcome.steps.append(steps)
        outcome.returns.append(float(fresh.mean_return))
        outcome.seconds.append(seconds)
        begun = time.perf_counter()
    return outcome


def theirs(peers: Peers, seed: int, every: int) -> Outcome:
    """Stable-Baselines3's."""
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    outcome = Outcome(peers.goal)

    class Measure(BaseCallback):  # type: ignore[misc]
        begun = time.perf_counter()
        seconds = 0.0

        def measure(self) -> None:
            self.seconds += time.perf_counter() - self.begun
            outcome.steps.append(self.num_timesteps)
            outcome.returns.append(_greedy_return(peers.environment, self.model.predict, seed + len(outcome.steps)))
            outcome.seconds.append(self.seconds)
            self.begun = time.perf_counter()

        def _on_step(self) -> bool:
            if self.num_timesteps // every > len(outcome.steps) - 1:
                self.measure()
            return True

    environments = make_vec_env(peers.environment, n_envs=peers.environments, seed=seed)
    learner = getattr(stable_baselines3, peers.theirs)
    model = learner("MlpPolicy", environments, seed=seed, device="cpu", **peers.settings)
    callback = Measure()
    model.learn(peers.steps, callback=callback)
    callback.measure()
    return outcome


def _greedy_return(environment: str, predict: Callable[..., Any], seed: int) -> float:
    """Mean return of 100 episodes side by side."""
    mode = "vector_entry_point" if gymnasium.spec(environment).vector_entry_point else "sync"
    environments = gymnasium.make_vec(environment, EPISODES, vectorization_mode=mode)
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
    parser.add_argument("--methods", nargs="+", choices=PEERS, default=list(PEERS))
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
        peers = PEERS[method]
        peers = replace(
            peers, config=replace(peers.config, **options.set), policy=replace(peers.policy, **options.policy)
        )
        for seed in range(options.seeds):
            for who in options.who:
                outcome = (ours if who == "ours" else theirs)(peers, seed, options.every)
                runs.setdefault(method, {}).setdefault(who, []).append(outcome)
                at = outcome.reached
                goal = "-" if at is None else f"{outcome.steps[at]:,} steps, {outcome.seconds[at]:.1f} s"
                end = f"end {outcome.returns[-1]:.0f}, {outcome.seconds[-1]:.1f} s"
                say(f"{method} {who} {seed}: goal {goal}; {end}")
        keep(options.json, {m: {w: [asdict(o) for o in each] for w, each in by.items()} for m, by in runs.items()})
    header = ["method", "", "reached", "held", "median steps to the goal", "median s to it", "median s", "us a step"]
    print(table(header, [[m, who, *summary(each)] for m, by in runs.items() for who, each in by.items()]))
    for method, by in runs.items():
        if len(by) == 2:
            mine, other = (median_seconds(by[who]) for who in ("ours", "theirs"))
            print(f"{method}: {mine / other:.3f} of the time")


def summary(outcomes: list[Outcome]) -> list[str]:
    """A row of the table; a run that never reached the goal counts as later than all that did."""
    reached = [outcome.reached for outcome in outcomes]
    steps = statistics.median_high(
        math.inf if at is None else o.steps[at] for o, at in zip(outcomes, reached, strict=True)
    )
    to_goal = statistics.median_high(
        math.inf if at is None else o.seconds[at] for o, at in zip(outcomes, reached, strict=True)
    )
    seconds = median_seconds(outcomes)
    return [
        f"{sum(at is not None for at in reached)}/{len(outcomes)}",
        f"{sum(outcome.holds for outcome in outcomes)}/{len(outcomes)}",
        f"{steps:,.0f}" if math.isfinite(steps) else "-",
        f"{to_goal:.1f}" if math.isfinite(to_goal) else "-",
        f"{seconds:.1f}",
        f"{1e6 * seconds / outcomes[0].steps[-1]:.0f}",
    ]


def median_seconds(outcomes: list[Outcome]) -> float:
    """Of learning."""
    return statistics.median(outcome.seconds[-1] for outcome in outcomes)


if __name__ == "__main__":
    main()
