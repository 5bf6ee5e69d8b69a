"""The meta-database: engines, sessions and transactions for SQLite and PostgreSQL, column types, ids."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import JSON, Connection, DateTime, Dialect, Engine, MetaData, Select, create_engine, event, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

BUSY_TIMEOUT_S = 30.0
"""How long a SQLite connection waits for another writer before it gives up."""

JSONColumn = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
"""A JSON document: JSONB on PostgreSQL, text on SQLite. NaN and infinities are refused when it is written."""


class Base(DeclarativeBase):
    """Parent of every table, with one naming convention, so that migrations can name what they change."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UTCDateTime(TypeDecorator[datetime]):
    """A moment, always aware and always in UTC; SQLite, which knows no zones, stores it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a moment without a zone, then convert it."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a timestamp needs a time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the moment its zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


_last_tick = 0
_tick_lock = threading.Lock()


def new_id() -> str:
    """A UUIDv7: ids sort by the time they were made, strictly within one process.

    Source: RFC 9562, section 6.2, method 3 (the 12 bits after the millisecond hold the fraction of it).
    """
    global _last_tick
    with _tick_lock:
        _last_tick = max(time.time_ns() * 4096 // 1_000_000, _last_tick + 1)
        tick = _last_tick
    random = int.from_bytes(os.urandom(8), "big") >> 2
    return str(uuid.UUID(int=tick >> 12 << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0b10 << 62 | random))


class Database:
    """One meta-database, shared by the threads of a process.

    On SQLite a writing transaction takes the write lock when it begins, so that what it has read cannot change before
    it writes; a reading transaction takes none and never waits. On PostgreSQL transactions are READ COMMITTED;
    :func:`exclusive` gives the same guarantee for what is named there.

    Args:
        url: An SQLAlchemy URL of SQLite (a file) or PostgreSQL.

    Attributes:
        engine: The pool of connections.
    """

    def __init__(self, url: str) -> None:
        self.engine = create_database_engine(url)
        reading: dict[str, Any] = {"read_only": True}
        if self.engine.dialect.name == "postgresql":
            reading = {"postgresql_readonly": True}
        self._write = sessionmaker(self.engine, expire_on_commit=False)
        self._reading = self.engine.execution_options(**reading)
        self._read = sessionmaker(self._reading, expire_on_commit=False)

    def session(self, *, read_only: bool = False) -> Session:
        """A session that the caller commits and closes; its transaction begins with its first statement."""
        return self._read() if read_only else self._write()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A writing transaction: committed at the end of the block, rolled back when it raises."""
        with self._write() as session, session.begin():
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A reading transaction: a write in it is an error on both databases."""
        with self._read() as session:
            yield session

    def finds(self, statement: Select[Any]) -> bool:
        """Whether a statement finds a row, for who asks many times a second: a session costs as much again."""
        with self._reading.connect() as connection:
            return connection.execute(statement).first() is not None

    def ping(self) -> None:
        """Ask the database for one row.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: If it does not answer.
        """
        with self.snapshot() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def exclusive(session: Session, *names: str) -> None:
    """Hold everybody else's transaction that asks for the same name until this one ends.

    What was read before the call may be stale; read again after it. Names are locked in sorted order, so that two
    transactions cannot wait for each other. SQLite has one writer anyway, so nothing is done there.
    """
    if session.get_bind().dialect.name != "postgresql":
        return
    for name in sorted(names):
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})


def create_database_engine(url: str, *, foreign_keys: bool = True) -> Engine:
    """An engine with this service's settings; ``foreign_keys=False`` is for migrations that rebuild SQLite tables."""
    serializer = partial(json.dumps, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(
            url, json_serializer=serializer, pool_pre_ping=True, pool_size=10, max_overflow=30, pool_timeout=30
        )
    engine = create_engine(
        url,
        json_serializer=serializer,
        pool_size=10,
        max_overflow=40,
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: object) -> None:
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # The driver would begin at the first write, after what it depends on was read, and that upgrade fails at once
        # (SQLITE_BUSY_SNAPSHOT, no busy timeout) when anybody has written in between.
        read_only = bool(connection.get_execution_options().get("read_only"))
        connection.exec_driver_sql(f"PRAGMA query_only={'ON' if read_only else 'OFF'}")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    # SQLite does not apply its busy timeout to the switch, which needs the file for itself for a moment.
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
