"""The bank of policies that are hot: what a process answers for from memory.

Policies of one architecture lie stacked in blocks, so that a fleet of them acts in one product a layer without being
gathered. All that changes a block happens on the event loop, and what leaves the loop has arrays of its own: nobody
ever acts with a policy that is half replaced.
"""

from __future__ import annotations

import asyncio
import logging
import math
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
_FETCHED_AT_ONCE = 64
_CHUNK = 500
_STRETCH_BYTES = 1024 * 1024
_PLACING_BYTES = 64 * 1024


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
        self._loading: dict[str, asyncio.Task[Mapping[str, _Fetched | Exception]]] = {}

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

    async def copy(self, name: str, revision: int = 0) -> Hot:
        """The policy as one of its own, to act with elsewhere than on the event loop; raises as :meth:`load`."""
        return (await self.load(name, revision)).copy()

    async def load_many(self, names: Sequence[str], revision: int = 0, most_bytes: float = math.inf) -> list[Hot]:
        """Policies, in the order of their names; those that are not hot are fetched, each once at a time.

        Args:
            names: Of the policies.
            revision: The one that all of them must have reached.
            most_bytes: Memory that they may take together; only so many of the first are loaded, but always one.

        Raises:
            NotFound: As :meth:`load`, for the first at fault.
            Corrupt: As there.
        """
        found: dict[str, _Fetched | Exception] = {}
        once_more = revision > 0
        while True:
            entries, missing = self._gather(names, revision, most_bytes, found)
            if missing:
                found |= await self._fetched(missing)
                continue
            late = next((i for i, entry in enumerate(entries) if entry.revision < revision), None) if revision else None
            if late is None:
                return entries
            if not once_more:
                detail = f"policy {names[late]} has no revision {revision} yet; its newest is {entries[late].revision}"
                raise NotFound(detail)
            # A fetch that was under way may have looked before the revision was there.
            once_more = False
            for name, entry in zip(names, entries, strict=False):
                if entry.revision < revision:
                    found.pop(name, None)

    async def refresh(self) -> None:
        """Forget what was deleted elsewhere, and take what was revised elsewhere; called every second."""
        names = [name for name in self._hot if "/" not in name]
        standing = await run_in_threadpool(self._look, names)
        revised = []
        for name in names:
            entry = self._hot.get(name)
            if entry is None:
                continue
            if name not in standing:
                self._forget(name)
            elif standing[name] != (entry.sha256, entry.revision):
                revised.append(name)
        failed: dict[str, Exception] = {}
        while revised:
            found = await self._fetched(revised[:_FETCHED_AT_ONCE])
            failed |= {
                name: each
                for name, each in found.items()
                if isinstance(each, Exception) and not isinstance(each, HeadstartError)
            }
            revised = [name for name in revised if name not in found]
        if failed:
            name, error = next(iter(failed.items()))
            logger.warning("not brought up to date: %d of the policies, among them %s: %r", len(failed), name, error)

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
        entries = await self.load_many(key, most_bytes=_BYTES_AT_ONCE)
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

    def _gather(
        self, names: Sequence[str], revision: int, most_bytes: float, found: Mapping[str, _Fetched | Exception]
    ) -> tuple[list[Hot], list[str]]:
        """The first of these policies, as many as may be together, as far as they are here; what to fetch first."""
        now_s = time.time()
        entries: list[Hot] = []
        missing: dict[str, None] = {}
        for name in names:
            entry = self.hot(name, revision, now_s) or found.get(name)
            if isinstance(entry, Exception):
                if missing:
                    break
                raise entry
            if entry is None:
                missing[name] = None
                if len(missing) == _FETCHED_AT_ONCE:
                    break
                continue
            most_bytes -= entry.policy.architecture.size_bytes
            if most_bytes < 0 and (entries or missing):
                break
            entries.append(entry if isinstance(entry, Hot) else entry.alone())
        return entries, list(missing)

    async def _fetched(self, names: Sequence[str]) -> dict[str, _Fetched | Exception]:
        """Some of these policies, at least one if none of them is being fetched, or why there are none."""
        new = [name for name in names if name not in self._loading]
        if new:
            task = asyncio.create_task(self._fetch_and_place(new))
            for name in new:
                self._loading[name] = task
        found: dict[str, _Fetched | Exception] = {}
        for name in names:
            if name not in found:
                # A caller that goes away must not take the fetch from the others.
                found |= await asyncio.shield(self._loading[name]) if name in self._loading else {}
        return {name: found[name] for name in names if name in found}

    async def _fetch_and_place(self, names: Sequence[str]) -> Mapping[str, _Fetched | Exception]:
        try:
            return await self._take_in(await run_in_threadpool(self._fetch, names))
        finally:
            # Not before all have their places: somebody else might fetch one, and place a newer revision, which an
            # older one would then replace.
            for name in names:
                del self._loading[name]

    async def _take_in(self, fetched: Mapping[str, _Fetched | Exception]) -> Mapping[str, _Fetched | Exception]:
        found: dict[str, _Fetched | Exception] = {}
        stretch_bytes = 0
        for name, each in fetched.items():
            if isinstance(each, Exception):
                found[name] = each
                if isinstance(each, HeadstartError):
                    self._forget(name)  # else it may be there, and cannot be read just now
                continue
            shelf = self._shelves.setdefault(each.key, Shelf(each.policy.architecture))
            found[name] = replace(each, policy=NumpyPolicy.view(shelf.architecture, each.policy.arrays))
            self._place(name, each, shelf)
            stretch_bytes += _PLACING_BYTES + shelf.architecture.size_bytes
            if stretch_bytes >= _STRETCH_BYTES:
                stretch_bytes = 0
                await asyncio.sleep(0)
        return found

    def _fetch(self, names: Sequence[str]) -> dict[str, _Fetched | Exception]:
        """The first of these policies, as many as may be held beside the bank, or why there are none."""
        rows: dict[str, Row | NotFound] = {}
        ids = [name for name in names if "/" not in name and _may_be_a_name(name)]
        if ids:
            with self._database.snapshot() as session:
                rows = policies.find_policies(session, ids)
        found: dict[str, _Fetched | Exception] = {}
        left = _BYTES_AT_ONCE
        for name in names:
            found[name] = each = self._fetch_one(name, rows.get(name))
            if isinstance(each, _Fetched):
                left -= each.policy.architecture.size_bytes
            if left < 0:
                # With the one that is too much, so that a fleet knows that it ends before it.
                break
        return found

    def _fetch_one(self, name: str, row: Row | NotFound | None) -> _Fetched | Exception:
        """A policy, or why there is none; whatever is wrong with one must not keep others from being fetched."""
        if isinstance(row, NotFound):
            return row
        if not _may_be_a_name(name):
            return NotFound(f"there is no policy {name!r}")
        try:
            if row is None:
                model, _, number = name.partition("/")
                with self._database.snapshot() as session:
                    return _fetched(*read_bare(session, self._store, model, number), "", 0, float("inf"))
            policy, params = policies.read_policy(self._store, row.id, row.spec, row.sha256)
            expires_s = float("inf") if row.expires_at is None else row.expires_at.timestamp()
            return _fetched(policy, params, row.sha256, row.revision, expires_s)
        except Exception as error:
            return error

    def _look(self, names: Sequence[str]) -> dict[str, tuple[str, int]]:
        standing: dict[str, tuple[str, int]] = {}
        with self._database.snapshot() as session:
            for start in range(0, len(names), _CHUNK):
                standing |= policies.standing_digests(session, names[start : start + _CHUNK])
        return standing

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
                self._make_room(shelf)
        block, slot = shelf.free.pop()
        if block.is_single:
            block.arrays = dict(fetched.policy.arrays)
        else:
            for key, array in fetched.policy.arrays.items():
                block.arrays[key][slot] = array[0]
        self._hot[name] = fetched.alone()
        self._hot[name].move(name, block, slot)

    def _make_room(self, shelf: Shelf) -> None:
        """Free a slot of this shelf, or else a whole block of another, where the least recently used policy lies."""
        name, entry = next(iter(self._hot.items()))
        block, _ = entry.place
        if block.shelf is shelf:
            self._forget(name)
            return
        # Policies of other blocks could go by the hundred before one of these happens to be empty.
        for each in reversed(block.names):
            if each is not None:
                self._forget(each)

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


def _may_be_a_name(name: str) -> bool:
    """Whether policies and versions may be called so; the databases refuse some text with an error."""
    return name.isascii() and name.isprintable()
