"""The headline: environment steps to a return, from a meta-learned initialisation and from elsewhere.

Three starts are trained on in the same 20 held-out tasks of each family, by the same method within the same budget:

- `meta`: the initialisation of the family's recommended meta-learner, trained for `--seconds`;
- `multitask`: plain pre-training on all tasks, for as many environment steps as the meta-learner took;
- `scratch`: a new policy, another with each seed.

Every few steps the policy is measured on fresh episodes; the steps to the threshold are those of the first measurement
that reaches it. A task that never does is censored: it counts as not reached, not as the budget. The ratio of two
starts is that of their steps, task by task and seed by seed: the geometric mean over the pairs in which `scratch`
reached the threshold, a pair in which only `scratch` did counting against the other start at the whole budget. Steps
below the first measurement count as one interval between measurements. Intervals are of 95 %, over tasks and seeds.

Run:    python benchmarks/learn_headstart.py [--families NAME ...] [--seconds 120] [--seeds 3] [--method JSON]
Prints: for each family and start the share of runs that reached the threshold and the median steps to it; then the
        ratios to `scratch`.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learn_families import setup_for
from learning import Budget, Json, add_settings, read, trained
from numpy.typing import NDArray
from reporting import keep, run_as_worker, say, table

from models import statistics
from models.adaptation import InnerLoop
from models.evaluation import Method, Run, Subject, measure, steps_to
from models.finetune import CONFIGS
from models.tasks import TaskBatch

STARTS = ("meta", "multitask", "scratch")
HELD_OUT = 20


@dataclass(frozen=True)
class Headline:
    """How one family is trained on.

    Attributes:
        threshold: Return to reach.
        method: Its name and hyperparameters.
    """

    threshold: float
    method: Json


PPO: Json = {"name": "ppo", "schedule": "constant", "evaluation_episodes": 10}
SAC: Json = {"name": "sac", "schedule": "constant", "evaluation_episodes": 10}

FAMILIES = {
    "cartpole-reversed": Headline(195.0, PPO | {"environment_steps": 20_000, "evaluate_every": 128, "steps": 16}),
    "pendulum-mass-length": Headline(-200.0, SAC | {"environment_steps": 8_000, "evaluate_every": 256}),
    "acrobot-lengths": Headline(-100.0, PPO | {"environment_steps": 40_000, "evaluate_every": 512}),
    "mountaincar-hills": Headline(-150.0, PPO | {"environment_steps": 60_000, "evaluate_every": 256}),
}
"""Thresholds are those at which Gymnasium's environments of that name are taken for solved, but for the last: on steep
hills nobody is up within 110 steps."""


def subject(family: str, start: str, seconds: float, budget: Json, options: argparse.Namespace) -> Subject:
    """A start, trained."""
    setup = setup_for(family, "meta" if start == "scratch" else start, options)
    if start == "multitask":
        # It adapts, and is trained on, in the same way as the others.
        setup = replace(setup, policy=replace(setup.policy, context_size=0))
    learner = setup.training(0).build()
    if start == "scratch":
        return Subject(learner, None)
    limit = Budget(seconds=seconds) if start == "meta" else Budget(environment_steps=budget["environment_steps"])
    *_, last = trained(setup.training(0), limit)
    budget |= {"environment_steps": last.progress.state.environment_steps, f"{start}_seconds": last.seconds}
    return Subject(learner, last.params)


def steps_of(runs: list[list[Run]], headline: Headline) -> NDArray[np.float64]:
    """Steps to the threshold, [S, N]; infinite where it was not reached."""
    every = float(headline.method.get("evaluate_every", 1))
    steps = [[steps_to(run, headline.threshold) for run in by_task] for by_task in runs]
    return np.array([[np.inf if each is None else max(float(each), every) for each in by_task] for by_task in steps])


def ratio(ours: NDArray[np.float64], scratch: NDArray[np.float64], budget: float) -> str:
    """Geometric mean of the ratios of steps where `scratch` reached the threshold, with its interval."""
    counted = np.isfinite(scratch)
    if not counted.any():
        return "scratch never reached it"
    logs = np.log(np.minimum(ours, budget)[counted] / scratch[counted])
    found = statistics.mean(logs.reshape(1, -1))
    low, middle, high = (float(np.exp(x)) for x in (found.low, found.estimate, found.high))
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Train, train on, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of each meta-learner")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=HELD_OUT)
    parser.add_argument(
        "--method", type=json.loads, default={}, metavar="JSON", help="another method, or members to change"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="store the results there too")
    add_settings(parser)
    options = parser.parse_args()
    run_as_worker()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows, ratios, kept = [], [], {}
    for family in options.families:
        given = FAMILIES[family]
        headline = replace(given, method=options.method if "name" in options.method else given.method | options.method)
        name = headline.method["name"]
        config: Method = read(InnerLoop if name == "inner-loop" else CONFIGS[name], headline.method)
        setup = setup_for(family, "meta", options)
        held_out = TaskBatch.of(setup.family.sample("test", 0, range(options.tasks)))
        budget: Json = {}
        found: dict[str, NDArray[np.float64]] = {}
        for start in STARTS:
            begun = subject(family, start, options.seconds, budget, options)
            runs = [measure(begun, held_out, config, seed) for seed in range(options.seeds)]
            found[start] = steps_of(runs, headline)
            rows.append([family, start, *described(runs, found[start])])
            say(" ".join(map(str, rows[-1])))
            kept[f"{family}/{start}"] = found[start].tolist()
        limit = max(float(run[-1].environment_steps) for by_task in runs for run in by_task)
        ratios += [
            [family, start, ratio(found[start], found["scratch"], limit)] for start in STARTS if start != "scratch"
        ]
        keep(options.json, {"steps": kept})
    print(table(["family", "start", "return before", "at the end", "reached", "median steps"], rows))
    print(table(["family", "start", "steps, of scratch's"], ratios))


def described(runs: list[list[Run]], steps: NDArray[np.float64]) -> list[Any]:
    """A start's columns of the table."""
    ends = [np.array([[run[place].mean_return for run in by_task] for by_task in runs]) for place in (0, -1)]
    median = np.median(steps)
    return [
        *(f"{end.mean():.1f}" for end in ends),
        f"{np.isfinite(steps).mean():.0%}",
        f"{median:,.0f}" if np.isfinite(median) else "not reached",
    ]


if __name__ == "__main__":
    main()
