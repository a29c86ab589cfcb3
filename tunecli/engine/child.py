"""A worker in a process of its own: the search's end of the pipe to it, and what that process does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tunecli.alarm import held
from tunecli.engine.messages import FAILED, FELL, PRINTED, Message, packed, unpacked
from tunecli.engine.template import SIGNALS, Template
from tunecli.engine.work import Make, Work
from tunecli.errors import DataError, StorageError, TunecliError
from tunecli.prints import printed_once
from tunecli.source import describe

CONTEXT = multiprocessing.get_context("spawn")

MOST_PRINTED = 200
"""Characters of a line that a user's code prints: all that a worker passes on fit into the smallest of pipes."""


class WorkerDied(Exception):
    """The process has ended; `last_words` says how."""


class Child:
    """The process, begun; as the search sees it. Raises StorageError or DataError where it cannot be.

    It is a fork of the template, or a new Python, which has to load torch first, where there is none.
    """

    def __init__(self, make: Make, template: Template | None = None) -> None:
        self._killed_before = killed_for_memory()
        self._connection, theirs = multiprocessing.Pipe()
        try:
            if template is not None and template.lives:
                self._process: BaseProcess = template.Process(_main, (theirs, make))
                self._process.start()
            else:
                self._process = _spawned(_main, (theirs, make))
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
            theirs.close()

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, *message: Any) -> None:
        with suppress(OSError):  # it is gone, which is seen where it is heard
            self._connection.send(tuple(map(packed, message)))

    def receive(self, timeout: float | None) -> tuple[int, Any] | None:
        """The next message, or None where none came in time. Raises WorkerDied."""
        wait([self._connection, self._process.sentinel], timeout)
        try:
            if not self._connection.poll():
                # What it has begun itself may hold its end of the pipe open: so the process is looked at, too.
                if self._process.is_alive():
                    return None
                raise WorkerDied
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied from error
        return kind, unpacked(value)

    def exit(self) -> str:
        """How it has ended."""
        self._process.join()
        code = self._process.exitcode or 0
        if code >= 0:
            return f"ended with exit code {code}"
        how = f"was killed by {signal.Signals(-code).name}"
        return f"{how}, out of memory" if killed_for_memory() > self._killed_before else how

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _spawned(target: Callable[..., None], args: tuple[Any, ...]) -> BaseProcess:
    process = CONTEXT.Process(target=target, args=args)
    resource_tracker.ensure_running()  # beforehand, for it lets through the signals that are held back here
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return process


def killed_for_memory() -> int:
    """How many processes the kernel has ended for want of memory, where it tells."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def _main(connection: Connection, make: Make) -> None:
    """The worker process: do what is asked until the search is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(sys.stderr.fileno(), 1)  # what programs of a user's print is no result

    def say(kind: int, value: Any) -> None:
        connection.send((kind, packed(value)))

    def show(line: str) -> None:
        with held():  # half of a message could not be read
            say(PRINTED, line[:MOST_PRINTED])

    try:
        with printed_once(show):
            work = Work(make, say)
            while True:
                if work.busy and not connection.poll():
                    work.step()
                else:
                    message: Message = connection.recv()
                    work.do(tuple(map(unpacked, message)))
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
