"""Databases of earlier versions of tunecli, brought up to date by named steps; and studies that Optuna has deleted."""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    column,
    create_engine,
    insert,
    inspect,
    select,
    table,
    update,
)
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from tunecli.errors import InputError
from tunecli.files import open_new, sync_folder
from tunecli.storage import Address, Database, Shared
from tunecli.store.damage import understanding
from tunecli.store.database import connect, file_of, release, unreadable, unwritable
from tunecli.store.schema import (
    MARKS,
    OPTUNA_SCHEMA_VERSION,
    QUESTIONS,
    SCHEMA_VERSION,
    STUDIES,
    mark,
)

_OPTUNAS = table("version_info", column("schema_version"))
_THEIRS = table("studies", column("study_id"), column("study_name"))


def check_version(connection: Connection, database: Database) -> int:
    """Which version of ours wrote the study. Raises InputError where it is none, or one that is not understood."""
    if not _has_tables(connection):
        if isinstance(database, Shared):
            raise no_study(database)
        raise InputError(f"{database} is no study of tunecli", hint="`tunecli report` names the studies in the home")
    optunas = connection.execute(select(_OPTUNAS.c.schema_version)).scalar()
    ours = select(STUDIES.c.version)
    if isinstance(database, Shared):
        ours = ours.where(STUDIES.c.study_id == find_study(connection, database))
    version = connection.execute(ours).scalar()
    # SQLite keeps any value in any column.
    known = version == SCHEMA_VERSION or (version in MIGRATIONS and not isinstance(database, Shared))
    if optunas != OPTUNA_SCHEMA_VERSION or not known or not isinstance(version, int):
        raise InputError(
            f"{database} has schema {optunas} of Optuna and {version} of tunecli, "
            f"this version reads {OPTUNA_SCHEMA_VERSION} and {SCHEMA_VERSION}",
            hint="use the version of tunecli that wrote it",
        )
    return version


def _has_tables(connection: Connection) -> bool:
    return {_OPTUNAS.name, _THEIRS.name, MARKS.name, STUDIES.name} <= set(inspect(connection).get_table_names())


def is_unfinished(database: Database) -> bool:
    """Whether there is no study yet: no database, the empty file that a kill left, or none of this name.

    Raises InputError, StorageError.
    """
    if is_empty(database) or not isinstance(database, Shared):
        return is_empty(database)
    with understanding(database):
        engine = connect(database, write=False)
        try:
            with engine.begin() as connection:
                named = select(_THEIRS.c.study_id).where(_THEIRS.c.study_name == database.study)
                return not _has_tables(connection) or connection.execute(named).first() is None
        finally:
            engine.dispose()


def is_empty(database: Database) -> bool:
    """Whether its file is not there, or is the empty one that a kill left."""
    file = file_of(database)
    return file is not None and (not file.exists() or file.stat().st_size == 0)


def is_deleted(database: Database) -> bool:
    """Whether `optuna delete-study` has left nothing but what we had beside the study.

    Raises InputError where another study is in its place.
    """
    if isinstance(database, Shared):
        return False  # then there is none of its name
    with understanding(database):
        engine = connect_to_read(database)
        try:
            with engine.begin() as connection:
                if _find(connection) is not None:
                    return False
                if connection.execute(select(_THEIRS.c.study_id)).first() is None:
                    return True
        finally:
            engine.dispose()
    raise _gone(database, "and another study of Optuna's is in its place", "`--fresh` sets that one aside")


def find_study(connection: Connection, database: Database) -> int:
    """The study's id. Raises InputError where it is not there, or was deleted with `optuna delete-study`."""
    if not isinstance(database, Shared):
        if (only := _find(connection)) is None:
            raise _gone(database, "there is nothing left to read", "`tunecli search` begins it anew")
        return only
    named = select(_THEIRS.c.study_id).where(_THEIRS.c.study_name == database.study)
    found: int | None = connection.execute(named).scalar()
    if found is None:
        raise no_study(database)
    if _find(connection, STUDIES.c.study_id == found) is None:
        raise InputError(
            f"the study {database.study} in {database} is not one of tunecli",
            hint="give this one another name (--set name=NEW)",
        )
    return found


def studies_in(address: Address) -> list[Shared]:
    """The studies of tunecli in a database that several share, by name. Raises InputError, StorageError."""
    database = Shared(address, "")
    if is_empty(database):
        return []
    with understanding(database):
        engine = connect(database, write=False)
        try:
            with engine.begin() as connection:
                if not _has_tables(connection):
                    return []
                ours = select(_THEIRS.c.study_name).join(STUDIES, STUDIES.c.study_id == _THEIRS.c.study_id)
                return [Shared(address, name) for name in sorted(connection.execute(ours).scalars())]
        finally:
            engine.dispose()


def rename(database: Shared, name: str) -> None:
    """Give the study another name. Raises StorageError; the caller holds it."""
    engine = connect(database, write=True)
    try:
        with engine.begin() as connection:
            own = _THEIRS.c.study_id == find_study(connection, database)
            connection.execute(update(_THEIRS).where(own).values(study_name=name))
    except SQLAlchemyError as error:
        raise unwritable(database, error) from error
    finally:
        release(database, engine)


def _find(connection: Connection, *among: ColumnElement[bool]) -> int | None:
    # By its mark, not by its id: SQLite gives the id of what was deleted to the next one.
    ours = connection.execute(select(STUDIES.c.study_id, STUDIES.c.created).where(*among)).one_or_none()
    if ours is None:
        return None
    wanted = mark(ours.study_id, ours.created)
    mine = [MARKS.c[name] == value for name, value in wanted.items()]
    return ours.study_id if connection.execute(select(MARKS.c.key).where(*mine)).first() is not None else None


def no_study(database: Database) -> InputError:
    if isinstance(database, Shared):
        return InputError(
            f"no study {database.study!r} in {database}",
            hint=f"tunecli ls --storage {shlex.quote(str(database))} lists them",
        )
    return InputError(f"no study at {database.parent}", hint="`tunecli search` begins one")


def _gone(database: Database, so: str, hint: str) -> InputError:
    return InputError(f"the study in {database} was deleted with Optuna's tools: {so}", hint=hint)


def connect_to_read(database: Database) -> Engine:
    """An engine on the database as this version has it: of an earlier one a copy in memory, brought up to date.

    Raises InputError.
    """
    engine = connect(database, write=False)
    try:
        with engine.begin() as connection:
            version = check_version(connection, database)
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
        raise unreadable(database, error) from error


def bring_up_to_date(database: Database) -> Path | None:
    """Bring the database to this version, in one transaction, after a backup beside it; returns the backup, or None
    where there was nothing to do. The caller holds the study's lock. Raises InputError, StorageError.

    A database that several studies share is of this version or refused: its tables are others' as well, whose writers
    hold no lock that this one could wait for.
    """
    engine = connect(database, write=True)
    try:
        try:
            with engine.connect() as connection:
                version = check_version(connection, database)
        except DatabaseError as error:
            raise unreadable(database, error) from error
        if version == SCHEMA_VERSION:
            return None
        assert isinstance(database, Path)
        backup = database.with_name(f"{database.name}.schema-{version}")
        with engine.connect() as connection:
            _back_up(_driver(connection), backup)
        with engine.begin() as connection:
            _migrate(connection, version)
        return backup
    except (OSError, SQLAlchemyError, sqlite3.Error) as error:
        raise unwritable(database, error) from error
    finally:
        release(database, engine)


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
