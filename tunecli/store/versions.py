"""Databases of earlier versions of tunecli, brought up to date by named steps; and studies that Optuna has deleted."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from sqlalchemy import Connection, Engine, column, create_engine, insert, inspect, select, table, update
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from tunecli.errors import InputError
from tunecli.files import open_new, sync_folder
from tunecli.store.damage import understanding
from tunecli.store.schema import (
    MARKS,
    OPTUNA_SCHEMA_VERSION,
    QUESTIONS,
    SCHEMA_VERSION,
    STUDIES,
    connect,
    mark,
    unreadable,
    unwritable,
)

_OPTUNAS = table("version_info", column("schema_version"))
_THEIRS = table("studies", column("study_id"))


def check_version(connection: Connection, path: Path) -> int:
    """Which version of ours wrote the database. Raises InputError where it is none, or one that is not understood."""
    names = set(inspect(connection).get_table_names())
    if not {_OPTUNAS.name, _THEIRS.name, MARKS.name, STUDIES.name} <= names:
        raise InputError(f"{path} is no study of tunecli", hint="`tunecli report` names the studies in the home")
    optunas = connection.execute(select(_OPTUNAS.c.schema_version)).scalar()
    version = connection.execute(select(STUDIES.c.version)).scalar()
    # SQLite keeps any value in any column.
    known = version == SCHEMA_VERSION or version in MIGRATIONS
    if optunas != OPTUNA_SCHEMA_VERSION or not known or not isinstance(version, int):
        raise InputError(
            f"{path} has schema {optunas} of Optuna and {version} of tunecli, "
            f"this version reads {OPTUNA_SCHEMA_VERSION} and {SCHEMA_VERSION}",
            hint="use the version of tunecli that wrote it",
        )
    return version


def is_deleted(path: Path) -> bool:
    """Whether `optuna delete-study` has left nothing but what we had beside the study.

    Raises InputError where another study is in its place.
    """
    with understanding(path):
        engine = connect_to_read(path)
        try:
            with engine.begin() as connection:
                if _is_there(connection):
                    return False
                if connection.execute(select(_THEIRS.c.study_id)).first() is None:
                    return True
        finally:
            engine.dispose()
    raise _gone(path, "and another study of Optuna's is in its place", "`--fresh` sets that one aside")


def check_there(connection: Connection, path: Path) -> None:
    """Raises InputError where `optuna delete-study` has deleted the study."""
    if not _is_there(connection):
        raise _gone(path, "there is nothing left to read", "`tunecli search` begins it anew")


def _is_there(connection: Connection) -> bool:
    # By its mark, not by its id: SQLite gives the id of what was deleted to the next one.
    ours = connection.execute(select(STUDIES.c.study_id, STUDIES.c.created)).one_or_none()
    if ours is None:
        return False
    wanted = mark(ours.study_id, ours.created)
    mine = [MARKS.c[name] == value for name, value in wanted.items()]
    return connection.execute(select(MARKS.c.key).where(*mine)).first() is not None


def _gone(path: Path, so: str, hint: str) -> InputError:
    return InputError(f"the study in {path} was deleted with Optuna's tools: {so}", hint=hint)


def connect_to_read(path: Path) -> Engine:
    """An engine on the database as this version has it: of an earlier one a copy in memory, brought up to date.

    Raises InputError.
    """
    engine = connect(path, write=False)
    try:
        with engine.begin() as connection:
            version = check_version(connection, path)
            if version == SCHEMA_VERSION:
                return engine
        memory = create_engine("sqlite://", poolclass=StaticPool)
        with engine.connect() as stored, memory.connect() as copy:
            _driver(stored).backup(_driver(copy))
        with memory.begin() as connection:
            _migrate(connection, version)
        engine.dispose()
        return memory
    except DatabaseError as error:
        raise unreadable(path, error) from error


def bring_up_to_date(path: Path) -> Path | None:
    """Bring the database to this version, in one transaction, after a backup beside it; returns the backup, or None
    where there was nothing to do. The caller holds the study's lock. Raises InputError, StorageError.
    """
    engine = connect(path, write=True)
    try:
        try:
            with engine.connect() as connection:
                version = check_version(connection, path)
        except DatabaseError as error:
            raise unreadable(path, error) from error
        if version == SCHEMA_VERSION:
            return None
        backup = path.with_name(f"{path.name}.schema-{version}")
        with engine.connect() as connection:
            _back_up(_driver(connection), backup)
        with engine.begin() as connection:
            _migrate(connection, version)
        return backup
    except (OSError, SQLAlchemyError, sqlite3.Error) as error:
        raise unwritable(path, error) from error
    finally:
        engine.dispose()


def _back_up(stored: sqlite3.Connection, backup: Path) -> None:
    unfinished = backup.with_name(f"{backup.name}.new")
    open_new(unfinished).close()
    copy = sqlite3.connect(unfinished)
    try:
        stored.backup(copy)
    finally:
        copy.close()
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(backup)
    sync_folder(backup.parent)


def _driver(connection: Connection) -> sqlite3.Connection:
    own = connection.connection.driver_connection
    assert isinstance(own, sqlite3.Connection)
    return own


# The steps, each from the version that it is named by to the next


def _migrate(connection: Connection, version: int) -> None:
    for step in range(version, SCHEMA_VERSION):
        MIGRATIONS[step](connection)
    connection.execute(update(STUDIES).values(version=SCHEMA_VERSION))


def add_importance(connection: Connection) -> None:
    """From 1: the importance of hparams is kept."""
    connection.exec_driver_sql("ALTER TABLE tunecli_studies ADD COLUMN importance TEXT")


def add_questions(connection: Connection) -> None:
    """From 2: a question may change, and a study is known by a mark."""
    QUESTIONS.create(connection)
    there = STUDIES.c.study_id.in_(select(_THEIRS.c.study_id))
    for study_id, created in connection.execute(select(STUDIES.c.study_id, STUDIES.c.created).where(there)).all():
        connection.execute(insert(MARKS).values(mark(study_id, created)))


MIGRATIONS: Mapping[int, Callable[[Connection], None]] = MappingProxyType({1: add_importance, 2: add_questions})
