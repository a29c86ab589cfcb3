"""The template: processes forked from it get what they are sent, and how they end is told."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_workers import alive, children
from tunecli.engine import child
from tunecli.engine.child import Child, WorkerDied
from tunecli.engine.template import SIGNALS, Template, forked


@pytest.fixture
def template() -> Iterator[Template]:
    with forked() as made:
        assert made is not None
        yield made


def double(end: Connection, tensors: list[torch.Tensor]) -> None:
    for own in tensors:
        own *= 2
    end.send((os.getppid(), sum(own.sum().item() for own in tensors), np.random.rand()))


def test_what_a_worker_is_sent_lies_in_memory_that_both_share(template: Template) -> None:
    """More tensors than one message of Linux's takes descriptors."""
    tensors = [torch.full((2,), float(place)) for place in range(300)]
    drawn = set()
    for times in (2, 4):
        ours, theirs = Pipe()
        process = template.Process(double, (theirs, tensors))
        process.start()
        parent, total, random = ours.recv()
        assert parent in children(os.getpid())
        assert total == times * sum(range(300)) * 2
        process.join()
        assert process.exitcode == 0
        assert tensors[7].tolist() == [7.0 * times] * 2
        drawn.add(random)
    assert len(drawn) == 2, "numpy's own generator draws in each what it draws in no other"


def fail() -> None:
    raise ValueError("of its own")


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "code"), [(partial(sys.exit, 3), 3), (partial(os._exit, 9), 9), (kill_itself, -9), (fail, 1)]
)
def test_how_a_worker_ended_is_told(template: Template, end: Callable[[], None], code: int) -> None:
    process = template.Process(end, ())
    process.start()
    assert process.pid is not None
    assert wait([process.sentinel], 20)
    assert process.exitcode == code
    assert not process.is_alive()
    assert not alive(process.pid)


def test_others_are_begun_and_end_while_one_works(template: Template) -> None:
    first = template.Process(time.sleep, (60,))
    first.start()
    for _ in range(3):
        process = template.Process(os.getpid, ())
        process.start()
        process.join(20)
        assert process.exitcode == 0
    assert first.is_alive()
    first.kill()
    first.join(20)
    assert first.exitcode == -signal.SIGKILL


def test_a_template_holds_no_lock_of_the_search_and_hears_none_of_its_signals(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    held = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with forked() as template:
        assert template is not None
        process = template.Process(time.sleep, (60,))
        process.start()
        os.close(held)
        again = os.open(tmp_path / "lock", os.O_RDWR)
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (own,) = (pid for pid in children(os.getpid()) if process.pid in children(pid))
        for number in SIGNALS:
            os.kill(own, number)
        time.sleep(0.05)
        assert template.lives
        opened = [os.readlink(f"/proc/{own}/fd/{number}") for number in os.listdir(f"/proc/{own}/fd")]
        assert not [path for path in opened if str(tmp_path) in path]
        process.kill()
        process.join()
        os.close(again)
    assert not alive(own), "and it is gone with the block"


def never(announce: Any) -> Any:
    while True:
        time.sleep(60)


def test_workers_end_with_their_template_and_others_are_new_pythons(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {pid: children(pid) for pid in children(os.getpid())}  # whatever other tests have left
    worker = Child(never, template)
    (own,) = (pid for pid in children(os.getpid()) if children(pid) != before.get(pid, []))
    (process,) = children(own)
    os.kill(own, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        worker.receive(20)
    assert worker.exit() == "ended with exit code 255"
    until = time.monotonic() + 20
    while alive(process):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not template.lives
    spawned: list[Any] = []
    monkeypatch.setattr(child, "_spawned", lambda *given: spawned.append(given))
    Child(never, template)
    assert spawned


def test_where_no_process_can_be_watched_there_is_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with forked() as made:
        assert made is None
