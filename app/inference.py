"""The bank of policies that are hot: what a process answers for from memory.

Policies of one architecture lie stacked in blocks, so that a fleet of them acts in one product a layer without being
gathered. All that changes a block happens on the event loop, and what leaves the loop has arrays of its own: nobody
ever acts with a policy that is half replaced.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from app.database import Database
from app.errors import HeadstartError, NotFound
from app.policies import service as policies
from app.policies.export import read_bare
from app.store import ArtefactStore
from app.tables import Policy as Row
from models.checkpoint import numpy_params, policy_to_json
from models.policy import Policy
from models.runtime import Architecture, Array, NumpyPolicy
from models.types import Params, canonical_json

logger = logging.getLogger(__name__)

MOST_TOGETHER = 512
"""Policies that a block holds at most, and that act in one go."""

_BLOCK_BYTES = 1024 * 1024
_MOST_ROWS = 4
_FEW = 8
_BYTES_AT_ONCE = 16 * 1024 * 1024
_CHUNK = 500


@dataclass(slots=True)
class _Block:
    """Policies of one architecture side by side; a slot without a name is free."""

    shelf: _Shelf
    arrays: dict[str, Array]
    names: list[str | None]

    @property
    def size_bytes(self) -> int:
        return len(self.names) * self.shelf.architecture.size_bytes


@dataclass(slots=True)
class _Shelf:
    """The blocks of one architecture."""

    architecture: Architecture
    free: list[tuple[_Block, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A policy as database and store have it."""

    key: str
    policy: NumpyPolicy
    sha256: str
    revision: int
    expires_s: float

    def alone(self) -> Hot:
        return Hot(self.policy, self.revision, self.sha256, self.expires_s)


@dataclass(slots=True)
class Hot:
    """A policy in memory.

    Attributes:
        policy: To act with at once, on the event loop; what is to act elsewhere or later needs a copy of it.
        revision: Which of its revisions.
        sha256: Of a policy's parameters; empty for a version, which never changes.
        expires_s: When it ends, in seconds since 1970.
        block: Where it lies in the bank; None of one that has no place there.
        slot: Of the block.
    """

    policy: NumpyPolicy
    revision: int
    sha256: str
    expires_s: float
    block: _Block | None = None
    slot: int = 0

    @property
    def place(self) -> tuple[_Block, int]:
        """Where it lies in the bank."""
        assert self.block is not None, "it is not in the bank"
        return self.block, self.slot

    def copy(self) -> Hot:
        """The same, to act with elsewhere than on the event loop, or later."""
        return Hot(self.policy.copy(), self.revision, self.sha256, self.expires_s)

    def move(self, name: str | None, block: _Block, slot: int) -> None:
        """Lie there from now on; the arrays there are the policy's already."""
        block.names[slot] = name
        self.block, self.slot = block, slot
        arrays = {key: array[slot : slot + 1] for key, array in block.arrays.items()}
        self.policy = NumpyPolicy.view(block.shelf.architecture, arrays)


class PolicyBank:
    """The policies that this process answers for from memory; use it on the event loop.

    A name is a policy's id, or ``model/number`` for the bare initialisation of a version.

    Args:
        database: Where policies are rows.
        store: Where their parameters are.
        capacity_bytes: Parameters that are kept; the least recently used go first.
    """

    def __init__(self, database: Database, store: ArtefactStore, capacity_bytes: int) -> None:
        self._database = database
        self._store = store
        self._capacity_bytes = capacity_bytes
        self._size_bytes = 0
        self._hot: OrderedDict[str, Hot] = OrderedDict()
        self._shelves: dict[str, _Shelf] = {}
        self._loading: dict[str, asyncio.Task[Mapping[str, _Fetched | HeadstartError]]] = {}

    def __len__(self) -> int:
        """How many are hot."""
        return len(self._hot)

    @property
    def size_bytes(self) -> int:
        """Memory that blocks take."""
        return self._size_bytes

    def hot(self, name: str, revision: int = 0) -> Hot | None:
        """The policy, if it is in memory, at this revision or a later one, and has not expired."""
        entry = self._hot.get(name)
        if entry is None or entry.revision < revision or entry.expires_s <= time.time():
            return None
        self._hot.move_to_end(name)
        return entry

    async def load(self, name: str, revision: int = 0) -> Hot:
        """The policy, fetched if need be.

        Raises:
            NotFound: If it does not stand, or not yet at that revision.
            Corrupt: If its bytes are not those that were stored.
        """
        [entry] = await self.load_many([name], revision)
        return entry

    async def load_many(self, names: Sequence[str], revision: int = 0) -> list[Hot]:
        """Policies, in the order of their names; those that are not hot are fetched together, each once at a time.

        Raises:
            NotFound: As :meth:`load`, for the first at fault.
            Corrupt: As there.
        """
        found: dict[str, _Fetched | HeadstartError] = {}
        while missing := [name for name in dict.fromkeys(names) if not (name in found or self.hot(name, revision))]:
            found |= await self._fetched(missing)
        entries = []
        for name in names:
            entry = self.hot(name, revision) or found[name]
            if isinstance(entry, HeadstartError):
                raise entry
            if entry.revision < revision:
                raise NotFound(f"policy {name} has no revision {revision} yet; its newest is {entry.revision}")
            entries.append(entry if isinstance(entry, Hot) else entry.alone())
        return entries

    async def refresh(self) -> None:
        """Forget what was deleted elsewhere, and take what was revised elsewhere; called every second."""
        names = [name for name in self._hot if "/" not in name]
        digests = await run_in_threadpool(self._look, names)
        revised = []
        for name in names:
            entry = self._hot.get(name)
            if entry is None:
                continue
            if name not in digests:
                self._forget(name)
            elif digests[name] != entry.sha256:
                revised.append(name)
        for start in range(0, len(revised), _CHUNK):
            await self._fetched(revised[start : start + _CHUNK])

    def act_together(
        self, entries: Sequence[Hot], observations: Sequence[Sequence[float]], generator: np.random.Generator | None
    ) -> list[Together]:
        """An action for each pair of a policy and an observation, in as few products as may be.

        Args:
            entries: At most :data:`MOST_TOGETHER`, just got from :meth:`load_many`.
            observations: Of the sizes that the policies take.
            generator: Source of the sampling noise, which depends on the order of the pairs alone; None takes the most
                likely actions.
        """
        architectures: dict[int, list[int]] = {}
        for place, entry in enumerate(entries):
            architectures.setdefault(id(entry.policy.architecture), []).append(place)
        together = []
        for places in architectures.values():
            architecture = entries[places[0]].policy.architecture
            noise = None if generator is None else architecture.noise(generator, len(places))
            rows = np.array([observations[place] for place in places], np.float32)
            self._settle([entries[place] for place in places])
            for arrays, slots, members in _products([entries[place] for place in places]):
                some = None if noise is None else noise[members]
                decision = architecture.decide(*_spread(arrays, slots, rows[members], some))
                at = _at(slots)
                action, log_prob, value = (each[at].tolist() for each in decision[:3])
                drawn = None if decision.drawn is None else decision.drawn[at].tolist()
                together.append(Together([places[i] for i in members], action, log_prob, value, drawn))
        return together

    # Fetching.

    async def _fetched(self, names: Sequence[str]) -> dict[str, _Fetched | HeadstartError]:
        new = [name for name in names if name not in self._loading]
        if new:
            task = asyncio.create_task(self._fetch_and_place(new))
            for name in new:
                self._loading[name] = task
        found: dict[str, _Fetched | HeadstartError] = {}
        for name in names:
            if name not in found:
                # A caller that goes away must not take the fetch from the others.
                found |= await asyncio.shield(self._loading[name]) if name in self._loading else {}
        return {name: found[name] for name in names if name in found}

    async def _fetch_and_place(self, names: Sequence[str]) -> Mapping[str, _Fetched | HeadstartError]:
        try:
            fetched = await run_in_threadpool(self._fetch, names)
        finally:
            for name in names:
                del self._loading[name]
        found: dict[str, _Fetched | HeadstartError] = {}
        for name, each in fetched.items():
            if isinstance(each, HeadstartError):
                self._forget(name)
                found[name] = each
            else:
                shelf = self._shelves.setdefault(each.key, _Shelf(each.policy.architecture))
                found[name] = replace(each, policy=NumpyPolicy.view(shelf.architecture, each.policy.arrays))
                self._place(name, each, shelf)
        return found

    def _fetch(self, names: Sequence[str]) -> dict[str, _Fetched | HeadstartError]:
        rows: dict[str, Row | NotFound] = {}
        ids = [name for name in names if "/" not in name]
        with self._database.snapshot() as session:
            for start in range(0, len(ids), _CHUNK):
                rows |= policies.find_policies(session, ids[start : start + _CHUNK])
        return {name: self._fetch_one(name, rows.get(name)) for name in names}

    def _fetch_one(self, name: str, row: Row | HeadstartError | None) -> _Fetched | HeadstartError:
        if isinstance(row, HeadstartError):
            return row
        try:
            if row is None:
                model, _, number = name.partition("/")
                with self._database.snapshot() as session:
                    return _fetched(*read_bare(session, self._store, model, number), "", 0, float("inf"))
            policy, params = policies.read_policy(self._store, row.id, row.spec, row.sha256)
        except HeadstartError as error:
            return error
        expires_s = float("inf") if row.expires_at is None else row.expires_at.timestamp()
        return _fetched(policy, params, row.sha256, row.revision, expires_s)

    def _look(self, names: Sequence[str]) -> dict[str, str]:
        digests: dict[str, str] = {}
        with self._database.snapshot() as session:
            for start in range(0, len(names), _CHUNK):
                digests |= policies.standing_digests(session, names[start : start + _CHUNK])
        return digests

    # Placing.

    def _place(self, name: str, fetched: _Fetched, shelf: _Shelf) -> None:
        """Take in a policy; one of that name that is there acts no more from then on."""
        self._forget(name)
        size_bytes = shelf.architecture.size_bytes
        slots = max(1, min(MOST_TOGETHER, min(_BLOCK_BYTES, self._capacity_bytes // 16) // size_bytes))
        while not shelf.free:
            room = self._capacity_bytes - self._size_bytes >= slots * size_bytes
            if room or not self._hot:
                self._add_block(shelf, slots)
            else:
                self._forget(next(iter(self._hot)))
        block, slot = shelf.free.pop()
        for key, array in fetched.policy.arrays.items():
            block.arrays[key][slot] = array[0]
        self._hot[name] = fetched.alone()
        self._hot[name].move(name, block, slot)

    def _forget(self, name: str) -> None:
        entry = self._hot.pop(name, None)
        if entry is not None:
            self._vacate(entry)

    def _vacate(self, entry: Hot) -> None:
        block, slot = entry.place
        block.names[slot] = None
        block.shelf.free.append((block, slot))
        if not any(block.names):
            block.shelf.free = [place for place in block.shelf.free if place[0] is not block]
            self._size_bytes -= block.size_bytes

    def _add_block(self, shelf: _Shelf, slots: int) -> _Block:
        arrays = {name: np.empty((slots, *shape), np.float32) for name, shape in shelf.architecture.layout.items()}
        block = _Block(shelf, arrays, [None] * slots)
        self._size_bytes += block.size_bytes
        shelf.free += [(block, slot) for slot in reversed(range(slots))]
        return block

    def _settle(self, entries: Sequence[Hot]) -> None:
        """Bring those policies of one architecture together that lie scattered among others."""
        blocks: dict[int, dict[int, Hot]] = {}
        for entry in entries:
            if entry.block is not None:
                blocks.setdefault(id(entry.block), {})[entry.slot] = entry
        scattered = [entry for used in blocks.values() if _is_sparse(used) for entry in used.values()]
        if len(scattered) < 2:
            return
        shelf = scattered[0].place[0].shelf
        if self._size_bytes + len(scattered) * shelf.architecture.size_bytes > self._capacity_bytes:
            return
        block = self._add_block(shelf, len(scattered))
        shelf.free = [place for place in shelf.free if place[0] is not block]
        for slot, entry in enumerate(scattered):
            name = entry.place[0].names[entry.slot]
            for key, array in entry.policy.arrays.items():
                block.arrays[key][slot] = array[0]
            self._vacate(entry)
            entry.move(name, block, slot)


@dataclass(frozen=True, slots=True)
class Together:
    """What several policies of one architecture decided.

    Attributes:
        places: Which of the pairs these are.
        actions: Of each.
        log_probs: Of each.
        values: Of each.
        drawn: Of each; None for discrete actions.
    """

    places: Sequence[int]
    actions: list[Any]
    log_probs: list[float]
    values: list[float]
    drawn: list[Any] | None


def _fetched(policy: Policy, params: Params, sha256: str, revision: int, expires_s: float) -> _Fetched:
    numpy_policy = NumpyPolicy(policy, numpy_params(params))
    return _Fetched(canonical_json(policy_to_json(policy)), numpy_policy, sha256, revision, expires_s)


def _is_sparse(used: Mapping[int, Hot]) -> bool:
    """Whether so few of a block's policies are used, by slot, that they had better lie elsewhere, together."""
    named = sum(name is not None for name in next(iter(used.values())).place[0].names)
    return 2 * len(used) <= max(used) - min(used) or len(used) < min(_FEW, named)


def _products(entries: Sequence[Hot]) -> Iterable[tuple[Mapping[str, Array], NDArray[np.int64], list[int]]]:
    """Which of the entries act in one product: the arrays, the slot of each in them, and which they are."""
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
            yield arrays, slots[~busy] - low, [members[i] for i in np.flatnonzero(~busy).tolist()]
    for members in alone.values():
        yield entries[members[0]].policy.arrays, np.zeros(len(members), np.int64), members


def _at(slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Slot of each row, and which of the slot's rows it is."""
    order = np.argsort(slots, kind="stable")
    rank = np.empty(len(slots), np.int64)
    rank[order] = np.arange(len(slots)) - np.searchsorted(slots[order], slots[order])
    return slots, rank


def _spread(
    arrays: Mapping[str, Array], slots: NDArray[np.int64], rows: Array, noise: NDArray[Any] | None
) -> tuple[Mapping[str, Array], Array, NDArray[Any] | None]:
    """Rows and noise [M, ...] laid out by slot, as :meth:`models.runtime.Architecture.decide` takes them."""
    at = _at(slots)
    shape = (len(arrays["heads"]), int(at[1].max()) + 1)
    observations = np.zeros((*shape, rows.shape[1]), np.float32)
    observations[at] = rows
    if noise is None:
        return arrays, observations, None
    spread = np.zeros((*shape, *noise.shape[1:]), noise.dtype)
    spread[at] = noise
    return arrays, observations, spread


def together_limit(entries: Iterable[Hot]) -> int:
    """How many of these policies may act in one go without holding the event loop for long."""
    largest = max(entry.policy.architecture.size_bytes for entry in entries)
    return max(1, min(MOST_TOGETHER, _BYTES_AT_ONCE // largest))
