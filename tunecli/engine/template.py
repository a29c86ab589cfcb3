"""Worker processes that are there at once: forks of one that has loaded torch, and does nothing but fork.

A new Python takes two seconds of a core until it has loaded torch. The search itself cannot be forked instead: it
computes, and a fork has neither the threads that torch or a user's code have begun nor what they hold. So it is forked
once, when it has loaded torch and done nothing with it yet: that process is the template of all its workers.

    search                                      template
    two descriptors: a worker's orders, and     forks it; tells its number there, or that of the error that was met;
    where it is told of                         and once it has ended its exit code

Orders are more descriptors, and what multiprocessing itself sends to a process that it spawns.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing import popen_forkserver, reduction, spawn
from multiprocessing.connection import wait
from multiprocessing.context import set_spawning_popen
from multiprocessing.forkserver import read_signed, write_signed
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NoReturn

import numpy as np

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
"""They reach the whole process group, and it is for the search to say what becomes of its workers."""

_MOST_AT_ONCE = 200
"""Descriptors in one message, of which Linux takes 253."""


@contextmanager
def forked() -> Iterator[Template | None]:
    """A template of this process as it is now, within this block; None where the system has not what it takes."""
    try:
        template = Template()
    except OSError:
        yield None
        return
    with closing(template):
        yield template


class Template:
    """A process that is what this one is when it is made, but for its threads, its files and its signals.

    It ends with this process, however that ends, and its workers end with it. Raises OSError where no process can be
    watched as that takes: Linux has it from 5.3 on.
    """

    def __init__(self) -> None:
        if not hasattr(os, "pidfd_open"):
            raise OSError("no pidfd_open")
        search = os.getpid()
        os.close(os.pidfd_open(search))
        self._requests, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._pid = os.fork()
            if self._pid == 0:
                _be_template(theirs, search)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    @property
    def lives(self) -> bool:
        return not wait([self._requests], 0)  # nothing is ever said here but that it has ended

    def Process(self, target: Callable[..., None], args: Sequence[Any]) -> BaseProcess:  # noqa: N802
        """A process to be started, as multiprocessing's contexts have it."""
        return _Forked(self, target, args)

    def fork(self, passed: Sequence[int], orders: memoryview) -> tuple[int, int]:
        """Begin a process with these descriptors and orders: its number, and the descriptor that its end is told by.

        Raises OSError.
        """
        ours, theirs = socket.socketpair()
        told, tells = os.pipe()
        try:
            with ours:
                with theirs:
                    try:
                        socket.send_fds(self._requests, [b"\0"], [theirs.fileno(), tells])
                    finally:
                        os.close(tells)
                try:
                    pid = read_signed(told)
                except EOFError as error:
                    raise OSError("its template has ended") from error
                if pid < 0:
                    raise OSError(-pid, os.strerror(-pid))
                write_signed(ours.fileno(), len(passed))
                for first in range(0, len(passed), _MOST_AT_ONCE):
                    socket.send_fds(ours, [b"\0"], passed[first : first + _MOST_AT_ONCE])
                ours.sendall(orders)
        except BaseException:
            os.close(told)
            raise
        return pid, told

    def close(self) -> None:
        self._requests.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


class _Forked(BaseProcess):
    """A start method of multiprocessing's, as its own `forkserver` is one."""

    _start_method = None

    def __init__(self, template: Template, target: Callable[..., None], args: Sequence[Any]) -> None:
        super().__init__(target=target, args=args)
        self.template: Template | None = template

    def __getstate__(self) -> dict[str, Any]:
        """What the worker is sent."""
        return {**self.__dict__, "template": None}

    @staticmethod
    def _Popen(process: _Forked) -> _Popen:  # noqa: N802
        return _Popen(process)


class _Passed(popen_forkserver._DupFd):
    """A descriptor of the search's in what a worker is sent, by its place among those that come with it."""

    ind: int

    def detach(self) -> int:
        return _given[self.ind]


class _Popen(popen_forkserver.Popen):
    DupFd = _Passed
    _fds: list[int]

    def _launch(self, process: _Forked) -> None:
        assert process.template is not None
        orders = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process.name), orders)
            reduction.dump(process, orders)
        finally:
            set_spawning_popen(None)
        self.pid, self.sentinel = process.template.fork(self._fds, orders.getbuffer())
        self.finalizer = Finalize(self, os.close, (self.sentinel,))


# What follows is done in the template, and in its workers


def _be_template(requests: socket.socket, search: int) -> NoReturn:
    """Never returns: what stands above this call is the search's, and has nothing to do here."""
    try:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        _let_go(but={1, 2, requests.fileno()})
        gc.freeze()  # nothing of the search's is garbage here, to be closed or changed
        _serve(requests, search)
    finally:
        os._exit(0)


def _let_go(but: set[int]) -> None:
    """Hold nothing open that the search does: its locks would last as long.

    No number is set free, for what it names to the search it may still be closed by.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in {nothing, *but}:
            os.dup2(nothing, descriptor, inheritable=descriptor == 0)


def _serve(requests: socket.socket, search: int) -> None:
    """Fork when asked, and tell how workers end, until the search is gone."""
    gone, template = os.pidfd_open(search), os.pidfd_open(os.getpid())
    workers: dict[int, tuple[int, int]] = {}
    while os.getppid() == search:
        for ready in wait([requests, gone, *workers]):
            if isinstance(ready, int) and ready in workers:
                pid, tells = workers.pop(ready)
                _tell(tells, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(tells)
                os.close(ready)
            elif ready is requests:
                _, passed, _, _ = socket.recv_fds(requests, 1, 2)
                if not passed:
                    return
                orders, tells = passed
                try:
                    pid = os.fork()
                except OSError as error:
                    _tell(tells, -(error.errno or 0))
                    os.close(tells)
                else:
                    if pid == 0:
                        others = [own for worker in workers.items() for own in (worker[0], worker[1][1])]
                        _be_worker(orders, template, unneeded=[requests.detach(), gone, tells, *others])
                    workers[os.pidfd_open(pid)] = pid, tells
                    _tell(tells, pid)
                os.close(orders)


def _tell(tells: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it any more
        write_signed(tells, number)


_given: list[int] = []
"""The descriptors that this worker was given."""


def _be_worker(orders: int, template: int, unneeded: Sequence[int]) -> NoReturn:
    code = 1
    try:
        for descriptor in unneeded:
            os.close(descriptor)
        np.random.seed()  # as in a new process; Python's own generator does so by itself
        with socket.socket(fileno=orders) as received:
            count = read_signed(orders)
            while len(_given) < count:
                _given.extend(socket.recv_fds(received, 1, _MOST_AT_ONCE)[1])
            code = spawn._main(received.detach(), template)
    except Exception as error:  # before its own code begins, which tells the search
        traceback.print_exception(error)
    finally:
        os._exit(code)
