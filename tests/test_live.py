"""What is seen while a command runs: progress that survives a terminal, failures as they happen, own code's prints."""

import io
import os
import pdb
import re
import sys
import threading
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.test_output import OWN
from tunecli import live
from tunecli.prints import MOST_LINES, printed_once
from tunecli.search import Ended, Event, Failed, OpenedProgram, Progress
from tunecli.study import make_program
from tunecli.trial import State, Trial


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def opened(folder: Path) -> OpenedProgram:
    document = {"program": {"command": "true {l1}"}, "search": {"trials": 4000}}
    return OpenedProgram(make_program(document, folder, "mine", where="a test"), Path("mine"), "weighted_gain", 0)


def progress(ended: int) -> Progress:
    counts = dict.fromkeys(State, 0) | {State.RUNNING: 8, State.COMPLETE: 1, State.FAILED: 12, State.PRUNED: ended}
    best = Trial(12, State.COMPLETE, {}, start_tick=1, value=0.98765)
    return Progress(4000, counts, best, 9, ended, 7.3)


def shown(events: list[Event], monkeypatch: pytest.MonkeyPatch, width: int | None) -> list[str]:
    """The lines on stderr, in a terminal of this width or, without one, in a pipe."""
    stderr = io.StringIO() if width is None else Terminal()
    with monkeypatch.context() as patch:
        for name, value in {"COLUMNS": str(width or 80), "TERM": "xterm"}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stderr", stderr)
        live.show(events, live.progress_console())
    return [line.rstrip() for line in re.split("\n", OWN.sub("\n", stderr.getvalue())) if line.strip()]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100])
def test_progress_leaves_room_for_the_ctrl_c_that_a_terminal_writes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Where it has none the cursor goes to a line of its own, and what is above it is never erased."""
    events: list[Event] = [opened(tmp_path), progress(1), progress(1234), Ended("done", progress(3987))]
    lines = [line for line in shown(events, monkeypatch, width) if line.startswith("best weighted")]
    assert lines
    for line in lines:
        assert len(line) <= width - len("^C")
        assert width < 40 or re.search(r"(\(trial 12\)|running|pruned|failed|trials/s)$", line)  # no half of a word


@pytest.mark.parametrize("width", [None, 80])
def test_the_first_failure_of_a_kind_is_told_when_it_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int | None
) -> None:
    own, other = "exit code 1: ValueError: {} is no rate (train.py, line 6)", "it took more than 3 seconds"
    failed = [Failed(1, own.format(0.25)), Failed(3, own.format(1.5e-05)), Failed(4, other), Failed(5, own.format(7))]
    lines = shown([opened(tmp_path), *failed, Ended("done", progress(3987))], monkeypatch, width)
    text = " ".join(line.strip() for line in lines)
    assert re.findall(r"trial (\d+) failed: (.+?) mine/logs/trial-(\d+).txt has what it printed", text) == [
        ("1", own.format(0.25), "1"),
        ("4", other, "4"),
    ]
    assert text.index("trial 1 failed") < text.index("best weighted_gain")


# What a user's own code prints

PRINTS = """
import torch

def load():
    print("loading flowers")
    from sklearn.datasets import load_iris
    return load_iris().data, load_iris().target

def make(width):
    print("a net of", width)
    if width > 8:
        raise ValueError("too wide")
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 3))
"""

STUDY = """
[data]
source = "own.py:load"
[model]
source = "own.py:make"
[train]
epochs = 2
[space]
model.width = [8, 16, 32]
[search]
trials = 12
"""


def test_what_a_model_prints_and_why_it_fails_is_told_once_and_never_among_the_results(
    tunecli: Command, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(PRINTS)
    (tmp_path / "own.toml").write_text(STUDY)
    done = tunecli("search", "own.toml", "--format", "json")
    states = [trial["state"] for trial in done.document["trials"]]
    failed = states.index("failed")
    assert states.count("failed") > 1
    for line in ("loading flowers", *(f"a net of {width}" for width in (8, 16, 32))):
        assert done.err.count(f"{line}\n") == 1
    said = f"note: trial {failed} failed: own.py:make raised ValueError: too wide (own.py, line 12)\n"
    assert done.err.count("note: trial") == done.err.count(said) == 1
    assert done.err.index(said) < done.err.index("12 of 12 done")

    done = tunecli("predict", "own", "own.py:load")
    assert done.out.startswith("prediction,")
    assert len(done.out.splitlines()) == 151
    assert done.err.startswith("loading flowers\na net of ")
    assert tunecli("finetune", "own", "--best", "--format", "json").document["metric"] == "accuracy"


def test_lines_are_passed_on_once_and_not_without_end(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    stdout = sys.stdout
    with printed_once(said.append):
        print("half", end="")
        print(" a line\nhalf a line\n\n\x1b[1mbold\x1b[0m")
        print("\r 5 %\r10 %", end="\r\n")
        sys.stdout.buffer.write(b"\xff bytes\n")
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        print("the last", end="")
    assert said == ["half a line", "\x1b[1mbold\x1b[0m", "10 %", "\ufffd bytes", "the last"]
    assert sys.stdout is stdout
    said.clear()
    with printed_once(said.append):
        for number in range(1000):
            print("loss", number)
    assert said[:MOST_LINES] == [f"loss {number}" for number in range(MOST_LINES)]
    assert said[MOST_LINES:] == [said[-1]]
    assert "left out from here on" in said[-1]
    assert capfd.readouterr() == ("", "")


def test_a_breakpoint_in_a_model_can_be_talked_to(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    with printed_once(said.append):
        print("before")
        pdb.Pdb(stdin=io.StringIO("p 6 * 7\np 6 * 7\nc\n"), stdout=sys.stdout).set_trace()
        print("after")
    assert said == ["before", "after"]
    assert "(Pdb) 42\n(Pdb) 42\n(Pdb) " in capfd.readouterr().err


def test_what_another_process_or_thread_prints_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """A reader of a Dataset's, forked while this one shows progress or answers a search, must not write to either."""
    said: list[str] = []
    with printed_once(said.append):
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join()
        if (child := os.fork()) == 0:
            print("from a fork\nfrom a fork")
            os._exit(0)
        os.waitpid(child, 0)
    assert said == []
    assert capfd.readouterr() == ("", "from a thread\nfrom a fork\n")
