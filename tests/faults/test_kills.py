"""kill -9 of a whole search, then the same search again, until it is done: the search that never was killed."""

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Question
from tests.faults.conftest import Report
from tunecli.search import search
from tunecli.store import read
from tunecli.study import Study
from tunecli.trial import State

KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
# Loaded once, for all the processes to come.
import alembic.command, optuna, safetensors.torch, scipy.stats, sqlalchemy, sqlalchemy.orm, sympy
from tunecli import checkpoint, data, engine, files, models, sampler, snapshots
from tunecli.data import bundled, prepare
from tunecli.engine import task
from tunecli.engine.block import Block
from tunecli.search import loop, search
from tunecli.search.ledger import Ledger
from tunecli.store import Store, is_unfinished, read, writer
from tunecli.study import read_study

writer.GROUP_SECONDS = 0.01  # so that even a study as short as this is committed often

def die():
    os.killpg(os.getpgid(0), signal.SIGKILL)

def before(owner, name, left):
    # The call after `left` others is not lived to see.
    real = getattr(owner, name)
    def call(*arguments, **keys):
        nonlocal left
        left -= 1
        if left < 0:
            die()
        return real(*arguments, **keys)
    setattr(owner, name, call)

def after(owner, name, left):
    real = getattr(owner, name)
    def call(*arguments, **keys):
        nonlocal left
        found = real(*arguments, **keys)
        left -= 1
        if left < 0:
            die()
        return found
    setattr(owner, name, call)

def within(event, left):
    def count(*anything):
        nonlocal left
        left -= 1
        if left < 0:
            die()
    sqlalchemy.event.listen(sqlalchemy.engine.Engine, event, count)

def keep_often():
    snapshots.EVERY_SECONDS, snapshots.LARGEST_SHARE = 0.0, 1e9

def in_snapshot(left):
    keep_often()
    before(checkpoint, "write_new", 3 * left + 1)

POINTS = {
    "ask": lambda left: before(Ledger, "start", left),
    "train": lambda left: before(Block, "_micro_step", 7 * left),
    "evaluate": lambda left: before(Block, "measure", left),
    "before commit": lambda left: before(Store, "flush", left),
    "inside commit": lambda left: within("before_cursor_execute", 9 * left + 20),
    "at commit": lambda left: within("commit", left),
    "after commit": lambda left: after(Store, "flush", left),
    "checkpoint": lambda left: before(checkpoint, "write_new", left),
    "snapshot": in_snapshot,
}

def begin(folder, point=None, left=0):
    shown, show = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(shown)
        os.setpgid(0, 0)
        if point is not None:
            POINTS[point](left)
        else:
            keep_often()
        for _ in search(read_study(folder / "question.toml"), folder / "tiny"):
            os.write(show, b".")
        os._exit(0)
    os.close(show)
    while os.getpgid(child) != child:
        time.sleep(0.001)
    return child, shown

def attempt(folder, point, left, events, seconds):
    # It ends at a point, or some time after so many events; without either, when it is done.
    child, shown = begin(folder, point, left)
    while events != 0 and os.read(shown, 1):
        events -= 1
    if point is None and events == 0:
        time.sleep(seconds)
        os.killpg(child, signal.SIGKILL)
    os.close(shown)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def acknowledged(folder):
    path = folder / "tiny" / "study.db"
    if is_unfinished(path):
        return {}
    return {trial.number: trial for trial in read(path).trials if trial.state.ended}

for line in sys.stdin:
    task = json.loads(line)
    folder, known, statuses = Path(task["folder"]), {}, []
    for kill in task["kills"]:
        statuses.append(attempt(folder, **kill))
        now = acknowledged(folder)
        assert known.items() <= now.items(), "an ended trial is lost"
        known = now
    statuses.append(attempt(folder, None, 0, -1, 0.0))
    print(json.dumps({"folder": task["folder"], "statuses": statuses}), flush=True)
"""

SHORT = (("tpe", 3), ("grid", 3), ("random", 8))
FULL = (*SHORT, ("qmc", 3), ("random", 3))
POINTS = (
    "ask",
    "train",
    "evaluate",
    "before commit",
    "inside commit",
    "at commit",
    "after commit",
    "checkpoint",
    "snapshot",
)
GRID = {
    "optimizer": ["sgd", "adam"],
    "learning_rate": [1e-3, 1e-2, 1e-1],
    "batch_size": [64, 256],
    "momentum": 0.9,
    "beta1": 0.9,
    "beta2": 0.999,
    "l1": 0,
    "l2": 0,
}


def digits(question: Question, sampler: str, window: int) -> Study:
    """A search of some ticks on digits, a second or so: narrow networks, asha; tpe models from the tenth trial on."""
    return question(
        data={"source": "digits"},
        train={"epochs": 3},
        space=GRID if sampler == "grid" else {"batch_size": [64, 256]},
        sampler=sampler,
        window=window,
        trials=14 if sampler == "tpe" else 10,
    )


def answer(folder: Path) -> list[Any]:
    """Everything but the clock."""
    record = read(folder / "study.db")
    curves = [
        [(own.metric, own.train_loss, own.validation_loss, own.gradient_norm) for own in t.curve] for t in record.trials
    ]
    trials = [
        (t.number, t.state, dict(t.hparams), t.start_tick, t.end_tick, t.value, t.best_tick, t.reason, curve)
        for t, curve in zip(record.trials, curves, strict=True)
    ]
    assert not any(trial.state is State.RUNNING for trial in record.trials)
    return [trials, dict(record.kept), sorted(own.name for own in (folder / "checkpoints").iterdir())]


def kill(tasks: list[dict[str, Any]]) -> list[list[Any]]:
    """How each attempt of each task ended."""
    lines = "".join(json.dumps(task) + "\n" for task in tasks)
    done = subprocess.run([sys.executable, "-c", KILLER], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [own["folder"] for own in found] == [task["folder"] for task in tasks]
    return [own["statuses"] for own in found]


Never = dict[tuple[str, int], tuple[Study, list[Any]]]
"""The searches that never were killed, by sampler and window, and what came of them."""


@pytest.fixture(scope="module")
def never(question: Question, full: bool, tmp_path_factory: pytest.TempPathFactory) -> Never:
    found = {}
    for sampler, window in FULL if full else SHORT:
        study, folder = digits(question, sampler, window), tmp_path_factory.mktemp("never") / "tiny"
        list(search(study, folder))
        found[sampler, window] = (study, answer(folder))
        assert {trial[1] for trial in found[sampler, window][1][0]} == {State.COMPLETE, State.PRUNED}
    return found


def make_folder(place: Path, study: Study) -> Path:
    place.mkdir()
    (place / "question.toml").write_text(study.toml())
    return place


def at_point(point: str, left: int) -> dict[str, Any]:
    return {"point": point, "left": left, "events": -1, "seconds": 0.0}


def at_moment(events: int, seconds: float) -> dict[str, Any]:
    return {"point": None, "left": 0, "events": events, "seconds": seconds}


def test_a_search_that_is_killed_at_any_moment_is_the_search_that_never_was(
    never: Never, tmp_path: Path, full: bool, report: Report
) -> None:
    chosen = FULL * 40 if full else SHORT
    tasks, moments = [], random.Random(0)
    for place, own in enumerate(chosen):
        folder = make_folder(tmp_path / str(place), never[own][0])
        # The first kill comes at any time, maybe while the study is being made; the others once it is under way.
        kills = [at_moment(0, moments.uniform(0.0, 0.5))]
        kills += [at_moment(moments.randint(1, 6), moments.uniform(0.0, 0.05)) for _ in range(3)]
        tasks.append({"folder": str(folder), "kills": kills})
    ends = kill(tasks)
    counted = Counter(status for statuses in ends for status in statuses)
    assert set(counted) <= {0, -signal.SIGKILL}, counted
    same = sum(answer(tmp_path / str(place) / "tiny") == never[own][1] for place, own in enumerate(chosen))
    report(
        "kill -9 of the whole process group at random moments, then the same search: random, qmc, grid, tpe; digits",
        f"{same} of {len(chosen)} identical to the uninterrupted one, {counted[-signal.SIGKILL]} kills, 0 RUNNING, "
        "no acknowledged trial lost",
    )
    assert same == len(chosen)
    assert all(statuses[-1] == 0 for statuses in ends)


def test_a_search_that_is_killed_at_a_named_point_is_the_search_that_never_was(
    never: Never, tmp_path: Path, full: bool, report: Report
) -> None:
    study, expected = never["tpe", 3]
    moments = random.Random(1)
    points = POINTS if full else ("train", "inside commit", "checkpoint", "snapshot")
    rounds = list(product(points, range(10 if full else 1)))
    tasks = []
    for point, place in rounds:
        folder = make_folder(tmp_path / f"{point}-{place}", study)
        kills = [at_point(point, moments.randint(0, 5)) for _ in range(2 if full else 1)]
        tasks.append({"folder": str(folder), "kills": kills})
    killed: Counter[str] = Counter()
    for (point, _), statuses in zip(rounds, kill(tasks), strict=True):
        assert statuses[0] == -signal.SIGKILL, (point, statuses)
        assert statuses[-1] == 0, (point, statuses)
        killed[point] += statuses.count(-signal.SIGKILL)
    same = sum(answer(tmp_path / f"{point}-{place}" / "tiny") == expected for point, place in rounds)
    told = ", ".join(f"{point} {killed[point]}" for point in points)
    report("kill -9 at a named point, then the same search", f"{same} of {len(rounds)} identical; kills: {told}")
    assert same == len(rounds)
