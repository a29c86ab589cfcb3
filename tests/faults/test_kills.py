"""kill -9 of a whole search or fine-tuning, then the same again until it is done: as if it never had been killed."""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Question
from tests.faults.conftest import Report
from tunecli.engine.block import Block
from tunecli.finetune import Finetuned, Request, finetune
from tunecli.search import search
from tunecli.store import read
from tunecli.study import Study
from tunecli.trial import State

ROOT = Path(__file__).parents[2]
SHORT = (("tpe", 3), ("grid", 3), ("random", 8))
FULL = (*SHORT, ("qmc", 3), ("random", 3))
POINTS: dict[str, Callable[[int], int]] = {
    "ask": lambda often: often,
    "train": lambda often: 7 * often,
    "evaluate": lambda often: often,
    "before commit": lambda often: often,
    "inside commit": lambda often: 9 * often + 20,
    "at commit": lambda often: often,
    "after commit": lambda often: often,
    "checkpoint": lambda often: often,
    "snapshot": lambda often: 3 * often + 1,
}
"""How often a point of killer.py is passed before one of the first six kills there, so that they are spread out."""
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


Kill = Callable[[list[dict[str, Any]]], list[list[int]]]


@pytest.fixture(scope="module")
def kill(full: bool) -> Iterator[Kill]:
    """How each run of each task ended (killer.py); in a full run two are at work at once."""
    program = [sys.executable, "-m", "tests.faults.killer"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    killers = [subprocess.Popen(program, text=True, cwd=ROOT, **pipes) for _ in range(2 if full else 1)]  # type: ignore[call-overload]

    def work(tasks: list[dict[str, Any]]) -> list[list[int]]:
        found: dict[str, list[int]] = {}
        for start in range(0, len(tasks), len(killers)):
            own = list(zip(killers, tasks[start:], strict=False))
            for killer, task in own:
                killer.stdin.write(json.dumps(task) + "\n")
                killer.stdin.flush()
            for killer, task in own:
                line = killer.stdout.readline()
                assert line, f"{task}: see what the killer printed"
                found[task["folder"]] = json.loads(line)["statuses"]
        return [found[task["folder"]] for task in tasks]

    yield work
    for killer in killers:
        killer.communicate()


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


def at_point(point: str | None, left: int) -> dict[str, Any]:
    return {"point": point, "left": left, "events": -1, "seconds": 0.0}


def at_moment(events: int, seconds: float) -> dict[str, Any]:
    return {"point": None, "left": 0, "events": events, "seconds": seconds}


def test_a_search_that_is_killed_at_any_moment_is_the_search_that_never_was(
    never: Never, kill: Kill, tmp_path: Path, full: bool, report: Report
) -> None:
    chosen = FULL * 40 if full else SHORT
    tasks, moments = [], random.Random(0)
    for place, own in enumerate(chosen):
        folder = make_folder(tmp_path / str(place), never[own][0])
        # The first kill comes at any time, maybe while the study is being made; the others once it is under way.
        kills = [at_moment(0, moments.uniform(0.0, 0.5))]
        kills += [at_moment(moments.randint(1, 6), moments.uniform(0.0, 0.05)) for _ in range(3)]
        tasks.append({"folder": str(folder), "command": "search", "kills": kills})
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
    never: Never, kill: Kill, tmp_path: Path, full: bool, report: Report
) -> None:
    study, expected = never["tpe", 3]
    moments = random.Random(1)
    points = tuple(POINTS) if full else ("train", "inside commit", "checkpoint", "snapshot")
    rounds = list(product(points, range(10 if full else 1)))
    tasks = []
    for point, place in rounds:
        folder = make_folder(tmp_path / f"{point}-{place}", study)
        kills = [at_point(point, POINTS[point](moments.randint(0, 5)))]
        tasks.append({"folder": str(folder), "command": "search", "kills": kills})
    killed: Counter[str] = Counter()
    for (point, _), statuses in zip(rounds, kill(tasks), strict=True):
        assert statuses == [-signal.SIGKILL, 0], point
        killed[point] += 1
    same = sum(answer(tmp_path / f"{point}-{place}" / "tiny") == expected for point, place in rounds)
    told = ", ".join(f"{point} {killed[point]}" for point in points)
    report("kill -9 at a named point, then the same search", f"{same} of {len(rounds)} identical; kills: {told}")
    assert same == len(rounds)


def test_fine_tuning_that_is_killed_at_any_step_comes_to_the_same_weights(
    kill: Kill, question: Question, tmp_path: Path, full: bool, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, searched = digits(question, "random", 3), tmp_path / "searched"
    list(search(study, searched / "tiny"))
    shutil.copytree(searched, tmp_path / "never")
    steps, real = [0], Block._advance

    def counted(block: Block, *, late: bool) -> None:
        steps[0] += 1
        real(block, late=late)

    with monkeypatch.context() as patch:
        patch.setattr(Block, "_advance", counted)
        *_, never = finetune(tmp_path / "never" / "tiny", Request(epochs=3))
    assert isinstance(never, Finetuned)

    def weights(checkpoint: Path) -> bytes:
        return (checkpoint / "weights.safetensors").read_bytes()

    moments, often = random.Random(2), 50 if full else 2
    tasks = []
    for number in range(often):
        folder = shutil.copytree(searched, tmp_path / str(number))
        kills = [at_point("train", moments.randrange(steps[0]))]
        tasks.append({"folder": str(folder), "command": "finetune", "kills": kills})
    ends = kill(tasks)
    same = sum(
        weights(Path((tmp_path / str(number) / "result").read_text())) == weights(never.checkpoint)
        for number in range(often)
    )
    report(
        "kill -9 of a fine-tuning at any step of its trainings, then the same again",
        f"{same} of {often} came to the weights of the one that never was killed, bitwise",
    )
    assert ends == [[-signal.SIGKILL, 0]] * often
    assert same == often
