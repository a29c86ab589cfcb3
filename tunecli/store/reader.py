"""A study's database read: everything in one transaction, so that no half tick is ever seen."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Table, select

from tunecli.errors import InputError
from tunecli.given import decode_given
from tunecli.space import Space, external_value
from tunecli.storage import Database
from tunecli.store.damage import check_kinds, understanding
from tunecli.store.record import Earlier, Reading, Record, space_of
from tunecli.store.schema import (
    CHECKPOINTS,
    FIXED_PARAMS,
    MEASUREMENTS,
    QUESTIONS,
    READINGS,
    STATES,
    STUDIES,
    TRIALS,
    number_of,
    tables,
)
from tunecli.store.versions import connect_to_read, find_study, is_empty, no_study
from tunecli.trial import Hparams, Importance, Measurement, State, Trial, first_best

Params = Mapping[int, Mapping[str, tuple[str, float]]]
"""Trial id -> name -> (distribution, internal value), in the order in which they were asked for."""


def read(database: Database) -> Record:
    """The study in this database. Raises InputError where there is none."""
    if is_empty(database):
        raise no_study(database)
    with understanding(database):
        engine = connect_to_read(database)
        try:
            with engine.begin() as connection:
                record = _record(_Rows(connection, find_study(connection, database)))
        finally:
            engine.dispose()
        check_kinds(record)
        return record


class _Rows:
    """The rows of one study and of its trials."""

    def __init__(self, connection: Connection, study_id: int) -> None:
        self._connection, self._study_id, self.optunas = connection, study_id, tables(connection)
        trials = self.optunas["trials"]
        self._mine = select(trials.c.trial_id).where(trials.c.study_id == study_id)

    def of_study(self, table: Table, *order: str) -> list[Any]:
        mine = table.c.study_id == self._study_id
        return list(self._connection.execute(select(table).where(mine).order_by(*(table.c[name] for name in order))))

    def of_trials(self, table: Table, *order: str, columns: Sequence[str] = ()) -> Iterable[Any]:
        """With all columns, or some. Where there are many rows, they are read sooner by place than by name."""
        asked = select(*(table.c[name] for name in columns)) if columns else select(table)
        mine = table.c.trial_id.in_(self._mine)
        return self._connection.execute(asked.where(mine).order_by(*(table.c[name] for name in order))).all()


class _Meaning:
    """What stored values mean: each trial was asked by the space of its time, and a program by none."""

    def __init__(self, earlier: Sequence[Earlier], document: Mapping[str, Any]) -> None:
        self.of_program = "program" in document
        self._limits = [own.until for own in earlier]
        documents = [] if self.of_program else [*(own.document for own in earlier), document]
        self._spaces = [space_of(own) for own in documents]

    def hparams(self, number: int, params: Mapping[str, tuple[str, float]]) -> Hparams:
        if self.of_program:
            # What a program is asked with, it alone knows: each value speaks for itself.
            return {name: external_value(*own) for name, own in params.items()}
        space = self._spaces[bisect_right(self._limits, number)]
        return space.decode({name: internal for name, (_, internal) in params.items()})

    def given(self, number: int, labels: Mapping[str, Any]) -> Hparams:
        """What was fixed by hand: by the space of a trial's time, and else by the latest before, in which it waited."""
        return _decoded(labels, self._spaces[bisect_right(self._limits, number) :: -1])

    def foreign(self, labels: Mapping[str, Any]) -> dict[str, Any]:
        """What no question so far had a place for."""
        return {name: label for name, label in labels.items() if not _decoded({name: label}, self._spaces)}


def _decoded(labels: Mapping[str, Any], spaces: Iterable[Space]) -> Hparams:
    given: Hparams = {}
    for space in spaces:
        given = {**decode_given(space, labels), **given}
    return given


def _record(rows: _Rows) -> Record:
    (ours,), (study,) = rows.of_study(STUDIES), rows.of_study(rows.optunas["studies"])
    (directed,) = rows.of_study(rows.optunas["study_directions"])
    document, direction = json.loads(ours.document), directed.direction.lower()
    earlier = tuple(Earlier(row.until, json.loads(row.document)) for row in rows.of_study(QUESTIONS, "until"))
    meaning = _Meaning(earlier, document)
    params, fixed = _params(rows), {} if meaning.of_program else _fixed(rows)
    theirs = rows.of_study(rows.optunas["trials"], "number")
    numbers = {row.trial_id: row.number for row in theirs}
    return Record(
        name=study.study_name,
        metric=ours.metric,
        direction=direction,
        document=document,
        plan=json.loads(ours.plan),
        data_hash=ours.data_hash,
        environment=json.loads(ours.environment),
        created=ours.created,
        trials=tuple(_trials(rows, theirs, meaning, params, fixed, direction)),
        importance=Importance(**json.loads(ours.importance)) if ours.importance else None,
        asked={number: params[trial_id] for trial_id, number in numbers.items()},
        kept={numbers[row.trial_id]: row.sha256 for row in rows.of_trials(CHECKPOINTS)},
        earlier=earlier,
        foreign={numbers[own]: foreign for own, labels in fixed.items() if (foreign := meaning.foreign(labels))},
        readings=tuple(
            Reading(row.read_at, row.split, row.purpose, row.trial_number, json.loads(row.values))
            for row in rows.of_study(READINGS, "reading_id")
        ),
    )


def _params(rows: _Rows) -> Params:
    params: dict[int, dict[str, tuple[str, float]]] = defaultdict(dict)
    columns, table = ("trial_id", "param_name", "distribution_json", "param_value"), rows.optunas["trial_params"]
    for trial_id, name, distribution, value in rows.of_trials(table, "param_id", columns=columns):
        params[trial_id][name] = (distribution, value)
    return params


def _fixed(rows: _Rows) -> dict[int, Mapping[str, Any]]:
    """Trial id -> what was fixed by hand, by Optuna's names, through `search --try` or Optuna's `enqueue_trial`."""
    attributes = rows.of_trials(rows.optunas["trial_system_attributes"])
    return {row.trial_id: json.loads(row.value_json) for row in attributes if row.key == FIXED_PARAMS}


def _steps(rows: _Rows) -> dict[tuple[int, int], int]:
    """(trial id, fidelity) -> the number that the program gave its report, where that is another."""
    count: Counter[int] = Counter()
    steps: dict[tuple[int, int], int] = {}
    for row in rows.of_trials(rows.optunas["trial_intermediate_values"], "trial_intermediate_value_id"):
        count[row.trial_id] += 1
        if row.step != count[row.trial_id]:
            steps[row.trial_id, count[row.trial_id]] = row.step
    return steps


def _curves(rows: _Rows, numbers: Mapping[int, int], *, of_program: bool) -> dict[int, list[Measurement]]:
    """Trial id -> what it showed, tick by tick."""
    steps = _steps(rows) if of_program else {}
    curves: dict[int, list[Measurement]] = defaultdict(list)
    found = rows.of_trials(MEASUREMENTS, "trial_id", "fidelity", columns=("trial_id", *_SHOWN))
    for trial_id, fidelity, train_loss, validation_loss, metric, gradient_norm, seconds, failure in found:
        curves[trial_id].append(
            Measurement(
                trial=numbers[trial_id],
                fidelity=fidelity,
                train_loss=_number(train_loss),
                validation_loss=_number(validation_loss),
                metric=_number(metric),
                gradient_norm=_number(gradient_norm),
                seconds=seconds,
                failure=failure,
                step=steps.get((trial_id, fidelity)),
            )
        )
    return curves


_SHOWN = ("fidelity", "train_loss", "validation_loss", "metric", "gradient_norm", "seconds", "failure")


def _trials(
    rows: _Rows,
    theirs: Sequence[Any],
    meaning: _Meaning,
    params: Params,
    fixed: Mapping[int, Mapping[str, Any]],
    direction: str,
) -> Iterator[Trial]:
    """All trials in the order of their numbers."""
    curves = _curves(rows, {row.trial_id: row.number for row in theirs}, of_program=meaning.of_program)
    values = rows.of_trials(rows.optunas["trial_values"])
    value_of = {row.trial_id: number_of(row.value, row.value_type) for row in values}
    ours = {row.trial_id: row for row in rows.of_trials(TRIALS)}
    for place, row in enumerate(theirs):
        if row.number != place:
            # Folders are named by it: from a hostile database it could be a text with a path in it.
            raise InputError(f"trial {place} is missing, found {row.number!r}", hint="is it a study's database?")
        own, by_hand = ours.get(row.trial_id), meaning.given(place, fixed.get(row.trial_id, {}))
        if own is None and row.state == "WAITING":
            yield Trial(place, State.WAITING, by_hand, start_tick=0, given=by_hand)
            continue
        if own is None:
            raise InputError(
                f"trial {place} was not written by tunecli", hint="a study of tunecli has one writer: tunecli search"
            )
        trial = Trial(
            number=place,
            state=STATES[row.state],
            hparams=meaning.hparams(place, params[row.trial_id]),
            start_tick=own.start_tick,
            end_tick=own.end_tick,
            value=value_of.get(row.trial_id),
            best_tick=own.best_tick,
            seconds=sum((measurement.seconds for measurement in curves[row.trial_id]), 0.0),
            reason=own.reason,
            curve=tuple(curves[row.trial_id]),
            given=by_hand,
        )
        if not trial.state.ended and (best := first_best(trial.curve, direction)):
            # Written when the trial ends; until then its curve tells.
            trial = replace(trial, value=best.metric, best_tick=best.fidelity)
        if meaning.of_program and row.datetime_complete is not None:
            # A program's reports do not tell all of its time, and it may make none.
            trial = replace(trial, seconds=(row.datetime_complete - row.datetime_start).total_seconds())
        yield trial


def _number(value: float | None) -> float:
    """SQLite keeps a NaN as NULL."""
    return math.nan if value is None else value
