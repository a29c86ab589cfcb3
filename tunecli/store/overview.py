"""A study at a glance: a few numbers by a few queries, for a list of many."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, DateTime, String, column, func, select, table

from tunecli.storage import Database
from tunecli.store.damage import check_direction, check_kind, understanding
from tunecli.store.schema import STATES, STUDIES, number_of
from tunecli.store.versions import connect_to_read, find_study
from tunecli.trial import State, ended_in

# What is asked of Optuna's tables: to reflect them would take longer than all the rest.
_STUDY = table("study_directions", column("study_id"), column("direction"))
_TRIALS = table(
    "trials",
    *(column(name) for name in ("trial_id", "study_id", "number", "state")),
    *(column(name, DateTime) for name in ("datetime_start", "datetime_complete")),
)
_VALUES = table("trial_values", column("trial_id"), column("value"), column("value_type"))


@dataclass(frozen=True, slots=True)
class Overview:
    """How far a study is, and its best complete trial with its value; None where there is none.

    `split` is what the value is from; of a program it is None, for it alone knows. `written` is when a trial last began
    or ended, in UTC.
    """

    metric: str
    split: str | None
    direction: str
    asked: int
    counts: Mapping[State, int]
    best: int | None
    value: float | None
    written: datetime

    @property
    def ended(self) -> int:
        return ended_in(self.counts)


def overview(database: Database) -> Overview:
    """The study in this database. Raises InputError where it is none."""
    with understanding(database):
        engine = connect_to_read(database)
        try:
            with engine.begin() as connection:
                return _overview(connection, find_study(connection, database))
        finally:
            engine.dispose()


def _overview(connection: Connection, study_id: int) -> Overview:
    ours = connection.execute(select(STUDIES).where(STUDIES.c.study_id == study_id)).mappings().one()
    mine = _TRIALS.c.study_id == study_id
    direction = connection.execute(select(_STUDY.c.direction).where(_STUDY.c.study_id == study_id)).scalar_one()
    counted = connection.execute(select(_TRIALS.c.state, func.count()).where(mine).group_by(_TRIALS.c.state))
    complete = (
        select(_TRIALS.c.number, _VALUES.c.value, _VALUES.c.value_type)
        .join(_VALUES, _VALUES.c.trial_id == _TRIALS.c.trial_id)
        .where(mine, _TRIALS.c.state.cast(String) == "COMPLETE")
    )
    sign = -1.0 if direction == "MAXIMIZE" else 1.0
    values = [
        (sign * value, number)
        for number, stored, kind in connection.execute(complete)
        if (value := number_of(stored, kind)) is not None
    ]
    best = min(values, default=None)
    times = connection.execute(
        select(func.max(_TRIALS.c.datetime_start), func.max(_TRIALS.c.datetime_complete)).where(mine)
    ).one()
    document = json.loads(ours["document"])
    check_direction(direction.lower())
    check_kind(str, ours["metric"])
    return Overview(
        metric=ours["metric"],
        split=None if "program" in document else "validation",
        direction=direction.lower(),
        asked=int(document["search"]["trials"]),
        counts={STATES[state]: count for state, count in counted},
        best=None if best is None else best[1],
        value=None if best is None else sign * best[0],
        written=max(own for own in (ours["created"], *times) if own is not None).replace(tzinfo=UTC),
    )
