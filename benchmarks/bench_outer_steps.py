"""What an outer step costs once the episodes are gathered: trust region, ProMP and first order against one Adam step.

Every outer step gets the same batch: 20 tasks x (20 + 20) episodes x 100 steps of `navigation-2d`, 2 x 100 tanh units,
one inner step, sampled anew with the same keys for each call, because an outer step uses up the graphs that sampling
leaves. Sampling (rollouts, advantages and the inner gradient) is timed apart. The variants take turns in one process,
after a call each that does not count.

Run:    python benchmarks/bench_outer_steps.py [--rounds 10] [--tasks 20] [--episodes 20] [--json FILE]
Prints: milliseconds of sampling and of the outer step (medians), and the ratio of outer steps to Adam's (median over
        rounds; the goal is a trust region within 3).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
from core_training import FAMILY, LEARNER, POLICY
from learning import add_json
from reporting import keep, run_as_worker, say, table

from models import random
from models.learners import MAML, MAMLConfig
from models.learners.base import LearnerState
from models.learners.meta_gradient import Trial
from models.policy import Policy
from models.presets import PRESETS
from models.tasks import TaskBatch

VARIANTS: dict[str, MAMLConfig] = {
    "Adam, one epoch": LEARNER,
    "Adam, one epoch, first order": replace(LEARNER, first_order=True),
    "ProMP, one epoch": replace(LEARNER, outer_step="promp", clip_ratio=0.2),
    "ProMP, five epochs": replace(LEARNER, outer_step="promp", clip_ratio=0.2, outer_epochs=5),
    "trust region": replace(LEARNER, outer_step="trpo"),
    "trust region, curvature from all episodes": replace(LEARNER, outer_step="trpo", curvature_share=1.0),
}
YARDSTICK, GOAL_FOR, GOAL = "Adam, one epoch", "trust region", 3.0


class Timed:
    """A learner whose sampling is timed apart from the rest of its outer step."""

    def __init__(self, config: MAMLConfig, tasks: TaskBatch) -> None:
        policy = Policy(POLICY, tasks.environment.observation_space, tasks.environment.action_space)
        self._learner = MAML(config, policy)
        self._tasks = tasks
        self._state = self._learner.initialise(0)
        self._sample = self._learner.meta_gradient.sample
        self._sampling = 0.0
        self._learner.meta_gradient.sample = self._timed_sample  # type: ignore[method-assign]

    def _timed_sample(self, state: LearnerState, tasks: TaskBatch, keys: torch.Tensor) -> Trial:
        started = time.perf_counter()
        trial = self._sample(state, tasks, keys)
        self._sampling = time.perf_counter() - started
        return trial

    def seconds(self) -> tuple[float, float]:
        """Of sampling, and of the outer step on what was sampled; always from the same state and keys."""
        keys = random.fold_in(random.key(0, "outer steps"), torch.arange(len(self._tasks)))
        started = time.perf_counter()
        self._learner.outer_step(self._state, self._tasks, keys)
        return self._sampling, time.perf_counter() - started - self._sampling


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=LEARNER.tasks_per_iteration)
    parser.add_argument("--episodes", type=int, default=LEARNER.episodes_per_task)
    add_json(parser)
    options = parser.parse_args()
    run_as_worker()
    tasks = TaskBatch.of(PRESETS[FAMILY].sample("train", 0, range(options.tasks)))
    timed = {
        name: Timed(replace(config, episodes_per_task=options.episodes), tasks) for name, config in VARIANTS.items()
    }
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
    for number in range(options.rounds + 1):
        for name, learner in timed.items():
            seconds = learner.seconds()
            if number:  # the first warms up
                rounds[name].append(seconds)
        say(f"round {number} of {options.rounds}")
    rows, ratios = [], {}
    for name, both in rounds.items():
        ratios[name] = statistics.median(a[1] / b[1] for a, b in zip(both, rounds[YARDSTICK], strict=True))
        sampling, step = (1e3 * statistics.median(column) for column in zip(*both, strict=True))
        goal = f"{GOAL:g}" if name == GOAL_FOR else ""
        rows.append([name, f"{sampling:.1f}", f"{step:.1f}", f"{ratios[name]:.2f}", goal])
    keep(options.json, {"seconds": rounds, "ratios": ratios})
    print(table(["outer step", "sampling ms", "outer step ms", "of Adam's", "at most"], rows))


if __name__ == "__main__":
    main()
