"""The tables, Optuna's own and ours beside them, and how values lie in them."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    column,
    delete,
    select,
    table,
)

from tunecli.trial import State

SCHEMA_VERSION = 3
OPTUNA_SCHEMA_VERSION = 12

OPTUNA_TABLES = (
    "studies",
    "study_directions",
    "trials",
    "trial_params",
    "trial_system_attributes",
    "trial_values",
    "trial_user_attributes",
    "trial_intermediate_values",
)

FIXED_PARAMS = "fixed_params"
"""The system attribute under which Optuna keeps what a trial that was enqueued is to have."""

OURS = MetaData()
"""Our tables."""

STUDIES = Table(
    "tunecli_studies",
    OURS,
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    # Counts the writers. A commit that finds another number than its own has lost the study to a later writer.
    Column("fence", Integer, nullable=False),
    # No lengths where a user has a say: PostgreSQL keeps to them.
    Column("metric", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("data_hash", String(64), nullable=False),
    Column("environment", Text, nullable=False),
    # Written when a search ends.
    Column("importance", Text),
    Column("created", DateTime, nullable=False),
)

QUESTIONS = Table(
    "tunecli_questions",
    OURS,
    # What the study was asked before its question changed: by its trials below `until` that an earlier one did not ask.
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("until", Integer, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
    Column("changed", DateTime, nullable=False),
)

TRIALS = Table(
    "tunecli_trials",
    OURS,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("start_tick", Integer, nullable=False),
    Column("end_tick", Integer),
    Column("best_tick", Integer),
    Column("reason", Text),
)

MEASUREMENTS = Table(
    "tunecli_measurements",
    OURS,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("fidelity", Integer, primary_key=True, autoincrement=False),
    Column("train_loss", Float(53)),
    Column("validation_loss", Float(53)),
    Column("metric", Float(53)),
    Column("gradient_norm", Float(53)),
    Column("seconds", Float(53), nullable=False),
    Column("failure", Text),
)

CHECKPOINTS = Table(
    "tunecli_checkpoints",
    OURS,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("fidelity", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
)

READINGS = Table(
    "tunecli_readings",
    OURS,
    Column("reading_id", Integer, primary_key=True),
    Column("study_id", Integer, nullable=False),
    Column("read_at", DateTime, nullable=False),
    Column("split", String(16), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("trial_number", Integer),
    Column("values", Text, nullable=False),
)

MARKS = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))
"""Optuna's table of what is noted of a study, which it deletes with the study."""


def mark(study_id: int, created: datetime) -> dict[str, object]:
    """The note by which a study is known to be ours: SQLite gives the id of a deleted one to the next."""
    return {"study_id": study_id, "key": "tunecli", "value_json": json.dumps(created.isoformat())}


def sweep(connection: Connection) -> None:
    """Delete what we have of studies that `optuna delete-study` deleted from a database that others share."""
    theirs, trials = table("studies", column("study_id")), table("trials", column("trial_id"), column("study_id"))
    for own in (STUDIES, QUESTIONS, READINGS):
        connection.execute(delete(own).where(own.c.study_id.not_in(select(theirs.c.study_id))))
    there = select(trials.c.trial_id).join(STUDIES, STUDIES.c.study_id == trials.c.study_id)
    gone = select(TRIALS.c.trial_id).where(TRIALS.c.trial_id.not_in(there))
    if connection.execute(gone).first() is not None:
        for own in (MEASUREMENTS, CHECKPOINTS, TRIALS):
            connection.execute(delete(own).where(own.c.trial_id.in_(gone)))


def tables(connection: Connection) -> dict[str, Table]:
    """Optuna's tables by name, read from the database itself."""
    found = MetaData()
    found.reflect(connection, only=OPTUNA_TABLES)
    return dict(found.tables)


def utc_now() -> datetime:
    """Naive UTC, as Optuna stores it."""
    return datetime.now(UTC).replace(tzinfo=None)


STATE_NAMES = {
    State.WAITING: "WAITING",
    State.RUNNING: "RUNNING",
    State.COMPLETE: "COMPLETE",
    State.PRUNED: "PRUNED",
    State.FAILED: "FAIL",
}
STATES = {name: state for state, name in STATE_NAMES.items()}
"""How Optuna stores a trial's state, and what it means."""


def stored_number(value: float) -> tuple[float | None, str]:
    """A number as Optuna stores it: infinities and NaN are kinds of their own."""
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return value, "FINITE"


def number_of(value: float | None, kind: str) -> float | None:
    """The inverse of `stored_number`; None for a NaN, which no trial has as its value."""
    return {"INF_POS": math.inf, "INF_NEG": -math.inf}.get(kind, value)
