"""How a database is opened, held and complained of: the one place that knows SQLite from PostgreSQL."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, column, create_engine, event, func, select, table
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool, StaticPool

from tunecli.errors import InputError, StorageError, TunecliError
from tunecli.storage import Database, Shared

BUSY_SECONDS = 60
CONNECT_SECONDS = 10
LET_GO_SECONDS = 2
"""How long a server takes at most to see that a writer was killed."""

_KEEPALIVE = {"idle": 60, "interval": 10, "count": 6}
"""Seconds, and how often: so a network that forgets idle connections keeps ours, and a server lets go of a writer whose
machine has died after two minutes."""


def connect(database: Database, *, write: bool) -> Engine:
    """An SQLAlchemy engine on a study's database, with transactions that begin when they say so.

    A reader sees whole ticks only: its transaction covers all its queries. In SQLite a writer takes the write lock at
    BEGIN; in PostgreSQL it is the connection that holds the study, where one does. Raises InputError without a driver.
    """
    file = file_of(database)
    if file is not None:
        return _open_file(file, write)
    assert isinstance(database, Shared)
    if write and database.writer is not None:
        return database.writer
    level = "READ COMMITTED" if write else "REPEATABLE READ"
    return _engine(database, poolclass=NullPool, isolation_level=level)


def release(database: Database, engine: Engine) -> None:
    """Close an engine of `connect`, but not the connection that holds the study."""
    if not isinstance(database, Shared) or engine is not database.writer:
        engine.dispose()


def file_of(database: Database) -> Path | None:
    """The file of an SQLite database; None where it is PostgreSQL's."""
    return database.address.file if isinstance(database, Shared) else database


def optunas_url(database: Database) -> tuple[URL, dict[str, Any]]:
    """The URL that Optuna's own storage takes, without its password, and what its engine is told beside it."""
    file = file_of(database)
    if file is not None:
        return _file_url(file), {"poolclass": NullPool}
    assert isinstance(database, Shared)
    return _server_url(database), {"connect_args": _told(database), "poolclass": NullPool}


def _open_file(path: Path, write: bool) -> Engine:
    engine = create_engine(
        # A reader too: SQLite must be able to roll back what a kill left half written. It falls back to reading alone.
        _file_url(path),
        poolclass=NullPool,
        connect_args={"timeout": BUSY_SECONDS},
    )

    @event.listens_for(engine, "connect")
    def _connect(connection, record):  # type: ignore[no-untyped-def]  # SQLAlchemy's hook
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA query_only=OFF" if write else "PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection):  # type: ignore[no-untyped-def]  # SQLAlchemy's hook
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _file_url(path: Path) -> URL:
    """As a URI, for a folder's name may hold what has a meaning in a URL."""
    return URL.create("sqlite", database=f"file:{quote(str(path.resolve()))}", query={"mode": "rw", "uri": "true"})


# PostgreSQL


def _engine(database: Shared, **options: Any) -> Engine:
    try:
        return create_engine(_server_url(database), connect_args=_told(database), hide_parameters=True, **options)
    except ImportError as error:
        raise InputError(
            f"{database} needs psycopg, which is not installed", hint="pip install 'tunecli[postgres]'"
        ) from error


def _server_url(database: Shared) -> URL:
    return database.address.url.set(drivername="postgresql+psycopg")


def _told(database: Shared) -> dict[str, Any]:
    """What libpq is told beside the URL, which has the last word, as PGCONNECT_TIMEOUT has."""
    told: dict[str, Any] = {f"keepalives_{name}": value for name, value in _KEEPALIVE.items()}
    told["application_name"] = f"tunecli, process {os.getpid()} on {platform.node()}"
    if "PGCONNECT_TIMEOUT" not in os.environ:
        told["connect_timeout"] = CONNECT_SECONDS
    return {key: value for key, value in told.items() if key not in database.address.url.query} | dict(
        database.address.secrets
    )


@contextmanager
def holding(database: Shared) -> Iterator[Shared]:
    """Hold the study for writing: the database with its writer's connection, whose lock goes with it.

    What is written goes over this connection and no other: a writer that lost the lock cannot write. Raises
    StorageError where another process holds the study.
    """
    engine = _engine(database, poolclass=StaticPool, isolation_level="READ COMMITTED")
    opened = 0

    @event.listens_for(engine, "do_connect")
    def _once(dialect, record, arguments, options):  # type: ignore[no-untyped-def]  # SQLAlchemy's hook
        nonlocal opened
        opened += 1
        if opened > 1:
            raise _lost(database)

    try:
        try:
            with engine.begin() as connection:
                _lock(connection, database)
        except SQLAlchemyError as error:
            raise unwritable(database, error) from error
        yield replace(database, writer=engine)
    finally:
        engine.dispose()


def _lock(connection: Connection, database: Shared) -> None:
    key = _key(connection, database.study)
    until = time.monotonic() + LET_GO_SECONDS
    while not connection.execute(select(func.pg_try_advisory_lock(key))).scalar_one():
        if time.monotonic() < until:
            time.sleep(0.1)
            continue
        raise StorageError(
            f"the study {database.study} in {database} is held by another {_holder(connection, key) or 'tunecli'}",
            hint="wait until it ends, or give this search a name of its own",
        )
    for name, value in _KEEPALIVE.items():
        connection.execute(select(func.set_config(f"tcp_keepalives_{name}", str(value), False)))


@contextmanager
def one_at_a_time(database: Database) -> Iterator[None]:
    """Nobody else makes tables in this database meanwhile. A file that is not there yet is begun."""
    file = file_of(database)
    if file is None:
        assert isinstance(database, Shared)
        engine = connect(replace(database, writer=None), write=True)
        try:
            with engine.begin() as connection:
                connection.execute(select(func.pg_advisory_xact_lock(_key(connection, ""))))
                yield
        finally:
            engine.dispose()
    else:
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def is_held_there(database: Shared) -> bool:
    """Whether a writer holds the study in PostgreSQL. Raises StorageError, InputError."""
    engine = connect(database, write=False)
    try:
        with engine.begin() as connection:
            return _holder(connection, _key(connection, database.study)) is not None
    except SQLAlchemyError as error:
        raise unreadable(database, error) from error
    finally:
        engine.dispose()


def _key(connection: Connection, study: str) -> int:
    """The number of a study's lock: advisory locks have no names, and are those of the whole database."""
    schema = connection.execute(select(func.current_schema())).scalar()
    digest = hashlib.sha256(f"tunecli\0{schema}\0{study}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


_LOCKS = table("pg_locks", *(column(name) for name in ("locktype", "database", "classid", "objid", "pid", "granted")))
_DATABASES = table("pg_database", column("oid"), column("datname"))
_ACTIVITY = table("pg_stat_activity", column("pid"), column("application_name"))


def _holder(connection: Connection, key: int) -> str | None:
    """Who holds a lock, as it calls itself."""
    here = select(_DATABASES.c.oid).where(_DATABASES.c.datname == func.current_database()).scalar_subquery()
    held = (
        select(_ACTIVITY.c.application_name)
        .select_from(_LOCKS.outerjoin(_ACTIVITY, _ACTIVITY.c.pid == _LOCKS.c.pid))
        .where(_LOCKS.c.locktype == "advisory", _LOCKS.c.granted, _LOCKS.c.database == here)
        .where(_LOCKS.c.classid == key >> 32 & 0xFFFFFFFF, _LOCKS.c.objid == key & 0xFFFFFFFF)
    )
    found = connection.execute(held).first()
    return None if found is None else found.application_name or "tunecli"


# What went wrong, in a line


def unwritable(database: Database, error: Exception) -> TunecliError:
    if file_of(database) is None and _is_of_connection(error):
        return _unreachable(database, error)
    hint = "free some space or mend the permissions, then run it again"
    if file_of(database) is None:
        hint = "mend it there, then run it again: it goes on"
    return StorageError(f"cannot write {database}: {_words(error)}", hint=hint)


def unreadable(database: Database, error: Exception) -> TunecliError:
    if file_of(database) is None and _is_of_connection(error):
        return _unreachable(database, error)
    if isinstance(database, Path) and (database.is_dir() or not os.access(database, os.R_OK)):
        hint = "it has to be a file that you may read"
    else:
        hint = damaged_hint(database)
    return InputError(f"cannot read {database}: {_words(error)}", hint=hint)


def damaged_hint(database: Database) -> str:
    """What to do about a database that is there and does not hold what a study's should."""
    if isinstance(database, Path):
        return "it is damaged, or another program's: put a copy back, or begin anew with --fresh, which sets it aside"
    return "is it one that tunecli wrote?"


def _is_of_connection(error: Exception) -> bool:
    """Whether it is about the way to the server: what a server says of a statement has a code, and of another class."""
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or code is None or code.startswith(("08", "57"))


def _unreachable(database: Database, error: Exception) -> StorageError:
    words = _words(error)
    if "password" in words:
        hint = "its password goes into PGPASSWORD or ~/.pgpass"
    elif isinstance(error, DBAPIError) and error.connection_invalidated:
        return _lost(database, words)
    else:
        hint = "does the server run there, and is there such a database? `createdb` makes one"
    return StorageError(f"cannot reach {database}: {words}", hint=hint)


def _lost(database: Database, words: str = "") -> StorageError:
    return StorageError(
        f"lost the connection to {database}{words and ': '}{words}",
        hint="what was committed is safe; run the same command again: it goes on",
    )


def _words(error: Exception) -> str:
    """The line of a driver's message that says what is wrong: libpq adds where, and advice."""
    own = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(own).splitlines() if line.strip()] or [type(own).__name__]
    fatal = [line.partition("FATAL:")[2].strip() for line in lines if "FATAL:" in line]
    return (fatal or lines)[0].rpartition(" failed: ")[2].removeprefix("fe_sendauth: ")
