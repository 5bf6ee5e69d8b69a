import resource
import threading
import time

import psycopg
import pytest
import torch
from sqlalchemy import func, select, update

from app.auth import OPERATOR
from app.execution import Interrupter
from app.preparation import prepare
from app.runs.schemas import NewRun
from app.runs.service import create_run
from app.settings import Settings
from app.tables import Checkpoint, Run, RunMetric, TaskFamily, Version, VersionFile
from app.tasks.service import create_family
from app.work import cancel_work
from app.worker import Worker
from models.checkpoint import load_state, unpack
from models.distributions import Uniform
from models.families import define_family

TINY = {
    "model": "nav",
    "learner": {"tasks_per_iteration": 2, "episodes_per_task": 2},
    "policy": {"hidden": [4]},
    "tasks": {"family": "short"},
    "stop": {"iterations": 12},
}

EVALUATED = {"evaluation": {"tasks": 3, "every_iterations": 2, "steps": 2, "episodes": 2}, "seed": 2}
"""A run whose sixth iteration does best on held-out tasks, by half a unit of return."""


@pytest.fixture
def settings(tmp_path, database_url):
    return Settings(data=tmp_path / "var", database_url=database_url, checkpoint_seconds=0.0)


@pytest.fixture
def interrupter():
    return Interrupter()


@pytest.fixture
def worker(settings, database, interrupter):
    prepare(database, settings)
    add_family(database, "short")
    worker = Worker(settings, "runs", interrupter)
    yield worker
    worker.close()


@pytest.fixture
def another_worker(settings):
    worker = Worker(settings, "runs")
    yield worker
    worker.close()


def add_family(database, name, reward=None):
    family = define_family(name, "Navigation2D-v0", {"goal_x": Uniform(-0.5, 0.5)}, reward, horizon=8)
    with database.transaction() as session:
        create_family(session, OPERATOR, family)


def queue(database, **changes):
    with database.transaction() as session:
        return create_run(session, OPERATOR, NewRun.model_validate(TINY | changes)).id


def find(database, run_id):
    with database.snapshot() as session:
        return session.get(Run, run_id)


def files_of(database, run_id):
    """Digest of each file of the version that a run made."""
    with database.snapshot() as session:
        statement = select(VersionFile.name, VersionFile.sha256).join(Version).where(Version.run_id == run_id)
        return dict(session.execute(statement).all())


def iterations_of(database, run_id):
    with database.snapshot() as session:
        return list(
            session.scalars(select(RunMetric.iteration).where(RunMetric.run_id == run_id).order_by(RunMetric.sequence))
        )


def interrupt_at(interrupter, iteration, action):
    """Act within the computation that follows so many others."""
    compute, count = interrupter.compute, 0

    def counting(function):
        nonlocal count
        count += 1
        if count == iteration:
            action()
        return compute(function)

    interrupter.compute = counting


def test_a_finished_run_is_a_version_with_its_whole_curve(database, store, worker):
    run_id = queue(database, evaluation={"tasks": 2, "every_iterations": 5, "episodes": 2})
    assert worker.work_once()
    assert not worker.work_once()
    run = find(database, run_id)
    assert (run.state, run.stopped_by, run.version, run.fraction) == ("succeeded", "iterations", 1, 1.0)
    assert (run.iterations, run.error, run.lease_owner) == (12, None, None)
    assert iterations_of(database, run_id) == list(range(1, 13))
    assert set(run.metrics) >= {"return_before", "return_after", "held_out_return_after", "generalisation_gap"}
    files = files_of(database, run_id)
    artefact = unpack(store.read(files["manifest.json"]), store.read(files["parameters.safetensors"]))
    about = artefact.manifest
    assert (about["run"], about["seed"], about["environment"]) == (run_id, 0, "Navigation2D-v0")
    assert (about["iterations"], about["stopped_by"]) == (12, "iterations")
    assert about["family"]["name"] == "short"
    assert about["tasks"] == {"family": "short", "split": "train"}


def test_the_version_is_the_iteration_that_did_best_on_held_out_tasks(database, store, worker):
    run_id = queue(database, **EVALUATED)
    worker.work_once()
    with database.snapshot() as session:
        rows = session.scalars(select(RunMetric).where(RunMetric.run_id == run_id).order_by(RunMetric.sequence)).all()
        checkpoint = session.scalar(select(Checkpoint.sha256).order_by(Checkpoint.iteration.desc()).limit(1))
    evaluated = {row.iteration: row for row in rows if row.evaluation is not None}
    assert list(evaluated) == [2, 4, 6, 8, 10, 12]
    for row in evaluated.values():
        means = [sum(returns) / len(returns) for returns in row.evaluation["mean_return"]]
        names = ("held_out_return_before", "held_out_return_step_1", "held_out_return_step_2")
        assert means == pytest.approx([row.values[name] for name in names])
        assert {len(returns) for returns in row.evaluation["mean_return"]} == {3}
    best = max(evaluated.values(), key=lambda row: row.values["held_out_return_after"])
    run, files = find(database, run_id), files_of(database, run_id)
    assert run.best == {"iteration": 6, "held_out_return_after": best.values["held_out_return_after"]}
    artefact = unpack(store.read(files["manifest.json"]), store.read(files["parameters.safetensors"]))
    about = artefact.manifest
    assert (about["selected_by"], about["iteration"], about["iterations"]) == ("held_out_return", 6, 12)
    assert about["metrics"] == best.values
    state = load_state(store.read(checkpoint))
    assert all((artefact.params[name] == value).all() for name, value in state.best.params.items())
    assert any((artefact.params[name] != value).any() for name, value in state.learner.params.items())


def test_without_held_out_tasks_the_version_is_the_last_iteration(database, store, worker):
    run_id = queue(database)
    worker.work_once()
    run, files = find(database, run_id), files_of(database, run_id)
    about = unpack(store.read(files["manifest.json"]), store.read(files["parameters.safetensors"])).manifest
    assert run.best is None
    assert (about["selected_by"], about["iteration"], about["iterations"]) == ("last", 12, 12)
    assert about["metrics"] == run.metrics


@pytest.mark.databases("sqlite")
def test_a_run_stops_when_training_tasks_are_solved_ever_better_than_held_out_ones(database, worker):
    stop = {"iterations": 12, "gap": {"above": 0.0, "evaluations": 1}}
    run_id = queue(database, evaluation={"tasks": 2, "every_iterations": 1, "episodes": 2}, stop=stop)
    worker.work_once()
    run = find(database, run_id)
    assert (run.state, run.stopped_by) == ("succeeded", "gap")
    assert run.iterations < 12
    assert run.metrics["generalisation_gap"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.databases("sqlite")
def test_a_run_that_asks_for_a_device_that_its_worker_lacks_fails_with_the_reason(database, worker):
    run_id = queue(database, device="cuda")
    worker.work_once()
    run = find(database, run_id)
    assert (run.state, run.error["type"], run.iterations) == ("failed", "invalid-value", 0)
    assert run.error["detail"].startswith("/device: torch finds no CUDA device")


@pytest.mark.databases("sqlite")
def test_equal_runs_end_in_equal_parameters_and_another_seed_does_not(database, worker):
    runs = [queue(database), queue(database, model="other"), queue(database, seed=1)]
    while worker.work_once():
        pass
    one, same, other = (files_of(database, run_id)["parameters.safetensors"] for run_id in runs)
    assert one == same
    assert one != other
    assert find(database, runs[2]).version == 2


def test_a_run_keeps_the_family_that_it_was_asked_with(database, worker):
    run_id = queue(database)
    with database.transaction() as session:
        session.execute(update(TaskFamily).where(TaskFamily.name == "short").values(environment="CartPole-v1"))
    worker.work_once()
    assert find(database, run_id).state == "succeeded"


def test_only_the_two_newest_checkpoints_stay_and_the_bytes_of_others_go(database, store, worker):
    run_id = queue(database)
    worker.work_once()
    with database.snapshot() as session:
        rows = session.scalars(select(Checkpoint).where(Checkpoint.run_id == run_id)).all()
    assert sorted(row.iteration for row in rows) == [11, 12]
    assert load_state(store.read(rows[0].sha256)).iterations in (11, 12)
    kept = {row.sha256 for row in rows} | set(files_of(database, run_id).values())
    assert {path.name for path in store.folder.glob("*/*")} == kept


def test_a_run_that_is_given_back_goes_on_where_it_was_bit_for_bit(database, worker, interrupter, another_worker):
    whole, parts = queue(database), queue(database)
    worker.work_once()

    def stop():
        interrupter.stopping = True

    interrupt_at(interrupter, 6, stop)
    worker.work_once()
    run = find(database, parts)
    assert (run.state, run.iterations, run.crashes, run.lease_owner) == ("queued", 5, 0, None)
    assert iterations_of(database, parts) == [1, 2, 3, 4, 5]
    another_worker.work_once()
    assert find(database, parts).attempt == 2
    assert iterations_of(database, parts) == list(range(1, 13))
    assert files_of(database, parts)["parameters.safetensors"] == files_of(database, whole)["parameters.safetensors"]


def test_rows_beyond_the_checkpoint_of_a_killed_worker_are_written_again(database, worker, interrupter, another_worker):
    whole, killed = queue(database, **EVALUATED), queue(database, **EVALUATED)
    worker.work_once()

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    interrupt_at(interrupter, 8, kill)
    with pytest.raises(Killed):
        worker.work_once()
    with database.transaction() as session:
        # Metrics were flushed after the last checkpoint, and the lease has run out.
        session.execute(update(Run).where(Run.id == killed).values(lease_expires_at=Run.created_at))
        newest = session.scalar(select(func.max(Checkpoint.iteration)).where(Checkpoint.run_id == killed))
        stray = {"environment_steps": 1, "seconds": 1.0, "values": {"return_after": -1e9}, "attempt": 1}
        for iteration in (newest + 1, newest + 2, 40):
            session.add(RunMetric(run_id=killed, sequence=iteration, iteration=iteration, **stray))
    another_worker.work_once()
    run = find(database, killed)
    assert (run.state, run.attempt, run.crashes) == ("succeeded", 2, 1)
    assert iterations_of(database, killed) == list(range(1, 13))
    # The best came before the crash: the checkpoint had it.
    assert run.best == find(database, whole).best
    assert run.best["iteration"] == 6
    with database.snapshot() as session:
        evaluations = select(RunMetric.evaluation).order_by(RunMetric.sequence)
        found = [session.scalars(evaluations.where(RunMetric.run_id == run_id)).all() for run_id in (whole, killed)]
    assert found[0] == found[1]
    assert files_of(database, killed)["parameters.safetensors"] == files_of(database, whole)["parameters.safetensors"]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(database, store, worker, interrupter, another_worker):
    whole, damaged = queue(database), queue(database)
    worker.work_once()

    def stop():
        interrupter.stopping = True

    interrupt_at(interrupter, 6, stop)
    worker.work_once()
    with database.snapshot() as session:
        newest = session.scalars(
            select(Checkpoint).where(Checkpoint.run_id == damaged).order_by(Checkpoint.iteration.desc())
        ).first()
    store.path(newest.sha256).write_bytes(b"not a checkpoint")
    another_worker.work_once()
    assert find(database, damaged).state == "succeeded"
    assert files_of(database, damaged)["parameters.safetensors"] == files_of(database, whole)["parameters.safetensors"]


def test_a_reward_that_becomes_nan_fails_the_run_and_its_last_checkpoint_stays(database, store, worker):
    # The logarithm is NaN where the point is more than 0.3 from the start; with this seed no episode of the first
    # iterations gets there.
    add_family(database, "breaks", "log(0.3 - abs(next_observation[0]))")
    run_id = queue(
        database,
        tasks={"family": "breaks"},
        stop={"iterations": 500},
        learner={"tasks_per_iteration": 1, "episodes_per_task": 2},
    )
    worker.work_once()
    run = find(database, run_id)
    assert (run.state, run.version, run.error["type"]) == ("failed", None, "non-finite-reward")
    assert "NaN or infinite" in run.error["detail"]
    with database.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(Version)) == 0
        checkpoint = session.scalars(
            select(Checkpoint).where(Checkpoint.run_id == run_id).order_by(Checkpoint.iteration.desc())
        ).first()
    assert load_state(store.read(checkpoint.sha256)).iterations == run.iterations > 0


def test_an_unforeseen_error_fails_the_run_with_its_last_line(database, worker, interrupter):
    run_id = queue(database)

    def explode():
        raise RuntimeError("out of paper")

    interrupt_at(interrupter, 3, explode)
    worker.work_once()
    run = find(database, run_id)
    assert (run.state, run.error) == ("failed", {"type": "internal-error", "detail": "RuntimeError: out of paper"})
    assert run.iterations == 2


def test_a_worker_that_lost_its_lease_publishes_nothing(database, worker, interrupter):
    run_id = queue(database)

    def take_over():
        with database.transaction() as session:
            session.execute(update(Run).where(Run.id == run_id).values(attempt=Run.attempt + 1))

    interrupt_at(interrupter, 12, take_over)
    worker.work_once()
    run = find(database, run_id)
    assert (run.state, run.version, run.attempt) == ("running", None, 2)
    assert files_of(database, run_id) == {}
    assert max(iterations_of(database, run_id)) <= 11


def test_a_cancelled_run_ends_soon_and_keeps_its_last_state(database, worker):
    run_id = queue(database, stop={"iterations": 10_000_000})
    thread = threading.Thread(target=worker.work_once)
    thread.start()
    wait_until(lambda: find(database, run_id).iterations > 0)
    with database.transaction() as session:
        assert cancel_work(session, OPERATOR, Run, run_id).state == "running"
    asked = time.monotonic()
    thread.join(30)
    assert time.monotonic() - asked < 2
    run = find(database, run_id)
    assert (run.state, run.version, run.error) == ("cancelled", None, None)
    with database.snapshot() as session:
        newest = session.scalar(select(func.max(Checkpoint.iteration)).where(Checkpoint.run_id == run_id))
    assert newest == run.iterations


def wait_until(condition, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_full_disk_fails_the_run_and_leaves_the_registry_whole(database, store, worker):
    limit = 2 * 1024 * 1024
    run_id = queue(database, policy={"hidden": [512, 512]})
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = sum(path.stat().st_size for path in store.folder.glob("*/*"))
    # The limit is on one file: the checkpoint is above it, the database's files are not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        worker.work_once()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    run = find(database, run_id)
    assert (run.state, run.version, run.error["type"]) == ("failed", None, "storage-full")
    with database.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(Version)) == 0
        assert session.scalar(select(func.count()).select_from(Checkpoint)) == 0
    assert sum(path.stat().st_size for path in store.folder.glob("*/*")) == before


def test_a_run_outlives_an_outage_of_its_database(database, worker, interrupter, request):
    if database.engine.dialect.name != "postgresql":
        pytest.skip("SQLite is a file")
    run_id = queue(database)
    server, name = request.getfixturevalue("postgresql_server"), database.engine.url.database

    def allow_connections(allowed):
        with psycopg.connect(server("postgres"), autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS {allowed}')
            if not allowed:
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    end_of_outage = threading.Timer(1.5, allow_connections, [True])

    def cut_off():
        allow_connections(False)
        end_of_outage.start()

    interrupt_at(interrupter, 5, cut_off)
    worker.work_once()
    end_of_outage.join()
    run = find(database, run_id)
    assert (run.state, run.attempt, run.crashes) == ("succeeded", 1, 0)
    assert iterations_of(database, run_id) == list(range(1, 13))
