"""A study at a glance: a few numbers by a few queries, for a list of many."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, column, func, select, table

from tunecli.store.damage import check_direction, check_kind, understanding
from tunecli.store.reader import STATES, finite_or_infinite
from tunecli.store.schema import STUDIES
from tunecli.store.versions import check_there, connect_to_read
from tunecli.trial import State

# What is asked of Optuna's tables: to reflect them would take longer than all the rest.
_STUDY = table("study_directions", column("study_id"), column("direction"))
_TRIALS = table("trials", column("trial_id"), column("study_id"), column("number"), column("state"))
_VALUES = table("trial_values", column("trial_id"), column("value"), column("value_type"))


@dataclass(frozen=True, slots=True)
class Overview:
    """How far a study is, and its best complete trial with its value; None where there is none.

    `split` is what the value is from; of a program it is None, for it alone knows.
    """

    metric: str
    split: str | None
    direction: str
    asked: int
    counts: Mapping[State, int]
    best: int | None
    value: float | None

    @property
    def ended(self) -> int:
        return sum(count for state, count in self.counts.items() if state.ended)


def overview(path: Path) -> Overview:
    """The study in this database. Raises InputError where it is none."""
    with understanding(path):
        engine = connect_to_read(path)
        try:
            with engine.begin() as connection:
                check_there(connection, path)
                return _overview(connection)
        finally:
            engine.dispose()


def _overview(connection: Connection) -> Overview:
    ours = connection.execute(select(STUDIES)).mappings().one()
    mine = _TRIALS.c.study_id == ours["study_id"]
    direction = connection.execute(select(_STUDY.c.direction).where(_STUDY.c.study_id == ours["study_id"])).scalar_one()
    counted = connection.execute(select(_TRIALS.c.state, func.count()).where(mine).group_by(_TRIALS.c.state))
    complete = (
        select(_TRIALS.c.number, _VALUES.c.value, _VALUES.c.value_type)
        .join(_VALUES, _VALUES.c.trial_id == _TRIALS.c.trial_id)
        .where(mine, _TRIALS.c.state == "COMPLETE")
    )
    sign = -1.0 if direction == "MAXIMIZE" else 1.0
    values = [
        (sign * value, number)
        for number, stored, kind in connection.execute(complete)
        if (value := finite_or_infinite(stored, kind)) is not None
    ]
    best = min(values, default=None)
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
    )
