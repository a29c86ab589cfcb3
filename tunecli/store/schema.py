"""The tables: Optuna's own, as it creates them, and ours beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    column,
    delete,
    insert,
    inspect,
    select,
    table,
)
from sqlalchemy.exc import SQLAlchemyError

from tunecli.errors import InputError
from tunecli.files import make_folder, sync_folder
from tunecli.storage import Database
from tunecli.store import blank
from tunecli.store.database import connect, one_at_a_time, optunas_url, release, unwritable

SCHEMA_VERSION = 3
OPTUNA_SCHEMA_VERSION = 12

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
    # No lengths where a user has a say: PostgreSQL keeps to them.
    Column("metric", Text, nullable=False),
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
    Column("purpose", Text, nullable=False),
    Column("trial_number", Integer),
    Column("values", Text, nullable=False),
)

MARKS = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))
"""Optuna's table of what is noted of a study, which it deletes with the study."""


def mark(study_id: int, created: datetime) -> dict[str, object]:
    """The note by which a study is known to be ours: SQLite gives the id of a deleted one to the next."""
    return {"study_id": study_id, "key": "tunecli", "value_json": json.dumps(created.isoformat())}


def create(database: Database, name: str, direction: str, row: Mapping[str, object]) -> None:
    """A database with one empty study, or one study more in a database that others share; whole or not at all.

    Raises StorageError, and InputError where the database is one of another version's.
    """
    try:
        if isinstance(database, Path):
            _put_in_place(database, name, direction, row)
        else:
            _make_tables(database)
            _insert_study(database, database.study, direction, row)
    except (OSError, SQLAlchemyError) as error:
        raise unwritable(database, error) from error


def _put_in_place(path: Path, name: str, direction: str, row: Mapping[str, object]) -> None:
    """A kill leaves either no file or a whole one."""
    unfinished = path.with_name(path.name + ".new")
    make_folder(path.parent)
    unfinished.unlink(missing_ok=True)
    if not blank.recall(unfinished, _ours):
        _make_tables(unfinished)
        blank.remember(unfinished, _ours)
    _insert_study(unfinished, name, direction, row)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def _make_tables(database: Database) -> None:
    """Optuna's tables and ours, where they are missing; ours come last and at once: what a kill left is made whole."""
    with one_at_a_time(database):
        engine = connect(database, write=True)
        try:
            with engine.begin() as connection:
                if inspect(connection).has_table(STUDIES.name):
                    return
            _make_optunas(database)
            with engine.begin() as connection:
                _ours.create_all(connection)
        finally:
            release(database, engine)


def _make_optunas(database: Database) -> None:
    import optuna
    from optuna.storages import RDBStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url, options = optunas_url(database)
    try:
        storage = RDBStorage(url.render_as_string(), options)
    except RuntimeError as error:  # it has tables already, of another version
        raise InputError(f"{database}: {error}", hint="use another database") from error
    storage.remove_session()
    storage.engine.dispose()


def _insert_study(database: Database, name: str, direction: str, row: Mapping[str, object]) -> None:
    engine = connect(database, write=True)
    try:
        with engine.begin() as connection:
            optunas = MetaData()
            optunas.reflect(connection, only=("studies", "study_directions"))
            studies, directions = optunas.tables["studies"], optunas.tables["study_directions"]
            made = connection.execute(insert(studies).values(study_name=name)).inserted_primary_key
            assert made is not None
            study_id, now = made[0], utc_now()
            way = {"study_id": study_id, "objective": 0, "direction": direction.upper()}
            connection.execute(insert(directions).values(way))
            for own in (STUDIES, QUESTIONS, READINGS):
                # SQLite gives it the id of one that `optuna delete-study` deleted.
                connection.execute(delete(own).where(own.c.study_id == study_id))
            values = {"study_id": study_id, "version": SCHEMA_VERSION, "fence": 0, "created": now, **row}
            connection.execute(insert(STUDIES).values(values))
            connection.execute(insert(MARKS).values(mark(study_id, now)))
    finally:
        release(database, engine)


def sweep(connection: Connection) -> None:
    """Delete what we have of studies that `optuna delete-study` deleted from a database that others share."""
    theirs, trials = table("studies", column("study_id")), table("trials", column("trial_id"), column("study_id"))
    for own in (STUDIES, QUESTIONS, READINGS):
        connection.execute(delete(own).where(own.c.study_id.not_in(select(theirs.c.study_id))))
    there = select(trials.c.trial_id).join(STUDIES, STUDIES.c.study_id == trials.c.study_id)
    gone = select(TRIALS.c.trial_id).where(TRIALS.c.trial_id.not_in(there))
    if connection.execute(gone).first() is not None:
        for own in (MEASUREMENTS, CHECKPOINTS, TRIALS):
            connection.execute(delete(own).where(own.c.trial_id.in_(gone)))


def tables(connection: Connection) -> dict[str, Table]:
    """Optuna's tables by name, read from the database itself."""
    found = MetaData()
    found.reflect(connection, only=OPTUNA_TABLES)
    return dict(found.tables)


def utc_now() -> datetime:
    """Naive UTC, as Optuna stores it."""
    return datetime.now(UTC).replace(tzinfo=None)
