"""A study's database read: everything in one transaction, so that no half tick is ever seen."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, select
from sqlalchemy.exc import DatabaseError

from tunecli.errors import InputError
from tunecli.space import Space, build_space
from tunecli.store.schema import (
    CHECKPOINTS,
    MEASUREMENTS,
    READINGS,
    STUDIES,
    TRIALS,
    connect,
    is_unfinished,
    tables,
    unreadable,
)
from tunecli.trial import Measurement, State, Trial, first_best

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
class Record:
    """A study as its database tells it. `document` is the question, `kept`: trial -> SHA-256 of its checkpoint."""

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

    @property
    def space(self) -> Space:
        return build_space(self.document.get("space", {}), self.document.get("train", {}))


def read(path: Path) -> Record:
    """The study in this database. Raises InputError where there is none."""
    if is_unfinished(path):
        raise InputError(f"no study at {path.parent}", hint="`tunecli search` begins one")
    engine = connect(path, write=False)
    found = tables(engine, path)
    try:
        with engine.begin() as connection:
            return _record(connection, found)
    except DatabaseError as error:
        raise unreadable(path, error) from error
    finally:
        engine.dispose()


def _record(connection: Connection, found: Mapping[str, Table]) -> Record:
    ours = connection.execute(select(STUDIES)).mappings().one()
    study_id = ours["study_id"]
    studies, directions = found["studies"], found["study_directions"]
    name = connection.execute(select(studies.c.study_name).where(studies.c.study_id == study_id)).scalar_one()
    direction = connection.execute(select(directions.c.direction).where(directions.c.study_id == study_id)).scalar_one()
    document = json.loads(ours["document"])
    space = build_space(document.get("space", {}), document.get("train", {}))
    trials, ids = _trials(connection, found, study_id, space, direction.lower())
    kept = {ids[row.trial_id]: row.sha256 for row in connection.execute(select(CHECKPOINTS)) if row.trial_id in ids}
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
        kept=kept,
        readings=tuple(
            Reading(row.read_at, row.split, row.purpose, row.trial_number, json.loads(row.values)) for row in readings
        ),
    )


def _trials(
    connection: Connection, found: Mapping[str, Table], study_id: int, space: Space, direction: str
) -> tuple[list[Trial], dict[int, int]]:
    """All trials in the order of their numbers, and trial id -> number."""
    trials = found["trials"]
    mine = select(trials.c.trial_id).where(trials.c.study_id == study_id)
    params: dict[int, dict[str, float]] = defaultdict(dict)
    table = found["trial_params"]
    for trial_id, name, value in connection.execute(
        select(table.c.trial_id, table.c.param_name, table.c.param_value).where(table.c.trial_id.in_(mine))
    ):
        params[trial_id][name] = value
    values = found["trial_values"]
    value_of = {
        row.trial_id: finite_or_infinite(row.value, row.value_type)
        for row in connection.execute(select(values).where(values.c.trial_id.in_(mine)))
    }
    numbers = {
        row.trial_id: row.number for row in connection.execute(select(trials).where(trials.c.study_id == study_id))
    }
    curves: dict[int, list[Measurement]] = defaultdict(list)
    for row in connection.execute(select(MEASUREMENTS).order_by("trial_id", "fidelity")):
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
            )
        )
    ours = {row.trial_id: row for row in connection.execute(select(TRIALS))}
    result: list[Trial] = []
    for row in connection.execute(select(trials).where(trials.c.study_id == study_id).order_by(trials.c.number)):
        own = ours.get(row.trial_id)
        if row.number != len(result):
            # Folders are named by it: from a hostile database it could be a text with a path in it.
            raise InputError(f"trial {len(result)} is missing, found {row.number!r}", hint="is it a study's database?")
        if own is None:
            raise InputError(
                f"trial {row.number} was not written by tunecli",
                hint="a study of tunecli has one writer: tunecli search",
            )
        state, curve = STATES[row.state], curves[row.trial_id]
        value, best_tick = value_of.get(row.trial_id), own.best_tick
        if not state.ended and (best := first_best(curve, direction)):
            # Written when the trial ends; until then its curve tells.
            value, best_tick = best.metric, best.fidelity
        result.append(
            Trial(
                number=row.number,
                state=state,
                hparams=space.decode(params[row.trial_id]),
                start_tick=own.start_tick,
                end_tick=own.end_tick,
                value=value,
                best_tick=best_tick,
                seconds=sum((measurement.seconds for measurement in curve), 0.0),
                reason=own.reason,
                curve=tuple(curve),
            )
        )
    return result, numbers


def _number(value: float | None) -> float:
    """SQLite keeps a NaN as NULL."""
    return math.nan if value is None else value


def finite_or_infinite(value: float | None, kind: str) -> float | None:
    return {"INF_POS": math.inf, "INF_NEG": -math.inf}.get(kind, value)
