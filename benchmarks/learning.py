"""What the learning benchmarks share: a family's settings, training with a clock that evaluation does not move.

Learner and policy are those that the package recommends for the family (`models.presets.RECOMMENDED`); the arguments
`--learner`, `--policy` and `--adaptation` change members of them for one call.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from reporting import say

from models.adaptation import AdaptationDiverged, InnerLoop, adapt
from models.families import TaskFamily
from models.learners import CONFIGS, Learner, LearnerConfig
from models.learners.base import Diverged
from models.policy import PolicyConfig
from models.presets import PRESETS, RECOMMENDED, Recommended
from models.tasks import TaskBatch
from models.training import FamilyTasks, Progress, Stop, Training, train
from models.types import Params

Json = dict[str, Any]

SHAPED = {
    "mountaincar-hills": "reward + 50 * abs(next_observation[1])",
    "mountaincar-continuous-hills": "reward + 50 * abs(next_observation[1])",
}
"""Rewards to train with where the family's own says nothing to a policy that never reaches the goal: speed, here. The
tasks that are held out, and adapting to them, keep the family's own."""

Configured = TypeVar("Configured")


@dataclass(frozen=True)
class Setup:
    """What is trained on what, and how it is adapted.

    Attributes:
        family: The tasks.
        learner: Its config.
        policy: Its config.
        adaptation: Members of `InnerLoop` beside its number of steps.
    """

    family: TaskFamily
    learner: LearnerConfig
    policy: PolicyConfig
    adaptation: Json

    def training(self, seed: int) -> Training:
        """Training without an end: whoever iterates over it stops."""
        return Training(
            self.learner,
            self.policy,
            FamilyTasks(replace(self.family, reward=SHAPED.get(self.family.name, self.family.reward)), "train"),
            Stop(iterations=10_000_000),
            seed,
            device="cpu",
        )

    def method(self, learner: Learner[Any], steps: int) -> InnerLoop:
        """The adaptation in ``steps`` steps, with the learner's own rates where it has learned them."""
        learned = {"learning_rate": None} if learner.inner.learned is not None else {}
        return read(InnerLoop, self.adaptation | learned | {"steps": steps})

    def settings(self) -> Json:
        """All of it as JSON values, to tell whether two results are of the same."""
        whole = {
            "family": self.family.definition(),
            "learner": asdict(self.learner),
            "policy": asdict(self.policy),
            "adaptation": self.adaptation,
            "trained_with": SHAPED.get(self.family.name),
        }
        result: Json = json.loads(json.dumps(whole))
        return result


def read(config: type[Configured], values: Mapping[str, Any]) -> Configured:
    """A config of these members, checked as the service checks it; a list becomes a tuple.

    Raises:
        ValueError: If a member is unknown or out of its range.
    """
    unknown = values.keys() - {each.name for each in fields(config)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"{config.__name__} has no {', '.join(sorted(unknown))}")
    return TypeAdapter(config).validate_python(dict(values))


def setup_of(family: TaskFamily | str, options: argparse.Namespace | None = None, **adaptation: Any) -> Setup:
    """What is recommended for a family, changed by the arguments of :func:`add_settings`.

    Args:
        family: It, or its name.
        options: The parsed arguments.
        adaptation: Members of `InnerLoop` where the arguments do not say; its rate is by default the learner's.
    """
    family = PRESETS[family] if isinstance(family, str) else family
    recommended = RECOMMENDED.get(family.name, Recommended())
    given: Json = {} if options is None else vars(options)
    learner = changed(asdict(recommended.learner), given.get("learner") or {})
    return Setup(
        family,
        read(CONFIGS[learner["name"]], learner),
        read(PolicyConfig, asdict(recommended.policy) | (given.get("policy") or {})),
        adaptation | (given.get("adaptation") or {}),
    )


def changed(learner: Json, members: Json) -> Json:
    """A learner's settings with some members changed; another learner's name begins from that learner's defaults."""
    return members if members.get("name", learner["name"]) != learner["name"] else learner | members


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Arguments that change what is recommended."""
    for name, example in (
        ("learner", '{"name": "meta-sgd", "inner_steps": 3}'),
        ("policy", '{"hidden": [64, 64]}'),
        ("adaptation", '{"learning_rate": [0.5, 0.25]}'),
    ):
        parser.add_argument(f"--{name}", type=json.loads, metavar="JSON", help=f"members to change, such as {example}")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The argument that says where to store results."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="store the results there too")


@dataclass(frozen=True)
class Budget:
    """When a training has had enough: at the first that is reached.

    Attributes:
        seconds: Of training alone.
        environment_steps: Of all training episodes.
        iterations: Outer steps.
    """

    seconds: float | None = None
    environment_steps: int | None = None
    iterations: int | None = None

    def spent(self, point: Point) -> bool:
        """Whether training has reached it."""
        used = (point.seconds, point.progress.state.environment_steps, point.progress.state.iterations)
        limits = (self.seconds, self.environment_steps, self.iterations)
        return any(limit is not None and amount >= limit for amount, limit in zip(used, limits, strict=True))


@dataclass(frozen=True)
class Point:
    """Training after an iteration, and the seconds spent in training alone."""

    progress: Progress
    seconds: float

    @property
    def params(self) -> Params:
        """The initialisation so far."""
        return self.progress.state.learner.params


def trained(training: Training, budget: Budget) -> Iterator[Point]:
    """Train until the budget is spent; the time between two points counts for nothing.

    Training that diverges ends before its budget does, says so on stderr, and leaves its last good point.
    """
    iterations, seconds = train(training), 0.0
    while True:
        started = time.perf_counter()
        try:
            progress = next(iterations)
        except Diverged as error:
            say(f"training ended early: {error}")
            return
        seconds += time.perf_counter() - started
        point = Point(progress, seconds)
        yield point
        if budget.spent(point):
            return


def returns_by_step(
    learner: Learner[Any], params: Params, tasks: TaskBatch, method: InnerLoop, seed: int
) -> NDArray[np.float64]:
    """Mean return of fresh episodes of every task before adapting and after each step, [K + 1, N].

    NaN where adapting itself diverged.
    """
    try:
        curve = adapt(learner, params, tasks, method, seed).curve
    except AdaptationDiverged:
        return np.full((method.steps + 1, len(tasks)), np.nan)
    return np.stack([point.mean_return.double().numpy() for point in curve])


def seeds_of(count: int) -> Sequence[int]:
    """The seeds of so many repetitions."""
    return range(count)
