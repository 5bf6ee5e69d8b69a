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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

import numpy as np
from starlette.concurrency import run_in_threadpool

from app.database import Database
from app.errors import HeadstartError, NotFound
from app.fleet import Fleet, scattered
from app.policies import service as policies
from app.policies.export import read_bare
from app.slots import Block, Hot, Shelf
from app.store import ArtefactStore
from app.tables import Policy as Row
from models.checkpoint import numpy_params, policy_to_json
from models.policy import Policy
from models.runtime import NumpyPolicy
from models.types import Params, canonical_json

logger = logging.getLogger(__name__)

MOST_TOGETHER = 512
"""Policies that a block holds at most, and that act in one go."""

_BLOCK_BYTES = 1024 * 1024
_MOST_FLEETS = 64
_BYTES_AT_ONCE = 16 * 1024 * 1024
_CHUNK = 500


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
        self._shelves: WeakValueDictionary[str, Shelf] = WeakValueDictionary()
        self._fleets: OrderedDict[tuple[str, ...], Fleet] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Mapping[str, _Fetched | HeadstartError]]] = {}

    def __len__(self) -> int:
        """How many are hot."""
        return len(self._hot)

    @property
    def size_bytes(self) -> int:
        """Memory that blocks take."""
        return self._size_bytes

    def hot(self, name: str, revision: int = 0, now_s: float | None = None) -> Hot | None:
        """The policy, if it is in memory, at this revision or a later one, and has not expired by now."""
        entry = self._hot.get(name)
        if entry is None or entry.revision < revision or entry.expires_s <= (now_s or time.time()):
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
        once_more = revision > 0
        while True:
            now_s = time.time()
            missing = [name for name in dict.fromkeys(names) if not (name in found or self.hot(name, revision, now_s))]
            if not missing and once_more:
                # A fetch that was under way may have looked before the revision was there.
                once_more = False
                missing = [
                    name for name, each in found.items() if isinstance(each, _Fetched) and each.revision < revision
                ]
            if not missing:
                break
            found |= await self._fetched(missing)
        entries = []
        for name in names:
            entry = self.hot(name, revision, now_s) or found[name]
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

    async def fleet(self, names: Sequence[str]) -> Fleet:
        """The first of these policies, as many as may act in one go; use it at once.

        Policies of one architecture that lie scattered are moved together, so that a standing fleet acts in one
        product.

        Raises:
            NotFound: As :meth:`load`.
            Corrupt: As there.
        """
        key = tuple(names[:MOST_TOGETHER])
        known = self._fleets.get(key)
        if known is not None and known.stands(time.time()):
            self._fleets.move_to_end(key)
            for name in key[: known.size]:
                self._hot.move_to_end(name)
            return known
        entries = await self.load_many(key)
        largest = max(entry.policy.architecture.size_bytes for entry in entries)
        del entries[max(1, _BYTES_AT_ONCE // largest) :]
        architectures: dict[int, list[Hot]] = {}
        for entry in entries:
            architectures.setdefault(id(entry.policy.architecture), []).append(entry)
        for alike in architectures.values():
            self._settle(scattered(alike))
        fleet = Fleet(entries)
        if fleet.stands(time.time()):
            self._fleets[key] = fleet
        while len(self._fleets) > _MOST_FLEETS:
            self._fleets.popitem(last=False)
        return fleet

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
                shelf = self._shelves.setdefault(each.key, Shelf(each.policy.architecture))
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

    def _place(self, name: str, fetched: _Fetched, shelf: Shelf) -> None:
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
        block.version += 1
        block.shelf.free.append((block, slot))
        if not any(block.names):
            block.shelf.free = [place for place in block.shelf.free if place[0] is not block]
            self._size_bytes -= block.size_bytes
            # A plan of a fleet that stands no longer would keep the block in memory.
            for key in [key for key, fleet in self._fleets.items() if not fleet.stands(0.0)]:
                del self._fleets[key]

    def _add_block(self, shelf: Shelf, slots: int) -> Block:
        arrays = {name: np.empty((slots, *shape), np.float32) for name, shape in shelf.architecture.layout.items()}
        block = Block(shelf, arrays, [None] * slots)
        self._size_bytes += block.size_bytes
        shelf.free += [(block, slot) for slot in reversed(range(slots))]
        return block

    def _settle(self, entries: Sequence[Hot]) -> None:
        """Bring policies of one architecture together, if there is room."""
        if len(entries) < 2:
            return
        shelf = entries[0].place[0].shelf
        if self._size_bytes + len(entries) * shelf.architecture.size_bytes > self._capacity_bytes:
            return
        block = self._add_block(shelf, len(entries))
        shelf.free = [place for place in shelf.free if place[0] is not block]
        for slot, entry in enumerate(entries):
            name = entry.place[0].names[entry.slot]
            for key, array in entry.policy.arrays.items():
                block.arrays[key][slot] = array[0]
            self._vacate(entry)
            entry.move(name, block, slot)


def _fetched(policy: Policy, params: Params, sha256: str, revision: int, expires_s: float) -> _Fetched:
    numpy_policy = NumpyPolicy(policy, numpy_params(params))
    return _Fetched(canonical_json(policy_to_json(policy)), numpy_policy, sha256, revision, expires_s)
