"""A study's database made: Optuna's tables, ours beside them, and one study that is empty."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, delete, insert, inspect
from sqlalchemy.exc import SQLAlchemyError

from tunecli.errors import InputError
from tunecli.files import make_folder, sync_folder
from tunecli.storage import Database
from tunecli.store import blank
from tunecli.store.database import connect, one_at_a_time, optunas_url, release, unwritable
from tunecli.store.schema import MARKS, OURS, QUESTIONS, READINGS, SCHEMA_VERSION, STUDIES, mark, utc_now


def create_study(
    database: Database,
    *,
    name: str,
    metric: str,
    direction: str,
    document: Mapping[str, Any],
    plan: Mapping[str, Any],
    data_hash: str,
    environment: Mapping[str, Any],
) -> None:
    """A new database with one empty study, or an empty one more in a database that others share; whole or not at all.

    Raises StorageError, and InputError where the database is one of another version's.
    """
    row = {
        "metric": metric,
        "document": json.dumps(document),
        "plan": json.dumps(plan),
        "data_hash": data_hash,
        "environment": json.dumps(environment),
    }
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
    if not blank.recall(unfinished, OURS):
        _make_tables(unfinished)
        blank.remember(unfinished, OURS)
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
                OURS.create_all(connection)
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
