"""`dqn` on MountainCar-v0, whose reward says nothing before the goal: from scratch, and from a meta-learned start.

Both starts have the same architecture and are trained on by the same method within the same budget, in the environment
with its default parameters and its own reward. `meta` is the initialisation that the recommended meta-learner of the
family `mountaincar-hills` comes to in `--seconds`, trained anew with each seed, with a reward for speed added. Every
few steps the greedy policy is measured on fresh episodes; the goal is the first mean return of at least -110. A run
that never gets there is censored: it counts as later than all that do.

Run:    python benchmarks/learn_mountain_car.py [--starts scratch meta] [--seeds 5] [--seconds 30] [--set JSON]
Prints: for each start and seed the steps to the goal and the return at first and at the end; then the medians.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import asdict, replace

import torch
from learning import Budget, add_json, add_settings, setup_of, trained
from reporting import keep, run_as_worker, say, table

from models.evaluation import Run, Subject, measure, steps_to
from models.finetune import DQNConfig
from models.tasks import TaskBatch, define_task

STARTS = ("scratch", "meta")
GOAL = -110.0
TASK = define_task("MountainCar-v0", discount=0.98)
POLICY = {"hidden": [128, 128]}
METHOD = DQNConfig(
    environment_steps=60_000,
    updates=16,
    target_rate=0.2,
    n_steps=3,
    reset_values=True,
    initial_exploration=0.1,
    exploration_fraction=0.1,
    evaluate_every=1_000,
    evaluation_episodes=100,
)


def subject(start: str, seed: int, seconds: float, options: argparse.Namespace) -> Subject:
    """What is trained on."""
    training = setup_of("mountaincar-hills", options).training(seed)
    if start == "scratch":
        return Subject(training.build(), None)
    *_, last = trained(training, Budget(seconds=seconds))
    return Subject(training.build(), last.params)


def main() -> None:
    """Train on, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="training time of each meta-learner")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--set", type=json.loads, default={}, metavar="JSON", help="members of the method to change")
    add_settings(parser)
    parser.set_defaults(policy=POLICY)
    add_json(parser)
    options = parser.parse_args()
    run_as_worker()
    torch.set_num_threads(options.threads)
    method = replace(METHOD, **options.set)
    runs: dict[str, list[Run]] = {}
    for seed in range(options.seeds):
        for start in options.starts:
            [run] = measure(subject(start, seed, options.seconds, options), TaskBatch.of([TASK]), method, seed)
            runs.setdefault(start, []).append(run)
            say(f"{start} {seed}: {steps_to(run, GOAL)} steps, {run[0].mean_return:.1f} to {run[-1].mean_return:.1f}")
        keep(options.json, {start: [[asdict(point) for point in run] for run in each] for start, each in runs.items()})
    header = ["start", "reached", "median steps to -110", "median best return", "median return at the end"]
    print(table(header, [[start, *described(each)] for start, each in runs.items()]))


def described(runs: list[Run]) -> list[str]:
    """A start's columns of the table."""
    steps = [steps_to(run, GOAL) for run in runs]
    median = statistics.median_high(math.inf if each is None else each for each in steps)
    return [
        f"{sum(each is not None for each in steps)}/{len(steps)}",
        f"{median:,.0f}" if math.isfinite(median) else "-",
        f"{statistics.median(max(point.mean_return for point in run) for run in runs):.1f}",
        f"{statistics.median(run[-1].mean_return for run in runs):.1f}",
    ]


if __name__ == "__main__":
    main()
