from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from app.leases import LeaseLost, Leases
from app.tables import Adaptation, Run


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self):
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self, _):
        return self.moment

    def pass_seconds(self, seconds):
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def leases(database, clock):
    return Leases(database, Run, seconds=10, max_attempts=3, owner="worker", clock=clock)


def queue_run(database, **values):
    with database.transaction() as session:
        run = Run(model="m", spec={}, **values)
        session.add(run)
        session.flush()
        return run.id


def find_run(database, run_id):
    with database.snapshot() as session:
        return session.get(Run, run_id)


def end(database, lease, state="succeeded"):
    with database.transaction() as session:
        lease.end(session, state)


def test_the_oldest_queued_work_is_claimed_first(database, leases):
    first, second = queue_run(database), queue_run(database)
    assert [leases.claim().id, leases.claim().id] == [first, second]
    assert leases.claim() is None


def test_claimed_work_is_nobody_elses_until_the_lease_runs_out(database, leases, clock):
    run_id = queue_run(database)
    lease = leases.claim()
    clock.pass_seconds(9)
    assert leases.claim() is None
    clock.pass_seconds(2)
    again = leases.claim()
    assert (again.id, again.attempt) == (run_id, lease.attempt + 1)
    assert find_run(database, run_id).crashes == 1


def test_a_heartbeat_keeps_the_work(database, leases, clock):
    queue_run(database)
    lease = leases.claim()
    for _ in range(5):
        clock.pass_seconds(9)
        with database.transaction() as session:
            assert lease.write(session) is False
        assert leases.claim() is None


def test_a_worker_that_lost_its_lease_writes_nothing(database, leases, clock):
    run_id = queue_run(database)
    late = leases.claim()
    clock.pass_seconds(11)
    current = leases.claim()
    with pytest.raises(LeaseLost), database.transaction() as session:
        late.write(session, iterations=99)
    with pytest.raises(LeaseLost), database.transaction() as session:
        late.end(session, "succeeded", version=1)
    with pytest.raises(LeaseLost), database.transaction() as session:
        late.release(session)
    end(database, current)
    run = find_run(database, run_id)
    assert (run.iterations, run.version, run.state) == (0, None, "succeeded")


def test_an_expired_lease_still_writes_while_nobody_has_taken_over(database, leases, clock):
    run_id = queue_run(database)
    lease = leases.claim()
    clock.pass_seconds(60)
    with database.transaction() as session:
        lease.write(session, iterations=5)
    assert find_run(database, run_id).iterations == 5
    assert leases.claim() is None


def test_nothing_is_written_to_work_that_has_ended(database, leases):
    queue_run(database)
    lease = leases.claim()
    end(database, lease, "failed")
    with pytest.raises(LeaseLost), database.transaction() as session:
        lease.write(session)


def test_released_work_goes_on_at_once_and_does_not_count_as_a_crash(database, leases):
    run_id = queue_run(database)
    for attempt in range(1, 6):
        lease = leases.claim()
        assert (lease.id, lease.attempt) == (run_id, attempt)
        with database.transaction() as session:
            lease.release(session)
    run = find_run(database, run_id)
    assert (run.state, run.crashes, run.error) == ("queued", 0, None)


def test_work_that_has_lost_too_many_workers_fails_with_the_reason(database, leases, clock):
    run_id = queue_run(database)
    for _ in range(3):
        assert leases.claim().id == run_id
        clock.pass_seconds(11)
    assert leases.claim() is None
    run = find_run(database, run_id)
    assert (run.state, run.error["type"]) == ("failed", "worker-lost")
    assert "3 times" in run.error["detail"]
    assert run.finished_at == clock.moment


def test_work_that_was_to_be_cancelled_is_not_taken_up_again(database, leases, clock):
    lost, released = queue_run(database), queue_run(database)
    leases.claim()
    lease = leases.claim()
    with database.transaction() as session:
        for run_id in (lost, released):
            session.get(Run, run_id).cancel_requested_at = clock.moment
    with database.transaction() as session:
        assert lease.write(session) is True
        lease.release(session)
    clock.pass_seconds(11)
    assert leases.claim() is None
    assert {find_run(database, run_id).state for run_id in (lost, released)} == {"cancelled"}


def test_workers_that_claim_at_once_never_get_the_same_work(database):
    queued = {queue_run(database) for _ in range(12)}

    def claim_all(number):
        leases = Leases(database, Run, seconds=60, max_attempts=3, owner=str(number))
        # More looks than work: a claim finds nothing while another holds the only row that is left.
        claims = [leases.claim() for _ in range(8)]
        return [lease.id for lease in claims if lease is not None]

    with ThreadPoolExecutor(4) as pool:
        claimed = [run_id for part in pool.map(claim_all, range(4)) for run_id in part]
    assert len(claimed) == len(queued)
    assert set(claimed) == queued
    with database.snapshot() as session:
        assert set(session.scalars(select(Run.attempt))) == {1}


def test_adaptations_are_leased_like_runs(database, clock):
    with database.transaction() as session:
        session.add(Adaptation(request={}, task_definition={}, method={}, seed=0))
    leases = Leases(database, Adaptation, seconds=10, max_attempts=1, clock=clock)
    assert leases.claim().attempt == 1
    clock.pass_seconds(11)
    assert leases.claim() is None
    with database.snapshot() as session:
        assert session.scalar(select(Adaptation.state)) == "failed"
