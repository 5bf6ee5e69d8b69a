"""Meta-training on Navigation2D-v0 through the worker, database writes included, against a bare torch loop.

The same work on both sides (see navigation_loop.py): 20 tasks x (20 + 20) episodes x 100 steps, 2 x 100 tanh units, one
second-order inner step, one Adam step. Both take turns, with the same threads and the same allocator settings.

Run:    python benchmarks/bench_training.py [--rounds 3] [--iterations 60]
Prints: environment steps per second of each (medians) and their ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from service import running_service

from app.supervisor import WORKER_ENVIRONMENT

LEARNER = {
    "name": "maml",
    "inner_steps": 1,
    "inner_learning_rate": 0.1,
    "tasks_per_iteration": 20,
    "episodes_per_task": 20,
}
OUTER = {"outer_learning_rate": 1e-3, "outer_epochs": 1, "clip_ratio": None}
POLICY = {"hidden": [100, 100], "action_scaling": "clip"}
WARM_UP = 10


def bare(iterations: int) -> float:
    """Environment steps per second of the bare loop."""
    script = Path(__file__).with_name("navigation_loop.py")
    command = [sys.executable, str(script), str(iterations)]
    output = subprocess.run(command, env=os.environ | WORKER_ENVIRONMENT, check=True, capture_output=True).stdout
    return float(output)


def worker(iterations: int) -> float:
    """Environment steps per second of a run, by its own metrics, after a few iterations."""
    with running_service() as (client, *_):
        run = client.runs.create(
            "bench",
            learner=LEARNER | OUTER,
            policy=POLICY,
            tasks={"family": "navigation-2d", "split": "train"},
            stop={"iterations": iterations + WARM_UP},
        )
        # Seldom asked: what a client's questions cost is not what is measured.
        while (run := client.runs.get(run.id)).state in ("queued", "running"):
            time.sleep(2)
        metrics = list(client.runs.metrics(run))
    first, last = metrics[WARM_UP - 1], metrics[-1]
    return (last.environment_steps - first.environment_steps) / (last.seconds - first.seconds)


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=60)
    options = parser.parse_args()
    pairs = [(worker(options.iterations), bare(options.iterations)) for _ in range(options.rounds)]
    for name, rates in zip(("worker", "bare torch loop"), zip(*pairs, strict=True), strict=True):
        print(f"{name:<16}{statistics.median(rates):10,.0f} environment steps/s")
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    print(f"training: {ratio:.2f} of a bare torch loop's environment steps per second (goal: at least 0.8)")


if __name__ == "__main__":
    main()
