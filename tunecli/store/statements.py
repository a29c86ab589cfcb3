"""What a writer sends for many rows, as the database's driver takes it.

SQLAlchemy says once how a statement is written in the words of the database. It would also look at every row anew,
which takes several times as long as to send it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Delete, Dialect, Float, Insert, Table, Update, bindparam, delete, insert, update
from sqlalchemy.sql.compiler import SQLCompiler

from tunecli.store.schema import CHECKPOINTS, MEASUREMENTS, QUESTIONS, READINGS, STUDIES, TRIALS

OWN = "own"
"""The trial that a row is about: its number in what is collected, its id in what is sent."""

Row = tuple[Any, ...]


class Statement:
    """One statement whose parameters have these keys, `OWN` the first of them if it is about trials."""

    def __init__(self, statement: Insert | Update | Delete, keys: Sequence[str]) -> None:
        self._statement, self._keys = statement, tuple(keys)
        self._text: str | None = None
        # What the driver does not take as it is (it does take floats), by its place; in which order it takes a row's.
        self._written: dict[int, Callable[[Any], Any]] = {}
        self._arrange: Callable[[Row], Any] = tuple

    def send(self, connection: Connection, rows: Sequence[Row], ids: Mapping[int, int]) -> None:
        """Execute it for each of the rows, which have values in the order of the keys. `ids` are those of trials, by
        number."""
        if self._text is None:
            self._text = self._compile(connection.dialect)
        if self._keys[0] == OWN:
            rows = [(ids[row[0]], *row[1:]) for row in rows]
        for place, process in self._written.items():
            rows = [(*row[:place], process(row[place]), *row[place + 1 :]) for row in rows]
        connection.exec_driver_sql(self._text, list(map(self._arrange, rows)))

    def _compile(self, dialect: Dialect) -> str:
        """The statement's text; what it takes is known from then on."""
        compiled = self._statement.compile(dialect=dialect, column_keys=list(self._keys))
        assert isinstance(compiled, SQLCompiler)
        for place, key in enumerate(self._keys):
            kind = compiled.binds[key].type.dialect_impl(dialect)
            if not isinstance(kind, Float) and (process := kind.bind_processor(dialect)) is not None:
                self._written[place] = process
        if compiled.positiontup is None:
            self._arrange = self._named
        elif compiled.positiontup != list(self._keys):
            self._arrange = itemgetter(*map(self._keys.index, compiled.positiontup))
        return str(compiled)

    def _named(self, row: Row) -> dict[str, Any]:
        return dict(zip(self._keys, row, strict=True))


def prepare(optuna: Mapping[str, Table]) -> dict[str, Statement]:
    """What a transaction can hold after its new trials, in the order in which it is sent; a row has what is named.
    `optuna` are Optuna's tables."""
    trials, steps = optuna["trials"], optuna["trial_intermediate_values"]
    study = update(STUDIES).where(STUDIES.c.study_id == bindparam("study"))
    trial = update(trials).where(trials.c.trial_id == bindparam(OWN))
    own_trial = update(TRIALS).where(TRIALS.c.trial_id == bindparam(OWN))

    def of_trial(table: Table) -> Insert:
        return insert(table).values(trial_id=bindparam(OWN))

    measured = "own fidelity train_loss validation_loss metric gradient_norm seconds failure"
    found: dict[str, tuple[Insert | Update | Delete, str]] = {
        "question": (study, "study document"),
        "plan": (study, "study plan"),
        "earlier": (insert(QUESTIONS), "study_id until document changed"),
        "importance": (study, "study importance"),
        "given": (of_trial(optuna["trial_system_attributes"]), "own key value_json"),
        "begin": (trial, "own state datetime_start"),
        "param": (of_trial(optuna["trial_params"]), "own param_name param_value distribution_json"),
        "own trial": (of_trial(TRIALS), "own start_tick"),
        "step": (of_trial(steps), "own step intermediate_value intermediate_value_type"),
        "measurement": (of_trial(MEASUREMENTS), measured),
        "restart": (trial, "own datetime_start"),
        "end": (trial, "own state datetime_complete"),
        "own end": (own_trial, "own end_tick best_tick reason"),
        "value": (of_trial(optuna["trial_values"]), "own objective value value_type"),
        "attribute": (of_trial(optuna["trial_user_attributes"]), "own key value_json"),
        "keep": (of_trial(CHECKPOINTS), "own fidelity sha256"),
        "drop": (delete(CHECKPOINTS).where(CHECKPOINTS.c.trial_id == bindparam(OWN)), "own"),
        "reading": (insert(READINGS), "study_id read_at split purpose trial_number values"),
    }
    return {name: Statement(statement, keys.split()) for name, (statement, keys) in found.items()}
