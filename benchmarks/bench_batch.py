"""What a hundred adaptations at once cost, of what one costs.

Each method adapts new policies to tasks of a family as a worker does: one task, then `--tasks` of them as one
computation, in turns in one process, after a turn that does not count. Both use one thread, as workers of adaptations
do.

Run:    python benchmarks/bench_batch.py [--rounds 3] [--tasks 100] [--methods NAME ...] [--json FILE]
Prints: seconds of one and of all (medians), and their ratio (median over rounds; the goal is at most 10).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from learning import add_json
from reporting import keep, run_as_worker, say, table

from models.adaptation import InnerLoop
from models.evaluation import Method, Subject, measure
from models.finetune import DQNConfig, PPOConfig, SACConfig
from models.learners import MAML, MAMLConfig
from models.policy import Policy, PolicyConfig
from models.presets import PRESETS
from models.tasks import TaskBatch

GOAL = 10.0


@dataclass(frozen=True)
class Case:
    """A method and what it adapts to.

    Attributes:
        family: Name of a preset family.
        method: With its budget.
        policy: Of the new policies.
    """

    family: str
    method: Method
    policy: PolicyConfig = PolicyConfig()


CASES = {
    "inner-loop": Case("cartpole-physics", InnerLoop(steps=3)),
    "ppo": Case("cartpole-physics", PPOConfig(environment_steps=8_192)),
    "dqn": Case("cartpole-physics", DQNConfig(environment_steps=8_192)),
    "sac": Case(
        "pendulum-mass-length",
        SACConfig(environment_steps=2_048),
        PolicyConfig(action_scaling="squash", log_std="state"),
    ),
}


def seconds(case: Case, count: int) -> float:
    """Time of adapting to so many tasks, evaluations included."""
    tasks = TaskBatch.of(PRESETS[case.family].sample("test", 0, range(count)))
    policy = Policy(case.policy, tasks.environment.observation_space, tasks.environment.action_space)
    subject = Subject(MAML(MAMLConfig(), policy), None)
    started = time.perf_counter()
    measure(subject, tasks, case.method, seed=0)
    return time.perf_counter() - started


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--methods", nargs="+", choices=CASES, default=list(CASES))
    add_json(parser)
    options = parser.parse_args()
    run_as_worker()
    torch.set_num_threads(1)
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in options.methods}
    for number in range(options.rounds + 1):
        for name in options.methods:
            both = seconds(CASES[name], 1), seconds(CASES[name], options.tasks)
            if number:  # the first warms up
                rounds[name].append(both)
        say(f"round {number} of {options.rounds}")
    rows, ratios = [], {}
    for name, pairs in rounds.items():
        ratios[name] = statistics.median(every / one for one, every in pairs)
        one, every = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows.append([name, f"{one:.2f}", f"{every:.2f}", f"{ratios[name]:.1f}", f"{GOAL:g}"])
    keep(options.json, {"seconds": rounds, "ratios": ratios})
    print(table(["method", "one, s", f"{options.tasks}, s", "ratio", "at most"], rows))


if __name__ == "__main__":
    main()
