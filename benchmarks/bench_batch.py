"""What a hundred adaptations at once cost, of what one costs, as a client of a running service sees it.

Each method adapts a new policy to one task of a family, and then new policies to `--tasks` of them in one request, in
turns, after a turn that does not count; a turn ends when the last policy can act.

Run:    python benchmarks/bench_batch.py [--rounds 3] [--tasks 100] [--methods NAME ...] [--json FILE]
Prints: seconds of one and of all (medians), and their ratio (median over rounds; the goal is at most 10).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from headstart_client import Client, Task
from learning import add_json
from reporting import keep, say, table
from service import running_service

GOAL = 10.0


@dataclass(frozen=True)
class Case:
    """A method and what it adapts to.

    Attributes:
        family: Name of a preset family.
        method: With its budget.
        policy: Architecture of the new policies.
    """

    family: str
    method: dict[str, Any]
    policy: dict[str, Any] = field(default_factory=dict)


CASES = {
    "inner-loop": Case("cartpole-physics", {"name": "inner-loop", "steps": 3}),
    "ppo": Case("cartpole-physics", {"name": "ppo", "environment_steps": 8_192}),
    "dqn": Case("cartpole-physics", {"name": "dqn", "environment_steps": 8_192}),
    "sac": Case(
        "pendulum-mass-length",
        {"name": "sac", "environment_steps": 2_048},
        {"action_scaling": "squash", "log_std": "state"},
    ),
}


def seconds_of_one(client: Client, case: Case, task: Task) -> float:
    """Time from the request until the policy is there."""
    started = time.perf_counter()
    assert client.adapt(None, task, method=case.method, policy=case.policy).policy
    return time.perf_counter() - started


def seconds_of_all(client: Client, case: Case, tasks: list[Task]) -> float:
    """Time from the request until all policies are there."""
    started = time.perf_counter()
    done = client.adaptations.create_many(None, tasks, method=case.method, policy=case.policy)
    assert all(each.policy for each in done)
    return time.perf_counter() - started


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--methods", nargs="+", choices=CASES, default=list(CASES))
    add_json(parser)
    options = parser.parse_args()
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in options.methods}
    with running_service() as (client, _, _):
        for number in range(options.rounds + 1):
            for name in options.methods:
                case = CASES[name]
                tasks = client.families.sample(case.family, options.tasks, split="test")
                both = seconds_of_one(client, case, tasks[0]), seconds_of_all(client, case, tasks)
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
