"""Signals in the middle of a step that takes half a minute: the search ends in time, and goes on as if there was none.

Each search is a process of its own; all run side by side, for each waits most of the time.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.conftest import Report
from tests.test_workers import timeless
from tunecli.search import search
from tunecli.study import read_study

LIMIT_SECONDS = 5.0
"""On a machine with a core to spare."""

MODEL = """
import os, time, torch
from torch import nn

calls = 0

def model():
    return Net()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        self.register_buffer("seen", torch.zeros(()))  # which has it called for each trial

    def forward(self, inputs):
        global calls
        self.seen += self.training
        calls += self.training
        if calls == 150 and os.path.exists("armed"):
            try:
                os.close(os.open("begun", os.O_CREAT | os.O_EXCL))  # by one process, once
            except FileExistsError:
                pass
            else:
                {long}
        return self.layers(inputs)
"""

QUESTION = """
name = "s"
data = {source = "iris"}
model = {source = "model.py:model"}
train = {epochs = 20}
space = {batch_size = 32}
search = {trials = 8, window = 4, pruner = "none"}
"""

LONG = {
    "a sleep": "time.sleep(30)",
    "a loop": "while time.sleep(0) is None: pass",
    "one operation": "torch.linalg.eigvals(torch.rand(9000, 9000))",
}


@dataclass(frozen=True)
class Case:
    step: str
    asked: signal.Signals
    workers: int = 1
    twice: bool = False

    @property
    def code(self) -> int:
        return 130 if self.asked == signal.SIGINT else 75


SHORT = (
    Case("a sleep", signal.SIGTERM),
    Case("a sleep", signal.SIGUSR1, workers=2),
    Case("one operation", signal.SIGINT),
    Case("a sleep", signal.SIGINT, twice=True),
)
FULL = tuple(
    Case(step, asked, workers, twice)
    for step in LONG
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    for workers in (1, 2)
    for twice in ((False, True) if asked == signal.SIGINT else (False,))
)


def begin(folder: Path, case: Case) -> subprocess.Popen[bytes]:
    folder.mkdir()
    (folder / "model.py").write_text(MODEL.format(long=LONG[case.step]))
    (folder / "study.toml").write_text(QUESTION)
    (folder / "armed").touch()
    command = [sys.executable, "-m", "tunecli", "search", "study.toml", "--workers", str(case.workers)]
    with (folder / "said").open("w") as said:
        return subprocess.Popen(command, cwd=folder, stderr=said, stdout=said)


def stop(begun: subprocess.Popen[bytes], folder: Path, case: Case) -> float:
    """Ask it to stop in the middle of its long step; returns the seconds from the last signal to its end."""
    while not (folder / "begun").exists():
        assert begun.poll() is None, (folder / "said").read_text()
        time.sleep(0.01)
    begun.send_signal(case.asked)
    if case.twice:
        time.sleep(0.2)
        begun.send_signal(case.asked)
    asked = time.monotonic()
    begun.wait(timeout=60)
    return time.monotonic() - asked


def rounds(cases: tuple[Case, ...]) -> Iterator[tuple[Case, ...]]:
    for first in range(0, len(cases), 4):
        yield cases[first : first + 4]


def test_a_signal_in_the_middle_of_a_long_step_ends_a_search_in_time(
    tmp_path: Path, full: bool, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, slowest, same, number = FULL if full else SHORT, 0.0, 0, 0
    for some in rounds(cases):
        folders = [tmp_path / str(number + place) for place in range(len(some))]
        number += len(some)
        begun = [begin(folder, case) for folder, case in zip(folders, some, strict=True)]
        try:
            with ThreadPoolExecutor() as each:
                took = list(each.map(stop, begun, folders, some))
            for process, folder, case, seconds in zip(begun, folders, some, took, strict=True):
                said = (folder / "said").read_text()
                assert process.returncode == case.code, said
                share = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # of one core, where more want it
                assert seconds < (1.0 if case.twice else LIMIT_SECONDS) * share
                assert "to go on:\n  tunecli search study.toml" in said
                assert ("interrupted: what was recorded is kept" in said) == case.twice
                assert "Traceback" not in said
                assert case.workers == 1 or case.twice or "all is recorded" in said, "it stopped in order"
                slowest = max(slowest, 0.0 if case.twice else seconds)
        finally:
            for process in begun:
                process.kill()
    for place in range(number):
        folder = tmp_path / str(place)
        monkeypatch.chdir(folder)
        study = read_study(folder / "study.toml")
        list(search(study, folder / "studies" / "s"))
        if place == 0:
            os.remove("armed")
            list(search(study, folder / "whole"))
        same += timeless(folder / "studies" / "s") == timeless(tmp_path / "0" / "whole")
    report(
        "SIGINT, SIGTERM or SIGUSR1 in a step of half a minute (a sleep, a loop, one operation), 1 and 2 workers",
        f"{len(cases)} of {len(cases)} ended with 130 or 75, the slowest after {slowest:.1f} s, a second Ctrl-C within "
        f"a second; {same} of {number} went on to the undisturbed result",
    )
    assert same == number
