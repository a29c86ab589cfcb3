"""The one writer of a study's database: ticks collected, then written in one transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from tunecli.errors import StorageError
from tunecli.given import encode_given
from tunecli.space import Range, Space, distribution_json
from tunecli.storage import Database
from tunecli.store.database import connect, release, unwritable
from tunecli.store.schema import (
    FIXED_PARAMS,
    STATE_NAMES,
    STUDIES,
    stored_number,
    sweep,
    tables,
    utc_now,
)
from tunecli.store.statements import Row, prepare
from tunecli.store.versions import bring_up_to_date, find_study
from tunecli.trial import Importance, Measurement, State, Trial

NEW_TRIAL = ("number", "study_id", "state", "datetime_start")
"""What is collected of a trial that is not in the database yet."""

GROUP_SECONDS = 0.1
"""Ticks that end within this time share a commit: a commit waits for the disk, a short tick must not."""


class Store:
    """Writes a study. Nothing reaches the database before `commit` or `flush`, and then in one transaction.

    The caller holds the study's lock. `space` says how hparams are written. Raises InputError where the database is no
    study of ours, StorageError where it cannot be written or another writer has taken it over.
    """

    def __init__(self, database: Database, space: Space) -> None:
        self._database, self._space = database, space
        self._distributions = {
            own.name: distribution_json(own.range) for own in space.dimensions if isinstance(own.range, Range)
        }
        bring_up_to_date(database)
        self._engine = connect(database, write=True)
        self._written = time.monotonic()
        try:
            with self._engine.begin() as connection:
                self._study_id = find_study(connection, database)
                sweep(connection)
                optuna, own = tables(connection), STUDIES.c.study_id == self._study_id
                studies, trials = optuna["studies"], optuna["trials"]
                mine = trials.c.study_id == self._study_id
                connection.execute(update(STUDIES).where(own).values(fence=STUDIES.c.fence + 1))
                fence = connection.execute(select(STUDIES.c.fence).where(own)).scalar_one()
                rows = connection.execute(select(trials.c.number, trials.c.trial_id).where(mine))
                self._ids = {row.number: row.trial_id for row in rows}
        except SQLAlchemyError as error:
            raise unwritable(database, error) from error
        self._numbers = set(self._ids)
        self._fenced = update(STUDIES).where(own, STUDIES.c.fence == fence).values(fence=fence)
        self._locked = select(studies.c.study_id).where(studies.c.study_id == self._study_id).with_for_update()
        self._counted = select(func.count()).select_from(trials).where(mine)
        self._added = insert(trials).returning(trials.c.number, trials.c.trial_id)
        self._statements = prepare(optuna)
        self._pending: dict[str, list[Row]] = {name: [] for name in ("trial", *self._statements)}

    def restate(self, document: Mapping[str, Any]) -> None:
        """The question as it is asked now: more trials, say."""
        self._pending["question"].append((self._study_id, json.dumps(document)))

    def replan(self, plan: Mapping[str, Any]) -> None:
        """The plan that the study goes on with."""
        self._pending["plan"].append((self._study_id, json.dumps(plan)))

    def set_aside(self, document: Mapping[str, Any], until: int) -> None:
        """The question as it was before it changed: what trials below `until` were asked, since the change before.

        How much its hparams had to do with the outcome is forgotten with it.
        """
        self._pending["earlier"].append((self._study_id, until, json.dumps(document), utc_now()))
        self._pending["importance"].append((self._study_id, None))

    def explain(self, found: Importance) -> None:
        """How much each hparam had to do with the outcome, as far as the study has come."""
        self._pending["importance"].append((self._study_id, json.dumps(asdict(found))))

    def enqueue(self, trial: Trial) -> None:
        """A trial waits with what was given of its hparams, as Optuna's `enqueue_trial` leaves it."""
        fixed = json.dumps(encode_given(self._space, trial.given))
        self._add(trial, None)
        self._pending["given"].append((trial.number, FIXED_PARAMS, fixed))

    def start(self, trial: Trial) -> None:
        """A trial is in flight from now on, a new one or one that waited."""
        own = trial.number
        if own in self._numbers:
            self._pending["begin"].append((own, STATE_NAMES[trial.state], utc_now()))
        else:
            self._add(trial, utc_now())
        self._pending["param"] += [
            (own, name, internal, self._distributions[name])
            for name, (_, internal) in self._space.encode(trial.hparams).items()
        ]
        self._pending["own trial"].append((own, trial.start_tick))

    def restart(self, number: int) -> None:
        """A trial is run again from its start: its time counts from now."""
        self._pending["restart"].append((number, utc_now()))

    def suggest(self, number: int, name: str, distribution: str, internal: float) -> None:
        """A running trial's objective asked for `name`: Optuna's distribution and its internal value."""
        self._pending["param"].append((number, _storable(name), internal, distribution))

    def note(self, number: int, attributes: Mapping[str, Any]) -> None:
        """What a trial's objective noted down, for Optuna's readers; once a trial."""
        self._pending["attribute"] += [(number, _storable(key), json.dumps(value)) for key, value in attributes.items()]

    def _add(self, trial: Trial, start: datetime | None) -> None:
        self._numbers.add(trial.number)
        self._pending["trial"].append((trial.number, self._study_id, STATE_NAMES[trial.state], start))

    def record(self, measurements: Iterable[Measurement]) -> None:
        """What runs showed in this tick; the metric is also the value that Optuna shows for the step."""
        for measured in measurements:
            step = measured.fidelity if measured.step is None else measured.step
            self._pending["step"].append((measured.trial, step, *stored_number(measured.metric)))
            self._pending["measurement"].append(
                (
                    measured.trial,
                    measured.fidelity,
                    measured.train_loss,
                    measured.validation_loss,
                    measured.metric,
                    measured.gradient_norm,
                    measured.seconds,
                    _storable(measured.failure),
                )
            )

    def end(self, trial: Trial) -> None:
        """A trial has ended as its state says; a failed one has no value."""
        own = trial.number
        self._pending["end"].append((own, STATE_NAMES[trial.state], utc_now()))
        self._pending["own end"].append((own, trial.end_tick, trial.best_tick, _storable(trial.reason)))
        if trial.value is not None and trial.state is not State.FAILED:
            self._pending["value"].append((own, 0, *stored_number(trial.value)))

    def keep(self, trial: Trial, sha256: str) -> None:
        """A trial's checkpoint is on disk."""
        self._pending["keep"].append((trial.number, trial.best_tick, sha256))

    def drop(self, number: int) -> None:
        """A trial's checkpoint is no longer kept."""
        self._pending["drop"].append((number,))

    def read_split(self, split: str, purpose: str, trial: int | None, values: Mapping[str, Any]) -> None:
        """A split was looked at: with today's date, for good."""
        row = (self._study_id, utc_now(), split, purpose, trial, json.dumps(values))
        self._pending["reading"].append(row)

    def commit(self) -> bool:
        """The tick is whole: write it, unless the last commit is so recent that it can share the next one.

        Whether everything is written now.
        """
        if time.monotonic() - self._written < GROUP_SECONDS:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Write everything collected, in one transaction. Raises StorageError; then nothing of it was written."""
        if not any(self._pending.values()):
            return
        try:
            with self._engine.begin() as connection:
                self._check_fence(connection)
                ids = self._ids | self._insert_trials(connection)
                for name, statement in self._statements.items():
                    if rows := self._pending[name]:
                        statement.send(connection, rows, ids)
        except IntegrityError as error:
            raise StorageError(
                f"cannot write {self._database}: another program changed the study meanwhile",
                hint="run it again: it goes on with what is there",
            ) from error
        except SQLAlchemyError as error:
            raise unwritable(self._database, error) from error
        self._ids = ids
        self._pending = {name: [] for name in self._pending}
        self._written = time.monotonic()

    def _insert_trials(self, connection: Connection) -> dict[int, int]:
        """Number -> id of the trials that are new, as the database gives them."""
        rows = [dict(zip(NEW_TRIAL, row, strict=True)) for row in self._pending["trial"]]
        if not rows:
            return {}
        # As Optuna does before it adds a trial: their numbers are counted.
        connection.execute(self._locked)
        if connection.execute(self._counted).scalar_one() != len(self._ids):
            raise StorageError(
                f"{self._database} holds trials that this search has not written: another program added some meanwhile",
                hint="run it again: what waits is tried then; add trials while no search runs",
            )
        added = connection.execute(self._added, rows)
        return {row.number: row.trial_id for row in added}

    def close(self) -> None:
        release(self._database, self._engine)

    def _check_fence(self, connection: Connection) -> None:
        if connection.execute(self._fenced).rowcount != 1:
            raise StorageError(
                f"another search has taken over {self._database}", hint="nothing was lost: let that one go on"
            )


def _storable(text: str | None) -> str | None:
    """The text without what a database refuses: PostgreSQL the zero character, both what UTF-8 cannot hold."""
    if text is None:
        return None
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")
