"""A database is data that anyone may have written: what cannot be understood in it is an InputError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from tunecli.errors import InputError
from tunecli.storage import Database
from tunecli.store.database import damaged_hint, unreadable
from tunecli.store.record import Record

_NOT_UNDERSTOOD = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, SQLAlchemyError)
"""What reading raises where rows are missing, or a column, or a value is of another kind than was written."""


@contextmanager
def understanding(database: Database) -> Iterator[None]:
    """Read a database in this block. Raises InputError for what is in it."""
    try:
        yield
    except DatabaseError as error:
        raise unreadable(database, error) from error
    except _NOT_UNDERSTOOD as error:
        raise InputError(
            f"cannot read {database}: it holds what tunecli never writes ({type(error).__name__}: {error})",
            hint=damaged_hint(database),
        ) from error


def check_kinds(record: Record) -> None:
    """Raises TypeError or ValueError for what no search records."""
    check_direction(record.direction)
    check_kind(str, record.name, record.metric, record.data_hash, *record.kept.values())
    check_kind(Mapping, record.document, record.plan, record.environment, *(own.values for own in record.readings))
    check_kind(int, record.document["search"]["trials"], *record.kept)
    if not record.of_program:
        check_kind(int, record.document["train"]["epochs"])
    for trial in record.trials:
        check_kind(int, trial.number, trial.start_tick)
        check_kind((int, type(None)), trial.end_tick, trial.best_tick)
        check_kind((int, float, type(None)), trial.value)
        check_kind((str, type(None)), trial.reason)
        # None is a choice that a program may ask for.
        check_kind((bool, int, float, str, tuple, type(None)), *trial.hparams.values())
        for place, own in enumerate(trial.curve, start=1):
            if own.fidelity != place:
                raise ValueError(f"trial {trial.number} lacks its measurement {place}")
            check_kind((int, float), own.train_loss, own.validation_loss, own.metric, own.gradient_norm, own.seconds)
            check_kind((str, type(None)), own.failure)


def check_direction(direction: str) -> None:
    if direction not in ("maximize", "minimize"):
        raise ValueError(f"direction {direction!r}")


def check_kind(kind: type | tuple[type, ...], *values: object) -> None:
    """SQLite keeps any value in any column. Raises TypeError for one of another kind than its column's."""
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"{value!r} is a {type(value).__name__}")
