"""Many policies acting at once: which of them lie side by side is found out once, and holds until one of them moves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from app.decisions import TOO_LARGE, finite_rows, wrong_size
from app.short_path import is_long
from app.slots import Hot
from models.runtime import Architecture, Array, Decision

_MOST_ROWS = 4
_FEW = 8
_DENSE = 0.8


class RefusedObservation(ValueError):
    """An observation that its policy cannot act on.

    Attributes:
        place: Which pair's.
        detail: What is wrong with it.
    """

    def __init__(self, place: int, detail: str) -> None:
        super().__init__(f"{place}: {detail}")
        self.place = place
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Decisions:
    """What each pair's policy decided, as plain numbers; ``drawn`` is None for discrete actions."""

    actions: list[Any]
    log_probs: list[float]
    values: list[float]
    drawn: list[Any]


@dataclass(frozen=True, slots=True)
class _Product:
    """Policies that act in one product.

    Attributes:
        arrays: Theirs.
        at: Where each row goes, and comes from: which policy, and which of its rows.
        shape: Policies, and rows of each.
        members: Which of the group's rows these are.
    """

    arrays: Mapping[str, Array]
    at: tuple[NDArray[np.int64], NDArray[np.int64]]
    shape: tuple[int, int]
    members: NDArray[np.int64]

    def decide(self, architecture: Architecture, rows: Array, noise: Array | None) -> list[Array | None]:
        """Actions, log-probabilities, values and what was drawn, for the group's rows [M, O] of these members."""
        observations = np.zeros((*self.shape, rows.shape[1]), np.float32)
        observations[self.at] = rows[self.members]
        spread = None
        if noise is not None:
            spread = np.zeros((*self.shape, *noise.shape[1:]), np.float32)
            spread[self.at] = noise[self.members]
        decision = architecture.decide(self.arrays, observations, spread)
        return [None if each is None else each[self.at] for each in decision]


@dataclass(frozen=True, slots=True)
class _Group:
    """Pairs whose policies are of one architecture."""

    architecture: Architecture
    places: list[int]
    products: list[_Product]

    def decide(self, rows: Array, generator: np.random.Generator | None) -> Decision:
        """For rows [M, O] in the order of the places, of leading axis [M]."""
        noise = None if generator is None else self.architecture.noise(generator, len(rows))
        parts = [product.decide(self.architecture, rows, noise) for product in self.products]
        if len(parts) == 1:
            back = np.argsort(self.products[0].members)
        else:
            back = np.argsort(np.concatenate([product.members for product in self.products]))
        columns = zip(*parts, strict=True)
        return Decision(*(None if column[0] is None else np.concatenate(column)[back] for column in columns))


@final
class Fleet:
    """Policies as they lie in a bank at this moment; use it on the event loop.

    Args:
        entries: The policies, in the order of the pairs.

    Attributes:
        size: How many they are.
        is_long: Whether this is one policy that would hold the event loop for long. It may act beside it, and had
            better: nobody writes to where so large a policy lies.
        expires_s: When the first of them ends, in seconds since 1970.
        numbers: In all of their actions.
    """

    def __init__(self, entries: Sequence[Hot]) -> None:
        self.size = len(entries)
        self.is_long = self.size == 1 and is_long(entries[0].policy.architecture, 1)
        self.expires_s = min(entry.expires_s for entry in entries)
        blocks = {id(entry.block): entry.block for entry in entries}
        self._blocks = [(block, block.version) for block in blocks.values() if block is not None]
        self._alone = any(entry.block is None for entry in entries)
        architectures: dict[int, list[int]] = {}
        for place, entry in enumerate(entries):
            architectures.setdefault(id(entry.policy.architecture), []).append(place)
        self._groups = [
            _Group(
                entries[places[0]].policy.architecture,
                places,
                list(_products([entries[place] for place in places])),
            )
            for places in architectures.values()
        ]
        self.numbers = sum(len(group.places) * math.prod(group.architecture.action_shape) for group in self._groups)

    def stands(self, now_s: float) -> bool:
        """Whether all of its policies still lie where they did, and none has expired."""
        if self._alone or now_s >= self.expires_s:
            return False
        return all(block.version == version for block, version in self._blocks)

    def act(self, observations: Sequence[Sequence[float]], generator: np.random.Generator | None) -> Decisions:
        """An action for each pair of a policy and an observation.

        Args:
            observations: One for each policy.
            generator: Source of the sampling noise, which depends on the order of the pairs alone; None takes the most
                likely actions.

        Raises:
            RefusedObservation: If one is of the wrong size, or so large that the answer is no number.
        """
        size = self.size
        decisions = Decisions([0] * size, [0.0] * size, [0.0] * size, [None] * size)
        for group in self._groups:
            places = group.places
            rows = _rows(group, [observations[place] for place in places] if len(places) < size else observations)
            decision = group.decide(rows, generator)
            finite = finite_rows(decision)
            if not finite.all():
                raise RefusedObservation(places[int(np.argmin(finite))], TOO_LARGE)
            action, log_prob, value = (each.tolist() for each in decision[:3])
            drawn = [None] * len(places) if decision.drawn is None else decision.drawn.tolist()
            if len(places) == size:
                return Decisions(action, log_prob, value, drawn)
            for i, place in enumerate(places):
                decisions.actions[place], decisions.log_probs[place] = action[i], log_prob[i]
                decisions.values[place], decisions.drawn[place] = value[i], drawn[i]
        return decisions


def scattered(entries: Iterable[Hot]) -> list[Hot]:
    """Those of these policies, of one architecture, that had better lie together elsewhere than among others."""
    blocks: dict[int, dict[int, Hot]] = {}
    for entry in entries:
        if entry.block is not None:
            blocks.setdefault(id(entry.block), {})[entry.slot] = entry
    return [entry for used in blocks.values() if _is_sparse(used) for entry in used.values()]


def _is_sparse(used: Mapping[int, Hot]) -> bool:
    """Whether few of a block's policies are used, by slot."""
    named = sum(name is not None for name in next(iter(used.values())).place[0].names)
    return len(used) < _DENSE * (max(used) + 1 - min(used)) or len(used) < min(_FEW, named)


def _products(entries: Sequence[Hot]) -> Iterable[_Product]:
    """Which of the entries, of one architecture, act in one product."""
    blocks: dict[int, list[int]] = {}
    alone: dict[int, list[int]] = {}
    for i, entry in enumerate(entries):
        (alone if entry.block is None else blocks).setdefault(id(entry.block or entry), []).append(i)
    for members in blocks.values():
        slots = np.array([entries[i].slot for i in members])
        busy = np.bincount(slots)[slots] > _MOST_ROWS
        for i in np.flatnonzero(busy).tolist():
            alone.setdefault(id(entries[members[i]]), []).append(members[i])
        if not busy.all():
            low, high = int(slots[~busy].min()), int(slots[~busy].max()) + 1
            arrays = {name: array[low:high] for name, array in entries[members[0]].place[0].arrays.items()}
            yield _product(arrays, slots[~busy] - low, np.array(members)[~busy])
    for members in alone.values():
        yield _product(entries[members[0]].policy.arrays, np.zeros(len(members), np.int64), np.array(members))


def _product(arrays: Mapping[str, Array], slots: NDArray[np.int64], members: NDArray[np.int64]) -> _Product:
    order = np.argsort(slots, kind="stable")
    rank = np.empty(len(slots), np.int64)
    rank[order] = np.arange(len(slots)) - np.searchsorted(slots[order], slots[order])
    return _Product(arrays, (slots, rank), (len(arrays["heads"]), int(rank.max()) + 1), members)


def _rows(group: _Group, observations: Sequence[Sequence[float]]) -> Array:
    """Observations as an array, if all are of the right size."""
    size = group.architecture.observation_size
    try:
        rows = np.array(observations, np.float32)
    except ValueError:  # of different sizes
        rows = np.empty((0, 0), np.float32)
    if rows.shape != (len(observations), size):
        place = next(i for i, row in enumerate(observations) if len(row) != size)
        raise RefusedObservation(group.places[place], wrong_size(size, len(observations[place])))
    return rows
