"""Training curves of HalfCheetah velocity and direction, horizon 100, as far as some minutes of training go.

Each family is trained on all cores for `--minutes`, one after the other, and now and then evaluated on 20 held-out
tasks (of the direction family there are only two different ones): mean return before adapting and after each inner
step, on fresh episodes. The clock stops while it is evaluated. Curves are comparable within one environment only:
rewards are those of `models/presets.py`.

Run:    python benchmarks/learn_locomotion.py [--minutes 30] [--families NAME ...] [--plot FILE] [--json FILE]
Prints: return before and after adapting (mean and standard error over tasks) at a few points of each curve. The whole
        curves are in the JSON file and the picture, which are renewed after every evaluation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from learning import Budget, Setup, add_json, add_settings, returns_by_step, setup_of, trained
from reporting import keep, run_as_worker, say, table, with_error

from models.tasks import TaskBatch

FAMILIES = ("halfcheetah-velocity", "halfcheetah-direction")
Curve = list[dict[str, Any]]


class Curves:
    """The curves so far, on disk and in a picture."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.points: dict[str, Curve] = {}
        self._settings: dict[str, Any] = {}

    def grow(self, setup: Setup, steps: int, tasks: int, every: float) -> None:
        """Train on a family, evaluating every so many seconds of training and at the end."""
        name, budget = setup.family.name, Budget(seconds=60 * self._options.minutes)
        curve = self.points[name] = []
        self._settings[name] = setup.settings()
        learner = setup.training(0).build()
        held_out = TaskBatch.of(setup.family.sample("test", 0, range(tasks)))
        due = 0.0
        for point in trained(setup.training(0), budget):
            if point.seconds < due and not budget.spent(point):
                continue
            due = point.seconds + every
            state = point.progress.state
            method = setup.method(learner, steps)
            returns = returns_by_step(learner, point.params, held_out, method, state.iterations)
            curve.append(
                {
                    "iterations": state.iterations,
                    "environment_steps": state.environment_steps,
                    "seconds": point.seconds,
                    "returns": returns.tolist(),
                    "training_return_after": point.progress.metrics["return_after"],
                }
            )
            shown = " ".join(f"{mean:8.1f}" for mean in returns.mean(1))
            say(f"{name}: {point.seconds:6.0f} s {state.environment_steps / 1e6:7.2f} million steps  {shown}")
            keep(self._options.json, {"settings": self._settings, "curves": self.points})
            self.draw()

    def draw(self) -> None:
        """Save the picture."""
        figure, places = plt.subplots(1, len(self.points), figsize=(5 * len(self.points), 4), layout="constrained")
        for axes, (name, curve) in zip(np.atleast_1d(places), self.points.items(), strict=True):
            millions = [point["environment_steps"] / 1e6 for point in curve]
            for step in range(len(curve[0]["returns"])):
                returns = np.array([point["returns"][step] for point in curve])
                mean, error = returns.mean(1), returns.std(1, ddof=1) / np.sqrt(returns.shape[1])
                label = "before adapting" if not step else f"after {step} inner step{'s' if step > 1 else ''}"
                axes.plot(millions, mean, label=label)
                axes.fill_between(millions, mean - error, mean + error, alpha=0.2, linewidth=0)
            axes.set(
                xlabel="million environment steps of training",
                ylabel="mean return of held-out tasks ± s.e.",
                title=name,
            )
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
        self._options.plot.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self._options.plot, dpi=150)
        plt.close(figure)

    def rows(self, lines: int) -> list[list[str]]:
        """So many points of each curve, the first and the last among them."""
        rows = []
        for name, curve in self.points.items():
            for place in sorted({int(i) for i in np.linspace(0, len(curve) - 1, lines).round()}):
                point = curve[place]
                returns = [with_error(by_task, 1) for by_task in point["returns"]]
                rows.append([name, f"{point['environment_steps'] / 1e6:.2f}", f"{point['seconds']:.0f}", *returns])
        return rows


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="training time of each family")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--steps", type=int, default=3, help="inner steps of an evaluation")
    parser.add_argument("--tasks", type=int, default=20, help="held-out tasks")
    parser.add_argument("--every", type=float, default=60.0, help="seconds of training between evaluations")
    parser.add_argument("--lines", type=int, default=5, help="points of each curve to print")
    parser.add_argument("--plot", type=Path, default=Path("docs/locomotion.png"), metavar="FILE")
    add_settings(parser)
    add_json(parser)
    options = parser.parse_args()
    run_as_worker()
    curves = Curves(options)
    for family in options.families:
        curves.grow(setup_of(family, options), options.steps, options.tasks, options.every)
    returns = ["before", *(f"{step} steps" if step > 1 else "1 step" for step in range(1, options.steps + 1))]
    print(table(["family", "10^6 env. steps", "training s", *returns], curves.rows(options.lines)))
    print(f"picture: {options.plot}")


if __name__ == "__main__":
    main()
