"""Whole meta-training on Navigation2D-v0, in the core and through the worker, against a bare torch loop.

The same work on all sides (see navigation_loop.py): 20 tasks x (20 + 20) episodes x 100 steps, 2 x 100 tanh units, one
second-order inner step, one Adam step. The core is `models.training.train` (core_training.py); the worker adds the
service, with its database writes. All take turns, a process each, with the same threads and the same allocator
settings; a ratio is taken within a round. Of the core and the bare loop the median iteration is taken, of the worker
the mean after its first ten.

Run:    python benchmarks/bench_training.py [--rounds 3] [--iterations 60] [--json FILE]
Prints: environment steps per second of each (medians), the ratios to the bare loop (medians over rounds), the share of
        the core's time in each part of an iteration, and its speed as a share of what the matrix products alone allow.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core_training import FAMILY, LEARNER, POLICY, WARM_UP
from learning import add_json
from reporting import keep, say, table
from service import running_service

from app.supervisor import WORKER_ENVIRONMENT

GOALS = {"core": 1.2, "worker": 0.8}


def in_process(script: str, iterations: int) -> Any:
    """What a script of this folder prints, as JSON."""
    command = [sys.executable, str(Path(__file__).with_name(script)), str(iterations)]
    return json.loads(subprocess.run(command, env=os.environ | WORKER_ENVIRONMENT, check=True, stdout=-1).stdout)


def worker(iterations: int) -> float:
    """Environment steps per second of a run, by its own metrics, after a few iterations."""
    with running_service() as (client, *_):
        run = client.runs.create(
            "bench",
            learner=asdict(LEARNER),
            policy=asdict(POLICY),
            tasks={"family": FAMILY, "split": "train"},
            stop={"iterations": iterations + WARM_UP},
        )
        # Seldom asked: what a client's questions cost is not what is measured.
        while (run := client.runs.get(run.id)).state in ("queued", "running"):
            time.sleep(2)
        metrics = list(client.runs.metrics(run))
    first, last = metrics[WARM_UP - 1], metrics[-1]
    return (last.environment_steps - first.environment_steps) / (last.seconds - first.seconds)


def describe(cores: list[dict[str, Any]]) -> str:
    """Where the core's time goes, and what the products alone would take."""
    shares = {name: statistics.median(each["shares"][name] for each in cores) for name in cores[0]["shares"]}
    seconds, products = (statistics.median(each[name] for each in cores) for name in ("seconds", "products_s"))
    share = statistics.median(each["products_s"] / each["seconds"] for each in cores)
    rate = cores[0]["multiply_adds"] / products / 1e9
    parts = ", ".join(f"{name} {value:.0%}" for name, value in sorted(shares.items(), key=lambda x: -x[1]))
    return (
        f"an iteration of the core takes {1e3 * seconds:.0f} ms: {parts}\n"
        f"its matrix products alone take {1e3 * products:.0f} ms ({rate:.1f} 10^9 multiply-adds/s): training runs at "
        f"{share:.2f} of what they allow"
    )


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=60)
    add_json(parser)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"core": [], "worker": [], "bare torch loop": []}
    cores = []
    for number in range(options.rounds):
        cores.append(in_process("core_training.py", options.iterations))
        rates["core"].append(cores[-1]["environment_steps_per_s"])
        rates["bare torch loop"].append(in_process("navigation_loop.py", options.iterations))
        rates["worker"].append(worker(options.iterations))
        say(f"round {number + 1}: " + ", ".join(f"{name} {each[-1]:,.0f}" for name, each in rates.items()))
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates[name], rates["bare torch loop"], strict=True))
        for name in GOALS
    }
    keep(options.json, {"environment_steps_per_s": rates, "ratios": ratios, "core": cores})
    rows = [
        [name, f"{statistics.median(each):,.0f}", f"{ratios.get(name, 1):.2f}", GOALS.get(name, "")]
        for name, each in rates.items()
    ]
    print(table(["training", "environment steps/s", "ratio", "at least"], rows))
    print(describe(cores))


if __name__ == "__main__":
    main()
