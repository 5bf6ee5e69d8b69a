"""Memory and time of meta-training as tasks per batch, inner steps and hidden width double.

From one point of `navigation-2d` (20 tasks x 20 episodes x 100 steps, one inner step, 2 x 100 tanh units; second order,
one Adam step) one quantity at a time goes through its values. Every point is a process of its own, with a worker's
settings: time is the median iteration, memory the highest resident set less what the process had before it trained.

Linear or better means that a doubling multiplies by 2 at most, as the geometric mean over the axis. Doubling the width
multiplies the weights between hidden layers, and with them nearly all arithmetic and every task's copy of the
parameters, by four: there, linear in the number of parameters is a factor of 4.

Run:    python benchmarks/bench_scaling.py [--iterations 10] [--axes tasks inner_steps width] [--json FILE]
Prints: for each point the milliseconds of an iteration and the MiB above start, with the factor since the last point,
        and a verdict for each axis.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from core_training import FAMILY, LEARNER, POLICY
from learning import add_json
from reporting import keep, run_as_worker, say, table

from models.presets import PRESETS
from models.training import FamilyTasks, Stop, Training, train

AXES = {
    "tasks": ("tasks per batch", (10, 20, 40, 80)),
    "inner_steps": ("inner steps", (1, 2, 4, 8)),
    "width": ("hidden units", (50, 100, 200, 400)),
}
ALLOWED = {"tasks": (2.0, 2.0), "inner_steps": (2.0, 2.0), "width": (4.0, 4.0)}
"""Most that time and memory may grow by where the quantity doubles."""
WARM_UP = 2


def measure(axis: str, value: int, iterations: int, episodes: int) -> dict[str, float]:
    """One point, in this process."""
    learner, policy = replace(LEARNER, episodes_per_task=episodes), POLICY
    if axis == "tasks":
        learner = replace(learner, tasks_per_iteration=value)
    elif axis == "inner_steps":
        learner = replace(learner, inner_steps=value)
    else:
        policy = replace(policy, hidden=(value, value))
    stop = Stop(iterations=WARM_UP + iterations)
    training = Training(learner, policy, FamilyTasks(PRESETS[FAMILY], "train"), stop, device="cpu")
    before, seconds, started = peak_mib(), [], time.perf_counter()
    for _ in train(training):
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    return {"seconds": statistics.median(seconds[WARM_UP:]), "mib": peak_mib() - before, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The highest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def in_process(axis: str, value: int, options: argparse.Namespace) -> dict[str, Any]:
    """One point, in a fresh process."""
    command = [sys.executable, __file__, "--iterations", str(options.iterations), "--episodes", str(options.episodes)]
    output = subprocess.run([*command, "--point", axis, str(value)], check=True, stdout=subprocess.PIPE).stdout
    result: dict[str, Any] = json.loads(output)
    say(f"{axis} {value}: {1e3 * result['seconds']:.0f} ms, {result['mib']:.0f} MiB")
    return result | {"value": value}


def growth(points: list[dict[str, Any]], quantity: str) -> float:
    """Factor for each doubling, the geometric mean over the axis."""
    return float((points[-1][quantity] / points[0][quantity]) ** (1 / (len(points) - 1)))


def rows_of(axis: str, points: list[dict[str, Any]]) -> list[list[str]]:
    """An axis's lines of the table."""
    rows = []
    for point, last in zip(points, [None, *points], strict=False):
        factors = [f"{point[q] / last[q]:.2f}" if last else "" for q in ("seconds", "mib")]
        time_, memory = f"{1e3 * point['seconds']:.0f}", f"{point['mib']:.0f}"
        rows.append([AXES[axis][0], f"{point['value']}", time_, factors[0], memory, factors[1]])
    return rows


def verdict(axis: str, points: list[dict[str, Any]]) -> str:
    """Whether time and memory grow as they may."""
    said = []
    for name, quantity, most in zip(("time", "memory"), ("seconds", "mib"), ALLOWED[axis], strict=True):
        factor = growth(points, quantity)
        said.append(f"{name} x {factor:.2f} a doubling (at most {most:g}: {'yes' if factor <= most else 'NO'})")
    return f"{AXES[axis][0]}: {', '.join(said)}"


def main() -> None:
    """Measure every point and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=LEARNER.episodes_per_task)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--point", nargs=2, metavar=("AXIS", "VALUE"), help="measure one point here; prints JSON")
    add_json(parser)
    options = parser.parse_args()
    run_as_worker()
    if options.point:
        axis, value = options.point
        print(json.dumps(measure(axis, int(value), options.iterations, options.episodes)))
        return
    points = {axis: [in_process(axis, value, options) for value in AXES[axis][1]] for axis in options.axes}
    keep(options.json, {"points": points})
    header = ["axis", "value", "ms an iteration", "factor", "MiB", "factor"]
    print(table(header, [row for axis, each in points.items() for row in rows_of(axis, each)]))
    for axis, each in points.items():
        print(verdict(axis, each))


if __name__ == "__main__":
    main()
