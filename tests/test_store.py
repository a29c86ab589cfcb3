"""The study database: written whole ticks at a time by one writer, read by us and by Optuna alike."""

import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy import MetaData, create_engine, select

from tests.conftest import examples
from tunecli.errors import InputError, StorageError
from tunecli.space import Choice, Float, Range, build_space, distribution_json
from tunecli.storage import Database, Shared
from tunecli.store import Store, create_study, hold, is_deleted, is_unfinished, overview, read, versions
from tunecli.trial import Measurement, State, Trial, Value

DIRECTION = "maximize"
KEYS: dict[str, Any] = {
    "batch_size": [16, 64, "full"],
    "l1": 0,
    "nesterov": [True, False],
    "model": {
        "hidden": [[8], [64], [8, 8]],
        "width": {"low": 1, "high": 64, "log": True},
        "dropout": {"low": 0.0, "high": 0.5},
        "name": ["plain", 'with "quotes", and ü'],
    },
}
SPACE = build_space(KEYS)
ENDED = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


def create(database: Database, name: str = "tiny") -> None:
    create_study(
        database,
        name=name,
        metric="accuracy",
        direction=DIRECTION,
        document={"name": name, "space": KEYS, "train": {"epochs": 3}, "search": {"window": 3, "trials": 10}},
        plan={"way": "looped", "cap": None},
        data_hash="0" * 32,
        environment={"device": "cpu"},
    )


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study without trials: to be copied, since Optuna takes a third of a second to make one."""
    path = tmp_path_factory.mktemp("empty") / "study.db"
    create(path)
    return path


@pytest.fixture
def path(empty: Path, tmp_path: Path) -> Path:
    return shutil.copy(empty, tmp_path / "study.db")


@pytest.fixture
def in_file(path: Path) -> Iterator[Store]:
    opened = Store(path, SPACE)
    yield opened
    opened.close()


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def make_database(
    request: pytest.FixtureRequest, empty: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Database]:
    """Makes databases with the study `tiny`, without trials, of both kinds: what holds for one holds for the other."""
    if request.param == "sqlite":
        return lambda: shutil.copy(empty, tmp_path_factory.mktemp("study") / "study.db")
    address = request.getfixturevalue("postgres").make("contract")

    def make() -> Database:
        database = Shared(address, f"tiny{next(NUMBER)}")
        create(database, "tiny")
        return database

    return make


NUMBER = itertools.count()


@pytest.fixture
def database(make_database: Callable[[], Database]) -> Database:
    return make_database()


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    opened = Store(database, SPACE)
    yield opened
    opened.close()


def url_of(database: Database) -> str:
    if isinstance(database, Path):
        return f"sqlite:///{database}"
    return database.address.url.set(drivername="postgresql+psycopg").render_as_string()


def name_of(database: Database) -> str:
    return "tiny" if isinstance(database, Path) else database.study


def load(database: Database) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(storage=url_of(database), study_name=name_of(database))


def hparams(choose: random.Random) -> dict[str, Value]:
    def ask(name: str, range_: Range) -> Value:
        if isinstance(range_, Choice):
            return choose.choice(range_.values)
        if isinstance(range_, Float):
            return choose.choice([range_.low, range_.high, choose.uniform(range_.low, range_.high)])
        return choose.randint(range_.low, range_.high)

    return SPACE.suggest(ask)


def measurement(trial: int, fidelity: int, metric: float = 0.5, failure: str | None = None) -> Measurement:
    return Measurement(trial, fidelity, 0.1, 0.2, metric, 0.3, seconds=0.25, failure=failure)


def running(number: int, tick: int = 1) -> Trial:
    return Trial(number, State.RUNNING, hparams(random.Random(number)), start_tick=tick)


def ended(trial: Trial, state: State, metrics: list[float], reason: str | None = None) -> Trial:
    """The trial after it showed these metrics; its value is the first of the highest."""
    curve = tuple(measurement(trial.number, fidelity, metric) for fidelity, metric in enumerate(metrics, start=1))
    best = None if state is State.FAILED else max(metrics)
    return replace(
        trial,
        state=state,
        curve=curve,
        end_tick=trial.start_tick + len(curve) - 1,
        value=best,
        best_tick=None if best is None else metrics.index(best) + 1,
        seconds=0.25 * len(curve),
        reason=reason,
    )


def write(store: Store, trials: list[Trial]) -> None:
    for trial in trials:
        store.start(trial)
    for trial in trials:
        store.record(trial.curve)
        if trial.state.ended:
            store.end(trial)
    store.flush()


def comparable(trial: Trial) -> Any:
    """The trial with NaN equal to NaN."""

    def plain(value: Any) -> Any:
        return "nan" if isinstance(value, float) and math.isnan(value) else value

    curve = [
        tuple(plain(getattr(own, name)) for name in Measurement.__dataclass_fields__ if name != "seconds")
        for own in trial.curve
    ]
    names = ("number", "state", "start_tick", "end_tick", "value", "best_tick", "reason")
    types = [(name, type(value), value) for name, value in trial.hparams.items()]
    return [getattr(trial, name) for name in names], types, curve


# What is written is what is read

NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 0.5, math.inf, -math.inf, math.nan, 5e-324]))


@st.composite
def searches(draw: st.DrawFn) -> list[Trial]:
    found: list[Trial] = []
    for number in range(draw(st.integers(0, 5))):
        state = draw(st.sampled_from([State.RUNNING, State.COMPLETE, State.PRUNED, State.FAILED]))
        count = draw(st.integers(0 if state in (State.RUNNING, State.FAILED) else 1, 4))
        curve = []
        for fidelity in range(1, count + 1):
            losses = [draw(NUMBERS) for _ in range(2)]
            failed = state is State.FAILED and fidelity == count
            metric = draw(NUMBERS if failed else NUMBERS.filter(lambda number: not math.isnan(number)))
            seconds = draw(st.floats(0, 1e6))
            failure = "diverged" if failed else None
            curve.append(Measurement(number, fidelity, *losses, metric, draw(NUMBERS), seconds, failure))
        # The value as design.md defines it: the metric at the best tick, the first of equals.
        best = max(curve, key=lambda own: own.metric) if curve and state is not State.FAILED else None
        start = draw(st.integers(1, 9))
        found.append(
            Trial(
                number,
                state,
                hparams(draw(st.randoms(use_true_random=False))),
                start_tick=start,
                end_tick=start + count - 1 if state.ended else None,
                value=None if best is None else best.metric,
                best_tick=None if best is None else best.fidelity,
                seconds=sum(own.seconds for own in curve),
                reason=draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"))) if state.ended else None,
                curve=tuple(curve),
            )
        )
    return found


@examples(10)
@given(searches(), st.booleans())
def test_trials_come_back_as_they_were_and_optuna_reads_the_same(
    make_database: Callable[[], Database], trials: list[Trial], at_once: bool
) -> None:
    database = make_database()
    store = Store(database, SPACE)
    if at_once:
        write(store, trials)
    else:
        for trial in trials:
            write(store, [trial])
    store.close()

    record = read(database)
    assert [comparable(trial) for trial in record.trials] == [comparable(trial) for trial in trials]
    assert [trial.seconds for trial in record.trials] == pytest.approx([trial.seconds for trial in trials])
    study = load(database)
    assert len(study.trials) == len(trials)
    for theirs, ours in zip(study.trials, trials, strict=True):
        agree(theirs, ours)
    best = max((t.value for t in trials if t.state is State.COMPLETE and t.value is not None), default=None)
    if best is not None:
        assert study.best_value == best


def agree(theirs: optuna.trial.FrozenTrial, ours: Trial) -> None:
    """Optuna's trial says what ours does; the names and ranges are those of the table in design.md."""
    assert theirs.number == ours.number
    assert theirs.state is ENDED.get(ours.state, TrialState.RUNNING)
    assert theirs.value == (ours.value if ours.state.ended else None)
    assert str(theirs.intermediate_values) == str({own.fidelity: own.metric + 0.0 for own in ours.curve})
    optimizer = str(ours.hparams["optimizer"])
    rate = optimizer if optimizer in ("sgd", "adagrad") else "adaptive"
    names = {"learning_rate": f"learning_rate_{rate}", "l2": "l2_adamw" if optimizer == "adamw" else "l2"}
    searched = [name for name in ours.hparams if name != "l1"]
    assert list(theirs.params) == [names.get(name, name) for name in searched]
    for name in searched:
        value = ours.hparams[name]
        told = theirs.params[names.get(name, name)]
        assert told == (json.dumps(list(value)) if isinstance(value, tuple) else value)
        assert type(told) is (str if isinstance(value, tuple) else type(value))
    low, high = {"sgd": (1e-4, 1.0), "adagrad": (1e-3, 1.0), "adaptive": (1e-5, 1e-1)}[rate]
    distributions = {
        "optimizer": CategoricalDistribution(("sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam")),
        f"learning_rate_{rate}": FloatDistribution(low, high, log=True),
        "batch_size": CategoricalDistribution((16, 64, "full")),
        "nesterov": CategoricalDistribution((True, False)),
        "model.hidden": CategoricalDistribution(("[8]", "[64]", "[8, 8]")),
        "model.width": IntDistribution(1, 64, log=True),
        "model.dropout": FloatDistribution(0.0, 0.5),
    }
    for name in distributions.keys() & theirs.params.keys():
        assert theirs.distributions[name] == distributions[name]
    assert theirs.datetime_start is not None
    assert (theirs.datetime_complete is not None) == ours.state.ended


def test_optuna_shows_nan_and_infinities_of_a_curve(store: Store, database: Database) -> None:
    trial = running(0)
    store.start(trial)
    metrics = [0.1 + 0.2, math.inf, -math.inf, math.nan]
    store.record([measurement(0, fidelity, metric) for fidelity, metric in enumerate(metrics, start=1)])
    store.flush()
    shown = load(database).trials[0].intermediate_values
    assert [shown[1], shown[2], shown[3]] == metrics[:3]
    assert math.isnan(shown[4])


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_dates_are_those_that_optuna_would_have_written(
    store: Store, database: Database, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        write(store, [ended(running(0), State.COMPLETE, [0.5])])
        theirs = optuna.create_study().ask()._cached_frozen_trial.datetime_start
        assert theirs is not None
        ours = load(database).trials[0]
        for date in (ours.datetime_start, ours.datetime_complete):
            assert date is not None
            assert date.tzinfo is None
            assert abs(date - theirs) < timedelta(minutes=1)
    finally:
        monkeypatch.undo()
        time.tzset()


# Optuna's own tools


@pytest.fixture(scope="module")
def told(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Trial]]:
    """A study of all states, and the trials that it holds."""
    trials = [
        ended(running(0), State.COMPLETE, [0.25, 0.75, 0.5]),
        ended(running(1), State.PRUNED, [0.875], "rung 1"),
        replace(ended(running(2), State.FAILED, [0.25]), reason="diverged"),
        ended(running(3, tick=2), State.COMPLETE, [0.5, 0.8125, 0.8125]),
        replace(running(4, tick=2), curve=(measurement(4, 1, math.inf),), value=math.inf, best_tick=1, seconds=0.25),
    ]
    path = shutil.copy(empty, tmp_path_factory.mktemp("told") / "study.db")
    store = Store(path, SPACE)
    write(store, trials)
    store.close()
    return path, trials


def start_optuna(path: Path, command: str) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-c", "from optuna.cli import main; main()"]
    options = ["--storage", f"sqlite:///{path}", command, "--study-name", "tiny", "--format", "json"]
    return subprocess.Popen([*program, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_optunas_command_line_tells_the_same(told: tuple[Path, list[Trial]]) -> None:
    path, trials = told
    both = [start_optuna(path, command) for command in ("trials", "best-trial")]
    listed, best = (json.loads(process.communicate()[0]) for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert [row["number"] for row in listed] == [0, 1, 2, 3, 4]
    assert [row["state"] for row in listed] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE", "RUNNING"]
    assert [row["value"] for row in listed] == [0.75, 0.875, None, 0.8125, None]
    assert listed[0]["params"]["optimizer"] == trials[0].hparams["optimizer"]
    assert best["number"] == 3
    assert best["value"] == 0.8125
    assert best["params"]["model.dropout"] == trials[3].hparams["model.dropout"]
    assert read(path).trials == tuple(trials), "looking changes nothing"


def test_optunas_dashboard_serves_the_same(told: tuple[Path, list[Trial]]) -> None:
    from optuna_dashboard import wsgi

    path, trials = told
    app = wsgi(f"sqlite:///{path}")

    def get(address: str) -> Any:
        status: list[str] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": address,
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
        }
        body = b"".join(app(environ, lambda line, headers, error=None: status.append(line)))
        assert status == ["200 OK"]
        return json.loads(body)

    (summary,) = get("/api/studies")["study_summaries"]
    assert (summary["study_name"], summary["directions"]) == ("tiny", [DIRECTION])
    shown = get(f"/api/studies/{summary['study_id']}")
    assert [trial["state"] for trial in shown["trials"]] == ["Complete", "Pruned", "Fail", "Complete", "Running"]
    assert [trial.get("values") for trial in shown["trials"]] == [[0.75], [0.875], None, [0.8125], None]
    assert [trial["number"] for trial in shown["best_trials"]] == [3]
    for theirs, ours in zip(shown["trials"], trials, strict=True):
        curve = {point["step"]: float(point["value"]) for point in theirs["intermediate_values"]}
        assert curve == {own.fidelity: own.metric for own in ours.curve}
        params = {param["name"]: param["param_external_value"] for param in theirs["params"]}
        assert params["optimizer"] == ours.hparams["optimizer"]
        assert float(params["model.width"]) == ours.hparams["model.width"]


# Ticks are whole


def test_a_trial_that_optuna_adds_while_a_search_writes_is_named_as_the_reason(
    store: Store, database: Database
) -> None:
    write(store, [running(0)])
    load(database).enqueue_trial({"optimizer": "sgd"})
    with pytest.raises(StorageError, match="another program added some") as caught:
        write(store, [running(1)])
    assert caught.value.hint
    assert [trial.state for trial in read(database).trials] == [State.RUNNING, State.WAITING]
    # Opened again, it goes on behind what waits.
    again = Store(database, SPACE)
    write(again, [running(1), running(2)])
    again.close()
    assert [trial.state for trial in read(database).trials] == [State.RUNNING] * 3


def rows(database: Database) -> dict[str, Any]:
    """All that Optuna's tables hold of trials, less their clocks; trials by their numbers."""
    engine = create_engine(url_of(database))
    found = MetaData()
    names = ("params", "values", "intermediate_values", "user_attributes", "system_attributes")
    found.reflect(engine, only=("studies", "trials", *(f"trial_{name}" for name in names)))
    studies, trials = found.tables["studies"], found.tables["trials"]
    own = trials.join(studies, trials.c.study_id == studies.c.study_id)
    told = [select(trials.c.number, trials.c.state).select_from(own).order_by(trials.c.number)]
    for name in names:
        table = found.tables[f"trial_{name}"]
        order, *rest = [column for column in table.c if column.name != "trial_id"]  # its own id first
        of_trials = own.join(table, trials.c.trial_id == table.c.trial_id)
        told.append(select(trials.c.number, *rest).select_from(of_trials).order_by(order))
    mine = studies.c.study_name == name_of(database)
    with engine.connect() as connection:
        answers = [connection.execute(own.where(mine)).all() for own in told]
    engine.dispose()
    return dict(zip(("trials", *names), answers, strict=True))


def test_optunas_own_storage_would_have_written_the_same_rows(store: Store, database: Database, tmp_path: Path) -> None:
    metrics = [0.25, math.inf, -math.inf, math.nan, 0.1 + 0.2]
    trials = [
        replace(ended(running(0), State.COMPLETE, [0.25, 0.75]), reason=None),
        ended(running(1), State.PRUNED, [math.inf]),
        ended(running(2), State.FAILED, metrics),
        replace(running(3), curve=(measurement(3, 1, -math.inf),)),
    ]
    write(store, trials)
    store.note(0, {"epochs": 3, "text": "ü"})
    store.enqueue(Trial(4, State.WAITING, {}, start_tick=0, given={"optimizer": "sgd"}))
    store.flush()

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    other = tmp_path / "theirs.db"
    study = optuna.create_study(storage=f"sqlite:///{other}", study_name="tiny", direction=DIRECTION)
    for trial in trials:
        own = study.ask()
        for name, (range_, internal) in SPACE.encode(trial.hparams).items():
            distribution = optuna.distributions.json_to_distribution(distribution_json(range_))
            study._storage.set_trial_param(own._trial_id, name, internal, distribution)
        for measured in trial.curve:
            own.report(measured.metric, measured.fidelity)
        if trial.number == 0:
            own.set_user_attr("epochs", 3)
            own.set_user_attr("text", "ü")
        if trial.state.ended:
            values = None if trial.value is None else [trial.value]
            study._storage.set_trial_state_values(own._trial_id, ENDED[trial.state], values)
    study.enqueue_trial({"optimizer": "sgd"})
    assert rows(database) == rows(other)


def test_a_database_that_was_kept_without_a_study_begins_the_next_as_a_new_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dump(path: Path) -> list[str]:
        create(path)
        lines = sqlite3.connect(path).iterdump()
        return [re.sub(r"\d{4}-\d\d-\d\d[ T][\d:.]+", "NOW", line) for line in lines]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    new = dump(tmp_path / "new.db")
    (kept,) = (tmp_path / "cache").rglob("*.db")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with monkeypatch.context() as without:
        without.setattr(optuna.storages, "RDBStorage", None)
        assert dump(tmp_path / "next.db") == new
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])  # spoilt: then it is made, and kept, anew
    assert dump(tmp_path / "last.db") == new
    assert len(kept.read_bytes()) == len(whole)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # where nothing can be kept
    assert dump(tmp_path / "other.db") == new


def test_what_is_not_committed_is_invisible(store: Store, database: Database) -> None:
    store.start(running(0))
    store.record([measurement(0, 1)])
    assert read(database).trials == ()
    assert load(database).trials == []
    store.flush()
    assert [own.fidelity for own in read(database).trials[0].curve] == [1]
    store.record([measurement(0, 2)])
    assert read(database).trials[0].fidelity == 1
    store.flush()
    assert read(database).trials[0].fidelity == 2


def test_commits_are_grouped_and_none_is_forgotten(in_file: Store, path: Path) -> None:
    in_file.start(running(0))
    in_file.flush()
    visible = 0
    for fidelity in range(1, 6):
        in_file.record([measurement(0, fidelity)])
        visible = fidelity if in_file.commit() else visible
        assert read(path).trials[0].fidelity == visible
    time.sleep(0.15)
    in_file.record([measurement(0, 6)])
    assert in_file.commit()
    assert read(path).trials[0].fidelity == 6


def test_a_flush_that_fails_writes_nothing(store: Store, database: Database) -> None:
    first = running(0)
    store.start(first)
    store.record([measurement(0, 1)])
    store.flush()
    before = read(database)
    store.start(running(1))
    store.record([measurement(0, 2), measurement(1, 1)])
    store.end(ended(first, State.COMPLETE, [0.5, 0.5]))
    store.keep(ended(first, State.COMPLETE, [0.5, 0.5]), "f" * 64)
    store.read_split("test", "finetune", 0, {"accuracy": 1.0})
    store.record([measurement(0, 1)])  # once more
    with pytest.raises(StorageError, match="cannot write"):
        store.flush()
    record = read(database)
    assert record == before
    assert [trial.fidelity for trial in record.trials] == [1]
    assert record.trials[0].state is State.RUNNING
    assert not record.kept
    assert not record.readings


def test_a_transaction_that_a_kill_cut_short_is_rolled_back_by_the_next_reader(path: Path, in_file: Store) -> None:
    write(in_file, [ended(running(0), State.COMPLETE, [0.5])])
    expected = read(path)
    # A small cache spills pages into the file before the commit: the journal beside it is what undoes them.
    half = """
        import os, sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("PRAGMA cache_size = 2")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE trials SET state = 'FAIL'")
        rows = [(trial, 1, 1.0) for trial in range(1000, 4000)]
        connection.executemany("INSERT INTO tunecli_measurements (trial_id, fidelity, seconds) VALUES (?, ?, ?)", rows)
        os.kill(os.getpid(), 9)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(half), str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.with_name("study.db-journal").stat().st_size > 0
    assert read(path) == expected
    assert load(path).trials[0].state is TrialState.COMPLETE


def test_readers_see_whole_ticks_only(store: Store, database: Database) -> None:
    """In each tick two trials are measured; every fourth ends one and starts another."""
    ticks, flight = 40, [0, 1]
    trials = [replace(running(number), start_tick=1) for number in flight]

    def search() -> None:
        for trial in trials:
            store.start(trial)
        for tick in range(1, ticks + 1):
            for number in flight:
                own = measurement(number, tick - trials[number].start_tick + 1, tick / 100)
                trials[number] = replace(trials[number], curve=(*trials[number].curve, own))
                store.record([own])
            if tick % 4 == 0:
                oldest = flight.pop(0)
                metrics = [own.metric for own in trials[oldest].curve]
                store.end(ended(trials[oldest], State.COMPLETE, metrics))
                flight.append(len(trials))
                trials.append(running(len(trials), tick + 1))
                store.start(trials[-1])
            store.flush()
            time.sleep(0.02)  # a reader has its turn between commits

    writer = Thread(target=search)
    writer.start()
    seen = set()
    while writer.is_alive() or ticks not in seen:
        found = read(database).trials
        tick = max((trial.start_tick + trial.fidelity - 1 for trial in found), default=0)
        seen.add(tick)
        assert len(found) == (2 + tick // 4 if tick else 0)
        in_flight = [trial for trial in found if trial.state is State.RUNNING]
        assert len(in_flight) == (2 if tick else 0)
        assert all(trial.start_tick + trial.fidelity - 1 == tick for trial in in_flight)
        assert all(trial.end_tick == trial.start_tick + trial.fidelity - 1 for trial in found if trial.state.ended)
        assert all(trial.value == trial.end_tick / 100 for trial in found if trial.end_tick)
    writer.join()
    assert len(seen) > 2, "the reader looked while the writer wrote"


def test_checkpoints_and_readings_are_remembered(store: Store, database: Database) -> None:
    trials = [ended(running(number), State.COMPLETE, [0.5, 0.75]) for number in range(3)]
    write(store, trials)
    for trial in trials:
        store.keep(trial, f"{trial.number}" * 64)
    store.drop(1)
    store.read_split("test", "finetune", 2, {"before": 0.5, "after": 0.75})
    store.flush()
    store.drop(0)
    store.read_split("test", "finetune", None, {})
    store.flush()
    record = read(database)
    assert record.kept == {2: "2" * 64}
    first, second = record.readings
    assert (first.split, first.purpose, first.trial, first.values) == (
        "test",
        "finetune",
        2,
        {"before": 0.5, "after": 0.75},
    )
    assert (second.trial, second.values) == (None, {})
    assert abs(first.read_at - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=1)


def test_the_question_is_remembered(database: Database) -> None:
    record = read(database)
    assert (record.name, record.metric, record.direction) == (name_of(database), "accuracy", DIRECTION)
    assert record.document == {
        "name": "tiny",
        "space": KEYS,
        "train": {"epochs": 3},
        "search": {"window": 3, "trials": 10},
    }
    assert record.plan == {"way": "looped", "cap": None}
    assert (record.data_hash, record.environment) == ("0" * 32, {"device": "cpu"})
    assert record.space == SPACE


# One writer


def test_a_later_writer_fences_an_earlier_one_off(database: Database) -> None:
    earlier = Store(database, SPACE)
    write(earlier, [running(0)])
    later = Store(database, SPACE)
    earlier.record([measurement(0, 1, 0.25)])
    with pytest.raises(StorageError, match="taken over"):
        earlier.flush()
    assert read(database).trials[0].fidelity == 0
    later.record([measurement(0, 1, 0.75)])
    later.flush()
    assert read(database).trials[0].curve[0].metric == 0.75
    with pytest.raises(StorageError, match="taken over"):
        earlier.flush()
    earlier.close()
    later.close()


HOLDER = """
import pathlib, sys, time
from tunecli.store import hold
with hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_study_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "tiny"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        with pytest.raises(StorageError, match=rf"process {other.pid}\b") as caught, hold(folder):
            pass
        assert str(folder) in caught.value.message
        assert caught.value.hint
        other.send_signal(signal.SIGKILL)
        other.wait()
    with hold(folder), pytest.raises(StorageError, match=rf"process {os.getpid()}\b"), hold(folder):
        pass
    with hold(folder):
        pass


def test_an_error_lets_go_of_the_study(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(tmp_path):
        raise ZeroDivisionError
    with hold(tmp_path):
        pass


# What is no study of ours


def test_an_empty_file_is_a_new_study(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    assert is_unfinished(path)
    with pytest.raises(InputError, match="no study"):
        read(path)
    path.touch()
    assert is_unfinished(path)
    with pytest.raises(InputError, match="no study"):
        read(path)
    create(path)
    assert not is_unfinished(path)
    assert read(path).trials == ()


def no_database(path: Path) -> None:
    path.write_text("not a database\n" * 100)


def half_a_database(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def optunas_own(path: Path) -> None:
    path.unlink()
    study = optuna.create_study(storage=f"sqlite:///{path}", study_name="tiny")
    study.add_trial(optuna.create_trial(value=1.0))
    study._storage.remove_session()


def anothers(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE addresses (name TEXT)")


def another_version(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE tunecli_studies SET version = 99")


def no_version(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE tunecli_studies SET version = 2.5")


def another_version_of_optuna(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE version_info SET schema_version = 11")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_database, "cannot read"),
        (half_a_database, "cannot read"),
        (optunas_own, "no study of tunecli"),
        (anothers, "no study of tunecli"),
        (another_version, "99 of tunecli"),
        (no_version, "2.5 of tunecli"),
        (another_version_of_optuna, "11 of Optuna"),
    ],
)
def test_what_is_no_study_of_ours_is_refused_and_left_as_it_is(
    path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spoil(path)
    before = path.read_bytes()
    for open_it in (read, lambda path: Store(path, SPACE)):
        with pytest.raises(InputError, match=says) as caught:
            open_it(path)
        assert caught.value.hint
    assert path.read_bytes() == before
    assert sorted(own.name for own in path.parent.iterdir()) == ["study.db"]


def test_a_trial_that_optuna_added_is_named(store: Store, database: Database) -> None:
    write(store, [running(0)])
    load(database).add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(InputError, match="trial 1 was not written by tunecli"):
        read(database)


# Earlier versions


def as_of(version: int, path: Path) -> None:
    """The database as an earlier version of tunecli would have left it."""
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE tunecli_questions")
        connection.execute("DELETE FROM study_system_attributes")
        if version == 1:
            connection.execute("ALTER TABLE tunecli_studies DROP COLUMN importance")
        connection.execute("UPDATE tunecli_studies SET version = ?", (version,))


@pytest.mark.parametrize("version", [1, 2])
def test_an_earlier_version_is_read_as_it_is_and_brought_up_to_date_after_a_backup(
    path: Path, in_file: Store, version: int
) -> None:
    write(in_file, [ended(running(0), State.COMPLETE, [0.25, 0.5]), running(1, tick=2)])
    in_file.close()
    record = read(path)
    as_of(version, path)
    before = path.read_bytes()
    assert read(path) == record
    assert overview(path).best == 0
    assert path.read_bytes() == before
    later = Store(path, SPACE)
    write(later, [running(2, tick=2)])
    later.close()
    assert [trial.number for trial in read(path).trials] == [0, 1, 2]
    backup = path.with_name(f"study.db.schema-{version}")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert read(backup) == record
    with sqlite3.connect(backup) as connection:
        assert connection.execute("SELECT version FROM tunecli_studies").fetchall() == [(version,)]
    Store(path, SPACE).close()
    assert sorted(own.name for own in path.parent.iterdir()) == ["study.db", backup.name]


def test_a_step_that_fails_leaves_the_earlier_version_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = read(path)
    as_of(2, path)
    broken = {**versions.MIGRATIONS, 2: lambda connection: connection.exec_driver_sql("CREATE TABLE trials (a)")}
    with monkeypatch.context() as patch:
        patch.setattr(versions, "MIGRATIONS", broken)
        with pytest.raises(StorageError, match=r"study\.db"):
            Store(path, SPACE)
    assert read(path) == record
    Store(path, SPACE).close()


# Deleted by Optuna


def delete(path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.delete_study(study_name="tiny", storage=f"sqlite:///{path}")


def test_a_study_that_optuna_deleted_is_gone_and_can_begin_anew(path: Path, in_file: Store) -> None:
    write(in_file, [ended(running(0), State.COMPLETE, [0.5])])
    in_file.close()
    assert not is_deleted(path)
    delete(path)
    assert is_deleted(path)
    for open_it in (read, overview, lambda path: Store(path, SPACE)):
        with pytest.raises(InputError, match="was deleted with Optuna's tools") as caught:
            open_it(path)
        assert caught.value.hint
    create(path)
    assert not is_deleted(path)
    assert read(path).trials == ()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM tunecli_measurements").fetchall() == [(0,)]


def test_what_was_left_of_a_deleted_study_is_never_taken_for_the_next_ones(path: Path, in_file: Store) -> None:
    write(in_file, [ended(running(0), State.COMPLETE, [0.5])])
    in_file.close()
    delete(path)
    # SQLite gives it the ids of the deleted one.
    optuna.create_study(study_name="tiny", storage=f"sqlite:///{path}").add_trial(optuna.create_trial(value=1.0))
    before = path.read_bytes()
    for open_it in (read, is_deleted, lambda path: Store(path, SPACE)):
        with pytest.raises(InputError, match="was deleted with Optuna's tools"):
            open_it(path)
    assert path.read_bytes() == before
    assert load(path).best_value == 1.0


# Files


def test_the_database_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create(tmp_path / "new" / "study.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "study.db").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert [own.name for own in (tmp_path / "new").iterdir()] == ["study.db"]


def test_any_folder_will_do(tmp_path: Path) -> None:
    name = "a b, ü, 100%, %41, ?x=1&y, #1, {z}, 'q', \\"
    path = tmp_path / name / "study.db"
    create(path)
    store = Store(path, SPACE)
    write(store, [ended(running(0), State.COMPLETE, [0.5])])
    store.close()
    assert read(path).trials[0].value == 0.5
    assert [own.name for own in tmp_path.iterdir()] == [name]
    assert [own.name for own in path.parent.iterdir()] == ["study.db"]


def test_a_creation_that_a_kill_cut_short_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.db"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            create(path)
    assert is_unfinished(path)
    create(path)
    assert read(path).name == "tiny"


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        create(tmp_path / "file" / "study.db")
    with pytest.raises(StorageError, match="cannot write"), hold(tmp_path / "file"):
        pass


def test_a_study_that_comes_to_nothing_leaves_no_folder_and_one_that_has_begun_stays(tmp_path: Path) -> None:
    with hold(tmp_path / "home" / "own"):
        assert (tmp_path / "home" / "own" / "lock").exists()
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path / "home" / "own"):
        (tmp_path / "home" / "own" / "study.toml").write_text("")
    assert {path.name for path in (tmp_path / "home" / "own").iterdir()} == {"lock", "study.toml"}


def test_a_lock_that_is_removed_while_another_process_opens_it_is_held_by_one_alone(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from tunecli.errors import StorageError\n"
        "from tunecli.store import hold\n"
        "folder, log = map(pathlib.Path, sys.argv[1:])\n"
        "for _ in range(300):\n"
        "    try:\n"
        "        with hold(folder):\n"
        "            with open(log, 'a') as file:\n"
        "                file.write('in ')\n"
        "                file.flush()\n"
        "                file.write('out ')\n"
        "    except StorageError:\n"
        "        pass\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "own"), str(tmp_path / "log")]) for _ in range(4)
    ]
    assert [process.wait() for process in processes] == [0] * 4
    words = (tmp_path / "log").read_text().split()
    assert words
    assert words == ["in", "out"] * (len(words) // 2)
