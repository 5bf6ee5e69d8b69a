"""Players of the Bernoulli bandit that learn nothing beforehand, and the value that no player can beat.

A player pulls arms for so many pulls and is paid 1 with the pulled arm's chance; chances are uniform in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arms = NDArray[np.int64]
Player = Callable[[Array, Array, np.random.Generator], Arms]
"""The arm of each instance, [N], from how often each arm paid and how often it did not, [N, k] both."""
Counts = tuple[tuple[int, int], ...]


def bayes_optimal(arms: int, pulls: int) -> float:
    """Expected total of the best player there can be, by dynamic programming over what it may have seen.

        V(c, t) = max_i  p_i (1 + V(c + paid_i, t - 1)) + (1 - p_i) V(c + unpaid_i, t - 1)
        p_i = (s_i + 1) / (n_i + 2)

    with s_i of n_i pulls of arm i paid so far. Arms are alike beforehand, so their counts are kept sorted.

    Source: Bellman 1956, "A problem in the sequential design of experiments"; the means are those of Beta posteriors.
    """

    @cache
    def value(counts: Counts, left: int) -> float:
        if not left:
            return 0.0
        best = 0.0
        for i, (paid, unpaid) in enumerate(counts):
            if i and counts[i] == counts[i - 1]:
                continue
            chance = (paid + 1) / (paid + unpaid + 2)
            others = (*counts[:i], *counts[i + 1 :])
            won = value(tuple(sorted((*others, (paid + 1, unpaid)))), left - 1)
            lost = value(tuple(sorted((*others, (paid, unpaid + 1)))), left - 1)
            best = max(best, chance * (1.0 + won) + (1.0 - chance) * lost)
        return best

    return value(((0, 0),) * arms, pulls)


def at_random(paid: Array, _: Array, generator: np.random.Generator) -> Arms:
    """Any arm."""
    return generator.integers(0, paid.shape[1], len(paid))


def thompson(paid: Array, unpaid: Array, generator: np.random.Generator) -> Arms:
    """The best arm of a draw from the posterior.

    Source: Thompson 1933, "On the likelihood that one unknown probability exceeds another".
    """
    arm: Arms = generator.beta(paid + 1.0, unpaid + 1.0).argmax(1)
    return arm


def ucb1(paid: Array, unpaid: Array, _: np.random.Generator) -> Arms:
    """Every arm once, then the arm whose mean plus √(2 ln t / n_i) is highest after t pulls.

    Source: Auer, Cesa-Bianchi & Fischer 2002, "Finite-time analysis of the multiarmed bandit problem", figure 1.
    """
    count = paid + unpaid
    tried, total = np.maximum(count, 1.0), np.maximum(count.sum(1, keepdims=True), 1.0)
    bound = paid / tried + np.sqrt(2.0 * np.log(total) / tried)
    arm: Arms = np.where(count == 0, np.inf, bound).argmax(1)
    return arm


PLAYERS: dict[str, Player] = {"random": at_random, "UCB1": ucb1, "Thompson sampling": thompson}


def play(player: Player, chances: Array, pulls: int, seed: int) -> Array:
    """Total that a player is paid in each instance, [N], given the arms' chances [N, k]."""
    generator, rows = np.random.default_rng(seed), np.arange(len(chances))
    paid, unpaid = np.zeros_like(chances), np.zeros_like(chances)
    for _ in range(pulls):
        arm = player(paid, unpaid, generator)
        won = generator.random(len(chances)) < chances[rows, arm]
        paid[rows, arm] += won
        unpaid[rows, arm] += ~won
    total: Array = paid.sum(1)
    return total
