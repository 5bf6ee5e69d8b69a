"""The bank of hot policies, on a real database and store."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from policies_to_act_with import (
    CARTPOLE,
    OBSERVATION,
    POLICY,
    TORQUE,
    WIDER,
    delete,
    put_policy,
    revise,
    some_params,
)

from app.database import Database, now
from app.errors import Corrupt, Gone, NotFound
from app.inference import MOST_TOGETHER, PolicyBank
from app.slots import Hot
from app.store import ArtefactStore
from app.tables import Policy as Policy_
from models.checkpoint import numpy_params
from models.policy import Policy, PolicyConfig
from models.runtime import Architecture, NumpyPolicy

SIZE = Architecture(POLICY).size_bytes
MEGABYTE = 2**20
MIDDLING = Policy(PolicyConfig(hidden=(512, 512)), CARTPOLE.observation_space, CARTPOLE.action_space)
"""Of about a megabyte."""

LARGE = Policy(PolicyConfig(hidden=(2048, 1024)), CARTPOLE.observation_space, CARTPOLE.action_space)
"""Of more than 8 MiB: two are more than may act in one go."""

ROW = np.array([OBSERVATION], np.float32)


@pytest.fixture
def store(settings: Any) -> ArtefactStore:
    return ArtefactStore(settings.artefacts)


@pytest.fixture
def bank(database: Database, store: ArtefactStore) -> PolicyBank:
    return PolicyBank(database, store, MEGABYTE)


def value_of(seed: int, policy: Policy = POLICY) -> float:
    row = np.resize(ROW, (1, policy.observation_size))
    return float(NumpyPolicy(policy, numpy_params(some_params(seed, policy))).act(row, None).value[0])


def value(entry: Hot) -> float:
    size = entry.policy.architecture.observation_size
    return float(entry.policy.act_one(np.resize(ROW, size).tolist(), None).value)


def take_from(database: Database, policy: str, other: str) -> None:
    """Give a policy the parameters of another, as another process would."""
    with database.transaction() as session:
        row, source = session.get_one(Policy_, policy), session.get_one(Policy_, other)
        row.sha256, row.size_bytes, row.revision = source.sha256, source.size_bytes, row.revision + 1


def spoil(database: Database, store: ArtefactStore, policy: str) -> None:
    """Make a policy's file unreadable, as a failing disk would."""
    with database.snapshot() as session:
        path = store.path(session.get_one(Policy_, policy).sha256)
    path.unlink()
    path.mkdir()


def watch_fetches(bank: PolicyBank) -> list[list[Any]]:
    """What each fetch of a bank finds, from now on."""
    fetches: list[list[Any]] = []
    fetch = bank._fetch

    def watched(names: Sequence[str]) -> Any:
        found = fetch(names)
        fetches.append(list(found.items()))
        return found

    bank._fetch = watched  # type: ignore[method-assign]
    return fetches


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await work()

    return asyncio.run(main())


def test_many_callers_at_once_share_one_fetch(bank: PolicyBank, database: Database, store: ArtefactStore) -> None:
    policy = put_policy(database, store)
    fetched: list[str] = []
    fetch = bank._fetch

    def counted(names: Sequence[str]) -> Any:
        fetched.extend(names)
        return fetch(names)

    bank._fetch = counted  # type: ignore[method-assign]

    async def work() -> list[Hot]:
        return await asyncio.gather(*(bank.load(policy) for _ in range(50)), bank.load_many([policy, policy]))

    entries = run(work)
    assert fetched == [policy]
    assert {value(entry) for entry in entries[:-1]} == {value(entries[-1][0])}


def test_a_caller_that_goes_away_takes_nobody_elses_policy_with_it(
    bank: PolicyBank, database: Database, store: ArtefactStore
) -> None:
    policy = put_policy(database, store)
    begun, release = threading.Event(), threading.Event()
    fetch = bank._fetch

    def slow(names: Sequence[str]) -> Any:
        begun.set()
        release.wait(10)
        return fetch(names)

    bank._fetch = slow  # type: ignore[method-assign]

    async def work() -> Hot:
        leaves, stays = (asyncio.create_task(bank.load(policy)) for _ in range(2))
        await asyncio.to_thread(begun.wait, 10)
        leaves.cancel()
        await asyncio.sleep(0)
        release.set()
        return await stays

    assert value(run(work)) == pytest.approx(value_of(0), abs=1e-5)


@pytest.mark.databases("sqlite")
def test_the_least_recently_used_make_room_and_come_back_on_demand(database: Database, store: ArtefactStore) -> None:
    bank = PolicyBank(database, store, 3 * SIZE)
    names = [put_policy(database, store, seed) for seed in range(5)]

    async def work() -> None:
        for seed, name in enumerate(names):
            assert value(await bank.load(name)) == pytest.approx(value_of(seed), abs=1e-5)
            bank.hot(names[0])
        assert [bank.hot(name) is not None for name in names] == [True, False, False, True, True]
        assert bank.size_bytes <= 3 * SIZE
        for seed, name in enumerate(names):
            assert value(await bank.load(name)) == pytest.approx(value_of(seed), abs=1e-5)

    run(work)


@pytest.mark.databases("sqlite")
def test_more_policies_at_once_than_there_is_room_for_are_all_right(database: Database, store: ArtefactStore) -> None:
    bank = PolicyBank(database, store, 3 * SIZE)
    names = [put_policy(database, store, seed) for seed in range(8)]

    async def work() -> None:
        for _ in range(2):
            entries = await bank.load_many(names)
            assert [value(entry) for entry in entries] == pytest.approx([value_of(seed) for seed in range(8)], abs=1e-5)
            found = (await bank.fleet(names)).act([OBSERVATION] * 8, None).values
            assert found == pytest.approx([value_of(seed) for seed in range(8)], abs=1e-5)
            assert bank.size_bytes <= 3 * SIZE

    run(work)


@pytest.mark.databases("sqlite")
def test_memory_is_bounded_whatever_architectures_come(database: Database, store: ArtefactStore) -> None:
    capacity = 40 * SIZE
    bank = PolicyBank(database, store, capacity)
    kinds = (POLICY, WIDER, TORQUE)
    names = [(put_policy(database, store, seed, policy=kinds[seed % 3]), seed) for seed in range(60)]
    order = np.random.default_rng(0).integers(60, size=400)

    async def work() -> None:
        for i in order:
            name, seed = names[i]
            assert value(await bank.load(name)) == pytest.approx(value_of(seed, kinds[seed % 3]), abs=1e-5)
            assert bank.size_bytes <= capacity
        assert len(bank) > 10

    run(work)


def test_deletions_and_revisions_elsewhere_count_after_a_refresh(
    bank: PolicyBank, database: Database, store: ArtefactStore
) -> None:
    stays, goes, changes = (put_policy(database, store, seed) for seed in range(3))

    async def work() -> None:
        await bank.load_many([stays, goes, changes])
        delete(database, goes)
        revise(database, store, changes, 7)
        before = bank.hot(stays)
        await bank.refresh()
        assert bank.hot(goes) is None
        with pytest.raises(Gone, match="was deleted at"):
            await bank.load(goes)
        assert bank.hot(stays) is before
        entry = bank.hot(changes)
        assert entry is not None
        assert value(entry) == pytest.approx(value_of(7), abs=1e-5)

    run(work)


def test_a_policy_is_never_half_old_and_half_new(bank: PolicyBank, database: Database, store: ArtefactStore) -> None:
    names = [put_policy(database, store, seed) for seed in range(4)]
    allowed = {round(value_of(seed), 4) for seed in range(30)}

    async def act(stop: asyncio.Event) -> int:
        acts = 0
        while not stop.is_set():
            entries = await bank.load_many(names)
            copies = [entry.copy() for entry in entries]
            values = [value(entry) for entry in entries]
            await asyncio.sleep(0)
            assert [value(copy) for copy in copies] == pytest.approx(values, abs=1e-5)
            assert {round(each, 4) for each in values} <= allowed
            acts += 1
        return acts

    async def work() -> None:
        stop = asyncio.Event()
        actors = [asyncio.create_task(act(stop)) for _ in range(3)]
        for seed in range(4, 30):
            await asyncio.to_thread(revise, database, store, names[seed % 4], seed)
            await bank.refresh()
        stop.set()
        assert all(acts > 10 for acts in await asyncio.gather(*actors))

    run(work)


@pytest.mark.databases("sqlite")
def test_a_standing_fleet_is_moved_together_once(bank: PolicyBank, database: Database, store: ArtefactStore) -> None:
    names = [put_policy(database, store, seed) for seed in range(200)]
    standing = names[::13]

    async def work() -> None:
        await bank.load_many(names)
        fleet = await bank.fleet(standing)
        expected = [value_of(seed) for seed in range(0, 200, 13)]
        assert fleet.act([OBSERVATION] * len(standing), None).values == pytest.approx(expected, abs=1e-5)
        first = await bank.load_many(standing)
        assert len({id(entry.block) for entry in first}) == 1
        slots = [entry.slot for entry in first]
        assert max(slots) - min(slots) == len(standing) - 1
        assert await bank.fleet(standing) is fleet
        await bank.fleet(standing[::-1])
        assert [entry.slot for entry in await bank.load_many(standing)] == slots
        await bank.fleet(names)
        assert [entry.slot for entry in await bank.load_many(standing)] == slots, "it lies close enough as it is"
        await asyncio.to_thread(revise, database, store, standing[2], 500)
        await bank.refresh()
        renewed = await bank.fleet(standing)
        assert renewed is not fleet
        expected[2] = value_of(500)
        assert renewed.act([OBSERVATION] * len(standing), None).values == pytest.approx(expected, abs=1e-5)
        for seed in range(0, 200, 7):
            assert value(await bank.load(names[seed])) == pytest.approx(value_of(seed), abs=1e-5)

    run(work)


@pytest.mark.databases("sqlite")
def test_nothing_keeps_what_was_evicted_in_memory(database: Database, store: ArtefactStore) -> None:
    bank = PolicyBank(database, store, 8 * SIZE)
    names = [put_policy(database, store, seed) for seed in range(24)]

    async def work() -> None:
        blocks = []
        for start in (0, 6, 12, 18):
            fleet = await bank.fleet(names[start : start + 6])
            blocks += [weakref.ref(block) for block, _ in fleet._blocks]
            del fleet
        gc.collect()
        alive = {id(block()): block() for block in blocks if block() is not None}
        assert sum(block.size_bytes for block in alive.values()) <= 8 * SIZE

    run(work)


def test_architectures_that_nothing_is_hot_of_take_no_memory(database: Database, store: ArtefactStore) -> None:
    bank = PolicyBank(database, store, 8 * SIZE)
    first, second = put_policy(database, store), put_policy(database, store, policy=TORQUE)

    async def work() -> None:
        architecture = weakref.ref((await bank.load(first)).policy.architecture)
        delete(database, first)
        await bank.refresh()
        await bank.load(second)
        gc.collect()
        assert architecture() is None
        assert len(bank._shelves) == 1

    run(work)


def test_policies_that_expire_while_others_are_looked_for_are_fetched_once_more(
    bank: PolicyBank, database: Database, store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = [put_policy(database, store, seed, ttl_s=60) for seed in range(3)]
    clock = itertools.count(time.time() + 58, 0.5)

    async def work() -> None:
        await bank.load_many(policies)
        monkeypatch.setattr("app.inference.time.time", lambda: next(clock))
        for _ in range(8):
            assert len(await bank.load_many(policies)) == 3

    run(work)


def test_a_fetch_that_looked_too_early_is_made_again(
    bank: PolicyBank, database: Database, store: ArtefactStore
) -> None:
    policy = put_policy(database, store)
    looked, release = threading.Event(), threading.Event()
    fetch = bank._fetch

    def early(names: Sequence[str]) -> Any:
        found = fetch(names)
        looked.set()
        release.wait(10)
        return found

    bank._fetch = early  # type: ignore[method-assign]

    async def work() -> None:
        first = asyncio.create_task(bank.load(policy))
        await asyncio.to_thread(looked.wait, 10)
        revise(database, store, policy, 7)
        with database.transaction() as session:
            session.get_one(Policy_, policy).revision = 1
        second = asyncio.create_task(bank.load(policy, 1))
        await asyncio.sleep(0)
        release.set()
        await first
        assert value(await second) == pytest.approx(value_of(7), abs=1e-5)
        with pytest.raises(NotFound, match="its newest is 1"):
            await bank.load(policy, 2)

    run(work)


@pytest.mark.databases("sqlite")
def test_one_policy_may_be_asked_most_of_the_time(bank: PolicyBank, database: Database, store: ArtefactStore) -> None:
    names = [put_policy(database, store, seed) for seed in range(3)]
    wanted = [0] * 300 + [1, 2] * 3 + [0] * (MOST_TOGETHER - 306)

    async def work() -> None:
        fleet = await bank.fleet([names[i] for i in wanted])
        found = fleet.act([OBSERVATION] * len(wanted), None).values
        expected = [value_of(seed) for seed in range(3)]
        assert found == pytest.approx([expected[i] for i in wanted], abs=1e-5)

    run(work)


@pytest.mark.databases("sqlite")
def test_bytes_that_were_changed_are_never_served(bank: PolicyBank, database: Database, store: ArtefactStore) -> None:
    policy = put_policy(database, store)
    [path] = [path for path in store.folder.glob("*/*") if path.is_file()]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")

    async def work() -> None:
        with pytest.raises(Corrupt, match=path.name):
            await bank.load(policy)
        assert bank.hot(policy) is None

    run(work)


def test_what_is_unknown_is_not_found_and_takes_nothing_else_down(
    bank: PolicyBank, database: Database, store: ArtefactStore
) -> None:
    policy = put_policy(database, store)

    async def work() -> None:
        with pytest.raises(NotFound, match="there is no policy 'nobody'"):
            await bank.load_many([policy, "nobody"])
        assert bank.hot(policy) is not None
        with pytest.raises(NotFound):
            await bank.load("model/3")

    run(work)


@pytest.mark.databases("sqlite")
def test_a_fleet_of_policies_that_are_not_hot_reads_each_of_them_once_and_few_at_a_time(
    database: Database, store: ArtefactStore
) -> None:
    bank = PolicyBank(database, store, 20 * MEGABYTE)
    names = [put_policy(database, store, i % 4, policy=MIDDLING) for i in range(40)]
    fetches = watch_fetches(bank)

    async def work() -> list[float]:
        values: list[float] = []
        while len(values) < len(names):
            fleet = await bank.fleet(names[len(values) :])
            values += fleet.act([OBSERVATION] * fleet.size, None).values
        return values

    expected = [value_of(seed, MIDDLING) for seed in range(4)] * 10
    assert run(work) == pytest.approx(expected, rel=1e-4)
    assert Counter(name for fetch in fetches for name, _ in fetch) == dict.fromkeys(names, 1)
    size = Architecture(MIDDLING).size_bytes
    assert max(len(fetch) for fetch in fetches) * size < 18 * MEGABYTE


@pytest.mark.databases("sqlite")
def test_how_many_act_in_one_go_depends_on_what_they_are_alone(database: Database, store: ArtefactStore) -> None:
    names = [put_policy(database, store, seed, policy=LARGE if seed in (2, 5) else POLICY) for seed in range(8)]

    async def work() -> None:
        bank = PolicyBank(database, store, 32 * MEGABYTE)
        assert (await bank.fleet(names)).size == 5, "all before the second large one"
        assert (await bank.fleet(names[:5])).size == 5
        assert (await bank.fleet(names)).size == 5, "as when they were not hot yet"
        await bank.load(names[7])
        assert (await bank.fleet(names)).size == 5

    run(work)


@pytest.mark.databases("sqlite")
def test_a_policy_that_would_hold_the_event_loop_is_a_fleet_that_may_act_beside_it(
    database: Database, store: ArtefactStore
) -> None:
    bank = PolicyBank(database, store, 32 * MEGABYTE)
    large, other = (put_policy(database, store, seed, policy=LARGE) for seed in range(2))
    small = put_policy(database, store)

    async def work() -> None:
        assert not (await bank.fleet([small])).is_long
        fleet = await bank.fleet([large, other, small])
        assert (fleet.size, fleet.is_long) == (1, True)
        kept = (await bank.load(large)).copy()
        take_from(database, large, other)
        await bank.refresh()
        entry = await bank.load(large)
        assert value(entry) == pytest.approx(value_of(1, LARGE), rel=1e-4)
        beside = await asyncio.to_thread(fleet.act, [OBSERVATION], None)
        assert beside.values == pytest.approx([value_of(0, LARGE)], rel=1e-4), "as it was when it was asked for"
        assert value(kept) == pytest.approx(value_of(0, LARGE), rel=1e-4)
        copied = entry.copy().policy.arrays
        assert all(np.shares_memory(copied[key], array) for key, array in entry.policy.arrays.items())

    run(work)


@pytest.mark.databases("sqlite")
def test_a_new_architecture_takes_the_place_of_one_block_not_of_most_of_the_bank(
    database: Database, store: ArtefactStore
) -> None:
    bank = PolicyBank(database, store, 64 * SIZE)
    names = [put_policy(database, store, seed) for seed in range(64)]
    newcomer = put_policy(database, store, policy=TORQUE)

    async def work() -> None:
        await bank.load_many(names)
        blocks = {name: id(bank._hot[name].block) for name in names}
        assert Counter(blocks.values()).most_common(1)[0][1] == 4, "each holds a few"
        # In turn from each block, so that they are used alike.
        for start in range(4):
            for name in names[start::4]:
                bank.hot(name)
        await bank.load(newcomer)
        gone = {name for name in names if bank.hot(name) is None}
        assert gone == {name for name in names if blocks[name] == blocks[names[0]]}
        assert bank.size_bytes <= 64 * SIZE

    run(work)


@pytest.mark.databases("sqlite")
def test_one_more_of_an_architecture_takes_the_place_of_one(database: Database, store: ArtefactStore) -> None:
    bank = PolicyBank(database, store, 64 * SIZE)
    names = [put_policy(database, store, seed) for seed in range(65)]

    async def work() -> None:
        await bank.load_many(names[:64])
        await bank.load(names[64])
        assert [name for name in names if bank.hot(name) is None] == names[:1]

    run(work)


def test_a_policy_that_cannot_be_read_keeps_no_other_from_being_answered_or_brought_up_to_date(
    bank: PolicyBank, database: Database, store: ArtefactStore, caplog: pytest.LogCaptureFixture
) -> None:
    changes, fails, unread = (put_policy(database, store, seed) for seed in range(3))
    spoil(database, store, unread)

    async def work() -> None:
        with pytest.raises(IsADirectoryError):
            await bank.load_many([changes, fails, unread])
        assert bank.hot(changes) is not None
        assert bank.hot(fails) is not None
        for policy, seed in ((fails, 8), (changes, 9)):
            revise(database, store, policy, seed)
        spoil(database, store, fails)
        await bank.refresh()
        changed, failed = bank.hot(changes), bank.hot(fails)
        assert changed is not None
        assert value(changed) == pytest.approx(value_of(9), abs=1e-5)
        assert failed is not None, "it stands, and is known as it was"
        assert value(failed) == pytest.approx(value_of(1), abs=1e-5)

    run(work)
    assert f"not brought up to date: 1 of the policies, among them {fails}: IsADirectoryError" in caplog.text


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a\0b/1", "\ud800/1"])
def test_a_name_that_no_database_takes_is_not_found_and_takes_nothing_else_down(
    bank: PolicyBank, database: Database, store: ArtefactStore, name: str
) -> None:
    policy = put_policy(database, store)

    async def work() -> None:
        with pytest.raises(NotFound, match="there is no policy"):
            await bank.load_many([policy, name])
        assert bank.hot(policy) is not None

    run(work)


@pytest.mark.databases("sqlite")
def test_others_are_answered_while_many_policies_are_taken_in(database: Database, store: ArtefactStore) -> None:
    bank = PolicyBank(database, store, 64 * MEGABYTE)
    names = [put_policy(database, store, i % 4, policy=MIDDLING) for i in range(12)]
    most = 0

    async def others() -> None:
        nonlocal most
        before = len(bank)
        while True:
            await asyncio.sleep(0)
            most, before = max(most, len(bank) - before), len(bank)

    async def work() -> None:
        meanwhile = asyncio.create_task(others())
        entries = await bank.load_many(names)
        meanwhile.cancel()
        assert [value(entry) for entry in entries] == pytest.approx(
            [value_of(seed, MIDDLING) for seed in range(4)] * 3, rel=1e-4
        )

    run(work)
    assert most == 1


@pytest.mark.databases("sqlite")
def test_what_is_asked_for_while_it_is_taken_in_is_not_fetched_again(database: Database, store: ArtefactStore) -> None:
    bank = PolicyBank(database, store, 64 * MEGABYTE)
    names = [put_policy(database, store, i % 4, policy=MIDDLING) for i in range(12)]
    fetches = watch_fetches(bank)

    async def work() -> None:
        loading = asyncio.create_task(bank.load_many(names))
        while not len(bank):
            await asyncio.sleep(0)
        assert len(bank) < len(names), "some have no place yet"
        await bank.load(names[-1])
        await loading

    run(work)
    assert len(fetches) == 1


def test_a_revision_of_the_same_parameters_is_taken_with_its_expiry(
    bank: PolicyBank, database: Database, store: ArtefactStore
) -> None:
    policy = put_policy(database, store, ttl_s=60)

    async def work() -> None:
        await bank.load(policy)
        with database.transaction() as session:
            row = session.get_one(Policy_, policy)
            row.revision, row.expires_at = 1, now() + timedelta(seconds=600)
        await bank.refresh()
        entry = bank.hot(policy, now_s=time.time() + 300)
        assert entry is not None
        assert entry.revision == 1
        before = bank.hot(policy)
        await bank.refresh()
        assert bank.hot(policy) is before, "nothing has changed since"

    run(work)
