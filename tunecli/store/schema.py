"""The tables: Optuna's own, as it creates them, and ours beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import (
    URL,
    Column,
    Connection,
    DateTime,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    column,
    create_engine,
    event,
    insert,
    table,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tunecli.errors import InputError, StorageError
from tunecli.files import make_folder, sync_folder

SCHEMA_VERSION = 3
OPTUNA_SCHEMA_VERSION = 12
BUSY_SECONDS = 60

OPTUNA_TABLES = (
    "studies",
    "study_directions",
    "trials",
    "trial_params",
    "trial_system_attributes",
    "trial_values",
    "trial_user_attributes",
    "trial_intermediate_values",
)

FIXED_PARAMS = "fixed_params"
"""The system attribute under which Optuna keeps what a trial that was enqueued is to have."""

_ours = MetaData()

STUDIES = Table(
    "tunecli_studies",
    _ours,
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    # Counts the writers. A commit that finds another number than its own has lost the study to a later writer.
    Column("fence", Integer, nullable=False),
    Column("metric", String(64), nullable=False),
    Column("document", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("data_hash", String(64), nullable=False),
    Column("environment", Text, nullable=False),
    # Written when a search ends.
    Column("importance", Text),
    Column("created", DateTime, nullable=False),
)

QUESTIONS = Table(
    "tunecli_questions",
    _ours,
    # What the study was asked before its question changed: by its trials below `until` that an earlier one did not ask.
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("until", Integer, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
    Column("changed", DateTime, nullable=False),
)

TRIALS = Table(
    "tunecli_trials",
    _ours,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("start_tick", Integer, nullable=False),
    Column("end_tick", Integer),
    Column("best_tick", Integer),
    Column("reason", Text),
)

MEASUREMENTS = Table(
    "tunecli_measurements",
    _ours,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("fidelity", Integer, primary_key=True, autoincrement=False),
    Column("train_loss", Float(53)),
    Column("validation_loss", Float(53)),
    Column("metric", Float(53)),
    Column("gradient_norm", Float(53)),
    Column("seconds", Float(53), nullable=False),
    Column("failure", Text),
)

CHECKPOINTS = Table(
    "tunecli_checkpoints",
    _ours,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("fidelity", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
)

READINGS = Table(
    "tunecli_readings",
    _ours,
    Column("reading_id", Integer, primary_key=True),
    Column("study_id", Integer, nullable=False),
    Column("read_at", DateTime, nullable=False),
    Column("split", String(16), nullable=False),
    Column("purpose", String(64), nullable=False),
    Column("trial_number", Integer),
    Column("values", Text, nullable=False),
)


MARKS = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))
"""Optuna's table of what is noted of a study, which it deletes with the study."""


def mark(study_id: int, created: datetime) -> dict[str, object]:
    """The note by which a study is known to be ours: SQLite gives the id of a deleted one to the next."""
    return {"study_id": study_id, "key": "tunecli", "value_json": json.dumps(created.isoformat())}


def connect(path: Path, *, write: bool) -> Engine:
    """An SQLAlchemy engine on a study's database, with transactions that begin when they say so.

    A reader sees whole ticks only: its BEGIN covers all its queries. A writer takes the write lock at BEGIN.
    """
    engine = create_engine(
        # A reader too: SQLite must be able to roll back what a kill left half written. It falls back to reading alone.
        _url(path),
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


def create(path: Path, name: str, direction: str, row: Mapping[str, object]) -> None:
    """A new database with one empty study, put in place in one step: a kill leaves either none or a whole one.

    Raises StorageError.
    """
    import optuna
    from optuna.storages import RDBStorage
    from optuna.study import StudyDirection

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    unfinished = path.with_name(path.name + ".new")
    try:
        make_folder(path.parent)
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        storage = RDBStorage(_url(unfinished).render_as_string())
        study_id = storage.create_new_study([StudyDirection[direction.upper()]], name)
        _ours.create_all(storage.engine)
        values = {"study_id": study_id, "version": SCHEMA_VERSION, "fence": 0, "created": (now := utc_now()), **row}
        with storage.engine.begin() as connection:
            connection.execute(insert(STUDIES).values(values))
            connection.execute(insert(MARKS).values(mark(study_id, now)))
        storage.remove_session()
        storage.engine.dispose()
        os.fsync(descriptor)
        os.close(descriptor)
        unfinished.replace(path)
        sync_folder(path.parent)
    except (OSError, SQLAlchemyError) as error:
        raise unwritable(path, error) from error


def tables(connection: Connection) -> dict[str, Table]:
    """Optuna's tables by name, read from the database itself."""
    found = MetaData()
    found.reflect(connection, only=OPTUNA_TABLES)
    return dict(found.tables)


def is_unfinished(path: Path) -> bool:
    """Whether there is no study yet: no database, or the empty file that a kill left."""
    return not path.exists() or path.stat().st_size == 0


def utc_now() -> datetime:
    """Naive UTC, as Optuna stores it."""
    return datetime.now(UTC).replace(tzinfo=None)


def unwritable(path: Path, error: Exception) -> StorageError:
    detail = getattr(error, "orig", None) or error
    return StorageError(
        f"cannot write {path}: {detail}", hint="free some space or mend the permissions, then run it again"
    )


def unreadable(path: Path, error: Exception) -> InputError:
    detail = getattr(error, "orig", None) or error
    return InputError(f"cannot read {path}: {detail}", hint="is it a study's database?")


def _url(path: Path) -> URL:
    """As a URI, for a folder's name may hold what has a meaning in a URL."""
    return URL.create("sqlite", database=f"file:{quote(str(path.resolve()))}", query={"mode": "rw", "uri": "true"})
