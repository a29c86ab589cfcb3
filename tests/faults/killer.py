"""A process that searches and fine-tunes in children which it kills: python -m tests.faults.killer

It has searched once before, so that its children have loaded all there is to load. Each line of stdin is a task: the
same command in the same folder again and again, killed at each of its `kills` and then run to its end. A line of
stdout says how each run ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
import torch

from tunecli import checkpoint, snapshots
from tunecli.engine.block import Block
from tunecli.finetune import Finetuned, Request, finetune, training
from tunecli.search import loop, search
from tunecli.search.ledger import Ledger
from tunecli.store import Store, is_unfinished, read, writer
from tunecli.study import make_study, read_study
from tunecli.trial import Trial

writer.GROUP_SECONDS = 0.01  # so that even a study as short as these is committed often


def die() -> None:
    """kill -9 of the whole process group."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


def dies(owner: Any, name: str, left: int, *, first: bool = True) -> None:
    """The call after `left` others is not lived to see, or not to come back from."""
    real = getattr(owner, name)

    def call(*arguments: Any, **keys: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 and first:
            die()
        found = real(*arguments, **keys)
        if left < 0:
            die()
        return found

    setattr(owner, name, call)


def dies_within(event: str, left: int) -> None:
    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            die()

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, event, count)


POINTS: dict[str, Callable[[int], None]] = {
    "ask": lambda left: dies(Ledger, "start", left),
    "train": lambda left: dies(Block, "_advance", left),
    "evaluate": lambda left: dies(Block, "measure", left),
    "before commit": lambda left: dies(Store, "flush", left),
    "inside commit": lambda left: dies_within("before_cursor_execute", left),
    "at commit": lambda left: dies_within("commit", left),
    "after commit": lambda left: dies(Store, "flush", left, first=False),
    "checkpoint": lambda left: dies(checkpoint, "write_new", left),
    "snapshot": lambda left: dies(checkpoint, "write_new", left),
}
"""Where a process can die: after so many times that it passed there."""

WITH_SNAPSHOTS = (None, "train", "snapshot")
"""Points at which snapshots are written as often as can be: their files are among those that are written."""


def searching(folder: Path) -> Iterator[None]:
    for _ in search(read_study(folder / "question.toml"), folder / "tiny"):
        yield


def finetuning(folder: Path) -> Iterator[None]:
    for event in finetune(folder / "tiny", Request(epochs=3)):
        if isinstance(event, Finetuned):
            (folder / "result").write_text(str(event.checkpoint), encoding="utf-8")
        yield


def begin(folder: Path, command: str, point: str | None, left: int) -> tuple[int, int]:
    """A child in a group of its own, and a pipe that has a byte for each event."""
    shown, show = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(shown)
        os.setpgid(0, 0)
        if point in WITH_SNAPSHOTS:
            snapshots.EVERY_SECONDS, snapshots.LARGEST_SHARE = 0.0, 1e9
            loop.PAUSE_SECONDS = training.PAUSE_SECONDS = 0.005  # in mid-epoch too
        if point is not None:
            POINTS[point](left)
        for _ in {"search": searching, "finetune": finetuning}[command](folder):
            os.write(show, b".")
        os._exit(0)
    os.close(show)
    while os.getpgid(child) != child:
        time.sleep(0.001)
    return child, shown


def run(folder: Path, command: str, point: str | None, left: int, events: int, seconds: float) -> int:
    """How one run ended: it dies at a point, or is killed some time after so many events; -1 lets it end."""
    child, shown = begin(folder, command, point, left)
    while events != 0 and os.read(shown, 1):
        events -= 1
    if point is None and events == 0:
        time.sleep(seconds)
        os.killpg(child, signal.SIGKILL)
    os.close(shown)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def warm_up() -> None:
    """Search once, on one thread: a pool of torch's would be missing in the children."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        document = {
            "name": "warm",
            "data": {"source": "digits"},
            "model": {"source": "mlp", "hidden": [8]},
            "train": {"epochs": 1, "metric": "accuracy"},
            "search": {"trials": 12, "window": 2, "pruner": "none"},
        }
        for _ in search(make_study(document, Path(folder), "warm", where="a test"), Path(folder) / "warm"):
            pass


def acknowledged(folder: Path) -> dict[int, Trial]:
    path = folder / "tiny" / "study.db"
    if is_unfinished(path):
        return {}
    return {trial.number: trial for trial in read(path).trials if trial.state.ended}


def main() -> None:
    warm_up()
    assert threading.active_count() == 1, threading.enumerate()
    for line in sys.stdin:
        task = json.loads(line)
        folder = Path(task["folder"])
        known, statuses = acknowledged(folder), []
        for kill in task["kills"]:
            statuses.append(run(folder, task["command"], **kill))
            now = acknowledged(folder)
            assert known.items() <= now.items(), "an ended trial is lost"
            known = now
        statuses.append(run(folder, task["command"], None, 0, -1, 0.0))
        print(json.dumps({"folder": task["folder"], "statuses": statuses}), flush=True)
    os._exit(0)  # to take down all that was loaded is slower than any task


if __name__ == "__main__":
    main()
