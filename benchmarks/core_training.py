"""Whole meta-training in the core, timed and taken apart: rollouts, inner gradients, meta-gradients, matrix products.

The work of navigation_loop.py, by `models.training.train`: 20 tasks x (20 + 20) episodes x 100 steps of the family
`navigation-2d`, 2 x 100 tanh units, one second-order inner step, one Adam step.

Time is taken around what the core's functions do, from outside: a rollout is `Learner.collect`, the inner loop
`InnerUpdate.descend`, the outer loop `MetaGradient.gradient`, advantages `Learner.experience`; each without what it
calls of the others.

What the machine's matrix product could do is the time that the products of all layers would take alone, at the speed
that `torch.bmm` has here on just these shapes. For a layer from I to O units and R rows each product is R I O
multiply-adds, of one of three kinds: `X W` (rows times weights), `A Wᵀ` (gradients times weights) and `Xᵀ A` (a
gradient by weights). An iteration needs, for the first hidden layer (whose input needs no gradient), the second and the
head:

    where                                        |  X W    |  A Wᵀ   |  Xᵀ A
    each of the two rollouts                     | 1, 1, 1 | 0, 0, 0 | 0, 0, 0
    inner gradient (hidden outputs are known)    | 0, 0, 1 | 0, 1, 1 | 1, 1, 1
    gradient of the loss after adapting (same)   | 0, 0, 1 | 0, 1, 1 | 1, 1, 1
    its gradient through the inner gradient      | 1, 2, 2 | 0, 1, 1 | 0, 1, 1
    and on through the forward pass before it    | 0, 0, 0 | 0, 1, 1 | 1, 1, 1

The fourth line differentiates the second: with V the vector by the weights' gradient and u that by the input's, a
layer adds X V and u W for its output, A Vᵀ for its input and uᵀ A for its weights; the first layer has X V alone. All
in all a step before and one after adapting take 6, 12 and 14 times I O multiply-adds in the three layers.

Run:    python benchmarks/core_training.py ITERATIONS
Prints: one JSON object: environment_steps_per_s (of the median iteration), seconds (of that iteration), shares (of the
        time), products_s (what the products would take), multiply_adds (of an iteration).
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from reporting import run_as_worker

from models.learners import Learner, MAMLConfig
from models.learners.inner import ROWS_AT_ONCE, InnerUpdate
from models.learners.meta_gradient import MetaGradient
from models.policy import PolicyConfig
from models.presets import PRESETS
from models.training import FamilyTasks, Stop, Training, train

FAMILY = "navigation-2d"
LEARNER = MAMLConfig(
    inner_steps=1,
    inner_learning_rate=0.1,
    tasks_per_iteration=20,
    episodes_per_task=20,
    outer_learning_rate=1e-3,
    outer_epochs=1,
    clip_ratio=None,
)
POLICY = PolicyConfig(hidden=(100, 100), action_scaling="clip")
WARM_UP = 10
"""Iterations before the clock starts."""

GRADIENT_PRODUCTS = {"X W": (1, 2, 4), "A W^T": (0, 4, 4), "X^T A": (3, 4, 4)}
"""How often the two gradients of an iteration take each kind of product in each layer: the table's sums."""


class Stopwatch:
    """Time of functions without that of those they call, by what they are for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._called: list[float] = []

    def watch(self, owner: type, method: str, purpose: str) -> None:
        """Time a method of a class from now on."""
        setattr(owner, method, self._timed(getattr(owner, method), purpose))

    def _timed(self, function: Callable[..., Any], purpose: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._called.append(0.0)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - started
                self.seconds[purpose] += elapsed - self._called.pop()
                if self._called:
                    self._called[-1] += elapsed

        return timed


def median_seconds(work: Callable[[], object], repetitions: int) -> float:
    """Of a call, after three that do not count."""
    seconds = []
    for i in range(repetitions + 3):
        started = time.perf_counter()
        work()
        if i >= 3:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@torch.no_grad()
def products(repetitions: int = 30) -> tuple[int, float]:
    """Multiply-adds of an iteration's products, and the seconds that `torch.bmm` alone takes for them (medians)."""
    tasks, episodes, horizon = LEARNER.tasks_per_iteration, LEARNER.episodes_per_task, PRESETS[FAMILY].horizon
    rows = episodes * horizon
    together = max(1, ROWS_AT_ONCE // rows)
    multiply_adds, seconds = 0, 0.0
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise((2, *POLICY.hidden, 2))):
        times = {kind: counts[layer] for kind, counts in GRADIENT_PRODUCTS.items()}
        multiply_adds += (2 + sum(times.values())) * tasks * rows * fan_in * fan_out
        seconds += 2 * horizon * bmm_seconds("X W", tasks, episodes, fan_in, fan_out, repetitions)
        for kind, count in times.items():
            if count:
                seconds += count * tasks / together * bmm_seconds(kind, together, rows, fan_in, fan_out, repetitions)
    return multiply_adds, seconds


def bmm_seconds(kind: str, tasks: int, rows: int, fan_in: int, fan_out: int, repetitions: int) -> float:
    """Of one product of a layer."""
    x, a = torch.randn(tasks, rows, fan_in), torch.randn(tasks, rows, fan_out)
    weight = torch.randn(tasks, fan_in, fan_out)
    left, right = {
        "X W": (x, weight),
        "A W^T": (a, weight.transpose(1, 2)),
        "X^T A": (x.transpose(1, 2), a),
    }[kind]
    out = torch.bmm(left, right)
    return median_seconds(lambda: torch.bmm(left, right, out=out), repetitions)


def measure(iterations: int) -> dict[str, Any]:
    """Train and take the time apart."""
    watch = Stopwatch()
    watch.watch(Learner, "collect", "rollout")
    watch.watch(InnerUpdate, "descend", "inner")
    watch.watch(MetaGradient, "gradient", "outer")
    watch.watch(Learner, "experience", "advantages")
    stop = Stop(iterations=iterations + WARM_UP)
    training = Training(LEARNER, POLICY, FamilyTasks(PRESETS[FAMILY], "train"), stop, device="cpu")
    seconds, steps, started = list[float](), 0, time.perf_counter()
    for progress in train(training):
        if progress.state.iterations == WARM_UP:
            watch.seconds.clear()
            seconds.clear()
            steps = progress.state.environment_steps
        now = time.perf_counter()
        seconds.append(now - started)
        started = now
    seconds = seconds[1:]  # that of the last warm-up iteration
    total = sum(seconds)
    shares = {purpose: spent / total for purpose, spent in watch.seconds.items()}
    steps = progress.state.environment_steps - steps
    multiply_adds, products_s = products()
    return {
        "environment_steps_per_s": steps / iterations / statistics.median(seconds),
        "seconds": statistics.median(seconds),
        "shares": shares | {"rest": 1 - sum(shares.values())},
        "products_s": products_s,
        "multiply_adds": multiply_adds,
    }


def main() -> None:
    """Measure and print."""
    run_as_worker()
    print(json.dumps(measure(int(sys.argv[1]))))


if __name__ == "__main__":
    main()
