"""The one writer of a study's database: ticks collected, then written in one transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from tunecli.errors import StorageError
from tunecli.given import encode_given
from tunecli.space import Space, distribution_json
from tunecli.storage import Database
from tunecli.store.database import connect, release, unwritable
from tunecli.store.schema import (
    CHECKPOINTS,
    FIXED_PARAMS,
    MEASUREMENTS,
    QUESTIONS,
    READINGS,
    STATE_NAMES,
    STUDIES,
    TRIALS,
    stored_number,
    sweep,
    tables,
    utc_now,
)
from tunecli.store.versions import bring_up_to_date, find_study
from tunecli.trial import Importance, Measurement, State, Trial

GROUP_SECONDS = 0.1
"""Ticks that end within this time share a commit: a commit waits for the disk, a short tick must not."""


class Store:
    """Writes a study. Nothing reaches the database before `commit` or `flush`, and then in one transaction.

    The caller holds the study's lock. `space` says how hparams are written. Raises InputError where the database is no
    study of ours, StorageError where it cannot be written or another writer has taken it over.
    """

    def __init__(self, database: Database, space: Space) -> None:
        self._database = database
        self._space = space
        bring_up_to_date(database)
        self._engine = connect(database, write=True)
        self._written = time.monotonic()
        try:
            with self._engine.begin() as connection:
                self._study_id = find_study(connection, database)
                sweep(connection)
                self._tables = tables(connection)
                self._own = STUDIES.c.study_id == self._study_id
                connection.execute(update(STUDIES).where(self._own).values(fence=STUDIES.c.fence + 1))
                self._fence = connection.execute(select(STUDIES.c.fence).where(self._own)).scalar_one()
                trials = self._tables["trials"]
                rows = connection.execute(
                    select(trials.c.number, trials.c.trial_id).where(trials.c.study_id == self._study_id)
                )
                self._ids = {row.number: row.trial_id for row in rows}
        except SQLAlchemyError as error:
            raise unwritable(database, error) from error
        self._numbers = set(self._ids)
        self._statements = self._prepare_statements()
        self._pending: dict[str, list[dict[str, Any]]] = {name: [] for name in ("trial", *self._statements)}

    def restate(self, document: Mapping[str, Any]) -> None:
        """The question as it is asked now: more trials, say."""
        self._pending["question"].append({"document": json.dumps(document)})

    def replan(self, plan: Mapping[str, Any]) -> None:
        """The plan that the study goes on with."""
        self._pending["plan"].append({"plan": json.dumps(plan)})

    def set_aside(self, document: Mapping[str, Any], until: int) -> None:
        """The question as it was before it changed: what trials below `until` were asked, since the change before.

        How much its hparams had to do with the outcome is forgotten with it.
        """
        row = {"study_id": self._study_id, "until": until, "document": json.dumps(document), "changed": utc_now()}
        self._pending["earlier"].append(row)
        self._pending["importance"].append({"importance": None})

    def explain(self, found: Importance) -> None:
        """How much each hparam had to do with the outcome, as far as the study has come."""
        self._pending["importance"].append({"importance": json.dumps(asdict(found))})

    def enqueue(self, trial: Trial) -> None:
        """A trial waits with what was given of its hparams, as Optuna's `enqueue_trial` leaves it."""
        fixed = json.dumps(encode_given(self._space, trial.given))
        self._add(trial, None)
        self._pending["given"].append({"own": trial.number, "key": FIXED_PARAMS, "value_json": fixed})

    def start(self, trial: Trial) -> None:
        """A trial is in flight from now on, a new one or one that waited."""
        own = trial.number
        if own in self._numbers:
            begun = {"own": own, "state": STATE_NAMES[trial.state], "datetime_start": utc_now()}
            self._pending["begin"].append(begun)
        else:
            self._add(trial, utc_now())
        self._pending["param"] += [
            {
                "own": own,
                "param_name": name,
                "param_value": internal,
                "distribution_json": distribution_json(range_),
            }
            for name, (range_, internal) in self._space.encode(trial.hparams).items()
        ]
        self._pending["own trial"].append({"own": own, "start_tick": trial.start_tick})

    def restart(self, number: int) -> None:
        """A trial is run again from its start: its time counts from now."""
        self._pending["restart"].append({"own": number, "datetime_start": utc_now()})

    def suggest(self, number: int, name: str, distribution: str, internal: float) -> None:
        """A running trial's objective asked for `name`: Optuna's distribution and its internal value."""
        row = {"param_name": _storable(name), "param_value": internal, "distribution_json": distribution}
        self._pending["param"].append({"own": number, **row})

    def note(self, number: int, attributes: Mapping[str, Any]) -> None:
        """What a trial's objective noted down, for Optuna's readers; once a trial."""
        self._pending["attribute"] += [
            {"own": number, "key": _storable(key), "value_json": json.dumps(value)} for key, value in attributes.items()
        ]

    def _add(self, trial: Trial, start: datetime | None) -> None:
        self._numbers.add(trial.number)
        self._pending["trial"].append(
            {
                "number": trial.number,
                "study_id": self._study_id,
                "state": STATE_NAMES[trial.state],
                "datetime_start": start,
            }
        )

    def record(self, measurements: Iterable[Measurement]) -> None:
        """What runs showed in this tick; the metric is also the value that Optuna shows for the step."""
        for measured in measurements:
            value, kind = stored_number(measured.metric)
            self._pending["step"].append(
                {
                    "own": measured.trial,
                    "step": measured.fidelity if measured.step is None else measured.step,
                    "intermediate_value": value,
                    "intermediate_value_type": kind,
                }
            )
            self._pending["measurement"].append(
                {
                    "own": measured.trial,
                    "fidelity": measured.fidelity,
                    "train_loss": measured.train_loss,
                    "validation_loss": measured.validation_loss,
                    "metric": measured.metric,
                    "gradient_norm": measured.gradient_norm,
                    "seconds": measured.seconds,
                    "failure": _storable(measured.failure),
                }
            )

    def end(self, trial: Trial) -> None:
        """A trial has ended as its state says; a failed one has no value."""
        own = trial.number
        self._pending["end"].append({"own": own, "state": STATE_NAMES[trial.state], "datetime_complete": utc_now()})
        self._pending["own end"].append(
            {"own": own, "end_tick": trial.end_tick, "best_tick": trial.best_tick, "reason": _storable(trial.reason)}
        )
        if trial.value is not None and trial.state is not State.FAILED:
            value, kind = stored_number(trial.value)
            self._pending["value"].append({"own": own, "objective": 0, "value": value, "value_type": kind})

    def keep(self, trial: Trial, sha256: str) -> None:
        """A trial's checkpoint is on disk."""
        row = {"own": trial.number, "fidelity": trial.best_tick, "sha256": sha256}
        self._pending["keep"].append(row)

    def drop(self, number: int) -> None:
        """A trial's checkpoint is no longer kept."""
        self._pending["drop"].append({"own": number})

    def read_split(self, split: str, purpose: str, trial: int | None, values: Mapping[str, Any]) -> None:
        """A split was looked at: with today's date, for good."""
        self._pending["reading"].append(
            {
                "study_id": self._study_id,
                "read_at": utc_now(),
                "split": split,
                "purpose": purpose,
                "trial_number": trial,
                "values": json.dumps(values),
            }
        )

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
                        by_id = [row | {"own": ids[row["own"]]} if "own" in row else row for row in rows]
                        connection.execute(statement, by_id)
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
        rows = self._pending["trial"]
        if not rows:
            return {}
        studies, trials = self._tables["studies"], self._tables["trials"]
        # As Optuna does before it adds a trial: their numbers are counted.
        connection.execute(select(studies.c.study_id).where(studies.c.study_id == self._study_id).with_for_update())
        there = select(func.count()).select_from(trials).where(trials.c.study_id == self._study_id)
        if connection.execute(there).scalar_one() != len(self._ids):
            raise StorageError(
                f"{self._database} holds trials that this search has not written: another program added some meanwhile",
                hint="run it again: what waits is tried then; add trials while no search runs",
            )
        added = connection.execute(insert(trials).returning(trials.c.number, trials.c.trial_id), rows)
        return {row.number: row.trial_id for row in added}

    def close(self) -> None:
        release(self._database, self._engine)

    def _prepare_statements(self) -> dict[str, Any]:
        """What a transaction can hold after its new trials, in the order in which it is sent. "own" is a trial's number
        in what is collected, its id in what is sent."""
        optuna = self._tables
        trials = optuna["trials"]

        def of_trial(table: Table) -> Any:
            return insert(table).values(trial_id=bindparam("own"))

        return {
            "question": update(STUDIES).where(self._own),
            "plan": update(STUDIES).where(self._own),
            "earlier": insert(QUESTIONS),
            "importance": update(STUDIES).where(self._own),
            "given": of_trial(optuna["trial_system_attributes"]),
            "begin": update(trials).where(trials.c.trial_id == bindparam("own")),
            "param": of_trial(optuna["trial_params"]),
            "own trial": of_trial(TRIALS),
            "step": of_trial(optuna["trial_intermediate_values"]),
            "measurement": of_trial(MEASUREMENTS),
            "restart": update(trials).where(trials.c.trial_id == bindparam("own")),
            "end": update(trials).where(trials.c.trial_id == bindparam("own")),
            "own end": update(TRIALS).where(TRIALS.c.trial_id == bindparam("own")),
            "value": of_trial(optuna["trial_values"]),
            "attribute": of_trial(optuna["trial_user_attributes"]),
            "keep": of_trial(CHECKPOINTS),
            "drop": delete(CHECKPOINTS).where(CHECKPOINTS.c.trial_id == bindparam("own")),
            "reading": insert(READINGS),
        }

    def _check_fence(self, connection: Connection) -> None:
        own = self._own & (STUDIES.c.fence == self._fence)
        if connection.execute(update(STUDIES).where(own).values(fence=self._fence)).rowcount != 1:
            raise StorageError(
                f"another search has taken over {self._database}", hint="nothing was lost: let that one go on"
            )


def _storable(text: str | None) -> str | None:
    """The text without what a database refuses: PostgreSQL the zero character, both what UTF-8 cannot hold."""
    if text is None:
        return None
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")
