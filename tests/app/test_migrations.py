import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.orm import Session

from app.database import Base, Database, create_database_engine
from app.migrating import migrate
from app.tables import Adaptation, Policy, Run, RunMetric


@pytest.fixture
def engine(empty_database_url):
    migrate(empty_database_url)
    engine = create_database_engine(empty_database_url)
    yield engine
    engine.dispose()


def test_the_migrated_schema_is_the_schema_of_the_tables(engine):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_migrated_constraints_are_those_of_the_tables(engine):
    # Alembic compares neither checks nor the conditions of partial indices.
    metadata_url = engine.url
    inspector = inspect(engine)
    for table in Base.metadata.sorted_tables:
        expected = sorted(
            str(c.name) for c in table.constraints if type(c).__name__ == "CheckConstraint" and c.name is not None
        )
        checks = inspector.get_check_constraints(table.name)
        assert sorted(check["name"] for check in checks) == expected, metadata_url
        if table.name in ("runs", "adaptations", "evaluations"):
            assert any("collecting" in check["sqltext"] for check in checks) == (table.name == "adaptations")
    partial = {i["name"] for i in inspector.get_indexes("tasks") if "where" in str(i.get("dialect_options"))}
    assert partial == {"uq_tasks_name", "uq_tasks_digest"}


def test_downgrading_to_base_leaves_nothing(engine, empty_database_url):
    migrate(empty_database_url, "base")
    assert set(inspect(engine).get_table_names()) <= {"alembic_version"}
    migrate(empty_database_url)
    assert "tasks" in inspect(engine).get_table_names()


def test_what_a_run_measured_before_held_out_returns_were_kept_stands_without_them(empty_database_url):
    migrate(empty_database_url, "0001")
    engine = create_database_engine(empty_database_url)
    run = {"id": "r", "state": "succeeded", "attempt": 1, "crashes": 0, "model": "m", "spec": "{}", "iterations": 1}
    run |= {"environment_steps": 8, "seconds": 0.1, "fraction": 1.0, "metrics": "{}", "created_at": "2026-01-01 00:00Z"}
    with engine.begin() as connection:
        places = ", ".join(f":{name}" for name in run)
        connection.execute(text(f"INSERT INTO runs ({', '.join(run)}) VALUES ({places})"), run)
        connection.execute(text("INSERT INTO run_metrics VALUES ('r', 1, 1, 8, 0.1, '{\"return_after\": 2.0}', 1)"))
    migrate(empty_database_url)
    with Session(engine) as session:
        assert session.scalar(select(Run.best)) is None
        metric = session.get(RunMetric, ("r", 1))
        assert (metric.values, metric.evaluation) == ({"return_after": 2.0}, None)
    engine.dispose()


def test_adaptations_and_policies_of_before_there_were_revisions_stand(empty_database_url):
    migrate(empty_database_url, "0004")
    engine = create_database_engine(empty_database_url)
    made = {"id": "a", "request": "{}", "task_definition": "{}", "method": "{}", "seed": 1, "state": "succeeded"}
    made |= {"attempt": 1, "crashes": 0, "created_at": "2026-01-01 00:00Z"}
    policy = {
        "id": "p",
        "adaptation_id": "a",
        "spec": "{}",
        "sha256": "x",
        "size_bytes": 1,
        "created_at": "2026-01-01 00:00Z",
    }
    with engine.begin() as connection:
        for table, row in (("adaptations", made), ("policies", policy)):
            places = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})"), row)
    migrate(empty_database_url)
    with Session(engine) as session:
        assert session.get(Policy, "p").revision == 0
        adaptation = session.get(Adaptation, "a")
        assert (adaptation.state, adaptation.counts) == ("succeeded", None)
        adaptation.state = "collecting"
        session.commit()
    engine.dispose()
    migrate(empty_database_url, "base")  # which must cope with a state that the versions before do not know


def test_migrating_twice_changes_nothing(engine, empty_database_url):
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO models VALUES ('m', 7, '2026-01-01 00:00:00+00')"))
    migrate(empty_database_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT next_version FROM models")).scalar_one() == 7


def test_threads_that_migrate_at_once_all_find_the_schema(empty_database_url):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(migrate, [empty_database_url] * 6))
    database = Database(empty_database_url)
    with database.snapshot() as session:
        assert session.execute(text("SELECT count(*) FROM tasks")).scalar_one() == 0
    database.close()


def test_processes_that_migrate_at_once_all_find_the_schema(empty_database_url):
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=migrate, args=(empty_database_url,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_a_failed_migration_leaves_nothing_behind(empty_database_url):
    engine = create_database_engine(empty_database_url) if "postgresql" in empty_database_url else None
    if engine is None:
        migrate(empty_database_url, "base")
        engine = create_database_engine(empty_database_url)
    with engine.begin() as connection:
        # Created in the middle of the first migration, too: it fails there.
        connection.execute(text("CREATE TABLE tasks (id TEXT)"))
    with pytest.raises(Exception, match="already exists"):
        migrate(empty_database_url)
    assert set(inspect(engine).get_table_names()) <= {"tasks", "alembic_version"}
    engine.dispose()
