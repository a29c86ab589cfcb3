"""A worker as the search sees it: the runs that it holds, what they have still to show, and what it has said."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from tunecli.engine.child import WorkerDied
from tunecli.engine.messages import (
    AT_WORK,
    FAILED,
    FELL,
    FREE,
    GO_ON,
    MEASURED,
    PAUSE,
    PAUSED,
    PRINTED,
    RAISED,
    READY,
    REVIVE,
    REVIVED,
    TICK,
    Lost,
)
from tunecli.engine.work import Make, Work
from tunecli.errors import TunecliError
from tunecli.trial import Measurement, Run

if TYPE_CHECKING:
    from tunecli.engine import Engine


MOST_UNANSWERED = 8
"""So much is asked of a worker before it has answered: both sides' messages fit into the smallest of pipes, 8 KiB, so
that neither waits for the other to read. What has no answer is not counted."""


class Place(Protocol):
    """Where a worker's work is done: in a process of its own (`Child`) or in this one (`Here`)."""

    def send(self, *message: Any) -> None:
        """Say something to it."""

    def receive(self, timeout: float | None) -> tuple[int, Any] | None:
        """What it says next, or None where nothing came in time. Raises WorkerDied."""


class Here:
    """This process in the place of a worker's: it trains in `step`, and answers at once."""

    def __init__(self, engine: Engine, make: Make, runs: Iterable[Run]) -> None:
        self._said: deque[tuple[int, Any]] = deque()
        self._work = Work(make, lambda kind, value: self._said.append((kind, value)), (engine, runs))

    def send(self, *message: Any) -> None:
        self._work.do(message)

    def receive(self, timeout: float | None) -> tuple[int, Any] | None:
        return self._said.popleft() if self._said else None

    def step(self) -> None:
        """Train for a moment, where there is something to train."""
        if self._work.busy:
            self._work.step()

    def close(self) -> None:
        """Let go of all that its engines hold."""
        self._work.close()


class Worker:
    """`runs` are those it holds, `pending` those that have to finish the tick, `reviving` those that are brought again
    to where they were when their worker died. `at_work` are the trials that it computes, as far as it has said.

    `failed` is what its engine raised, `fell` how it said that it ends.
    """

    def __init__(self, place: Place, runs: Iterable[Run] = ()) -> None:
        self._place = place
        self.runs = {run.trial: run for run in runs}
        self.pending: set[int] = set()
        self.reviving: set[int] = set()
        self.at_work: tuple[int, ...] = ()
        self.ready = self.paused = self._told_to_pause = False
        self.failed: TunecliError | None = None
        self.fell: str | None = None
        self._measured: list[Measurement] = []
        self._answers: deque[tuple[int, Any]] = deque()
        self._asked = 0

    @property
    def busy(self) -> bool:
        return bool(self.pending or self.reviving)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of its engine returns; raises what that raises, and WorkerDied."""
        self.begin(method, *arguments)
        return self.answer()

    def begin(self, method: str, *arguments: Any) -> None:
        """Ask without waiting: `answer` is to be called as often, for the answers in their order."""
        with suppress(WorkerDied):  # which `answer` meets as well
            while self._asked - len(self._answers) >= MOST_UNANSWERED:
                self._receive(None)
        self._asked += 1
        self._place.send(method, *arguments)

    def answer(self) -> Any:
        """As `ask`, of what was begun first."""
        while not self._answers:
            self._receive(None)
        self._asked -= 1
        kind, value = self._answers.popleft()
        if kind == RAISED:
            raise value
        return value

    def free(self, run: Run) -> None:
        """Have its engine take a run's slot back, before anything that is said later."""
        del self.runs[run.trial]
        self._place.send(FREE, run)

    def begin_tick(self) -> None:
        self.pending = set(self.runs)
        if self.runs:
            self._place.send(TICK)

    def revive(self, lost: Sequence[Lost]) -> None:
        """Train runs again up to where they were when their worker died."""
        self.runs |= {own.run.trial: own.run for own in lost}
        self.pending |= {own.run.trial for own in lost if own.due}
        self.reviving |= {own.run.trial for own in lost}
        self._place.send(REVIVE, list(lost))

    def pause(self) -> None:
        """Have it come to rest: it is `paused` once its step is over, and it has said so."""
        if not self._told_to_pause:
            self._told_to_pause = True
            self._place.send(PAUSE)

    def go_on(self) -> None:
        """Have it train again after `pause`."""
        if self.paused:
            self.paused = self._told_to_pause = False
            self._place.send(GO_ON)

    def hear(self) -> list[Measurement]:
        """What it has measured since, by its last words too. Raises WorkerDied, and what its engine raised, once all
        that it measured before is told."""
        try:
            while self._receive(0):
                pass
        except WorkerDied:
            if not self._measured and not (self.ready and self.failed):
                raise
        if self.ready and self.failed is not None and not self._measured:
            raise self.failed
        measured, self._measured = self._measured, []
        self.pending -= {own.trial for own in measured}
        return measured

    def _receive(self, timeout: float | None) -> bool:
        """Take one message in, or return False where none came. Raises WorkerDied."""
        message = self._place.receive(timeout)
        if message is not None:
            self._take(*message)
        return message is not None

    def _take(self, kind: int, value: Any) -> None:
        if kind == READY:
            self.ready = True
        elif kind == AT_WORK:
            self.at_work = value
        elif kind == MEASURED:
            self._measured += value
        elif kind == FAILED:
            self.failed = value
        elif kind == REVIVED:
            self.reviving -= value
        elif kind == PAUSED:
            self.paused = True
        elif kind == PRINTED:
            print(value)  # as it would where no worker is; whoever shows the search sees to it
        elif kind == FELL:
            self.fell = f"ended with {value}"
        else:
            self._answers.append((kind, value))
