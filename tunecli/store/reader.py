"""A study's database read: everything in one transaction, so that no half tick is ever seen."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, select

from tunecli.command import Command
from tunecli.errors import InputError
from tunecli.given import decode_given, shown
from tunecli.space import Space, build_space, external_value
from tunecli.storage import Database
from tunecli.store.damage import check_kinds, understanding
from tunecli.store.schema import (
    CHECKPOINTS,
    FIXED_PARAMS,
    MEASUREMENTS,
    QUESTIONS,
    READINGS,
    STUDIES,
    TRIALS,
    tables,
)
from tunecli.store.versions import connect_to_read, find_study, is_empty, no_study
from tunecli.trial import Hparams, Importance, Measurement, State, Trial, first_best

STATES = {
    "RUNNING": State.RUNNING,
    "COMPLETE": State.COMPLETE,
    "PRUNED": State.PRUNED,
    "FAIL": State.FAILED,
    "WAITING": State.WAITING,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a split, with its date: what for, and what was read."""

    read_at: datetime
    split: str
    purpose: str
    trial: int | None
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Earlier:
    """A question that the study was asked before: by those of its trials below `until` that no earlier one asked."""

    until: int
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """A study as its database tells it. `document` is the question as it is asked now, `earlier` as it was before, the
    oldest first. `kept`: trial -> SHA-256 of its checkpoint.

    `asked`: trial -> what it asked for, in order: name -> (Optuna's distribution as JSON, its internal value).
    `foreign`: trial -> what was enqueued for it by Optuna's names, and that no question so far had a place for.
    """

    name: str
    metric: str
    direction: str
    document: Mapping[str, Any]
    plan: Mapping[str, Any]
    data_hash: str
    environment: Mapping[str, Any]
    created: datetime
    trials: tuple[Trial, ...]
    kept: Mapping[int, str]
    readings: tuple[Reading, ...]
    importance: Importance | None
    asked: Mapping[int, Mapping[str, tuple[str, float]]]
    earlier: tuple[Earlier, ...] = ()
    foreign: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def space(self) -> Space:
        return _space(self.document)

    def shown(self) -> list[Trial]:
        """The trials as today's space has them, which leaves out those that it does not hold."""
        space, train = self.space, self.document.get("train", {})
        return [own for trial in self.trials if (own := shown(space, trial, train)) is not None]

    @property
    def of_program(self) -> bool:
        """Whether its trials are runs of a user's program."""
        return "program" in self.document

    @property
    def command(self) -> Command | None:
        """What its trials ran, where they ran one."""
        text = self.document.get("program", {}).get("command")
        return None if text is None else Command.parse(text)


def _space(document: Mapping[str, Any]) -> Space:
    return build_space(document.get("space", {}), document.get("train", {}))


def read(database: Database) -> Record:
    """The study in this database. Raises InputError where there is none."""
    if is_empty(database):
        raise no_study(database)
    with understanding(database):
        engine = connect_to_read(database)
        try:
            with engine.begin() as connection:
                record = _record(connection, tables(connection), find_study(connection, database))
        finally:
            engine.dispose()
        check_kinds(record)
        return record


def _record(connection: Connection, found: Mapping[str, Table], study_id: int) -> Record:
    ours = connection.execute(select(STUDIES).where(STUDIES.c.study_id == study_id)).mappings().one()
    studies, directions = found["studies"], found["study_directions"]
    name = connection.execute(select(studies.c.study_name).where(studies.c.study_id == study_id)).scalar_one()
    direction = connection.execute(select(directions.c.direction).where(directions.c.study_id == study_id)).scalar_one()
    document = json.loads(ours["document"])
    params = _params(connection, found, study_id)
    earlier = _earlier(connection, study_id)
    of_program = "program" in document
    spaces = [] if of_program else [_space(own) for own in (*(own.document for own in earlier), document)]
    limits = [own.until for own in earlier]

    def hparams(number: int, trial_id: int) -> Hparams:
        if of_program:
            # What a program is asked with, it alone knows: each value speaks for itself.
            return {name: external_value(*own) for name, own in params[trial_id].items()}
        asked = spaces[bisect_right(limits, number)]
        return asked.decode({name: internal for name, (_, internal) in params[trial_id].items()})

    steps = _steps(connection, found, study_id) if of_program else None
    fixed = {} if of_program else _fixed(connection, found, study_id)

    def given(number: int, trial_id: int) -> Hparams:
        return _given(fixed.get(trial_id, {}), spaces[bisect_right(limits, number) :: -1])

    trials, ids = _trials(connection, found, study_id, hparams, given, steps, direction.lower())
    mine = select(found["trials"].c.trial_id).where(found["trials"].c.study_id == study_id)
    checkpoints = select(CHECKPOINTS).where(CHECKPOINTS.c.trial_id.in_(mine))
    kept = {ids[row.trial_id]: row.sha256 for row in connection.execute(checkpoints)}
    readings = connection.execute(select(READINGS).where(READINGS.c.study_id == study_id).order_by("reading_id"))
    return Record(
        name=name,
        metric=ours["metric"],
        direction=direction.lower(),
        document=document,
        plan=json.loads(ours["plan"]),
        data_hash=ours["data_hash"],
        environment=json.loads(ours["environment"]),
        created=ours["created"],
        trials=tuple(trials),
        importance=Importance(**json.loads(ours["importance"])) if ours["importance"] else None,
        asked={ids[trial_id]: own for trial_id, own in params.items()},
        kept=kept,
        earlier=earlier,
        foreign={
            ids[trial_id]: own
            for trial_id, labels in fixed.items()
            if (own := {name: labels[name] for name in labels if not _given({name: labels[name]}, spaces)})
        },
        readings=tuple(
            Reading(row.read_at, row.split, row.purpose, row.trial_number, json.loads(row.values)) for row in readings
        ),
    )


def _earlier(connection: Connection, study_id: int) -> tuple[Earlier, ...]:
    mine = select(QUESTIONS).where(QUESTIONS.c.study_id == study_id).order_by(QUESTIONS.c.until)
    return tuple(Earlier(row.until, json.loads(row.document)) for row in connection.execute(mine))


def _params(
    connection: Connection, found: Mapping[str, Table], study_id: int
) -> dict[int, dict[str, tuple[str, float]]]:
    """Trial id -> name -> (distribution, internal value) of every trial, in the order in which they were asked for."""
    trials, table = found["trials"], found["trial_params"]
    mine = select(trials.c.trial_id).where(trials.c.study_id == study_id)
    params: dict[int, dict[str, tuple[str, float]]] = {trial_id: {} for (trial_id,) in connection.execute(mine)}
    columns = (table.c.trial_id, table.c.param_name, table.c.distribution_json, table.c.param_value)
    for trial_id, name, distribution, value in connection.execute(
        select(*columns).where(table.c.trial_id.in_(mine)).order_by(table.c.param_id)
    ):
        params[trial_id][name] = (distribution, value)
    return params


def _fixed(connection: Connection, found: Mapping[str, Table], study_id: int) -> dict[int, Mapping[str, Any]]:
    """Trial id -> what was fixed by hand, by Optuna's names, through `search --try` or Optuna's `enqueue_trial`."""
    trials, attributes = found["trials"], found["trial_system_attributes"]
    fixed = (
        select(trials.c.trial_id, attributes.c.value_json)
        .join(attributes, attributes.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id, attributes.c.key == FIXED_PARAMS)
    )
    return {trial_id: json.loads(text) for trial_id, text in connection.execute(fixed)}


def _given(labels: Mapping[str, Any], spaces: Iterable[Space]) -> Hparams:
    """The hparams that are meant: by the space of a trial's time, and else by the latest before, in which it waited."""
    given: Hparams = {}
    for space in spaces:
        given = {**decode_given(space, labels), **given}
    return given


def _steps(connection: Connection, found: Mapping[str, Table], study_id: int) -> dict[tuple[int, int], int]:
    """(trial id, fidelity) -> the number that the program gave its report, where that is another."""
    trials, table = found["trials"], found["trial_intermediate_values"]
    mine = select(trials.c.trial_id).where(trials.c.study_id == study_id)
    reported = select(table.c.trial_id, table.c.step).where(table.c.trial_id.in_(mine))
    count: Counter[int] = Counter()
    steps: dict[tuple[int, int], int] = {}
    for trial_id, step in connection.execute(reported.order_by(table.c.trial_intermediate_value_id)):
        count[trial_id] += 1
        if step != count[trial_id]:
            steps[trial_id, count[trial_id]] = step
    return steps


def _trials(
    connection: Connection,
    found: Mapping[str, Table],
    study_id: int,
    hparams: Callable[[int, int], Hparams],
    given: Callable[[int, int], Hparams],
    steps: Mapping[tuple[int, int], int] | None,
    direction: str,
) -> tuple[list[Trial], dict[int, int]]:
    """All trials in the order of their numbers, and trial id -> number."""
    trials = found["trials"]
    mine = select(trials.c.trial_id).where(trials.c.study_id == study_id)
    values = found["trial_values"]
    value_of = {
        row.trial_id: finite_or_infinite(row.value, row.value_type)
        for row in connection.execute(select(values).where(values.c.trial_id.in_(mine)))
    }
    numbers = {
        row.trial_id: row.number for row in connection.execute(select(trials).where(trials.c.study_id == study_id))
    }
    curves: dict[int, list[Measurement]] = defaultdict(list)
    measured = select(MEASUREMENTS).where(MEASUREMENTS.c.trial_id.in_(mine))
    for row in connection.execute(measured.order_by("trial_id", "fidelity")):
        curves[row.trial_id].append(
            Measurement(
                trial=numbers[row.trial_id],
                fidelity=row.fidelity,
                train_loss=_number(row.train_loss),
                validation_loss=_number(row.validation_loss),
                metric=_number(row.metric),
                gradient_norm=_number(row.gradient_norm),
                seconds=row.seconds,
                failure=row.failure,
                step=steps.get((row.trial_id, row.fidelity)) if steps is not None else None,
            )
        )
    ours = {row.trial_id: row for row in connection.execute(select(TRIALS).where(TRIALS.c.trial_id.in_(mine)))}
    result: list[Trial] = []
    for row in connection.execute(select(trials).where(trials.c.study_id == study_id).order_by(trials.c.number)):
        own = ours.get(row.trial_id)
        if row.number != len(result):
            # Folders are named by it: from a hostile database it could be a text with a path in it.
            raise InputError(f"trial {len(result)} is missing, found {row.number!r}", hint="is it a study's database?")
        by_hand = given(row.number, row.trial_id)
        if own is None and row.state == "WAITING":
            result.append(Trial(row.number, State.WAITING, by_hand, start_tick=0, given=by_hand))
            continue
        if own is None:
            raise InputError(
                f"trial {row.number} was not written by tunecli",
                hint="a study of tunecli has one writer: tunecli search",
            )
        state, curve = STATES[row.state], curves[row.trial_id]
        seconds = sum((measurement.seconds for measurement in curve), 0.0)
        if steps is not None and row.datetime_complete is not None:
            # A program's reports do not tell all of its time, and it may make none.
            seconds = (row.datetime_complete - row.datetime_start).total_seconds()
        value, best_tick = value_of.get(row.trial_id), own.best_tick
        if not state.ended and (best := first_best(curve, direction)):
            # Written when the trial ends; until then its curve tells.
            value, best_tick = best.metric, best.fidelity
        result.append(
            Trial(
                number=row.number,
                state=state,
                hparams=hparams(row.number, row.trial_id),
                start_tick=own.start_tick,
                end_tick=own.end_tick,
                value=value,
                best_tick=best_tick,
                seconds=seconds,
                reason=own.reason,
                curve=tuple(curve),
                given=by_hand,
            )
        )
    return result, numbers


def _number(value: float | None) -> float:
    """SQLite keeps a NaN as NULL."""
    return math.nan if value is None else value


def finite_or_infinite(value: float | None, kind: str) -> float | None:
    return {"INF_POS": math.inf, "INF_NEG": -math.inf}.get(kind, value)
