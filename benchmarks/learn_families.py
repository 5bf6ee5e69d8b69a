"""Whether meta-learning pays on the classic families: held-out return before and after 1 and 3 inner steps.

For each family and seed three initialisations are adapted to the same 20 held-out tasks, each step on 20 episodes:

- `meta`: the family's meta-learner, trained for `--seconds` (or `--environment-steps`);
- `multitask`: plain pre-training on all tasks, for as many environment steps as the meta-learner took;
- `scratch`: a new policy that is not trained.

All are adapted at the meta-learner's inner rate; where it has learned its rates it uses those, and the others the rates
that it began with. Since that rate suits the meta-learner, the other two get a further line each, at whichever of a few
rates did best after three steps on the validation tasks.

Means are over tasks and seeds. The 95 % intervals are percentiles of 10,000 bootstrap samples in which both the tasks
and the seeds are drawn anew. The columns at the end say whether meta-learning beats `multitask` after as many steps:
by the interval of the difference, task by task and seed by seed, to the better of its two lines; `no` where it is
below zero, `unclear` where it holds zero.

Trainings run in two processes of one thread each. What has finished is kept in the results file: the same call again
goes on where it was interrupted, and computes anew only what was measured with other settings.

Run:    python benchmarks/learn_families.py [--families NAME ...] [--seconds 60] [--seeds 3] [--results FILE]
Prints: a line for each family and way, and the environment steps and seconds that training took.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from learning import Budget, Json, Setup, add_settings, returns_by_step, seeds_of, setup_of, trained
from numpy.typing import NDArray
from reporting import keep, run_as_worker, say, table

from models.learners.base import EpisodicConfig
from models.learners.meta_gradient import OuterConfig
from models.learners.multitask import MultitaskConfig
from models.tasks import TaskBatch

FAMILIES = (
    "cartpole-reversed",
    "cartpole-physics",
    "pendulum-mass-length",
    "acrobot-lengths",
    "mountaincar-hills",
    "mountaincar-continuous-hills",
)
WAYS = ("meta", "multitask", "scratch")
STEPS, HELD_OUT = 3, 20
OWN_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Rates of which `multitask` and `scratch` may take the best."""
PROCESSES = 2


def setup_for(family: str, way: str, options: argparse.Namespace) -> Setup:
    """The meta-learner's settings, or those of plain pre-training that share all that means the same to both."""
    setup = setup_of(family, options)
    if way == "meta":
        return setup
    same = OuterConfig if isinstance(setup.learner, OuterConfig) else EpisodicConfig
    members = {each.name: getattr(setup.learner, each.name) for each in fields(same)}
    learner = MultitaskConfig(inner_learning_rate=setup.learner.inner_learning_rate, **members)
    return replace(setup, learner=learner, policy=replace(setup.policy, context_size=0))


def run(setup: Setup, way: str, seed: int, budget: Budget, tasks: int) -> Json:
    """Train and adapt, in a process of one thread."""
    torch.set_num_threads(1)
    learner = setup.training(seed).build()
    params, state, seconds = learner.initialise(seed).params, None, 0.0
    if way != "scratch":
        for point in trained(setup.training(seed), budget):
            params, state, seconds = point.params, point.progress.state, point.seconds
    held_out = TaskBatch.of(setup.family.sample("test", 0, range(tasks)))
    returns = returns_by_step(learner, params, held_out, setup.method(learner, STEPS), seed)
    result: Json = {
        "environment_steps": state.environment_steps if state else 0,
        "iterations": state.iterations if state else 0,
        "seconds": seconds,
        "returns": returns.tolist(),
    }
    if way != "meta":
        validation = TaskBatch.of(setup.family.sample("validation", 0, range(tasks)))
        methods = [replace(setup.method(learner, STEPS), learning_rate=rate) for rate in OWN_RATES]
        achieved = [returns_by_step(learner, params, validation, method, seed)[-1].mean() for method in methods]
        best = int(np.nanargmax(achieved))
        result["own_rate"] = OWN_RATES[best]
        result["returns_own_rate"] = returns_by_step(learner, params, held_out, methods[best], seed).tolist()
    return result


class Results:
    """Finished results by family, way and seed, in a file that is replaced after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.finished: dict[str, Json] = json.loads(path.read_text())["results"] if path.exists() else {}

    def find(self, key: str, settings: Json) -> Json | None:
        """What was measured with these settings."""
        found = self.finished.get(key)
        return found if found and found["settings"] == settings else None

    def add(self, key: str, settings: Json, result: Json) -> None:
        """Store a result."""
        self.finished[key] = result | {"settings": settings}
        keep(self._path, {"results": self.finished})


def compute(options: argparse.Namespace, results: Results) -> dict[str, Json]:
    """All results by key, from the file or computed now, two at a time."""
    done: dict[str, Json] = {}
    running: dict[Future[Json], tuple[str, int, str, Json]] = {}
    budget = Budget(None if options.environment_steps else options.seconds, options.environment_steps)
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:

        def start(family: str, seed: int, way: str, limit: Budget) -> None:
            setup, key = setup_for(family, way, options), f"{family}/{way}/{seed}"
            settings = setup.settings() | {"tasks": options.tasks, "budget": str(limit if way != "scratch" else None)}
            found = results.find(key, settings)
            if found:
                finish(family, seed, way, found)
            else:
                running[pool.submit(run, setup, way, seed, limit, options.tasks)] = (family, seed, way, settings)

        def finish(family: str, seed: int, way: str, result: Json) -> None:
            done[f"{family}/{way}/{seed}"] = result
            if way == "meta":
                start(family, seed, "multitask", Budget(environment_steps=result["environment_steps"]))

        for family in options.families:
            for seed in seeds_of(options.seeds):
                start(family, seed, "meta", budget)
                start(family, seed, "scratch", budget)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                family, seed, way, settings = running.pop(future)
                result = future.result()
                results.add(f"{family}/{way}/{seed}", settings, result)
                means = " ".join(f"{mean:9.2f}" for mean in np.mean(result["returns"], 1))
                say(f"{family} {way} seed {seed}: {result['seconds']:.0f} s, {means}")
                finish(family, seed, way, result)
    return done


def interval(returns: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of [seeds, tasks] and its 95 % bootstrap interval, seeds and tasks both drawn anew."""
    generator, (seeds, tasks) = np.random.default_rng(0), returns.shape
    seed = generator.integers(0, seeds, (10_000, seeds, 1))
    task = generator.integers(0, tasks, (10_000, 1, tasks))
    low, high = np.percentile(returns[seed, task].mean((1, 2)), [2.5, 97.5])
    return float(returns.mean()), float(low), float(high)


def beats(meta: NDArray[np.float64], others: list[NDArray[np.float64]], step: int) -> str:
    """Whether returns [seeds, steps, tasks] are above those of the better of the others after a step."""
    other = max(others, key=lambda each: float(np.nan_to_num(each[:, step].mean(), nan=-np.inf)))
    mean, low, high = interval(meta[:, step] - other[:, step])
    word = "yes" if low > 0 else "no" if high < 0 else "unclear"
    return f"{word} ({mean:+.1f} [{low:+.1f}, {high:+.1f}])"


def rows_of(family: str, done: dict[str, Json], seeds: int) -> list[list[str]]:
    """A family's lines of the table."""
    by_way = {way: [done[f"{family}/{way}/{seed}"] for seed in range(seeds)] for way in WAYS}
    returns = {way: np.array([each["returns"] for each in results]) for way, results in by_way.items()}
    for way in WAYS[1:]:
        returns[f"{way}, own rate"] = np.array([each["returns_own_rate"] for each in by_way[way]])
    multitask = [returns["multitask"], returns["multitask, own rate"]]
    rows = []
    for name in sorted(returns, key=lambda name: WAYS.index(name.partition(",")[0])):
        shown = []
        for step in (0, 1, STEPS):
            mean, low, high = interval(returns[name][:, step])
            shown.append(f"{mean:.1f} [{low:.1f}, {high:.1f}]")
        results = by_way[name.partition(",")[0]]
        steps, seconds = (np.mean([each[key] for each in results]) for key in ("environment_steps", "seconds"))
        verdicts = [beats(returns["meta"], multitask, step) if name == "meta" else "" for step in (1, STEPS)]
        rows.append([f"{family}: {name}", *shown, f"{steps / 1e6:.2f}", f"{seconds:.0f}", *verdicts])
    return rows


def main() -> None:
    """Compute what is missing and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--seconds", type=float, default=60.0, help="training time of each meta-learner")
    parser.add_argument("--environment-steps", type=int, help="train for so many steps, however long it takes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=HELD_OUT, help="held-out tasks")
    parser.add_argument("--results", "--json", type=Path, default=Path("var/benchmarks/families.json"))
    add_settings(parser)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    run_as_worker()
    done = compute(options, Results(options.results))
    header = ["family and way", "before", "after 1 step", "after 3 steps", "10^6 env. steps", "training s"]
    verdicts = ["beats multitask after 1", "after 3"]
    rows = [row for family in options.families for row in rows_of(family, done, options.seeds)]
    print(table([*header, *verdicts], rows))


if __name__ == "__main__":
    main()
