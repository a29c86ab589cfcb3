"""A worker process, both its ends: it holds an engine for some of the runs and answers over a pipe.

    search                                     worker
    what makes its engine, at its start        READY, once it is made
    (METHOD, *arguments), one of Engine's      ANSWER and what it returns, or RAISED and its error
    (TICK,)                                    MEASURED and measurements as runs finish it, or FAILED and an error
    (REVIVE, lost runs)                        MEASURED and the last measurements of those that are due, REVIVED

Before it computes runs it says which (AT_WORK), before it ends by an error, which one (FELL). What is asked of it in
the middle of a tick it answers between two steps. It decides nothing and opens no database.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.multiprocessing  # from here on a tensor is sent as the memory that both processes then share
from torch import Tensor

from tunecli.engine.snapshot import Snapshot
from tunecli.errors import DataError, OutOfMemory, StorageError, TunecliError
from tunecli.source import describe
from tunecli.trial import Measurement, Run

if TYPE_CHECKING:
    from tunecli.engine import Engine

CONTEXT = multiprocessing.get_context("spawn")

SLICE_SECONDS = 0.05
"""How long a worker trains before it looks whether something is asked of it."""

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
"""They reach the whole process group, and it is for the search to say what becomes of its workers."""

READY, ANSWER, RAISED, MEASURED, FAILED, REVIVED, AT_WORK, FELL = range(8)
TICK, REVIVE = "tick", "revive"

Announce = Callable[[tuple[int, ...]], None]
Make = Callable[[Announce], "Engine"]
"""Makes an engine that announces which trials it computes, before it does."""


class WorkerDied(Exception):
    """The process has ended; `Worker.last_words` says how."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A run whose worker died after it had seen `ticks`. One that is `due` has still to show its next tick."""

    run: Run
    ticks: int
    due: bool
    snapshot: Snapshot | None = None

    @property
    def missing(self) -> int:
        """How many ticks bring it where the others are."""
        return self.ticks + self.due - (0 if self.snapshot is None else self.snapshot.fidelity)


class Worker:
    """The search's end. `runs` are those it holds, `pending` those that have to finish the tick."""

    def __init__(self, make: Make) -> None:
        self.runs: dict[int, Run] = {}
        self.pending: set[int] = set()
        self.at_work: tuple[int, ...] = ()
        self.ready = self.reviving = False
        self._measured: list[Measurement] = []
        self._answer: tuple[int, Any] | None = None
        self._failed: TunecliError | None = None
        self._fell: str | None = None
        self._killed_for_memory = _killed_for_memory()
        self._connection, theirs = CONTEXT.Pipe()
        resource_tracker.ensure_running()  # beforehand, for it lets through the signals that are held back here
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process = CONTEXT.Process(target=_main, args=(theirs, make))
            self._process.start()
        except (OSError, RuntimeError) as error:
            self._connection.close()
            raise StorageError(
                f"cannot start a worker process: {describe(error)}",
                hint="free some memory (of /dev/shm too, where the data are shared), or search with --workers 1",
            ) from error
        except Exception as error:  # whatever a Dataset of the user's own meets when it is sent
            self._connection.close()
            raise DataError(
                f"the data cannot be sent to a worker process: {describe(error)}",
                hint="keep a Dataset's classes and functions at the top of their file, or search with --workers 1",
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            theirs.close()

    def fileno(self) -> int:
        return self._connection.fileno()

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of its engine returns; raises what that raises, and WorkerDied."""
        self._send(method, *map(_packed, arguments))
        while self._answer is None:
            self._receive(None)
        (kind, value), self._answer = self._answer, None
        if kind == RAISED:
            raise value
        return _unpacked(value)

    def begin_tick(self) -> None:
        self.pending = set(self.runs)
        if self.runs:
            self._send(TICK)

    def revive(self, lost: Sequence[Lost]) -> None:
        """Train runs again up to where they were when their worker died; it holds no others yet."""
        self.runs = {own.run.trial: own.run for own in lost}
        self.pending = {own.run.trial for own in lost if own.due}
        self.reviving = True
        self._send(REVIVE, [replace(own, snapshot=_packed(own.snapshot)) for own in lost])

    def hear(self) -> list[Measurement]:
        """What it has measured since, by its last words too. Raises WorkerDied, and what its engine raised."""
        try:
            while self._receive(0):
                pass
        except WorkerDied:
            if not self._measured and self._failed is None:
                raise
        if self._failed is not None and not self._measured:
            raise self._failed
        measured, self._measured = self._measured, []
        self.pending -= {own.trial for own in measured}
        return measured

    def last_words(self) -> str:
        """How the process ended."""
        self._process.join()
        if self._fell is not None:
            return f"ended with {self._fell}"
        code = self._process.exitcode or 0
        if code >= 0:
            return f"ended with exit code {code}"
        how = f"was killed by {signal.Signals(-code).name}"
        return f"{how}, out of memory" if _killed_for_memory() > self._killed_for_memory else how

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _send(self, *message: Any) -> None:
        with suppress(OSError):  # it is gone, which is seen where it is heard
            self._connection.send(message)

    def _receive(self, timeout: float | None) -> bool:
        """Take one message in, or return False where none came. Raises WorkerDied."""
        wait([self._connection, self._process.sentinel], timeout)
        try:
            if not self._connection.poll():
                # What it has begun itself may hold its end of the pipe open: so the process is looked at, too.
                if self._process.is_alive():
                    return False
                raise WorkerDied
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied from error
        self._take(kind, value)
        return True

    def _take(self, kind: int, value: Any) -> None:
        if kind == READY:
            self.ready = True
        elif kind == AT_WORK:
            self.at_work = value
        elif kind == MEASURED:
            self._measured += value
        elif kind == FAILED:
            self._failed = value
        elif kind == REVIVED:
            self.reviving = False
        elif kind == FELL:
            self._fell = value
        else:
            self._answer = kind, value


def _killed_for_memory() -> int:
    """How many processes the kernel has ended for want of memory, where it tells."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A tensor as a copy: shared memory costs more than it saves where both sides keep their own."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    content: bytes


def _packed(value: Any) -> Any:
    """The tensors of a state dict or a snapshot by their bytes; anything else as it is."""
    if isinstance(value, Snapshot):
        return replace(value, tensors=_packed(dict(value.tensors)))
    if not isinstance(value, dict):
        return value
    return {
        name: _Bytes(own.dtype, tuple(own.shape), own.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, own in value.items()
    }


def _unpacked(value: Any) -> Any:
    if isinstance(value, Snapshot):
        return replace(value, tensors=_unpacked(value.tensors))
    if not isinstance(value, dict):
        return value
    return {name: _tensor(own) for name, own in value.items()}


def _tensor(own: _Bytes) -> Tensor:
    if not own.content:
        return torch.empty(own.shape, dtype=own.dtype)
    return torch.frombuffer(bytearray(own.content), dtype=torch.uint8).view(own.dtype).reshape(own.shape)


def _main(connection: Connection, make: Make) -> None:
    """The worker process: make the engine, then do what is asked until the search is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(sys.stderr.fileno(), 1)  # what a user's code prints is no result

    def say(kind: int, value: Any = None) -> None:
        connection.send((kind, value))

    try:
        engine = make(partial(say, AT_WORK))
        say(READY)
        _work(connection, say, engine)
    except (EOFError, ConnectionError):
        return
    except TunecliError as error:
        say(FAILED, error)
    except BaseException as error:
        say(FELL, describe(error))
        sys.exit(1)


def _end_with_parent() -> None:
    """End where the search is gone, killed perhaps, whatever a user's code is doing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _work(connection: Connection, say: Callable[..., None], engine: Engine) -> None:
    runs: set[int] = set()
    pending = 0
    while True:
        if pending and not connection.poll():
            try:
                measured = engine.advance(time.monotonic() + SLICE_SECONDS)
            except OutOfMemory as error:
                # Its runs are still to be taken out.
                say(FAILED, error)
                pending = 0
                continue
            except TunecliError as error:
                say(FAILED, error)
                return
            pending -= len(measured)
            if measured:
                say(MEASURED, measured)
            if not pending:
                say(AT_WORK, ())
            continue
        method, *arguments = connection.recv()
        if method == TICK:
            pending = len(runs)
        elif method == REVIVE:
            lost = [replace(own, snapshot=_unpacked(own.snapshot)) for own in arguments[0]]
            runs = {own.run.trial for own in lost}
            try:
                say(MEASURED, _revive(engine, lost))
                say(REVIVED)
            except OutOfMemory as error:
                say(FAILED, error)
            say(AT_WORK, ())
        else:
            _answer(say, engine, runs, method, *map(_unpacked, arguments))


def _answer(say: Callable[..., None], engine: Engine, runs: set[int], method: str, run: Run, *more: Any) -> None:
    starts = method in ("start", "restore")
    if starts:
        say(AT_WORK, (run.trial,))
    try:
        value = getattr(engine, method)(run, *more)
    except TunecliError as error:
        say(RAISED, error)
        return
    if starts:
        runs.add(run.trial)
    elif method == "free":
        runs.remove(run.trial)
    if starts:
        say(AT_WORK, ())
    say(ANSWER, _packed(value))


def _revive(engine: Engine, lost: Sequence[Lost]) -> list[Measurement]:
    """Train them so that all arrive in the same tick; what those that are due show in it."""
    waiting = sorted(lost, key=lambda own: own.missing)
    running = 0
    measured: list[Measurement] = []
    for left in range(waiting[-1].missing, -1, -1):
        while waiting and waiting[-1].missing == left:
            own = waiting.pop()
            if own.snapshot is None:
                engine.start(own.run)
            else:
                engine.restore(own.run, own.snapshot)
            running += 1
        if left:
            measured = []
            while len(measured) < running:
                measured += engine.advance(float("inf"))
    due = {own.run.trial for own in lost if own.due}
    return [own for own in measured if own.trial in due]
