"""Workers that are killed at random moments of a search: every trial exactly once, every value unchanged."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import Question
from tests.faults.conftest import Report
from tests.test_workers import timeless
from tunecli.engine import child
from tunecli.search import Noticed, search


@pytest.mark.usefixtures("forked")
def test_a_killed_worker_changes_no_trial(
    question: Question, tmp_path: Path, full: bool, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0
    monkeypatch.setattr(child, "killed_for_memory", lambda: counted)
    draw, kills, same, workers = random.Random(0), 100 if full else 3, 0, set()
    study = question(trials=16, window=8, train={"epochs": 8})
    list(search(study, tmp_path / "whole"))
    whole = timeless(tmp_path / "whole")
    for number in range(kills):
        count = draw.randint(2, 8)
        workers.add(count)
        tick, wait, memory = draw.randint(0, 12), draw.random() * 0.02, bool(number % 2)
        told: list[str] = []
        killed = 0
        for event in search(study, tmp_path / str(number), workers=count):
            told += [event.text] if isinstance(event, Noticed) else []
            if not killed and getattr(event, "tick", -1) >= tick:
                time.sleep(wait)
                killed = draw.choice(multiprocessing.active_children()).pid or 0
                # Without memory it cannot be let know: what Linux does then is this kill, and a higher count of them.
                counted += memory
                os.kill(killed, signal.SIGKILL)
        assert all("was killed by SIGKILL" in own and ("out of memory" in own) == memory for own in told)
        assert len(told) <= 1, "one that died after its last run is not missed"
        same += timeless(tmp_path / str(number)) == whole
    report(
        "a worker killed at a random moment of a search, by SIGKILL and as when memory runs out",
        f"{same} of {kills} searches identical to the undisturbed one, every trial exactly once, with {min(workers)} "
        f"to {max(workers)} workers",
    )
    assert same == kills
