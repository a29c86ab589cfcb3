"""The one writer of a study's database: ticks collected, then written in one transaction."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from tunecli.errors import StorageError
from tunecli.points import encode_given
from tunecli.space import Space, distribution_json
from tunecli.store.schema import (
    CHECKPOINTS,
    FIXED_PARAMS,
    MEASUREMENTS,
    QUESTIONS,
    READINGS,
    STUDIES,
    TRIALS,
    connect,
    create,
    tables,
    unwritable,
    utc_now,
)
from tunecli.store.versions import bring_up_to_date, check_there
from tunecli.trial import Importance, Measurement, State, Trial

GROUP_SECONDS = 0.1
"""Ticks that end within this time share a commit: a commit waits for the disk, a short tick must not."""

_STATES = {
    State.WAITING: "WAITING",
    State.RUNNING: "RUNNING",
    State.COMPLETE: "COMPLETE",
    State.PRUNED: "PRUNED",
    State.FAILED: "FAIL",
}


def create_study(
    path: Path,
    *,
    name: str,
    metric: str,
    direction: str,
    document: Mapping[str, Any],
    plan: Mapping[str, Any],
    data_hash: str,
    environment: Mapping[str, Any],
) -> None:
    """A new database with one empty study, whole or not at all. Raises StorageError."""
    row = {
        "metric": metric,
        "document": json.dumps(document),
        "plan": json.dumps(plan),
        "data_hash": data_hash,
        "environment": json.dumps(environment),
    }
    create(path, name, direction, row)


class Store:
    """Writes a study. Nothing reaches the database before `commit` or `flush`, and then in one transaction.

    The caller holds the study's lock. `space` says how hparams are written. Raises InputError where the database is no
    study of ours, StorageError where it cannot be written or another writer has taken it over.
    """

    def __init__(self, path: Path, space: Space) -> None:
        self._path = path
        self._space = space
        bring_up_to_date(path)
        self._engine = connect(path, write=True)
        self._written = time.monotonic()
        try:
            with self._engine.begin() as connection:
                check_there(connection, path)
                self._tables = tables(connection)
                self._study_id = connection.execute(select(STUDIES.c.study_id)).scalar_one()
                connection.execute(update(STUDIES).values(fence=STUDIES.c.fence + 1))
                self._fence = connection.execute(select(STUDIES.c.fence)).scalar_one()
                trials = self._tables["trials"]
                rows = connection.execute(
                    select(trials.c.number, trials.c.trial_id).where(trials.c.study_id == self._study_id)
                )
                self._ids = {row.number: row.trial_id for row in rows}
                self._next_id = (connection.execute(select(func.max(trials.c.trial_id))).scalar() or 0) + 1
        except SQLAlchemyError as error:
            raise unwritable(path, error) from error
        self._statements = self._prepare_statements()
        self._pending: dict[str, list[dict[str, Any]]] = {name: [] for name in self._statements}

    def restate(self, document: Mapping[str, Any]) -> None:
        """The question as it is asked now: more trials, say."""
        self._pending["question"].append({"own": self._study_id, "document": json.dumps(document)})

    def replan(self, plan: Mapping[str, Any]) -> None:
        """The plan that the study goes on with."""
        self._pending["plan"].append({"own": self._study_id, "plan": json.dumps(plan)})

    def set_aside(self, document: Mapping[str, Any], until: int) -> None:
        """The question as it was before it changed: what trials below `until` were asked, since the change before.

        How much its hparams had to do with the outcome is forgotten with it.
        """
        row = {"study_id": self._study_id, "until": until, "document": json.dumps(document), "changed": utc_now()}
        self._pending["earlier"].append(row)
        self._pending["importance"].append({"own": self._study_id, "importance": None})

    def explain(self, found: Importance) -> None:
        """How much each hparam had to do with the outcome, as far as the study has come."""
        text = json.dumps({"trials": found.trials, "shares": dict(found.shares)})
        self._pending["importance"].append({"own": self._study_id, "importance": text})

    def enqueue(self, trial: Trial) -> None:
        """A trial waits with what was given of its hparams, as Optuna's `enqueue_trial` leaves it."""
        fixed = json.dumps(encode_given(self._space, trial.given))
        self._pending["given"].append({"trial_id": self._add(trial, None), "key": FIXED_PARAMS, "value_json": fixed})

    def start(self, trial: Trial) -> None:
        """A trial is in flight from now on, a new one or one that waited."""
        if trial.number in self._ids:
            trial_id = self._ids[trial.number]
            begun = {"own": trial_id, "state": _STATES[trial.state], "datetime_start": utc_now()}
            self._pending["begin"].append(begun)
        else:
            trial_id = self._add(trial, utc_now())
        self._pending["param"] += [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": internal,
                "distribution_json": distribution_json(range_),
            }
            for name, (range_, internal) in self._space.encode(trial.hparams).items()
        ]
        self._pending["own trial"].append({"trial_id": trial_id, "start_tick": trial.start_tick})

    def restart(self, number: int) -> None:
        """A trial is run again from its start: its time counts from now."""
        self._pending["restart"].append({"own": self._ids[number], "datetime_start": utc_now()})

    def suggest(self, number: int, name: str, distribution: str, internal: float) -> None:
        """A running trial's objective asked for `name`: Optuna's distribution and its internal value."""
        row = {"param_name": name, "param_value": internal, "distribution_json": distribution}
        self._pending["param"].append({"trial_id": self._ids[number], **row})

    def note(self, number: int, attributes: Mapping[str, Any]) -> None:
        """What a trial's objective noted down, for Optuna's readers; once a trial."""
        own = self._ids[number]
        self._pending["attribute"] += [
            {"trial_id": own, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()
        ]

    def _add(self, trial: Trial, start: datetime | None) -> int:
        trial_id, self._next_id = self._next_id, self._next_id + 1
        self._ids[trial.number] = trial_id
        self._pending["trial"].append(
            {
                "trial_id": trial_id,
                "number": trial.number,
                "study_id": self._study_id,
                "state": _STATES[trial.state],
                "datetime_start": start,
            }
        )
        return trial_id

    def record(self, measurements: Iterable[Measurement]) -> None:
        """What runs showed in this tick; the metric is also the value that Optuna shows for the step."""
        for measured in measurements:
            trial_id = self._ids[measured.trial]
            value, kind = _representation(measured.metric)
            self._pending["step"].append(
                {
                    "trial_id": trial_id,
                    "step": measured.fidelity if measured.step is None else measured.step,
                    "intermediate_value": value,
                    "intermediate_value_type": kind,
                }
            )
            self._pending["measurement"].append(
                {
                    "trial_id": trial_id,
                    "fidelity": measured.fidelity,
                    "train_loss": measured.train_loss,
                    "validation_loss": measured.validation_loss,
                    "metric": measured.metric,
                    "gradient_norm": measured.gradient_norm,
                    "seconds": measured.seconds,
                    "failure": measured.failure,
                }
            )

    def end(self, trial: Trial) -> None:
        """A trial has ended as its state says; a failed one has no value."""
        own = self._ids[trial.number]
        self._pending["end"].append({"own": own, "state": _STATES[trial.state], "datetime_complete": utc_now()})
        self._pending["own end"].append(
            {"own": own, "end_tick": trial.end_tick, "best_tick": trial.best_tick, "reason": trial.reason}
        )
        if trial.value is not None and trial.state is not State.FAILED:
            value, kind = _representation(trial.value)
            self._pending["value"].append({"trial_id": own, "objective": 0, "value": value, "value_type": kind})

    def keep(self, trial: Trial, sha256: str) -> None:
        """A trial's checkpoint is on disk."""
        row = {"trial_id": self._ids[trial.number], "fidelity": trial.best_tick, "sha256": sha256}
        self._pending["keep"].append(row)

    def drop(self, number: int) -> None:
        """A trial's checkpoint is no longer kept."""
        self._pending["drop"].append({"own": self._ids[number]})

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
                for name, rows in self._pending.items():
                    if rows:
                        connection.execute(self._statements[name], rows)
        except IntegrityError as error:
            raise StorageError(
                f"{self._path} holds trials that this search has not written: another program added some meanwhile",
                hint="run it again: what waits is tried then; add trials while no search runs",
            ) from error
        except SQLAlchemyError as error:
            raise unwritable(self._path, error) from error
        self._pending = {name: [] for name in self._statements}
        self._written = time.monotonic()

    def close(self) -> None:
        self._engine.dispose()

    def _prepare_statements(self) -> dict[str, Any]:
        """What a transaction can hold, in the order in which it is sent: a row before what refers to it."""
        optuna = self._tables
        trials = optuna["trials"]
        return {
            "question": update(STUDIES).where(STUDIES.c.study_id == bindparam("own")),
            "plan": update(STUDIES).where(STUDIES.c.study_id == bindparam("own")),
            "earlier": insert(QUESTIONS),
            "importance": update(STUDIES).where(STUDIES.c.study_id == bindparam("own")),
            "trial": insert(trials),
            "given": insert(optuna["trial_system_attributes"]),
            "begin": update(trials).where(trials.c.trial_id == bindparam("own")),
            "param": insert(optuna["trial_params"]),
            "own trial": insert(TRIALS),
            "step": insert(optuna["trial_intermediate_values"]),
            "measurement": insert(MEASUREMENTS),
            "restart": update(trials).where(trials.c.trial_id == bindparam("own")),
            "end": update(trials).where(trials.c.trial_id == bindparam("own")),
            "own end": update(TRIALS).where(TRIALS.c.trial_id == bindparam("own")),
            "value": insert(optuna["trial_values"]),
            "attribute": insert(optuna["trial_user_attributes"]),
            "keep": insert(CHECKPOINTS),
            "drop": delete(CHECKPOINTS).where(CHECKPOINTS.c.trial_id == bindparam("own")),
            "reading": insert(READINGS),
        }

    def _check_fence(self, connection: Connection) -> None:
        own = (STUDIES.c.study_id == self._study_id) & (STUDIES.c.fence == self._fence)
        if connection.execute(update(STUDIES).where(own).values(fence=self._fence)).rowcount != 1:
            raise StorageError(
                f"another search has taken over {self._path}", hint="nothing was lost: let that one go on"
            )


def _representation(value: float) -> tuple[float | None, str]:
    """A number as Optuna stores it: infinities and NaN are kinds of their own."""
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return value, "FINITE"
