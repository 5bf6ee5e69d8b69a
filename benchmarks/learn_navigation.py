"""How soon, and how well, 2D navigation is learned: the first thing a meta-RL system is judged on.

Trains on the family `navigation-2d` in the original convention (the policy acts in [-1, 1], mapped onto steps of up to
0.1) on 20 tasks x 20 episodes x 100 steps, and evaluates on the 40 goals of the original test protocol: uniform in
[-0.5, 0.5]² by NumPy's legacy generator with seed 1; 40 episodes for each update, 40 others to measure. Both goals
(-12 after one step and -4 after three) must hold at one evaluation. Seconds are those of training on all cores, without
evaluation; environment steps are those of training.

Run:    python benchmarks/learn_navigation.py [--seconds 300] [--seeds 3] [--every 20] [--learner JSON] [--json FILE]
Prints: held-out return before and after 1 to 3 steps (mean and standard error over seeds) when the goals first held
        and at the end of the budget, with the seconds and the environment steps until then.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from learning import Budget, Point, Setup, add_json, add_settings, returns_by_step, seeds_of, setup_of, trained
from reporting import keep, run_as_worker, say, table, with_error

from models.tasks import TaskBatch, define_task

GOALS = {1: -12.0, 3: -4.0}
"""Least mean return after so many steps."""
STEPS = 3


def published_tasks(horizon: int) -> TaskBatch:
    """The 40 tasks of the original test protocol."""
    goals = np.random.RandomState(1).uniform(-0.5, 0.5, (40, 2))
    return TaskBatch.of(
        define_task("Navigation2D-v0", {"goal_x": float(x), "goal_y": float(y)}, horizon=horizon) for x, y in goals
    )


def evaluated(setup: Setup, point: Point, tasks: TaskBatch, seed: int) -> dict[str, Any]:
    """One evaluation, on episodes of its own."""
    learner, state = setup.training(seed).build(), point.progress.state
    method = setup.method(learner, STEPS)
    returns = returns_by_step(learner, point.params, tasks, method, 1_000_000 * (seed + 1) + state.iterations)
    means = [float(mean) for mean in returns.mean(1)]
    return {
        "iterations": state.iterations,
        "environment_steps": state.environment_steps,
        "seconds": point.seconds,
        "returns": means,
        "reached": all(means[step] >= goal for step, goal in GOALS.items()),
    }


def curve(setup: Setup, seed: int, budget: Budget, every: int) -> list[dict[str, Any]]:
    """Evaluations of one training, the last at the end of the budget (or the last before it diverged)."""
    tasks, result = published_tasks(setup.family.horizon), []
    for point in trained(setup.training(seed), budget):
        if point.progress.state.iterations % every == 0 or budget.spent(point):
            result.append(evaluated(setup, point, tasks, seed))
            shown = " ".join(f"{mean:7.2f}" for mean in result[-1]["returns"])
            say(f"seed {seed}: {point.progress.state.iterations:5} iterations {point.seconds:6.1f} s  {shown}")
    if not result:
        sys.exit("training diverged before its first evaluation")
    return result


def row(name: str, points: list[dict[str, Any]]) -> list[str]:
    """A line of the table: mean and standard error over seeds."""
    means = [with_error([point["returns"][step] for point in points]) for step in range(STEPS + 1)]
    steps = with_error([point["environment_steps"] / 1e6 for point in points])
    return [name, str(len(points)), *means, steps, with_error([point["seconds"] for point in points], 1)]


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="training time of a seed")
    parser.add_argument("--iterations", type=int, help="end a seed's training here, if sooner")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=20, help="iterations from one evaluation to the next")
    add_settings(parser)
    add_json(parser)
    options = parser.parse_args()
    run_as_worker()
    setup, budget = (
        setup_of("navigation-2d", options, episodes=40, evaluation_episodes=40),
        Budget(options.seconds, None, options.iterations),
    )
    curves = [curve(setup, seed, budget, options.every) for seed in seeds_of(options.seeds)]
    keep(options.json, {"settings": setup.settings(), "goals": GOALS, "curves": curves})
    first = [next((point for point in points if point["reached"]), None) for points in curves]
    reached = [point for point in first if point is not None]
    rows = [row("end of the budget", [points[-1] for points in curves])]
    if reached:
        rows.insert(0, row("goals first held", reached))
    header = ["", "seeds", "before", "1 step", "2 steps", "3 steps", "10^6 env. steps", "training s"]
    print(table(header, rows))
    goals = " and ".join(f"{goal:g} after {step}" for step, goal in GOALS.items())
    print(f"goals ({goals}) reached by {len(reached)} of {len(curves)} seeds")


if __name__ == "__main__":
    main()
