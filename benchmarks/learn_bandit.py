"""MAML at the Bernoulli bandit with 5 arms and 10 pulls, beside UCB1, Thompson sampling and the Bayes-optimal value.

Every player gets exactly 10 pulls of an instance it has never seen, and all 10 count. A policy has no memory, so a
meta-learner plays like this: pulls are episodes of one step, in which there is nothing to observe; K times it pulls b
times with the policy it has and takes an inner step on those b pulls; what is left of the 10 is pulled with the adapted
policy, sampled or greedy. Rewards are shifted by -1/2 for learning (no other baseline), so that a pull that pays
nothing counts against its arm.

Each meta-learner is trained with each split (b x K) for `--seconds`; the best of them, sampled or greedy, on 5,000
validation instances is the one that plays. `multitask` beside it never adapts: it plays one episode of 10 steps, and
sees how often each arm was pulled and paid; what it does within the episode is all it has learned to do.

Run:    python benchmarks/learn_bandit.py [--seconds 20] [--instances 20000] [--splits 2x1 3x1 ...] [--json FILE]
Prints: mean total of each player over the held-out instances, with its standard error over instances, and the share of
        the way from random play to the optimum; then what every learner and split reached in validation.
"""

from __future__ import annotations

import argparse
import itertools
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from bandit_players import PLAYERS, Array, bayes_optimal, play
from learning import Budget, Setup, add_json, read, trained
from reporting import keep, mean_and_error, run_as_worker, say, table

from models import random
from models.learners import CONFIGS, Learner
from models.policy import PolicyConfig
from models.presets import PRESETS
from models.rollout import collect
from models.tasks import TaskBatch
from models.types import Params, stack_params

FAMILY = PRESETS["bandit-5"]
ARMS, PULLS = 5, FAMILY.horizon
SHIFT = 0.5
ONE_PULL = replace(FAMILY, horizon=1, reward=f"reward - {SHIFT}")
LEARNERS = ("maml", "e-maml", "meta-sgd")
SPLITS = ("2x1", "3x1", "4x1", "5x1", "2x2", "3x2", "2x3", "2x4")
TOGETHER = 5_000
"""Instances that are played at once."""


@dataclass(frozen=True)
class Trained:
    """A trained learner, and how it pulls what adapting leaves.

    Attributes:
        name: What to call it.
        setup: What it was trained with.
        params: Its initialisation.
        greedy: Whether the last pulls take the most likely arm.
    """

    name: str
    setup: Setup
    params: Params
    greedy: bool = False

    def learner(self) -> Learner[Any]:
        """It, ready to adapt."""
        return self.setup.training(0).build()


def adapting(name: str, split: str, tasks: int) -> Setup:
    """A meta-learner of one-pull episodes."""
    pulls, steps = (int(part) for part in split.split("x"))
    if not 0 < pulls * steps < PULLS:
        raise SystemExit(f"{split}: adapting must leave at least one of {PULLS} pulls")
    members = {
        "name": name,
        "inner_steps": steps,
        # A rate of 4 b moves the logit of an arm that paid by about 4 · 1/2: the loss is a mean over b pulls.
        "inner_learning_rate": 4.0 * pulls,
        "tasks_per_iteration": tasks,
        "episodes_per_task": pulls,
        "baseline": "none",
        "normalise_advantages": False,
        "outer_learning_rate": 1e-2,
        "outer_epochs": 1,
        "clip_ratio": None,
        "max_gradient_norm": None,
    }
    return Setup(ONE_PULL, read(CONFIGS[name], members), PolicyConfig(hidden=(16,)), {})


def counting(tasks: int) -> Setup:
    """Plain policy gradients on episodes of ten pulls."""
    members = {"name": "multitask", "tasks_per_iteration": tasks, "episodes_per_task": 2}
    return Setup(FAMILY, read(CONFIGS["multitask"], members), PolicyConfig(hidden=(64, 64)), {})


def train(name: str, setup: Setup, budget: Budget) -> Trained:
    """Train until the budget is spent."""
    last = deque(trained(setup.training(0), budget), maxlen=1)
    if not last:
        raise SystemExit(f"{name} diverged in its first iteration")
    point = last[0]
    state = point.progress.state
    say(f"{name}: {state.iterations} iterations, return after adapting {state.history[-1]:.3f}")
    return Trained(name, setup, point.params)


@torch.no_grad()
def totals(player: Trained, tasks: TaskBatch, seed: int) -> Array:
    """Total of exactly ten pulls in each of N instances, those of adapting included, [N]."""
    learner = player.learner()
    keys = random.fold_in(random.key(seed, "bandit"), torch.arange(len(tasks)))
    params, config = stack_params(player.params, len(tasks)), learner.config
    final = partial(collect, learner.policy, deterministic=player.greedy)
    if int(tasks.horizon[0]) == PULLS:
        return np.asarray(final(params, tasks, 1, keys).reward.sum((1, 2)).double())
    total = torch.full((len(tasks),), SHIFT * PULLS)
    for step in range(config.inner_steps):
        with torch.enable_grad():
            rollout, params = learner.inner_step(params, tasks, random.fold_in(keys, step), step)
        total += rollout.reward.sum((1, 2))
    left = PULLS - config.inner_steps * config.episodes_per_task
    total += final(params, tasks, left, random.fold_in(keys, config.inner_steps)).reward.sum((1, 2))
    return np.asarray(total.double())


def plays(player: Trained, split: str, instances: int) -> Array:
    """Totals in so many instances of a split of the family."""
    parts = [range(i, min(i + TOGETHER, instances)) for i in range(0, instances, TOGETHER)]
    batches = (TaskBatch.of(player.setup.family.sample(split, 0, part)) for part in parts)
    return np.concatenate([totals(player, batch, i) for i, batch in enumerate(batches)])


def chances(instances: int) -> Array:
    """The arms' chances in the held-out instances, [N, k]."""
    tasks = TaskBatch.of(FAMILY.sample("test", 0, range(instances)))
    return np.asarray(tasks.params["chances"].squeeze(1).double())


def tried(options: argparse.Namespace, budget: Budget) -> list[tuple[Trained, tuple[float, float]]]:
    """Every learner and split, sampled and greedy, with mean and error on the validation instances; the best first."""
    result = []
    for name, split in itertools.product(options.learners, options.splits):
        player = train(f"{name} {split}", adapting(name, split, options.tasks), budget)
        for greedy in (False, True):
            each = replace(player, name=f"{player.name}, {'greedy' if greedy else 'sampled'}", greedy=greedy)
            result.append((each, mean_and_error(plays(each, "validation", options.validation).tolist())))
    return sorted(result, key=lambda each: -each[1][0])


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="training time of each learner and split")
    parser.add_argument("--instances", type=int, default=20_000)
    parser.add_argument("--validation", type=int, default=5_000, help="instances that choose")
    parser.add_argument("--tasks", type=int, default=1_000, help="instances of one outer step")
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=LEARNERS)
    parser.add_argument("--splits", nargs="+", default=SPLITS, metavar="BxK")
    add_json(parser)
    options = parser.parse_args()
    run_as_worker()
    budget, known = Budget(seconds=options.seconds), chances(options.instances)
    validated = tried(options, budget)
    scores = {name: play(player, known, PULLS, seed=1) for name, player in PLAYERS.items()}
    for player in (validated[0][0], train("multitask, sees its counts", counting(options.tasks), budget)):
        scores[player.name] = plays(player, "test", options.instances)
    means = {name: mean_and_error(score.tolist()) for name, score in scores.items()}
    means["Bayes-optimal"] = (bayes_optimal(ARMS, PULLS), 0.0)
    validation = {player.name: score for player, score in validated}
    keep(options.json, {"instances": options.instances, "totals": means, "validation": validation})
    optimum, chance = means["Bayes-optimal"][0], PULLS / 2
    rows = [
        [name, f"{mean:.3f}", f"{error:.3f}", f"{(mean - chance) / (optimum - chance):.0%}"]
        for name, (mean, error) in means.items()
    ]
    print(table([f"{ARMS} arms, {PULLS} pulls", "total", "s.e.", "from random to optimum"], rows))
    print()
    rows = [[name, f"{mean:.3f}", f"{error:.3f}"] for name, (mean, error) in validation.items()]
    print(table(["in validation (pulls a step x steps)", "total", "s.e."], rows))


if __name__ == "__main__":
    main()
