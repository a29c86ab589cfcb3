"""Processes that read the items of a Dataset ahead of training, as the workers of a DataLoader do.

What an item draws comes from its own seed, so how many processes read changes the speed and nothing else. They are
forked, at the first reading: each has the Dataset as it is here, whatever made it.
"""

from __future__ import annotations

import multiprocessing
import signal
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tunecli.alarm import held
from tunecli.errors import SourceError

AHEAD = 2
"""Batches that each process is asked for before the first of them is taken."""

REPLACED = 3
"""Processes that may die before reading is given up."""

Read = Callable[[Sequence[int], Sequence[int]], Any]
"""Of the places of items and a seed for each: the batch."""

_ends: weakref.WeakSet[Connection] = weakref.WeakSet()
"""This process's ends of all pipes. A forked process closes them, or it would never see that this one has died."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Process:
    process: BaseProcess
    end: Connection
    asked: dict[int, tuple[Sequence[int], Sequence[int]]] = field(default_factory=dict)


class Readers:
    """`workers` processes that call `read`. `source` names the Dataset where one of them dies."""

    def __init__(self, read: Read, workers: int, source: str) -> None:
        self._read, self.workers, self._source = read, workers, source
        self._processes: list[_Process] = []
        self._waiting: deque[tuple[int, Sequence[int], Sequence[int]]] = deque()
        self._found: dict[int, Any] = {}
        self._dropped: set[int] = set()
        self._number = self._died = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, which will have processes of its own."""
        return Readers, (self._read, self.workers, self._source)

    def batches(self, wanted: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Iterator[Any]:
        """The batches in order, those to come being read meanwhile. Raises what reading raises, in its turn."""
        source = iter(wanted)
        pending: deque[int] = deque()
        try:
            while True:
                for places, seeds in islice(source, AHEAD * self.workers - len(pending)):
                    self._number += 1
                    pending.append(self._number)
                    self._waiting.append((self._number, places, seeds))
                with held():
                    self._ask()
                if not pending:
                    return
                yield self._take(pending[0])
                pending.popleft()
        finally:
            with held():
                self._drop(pending)

    def _take(self, number: int) -> Any:
        while number not in self._found:
            ready = wait([own.end for own in self._processes])
            # A message that is half read or sent, or not counted, would put a process out of step for good.
            with held():
                self._receive(ready)
                self._ask()
        found = self._found.pop(number)
        if isinstance(found, SourceError):
            raise found
        return found

    def _ask(self) -> None:
        """Hand out what waits. No process is asked for more than it can hold in its pipe, where both would block."""
        while len(self._processes) < self.workers:
            self._processes.append(self._start())
        for own in self._processes:
            while self._waiting and len(own.asked) < AHEAD:
                number, places, seeds = self._waiting.popleft()
                own.asked[number] = places, seeds
                try:
                    own.end.send((number, places, seeds))
                except OSError:  # it has died, which is seen when its answers are waited for
                    break

    def _receive(self, ready: Sequence[object]) -> None:
        """Take the answers that are there; what a process that died was asked for, another is."""
        for own in [own for own in self._processes if own.end in ready]:
            try:
                number, found, fault = own.end.recv()
            except (EOFError, OSError):
                self._replace(own)
                continue
            del own.asked[number]
            if number in self._dropped:
                self._dropped.remove(number)
            elif fault is not None:
                self._found[number] = SourceError(fault[0], hint=fault[1])
            else:
                self._found[number] = tree_map(_as_tensor, found)

    def _replace(self, own: _Process) -> None:
        self._processes.remove(own)
        own.process.join()
        self._died += 1
        if self._died > REPLACED:
            code = own.process.exitcode or 0
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
            raise SourceError(
                f"{self._died} processes that read {self._source} have died, the last one {how}",
                hint="fewer data.workers need less memory; with 0 its items are read in this process",
            )
        lost = [(number, *asked) for number, asked in own.asked.items()]
        self._waiting.extendleft(reversed(lost))

    def _drop(self, numbers: Iterable[int]) -> None:
        """Forget what was asked for and is no longer wanted."""
        gone = set(numbers)
        self._waiting = deque(own for own in self._waiting if own[0] not in gone)
        asked = {number for own in self._processes for number in own.asked}
        self._dropped |= gone & asked
        for number in gone:
            self._found.pop(number, None)

    def _start(self) -> _Process:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        _ends.add(ours)
        process = context.Process(target=_serve, args=(theirs, self._read), daemon=True)
        process.start()
        theirs.close()
        # Multiprocessing's own: at exit it comes before the join, which would wait for what ignores its signal.
        Finalize(self, _end, (ours, process), exitpriority=0)
        return _Process(process, ours)


def _end(end: Connection, process: BaseProcess) -> None:
    end.close()
    process.kill()  # it may be in the middle of a long item


def _serve(end: Connection, read: Read) -> None:
    """What a process does: answer until the other one is gone."""
    for meant_for_the_search in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(meant_for_the_search, signal.SIG_IGN)
    for other in list(_ends):
        other.close()
    torch.set_num_threads(1)
    while True:
        try:
            number, places, seeds = end.recv()
        except (EOFError, OSError):
            return
        answer: tuple[int, Any, tuple[str, str | None] | None]
        try:
            answer = number, tree_map(_as_array, read(places, seeds)), None
        except SourceError as error:
            answer = number, None, (error.message, error.hint)
        try:
            end.send(answer)
        except OSError:
            return
        except Exception as error:  # what a batch may hold beside tensors
            told = f"its items cannot be handed from one process to another: {' '.join(str(error).split())}"
            end.send((number, None, (told, "read them in one: data.workers = 0")))


def _as_array(leaf: Any) -> Any:
    """A tensor as its bytes, which go through the pipe: torch's own way needs shared memory, which may be small."""
    plain = isinstance(leaf, Tensor) and leaf.dtype != torch.bfloat16 and not leaf.is_sparse
    return _Bytes(leaf.detach().numpy()) if plain else leaf


@dataclass(frozen=True, slots=True, eq=False)
class _Bytes:
    array: np.ndarray[Any, Any]


def _as_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf.array) if isinstance(leaf, _Bytes) else leaf
