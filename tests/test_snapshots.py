"""Snapshots on disk: what an interruption costs, and that they are never part of an answer."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunecli import checkpoint, files, snapshots
from tunecli.engine.block import Block
from tunecli.finetune import Finetuned, Request, finetune, training
from tunecli.search import Differed, Ended, Event, Noticed, search
from tunecli.search import loop as loop_room
from tunecli.store import Store, read
from tunecli.study import Study
from tunecli.trial import Trial

Question = Callable[..., Study]


class Crash(BaseException):
    """The process ends here."""


def answer(folder: Path) -> tuple[list[Trial], dict[int, str]]:
    """All that a study has to show but for its seconds."""
    record = read(folder / "study.db")
    timeless = [
        replace(trial, seconds=0.0, curve=tuple(replace(own, seconds=0.0) for own in trial.curve))
        for trial in record.trials
    ]
    return timeless, dict(record.kept)


def until(study: Study, folder: Path, stop_at: int | None) -> list[Event]:
    """Search until the loop has looked so often whether to stop; None to the end."""
    calls = iter(range(10_000_000))
    return list(search(study, folder, stop=lambda: stop_at is not None and next(calls) >= stop_at))


def how(events: list[Event]) -> str:
    assert isinstance(events[-1], Ended)
    return events[-1].how


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Noticed)]


@pytest.fixture(scope="module", params=[2, 8], ids=["one by one", "in blocks"])
def whole(request: pytest.FixtureRequest, question: Question, tmp_path_factory: pytest.TempPathFactory) -> Any:
    study = question(window=request.param, trials=9, train={"epochs": 3})
    folder = tmp_path_factory.mktemp("whole")
    assert how(until(study, folder, None)) == "done"
    assert not (folder / "snapshots").exists()
    return study, folder


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Every micro-step that is trained; between any two the loop looks at signals."""
    monkeypatch.setattr(loop_room, "PAUSE_SECONDS", -1.0)
    done, real = [0], Block._advance

    def counted(self: Block, *, late: bool) -> None:
        done[0] += 1
        real(self, late=late)

    monkeypatch.setattr(Block, "_advance", counted)
    return done


def test_a_search_that_is_stopped_in_the_middle_of_ticks_trains_nothing_twice(
    whole: tuple[Study, Path], tmp_path: Path, steps: list[int]
) -> None:
    study, folder = whole
    until(study, tmp_path / "again", None)
    needed, steps[0] = steps[0], 0
    stops = 0
    while how(events := until(study, tmp_path / "stopped", 5)) != "done":
        stops += 1
        assert not [event for event in events if isinstance(event, Differed | Noticed)]
    assert stops > 2
    assert steps[0] == needed
    assert answer(tmp_path / "stopped") == answer(folder)
    assert not (tmp_path / "stopped" / "snapshots").exists()


def test_how_many_processes_read_is_no_part_of_what_trained_a_snapshot(
    question: Question, tmp_path: Path, steps: list[int]
) -> None:
    study = question(trials=3, pruner="none")
    until(study, tmp_path / "whole", None)
    needed, steps[0] = steps[0], 0
    until(study, tmp_path / "stopped", 8)
    assert 0 < steps[0] < needed
    assert (
        how(until(question(trials=3, pruner="none", data={"source": "iris", "workers": 1}), tmp_path / "stopped", None))
        == "done"
    )
    assert steps[0] == needed


@pytest.mark.usefixtures("steps")
def test_snapshots_change_nothing_whatever_becomes_of_them(whole: tuple[Study, Path], tmp_path: Path) -> None:
    """Gone, damaged, of another study, or older than what is recorded."""
    study, folder = whole
    until(study, tmp_path / "half", 8)
    kept = sorted((tmp_path / "half" / "snapshots").iterdir())
    assert kept
    assert {stat.S_IMODE(own.stat().st_mode) for own in kept} == {0o700}
    assert {stat.S_IMODE(own.stat().st_mode) for folder in kept for own in folder.iterdir()} == {0o600}
    for name in ("gone", "damaged", "foreign", "older"):
        half = shutil.copytree(tmp_path / "half", tmp_path / name)
        own = half / "snapshots"
        expected: list[str] = []
        if name == "gone":
            shutil.rmtree(own)
        if name == "damaged":
            path = own / kept[0].name / checkpoint.WEIGHTS
            path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
            number = kept[0].name.removeprefix("trial-")
            expected = [f"damaged snapshot: {path} is not what was written: trial {number} is trained anew"]
        if name == "foreign":
            other = replace(study, seed=1)
            until(other, tmp_path / "other", 8)
            shutil.rmtree(own)
            shutil.copytree(tmp_path / "other" / "snapshots", own)
        if name == "older":
            until(study, half, 5)
            shutil.rmtree(own)
            shutil.copytree(tmp_path / "half" / "snapshots", own)
        events = until(study, half, None)
        assert notices(events) == expected
        assert not [event for event in events if isinstance(event, Differed)]
        assert answer(half) == answer(folder), name


@pytest.mark.parametrize("point", ["save", "write_new", "remove", "flush"])
def test_a_crash_at_any_point_of_writing_snapshots_changes_nothing(
    whole: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int], point: str
) -> None:
    """Snapshots at every chance; each attempt crashes some calls later than the one before, half of them after it."""
    study, folder = whole
    monkeypatch.setattr(snapshots, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(snapshots, "LARGEST_SHARE", 1e9)
    left, before = [0], [True]
    owner: Any = checkpoint if point != "flush" else Store
    real = getattr(owner, point)
    assert files.write_new is checkpoint.write_new  # where checkpoints and snapshots are written alike

    def call(*args: Any, **keys: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and before[0]:
            raise Crash
        found = real(*args, **keys)
        if left[0] == 0:
            raise Crash
        return found

    monkeypatch.setattr(owner, point, call)
    for attempt in range(300):
        left[0], before[0] = 1 + 7 * attempt, attempt % 2 == 0
        try:
            events = until(study, tmp_path, None)
        except Crash:
            continue
        assert how(events) == "done"
        break
    assert attempt > 0
    left[0] = -1
    assert answer(tmp_path) == answer(folder)


def test_a_disk_that_takes_no_snapshots_costs_a_note(
    whole: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = whole
    monkeypatch.setattr(snapshots, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "write_new", _no_room(checkpoint.write_new))
    events = until(study, tmp_path, None)
    (note,) = notices(events)
    assert note.startswith(f"cannot write the snapshot {tmp_path}/snapshots/trial-")
    assert "No space left on device" in note
    assert how(events) == "done"
    assert answer(tmp_path) == answer(folder)
    assert not (tmp_path / "snapshots").exists()


def _no_room(real: Callable[..., None]) -> Callable[..., None]:
    def write(path: Path, data: bytes, **keys: Any) -> None:
        if "snapshots" in path.parts:
            raise OSError(28, os.strerror(28))
        real(path, data, **keys)

    return write


def test_snapshots_that_would_fill_the_disk_are_not_written(
    whole: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = whole
    monkeypatch.setattr(snapshots, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(snapshots, "LIMIT_BYTES", 1000)
    (note,) = notices(until(study, tmp_path, None))
    assert note.startswith("no snapshots: ")
    assert answer(tmp_path) == answer(folder)


# Fine-tuning


def fine_tuned(folder: Path, stop: Callable[[], bool] = lambda: False) -> tuple[dict[str, bytes], float, float] | None:
    """The weights and what the test split shows, or None where it was stopped."""
    last = list(finetune(folder, Request(epochs=3), stop))[-1:]
    if not last or not isinstance(last[0], Finetuned):
        return None
    weights, _ = checkpoint.load(last[0].checkpoint)
    assert not (folder / "snapshots").exists()
    return {name: own.numpy().tobytes() for name, own in weights.items()}, last[0].after, last[0].scratch


def test_fine_tuning_that_is_stopped_or_killed_at_any_step_comes_to_the_same_weights(
    whole: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    """Stopped, nothing is trained twice; killed, what was trained since the last snapshots is."""
    monkeypatch.setattr(training, "PAUSE_SECONDS", -1.0)
    _, folder = whole
    expected = fine_tuned(shutil.copytree(folder, tmp_path / "once"))
    needed, steps[0] = steps[0], 0
    stopped = shutil.copytree(folder, tmp_path / "stopped")
    for _ in range(needed):
        calls = iter(range(1000))
        found = fine_tuned(stopped, lambda: next(calls) >= 4)  # noqa: B023
        if found is not None:
            break
    assert found == expected
    assert steps[0] == needed
    monkeypatch.setattr(snapshots, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(snapshots, "LARGEST_SHARE", 1e9)
    killed, real, left = shutil.copytree(folder, tmp_path / "killed"), Block._advance, [0]

    def dies(self: Block, *, late: bool) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Crash
        real(self, late=late)

    monkeypatch.setattr(Block, "_advance", dies)
    kills = 0
    for left[0] in (2, 5, 3, 7, 2, 4, 1000):
        try:
            assert fine_tuned(killed) == expected
        except Crash:
            kills += 1
    assert kills > 2


def test_fine_tuning_one_trial_leaves_what_was_trained_of_another(
    whole: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PAUSE_SECONDS", -1.0)
    folder = shutil.copytree(whole[1], tmp_path / "study")
    first, second = list(read(folder / "study.db").kept)[:2]
    calls = iter(range(1000))
    list(finetune(folder, Request(trial=first, epochs=3), lambda: next(calls) >= 4))
    left = {path for path in (folder / "snapshots").rglob("*") if path.is_file()}
    assert left
    list(finetune(folder, Request(trial=second, epochs=1)))
    assert {path for path in (folder / "snapshots").rglob("*") if path.is_file()} == left
    list(finetune(folder, Request(trial=first, epochs=3)))
    assert not (folder / "snapshots").exists()
