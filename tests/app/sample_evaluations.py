"""Finished evaluations to make reports of: summed up by the core from runs that are drawn, or any others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.evaluation import Point, Run, by_task, compare, runs_to_json, summarise

Runs = list[list[Run]]

KINDS = {"scratch": "scratch", "multitask": "multitask"}
LEVELS = {"candidate": 150.0, "champion": 120.0, "scratch": 15.0, "multitask": 60.0}
METHODS: dict[str, dict[str, Any]] = {
    "inner-loop": {"name": "inner-loop", "steps": 3, "episodes": 20, "learning_rate": None, "evaluation_episodes": 20},
    "ppo": {"name": "ppo", "environment_steps": 20000, "learning_rate": 0.0003, "evaluation_episodes": 20},
}


def sample_tasks(count: int, prefix: str = "pole", split: bool = True) -> list[dict[str, Any]]:
    """CartPoles of every length, some longer than those that were trained on; a few are pushed the other way."""
    rng = np.random.default_rng(len(prefix))
    lengths, gravities = rng.uniform(0.25, 1.25, count), rng.uniform(8.0, 12.0, count)
    pushes = rng.choice(["left", "right", "both"], count)
    return [
        {
            "name": f"{prefix}-{n + 1}",
            "id": None if n % 2 else f"01930000-0000-7000-8000-{n:012d}",
            "environment": "CartPole-v1",
            "parameters": {
                "length": float(lengths[n]),
                "gravity": float(gravities[n]),
                "masscart": 1.0,
                "pushes": str(pushes[n]),
            },
            "in_range": bool(lengths[n] < 1.0) if split else None,
            "oracle": 200.0,
        }
        for n in range(count)
    ]


def drawn_runs(
    tasks: Sequence[Mapping[str, Any]], seeds: int, level: float, method: str, seed: int = 0, inner_steps: int = 3
) -> Runs:
    """Learning curves that rise to about ``level`` of 200, less in longer poles, and now and then fall."""
    rng = np.random.default_rng([seed, int(level), seeds, len(tasks)])
    places = np.arange(inner_steps + 1) if method == "inner-loop" else np.arange(0, 20001, 1000)
    length = np.array([task["parameters"].get("length", 0.5) for task in tasks])
    before = np.clip(rng.normal(30.0, 8.0, (seeds, len(tasks), 1)), 8, 200)
    final = np.clip(level + 40 * (0.7 - length) + rng.normal(0, 14, (seeds, len(tasks))), 9, 200)[..., None]
    risen = 1 - np.exp(-3.0 * places / places[-1])
    noise = rng.normal(0, 3, (seeds, len(tasks), len(places)))
    returns = np.clip(before + (final - before) * risen + noise, 8, 200)
    steps = places * (600 if method == "inner-loop" else 1)
    return [
        [tuple(Point(int(s) // 30, int(s), float(r)) for s, r in zip(steps, run, strict=True)) for run in by_task]
        for by_task in returns
    ]


def subject_summary(
    runs: Runs,
    training: Runs | None,
    tasks: Sequence[Mapping[str, Any]],
    method: str,
    threshold: float | None,
    summed_seeds: int | None = None,
) -> dict[str, Any]:
    """A subject's part of the result under a method."""

    def summed(places: Sequence[int], trained: Runs | None = None) -> dict[str, Any] | None:
        if not places:
            return None
        chosen = [[seed[n] for n in places] for seed in runs[:summed_seeds]]
        return summarise(chosen, method, [oracles[n] for n in places], threshold, trained)

    oracles = [task["oracle"] for task in tasks]
    whole = summed(range(len(tasks)), training)
    assert whole is not None
    groups = {
        name: summed([n for n, task in enumerate(tasks) if task["in_range"] is inside])
        for name, inside in (("in_range", True), ("out_of_range", False))
    }
    return whole | {"groups": groups, "tasks": by_task(runs, method, oracles, threshold)}


def sample_evaluation(
    *,
    subjects: Mapping[str, float] = LEVELS,
    tasks: Sequence[dict[str, Any]] | int = 24,
    training: Sequence[dict[str, Any]] | int = 10,
    seeds: int = 5,
    methods: Sequence[str] = ("inner-loop",),
    threshold: float | None = 120.0,
    inner_steps: int = 3,
    summed_seeds: int | None = None,
    runs: Mapping[str, Mapping[str, Runs]] | None = None,
    **members: Any,
) -> dict[str, Any]:
    """A finished evaluation.

    Args:
        subjects: Name of each with the return that its runs rise to.
        tasks: Held out, or how many.
        training: Tasks, or how many.
        seeds: Runs of each subject in each task.
        methods: Names of them.
        threshold: Return that is to be reached.
        inner_steps: Of drawn runs of the inner loop.
        summed_seeds: Sum up this many of the seeds only, which is quicker.
        runs: By method and subject; drawn where not given.
        members: Of the document, in place of its own.
    """
    held_out = sample_tasks(tasks) if isinstance(tasks, int) else list(tasks)
    trained = sample_tasks(training, "train", split=False) if isinstance(training, int) else list(training)
    names = list(subjects)
    result_methods: dict[str, Any] = {}
    every: dict[str, Any] = {}
    for method in methods:
        drawn = (
            runs[method]
            if runs
            else {
                name: drawn_runs(held_out, seeds, level, method, inner_steps=inner_steps)
                for name, level in subjects.items()
            }
        )
        seen = {
            name: drawn_runs(trained, seeds, level + 10, method, 1) if trained and name not in KINDS else None
            for name, level in subjects.items()
        }
        result_methods[method] = {
            "axis": "step" if method == "inner-loop" else "environment_steps",
            "subjects": {
                name: subject_summary(drawn[name], seen[name], held_out, method, threshold, summed_seeds)
                for name in names
            },
            "comparisons": [
                {"first": names[0], "second": other}
                | compare(drawn[names[0]][:summed_seeds], drawn[other][:summed_seeds], method)
                for other in names[1:]
            ],
        }
        every[method] = {
            name: {
                "held_out": runs_to_json(drawn[name]),
                "training": None if seen[name] is None else runs_to_json(seen[name]),
            }
            for name in names
        }
    comparisons = result_methods[methods[0]]["comparisons"]
    return {
        "id": "01930b6c-7a52-7c1e-9d1a-0f2b6f3e4a55",
        "name": "cartpole-nightly",
        "created_at": "2026-11-22T21:04:11.250112+00:00",
        "finished_at": "2026-11-22T21:09:47+00:00",
        "code_version": "0.4.0",
        "verdict": comparisons[0]["verdict"] if len(names) > 1 and names[1] not in KINDS else None,
        "leakage": [],
        "warnings": [],
        "protocol": {
            "subjects": [
                {"name": name, "version": f"cartpole/{place + 1}"}
                for place, name in enumerate(names)
                if name not in KINDS
            ],
            "scratch": "scratch" in names,
            "tasks": {"family": "cartpole-physics", "split": "test", "count": len(held_out), "seed": 0},
            "training_tasks": len(trained),
            "methods": [METHODS[method] for method in methods],
            "seeds": seeds,
            "seed": 0,
            "threshold": threshold,
        },
        "result": {
            "tasks": held_out,
            "training_tasks": trained,
            "subjects": {
                name: {"kind": KINDS.get(name, "version"), "label": KINDS.get(name, f"cartpole/{place + 1}")}
                for place, name in enumerate(names)
            },
            "methods": result_methods,
        },
        "runs": every,
    } | members
