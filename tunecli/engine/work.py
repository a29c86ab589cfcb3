"""What a worker does: train the runs that it is given and answer for them. It decides nothing, opens no database."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunecli.data import Data
from tunecli.engine.local import LocalEngine
from tunecli.engine.messages import (
    ANSWER,
    AT_WORK,
    FAILED,
    FREE,
    GO_ON,
    MEASURED,
    PAUSE,
    PAUSED,
    RAISED,
    READY,
    REVIVE,
    REVIVED,
    TICK,
    Lost,
    Message,
    Say,
)
from tunecli.engine.own import load_optimizer
from tunecli.engine.plan import Plan
from tunecli.engine.task import Task, make_task
from tunecli.errors import InputError, OutOfMemory, TunecliError
from tunecli.source import code_now, is_function, load_function, loaded_code, named_functions
from tunecli.study import Study
from tunecli.trial import Measurement, Run

if TYPE_CHECKING:
    from tunecli.engine import Engine

SLICE_SECONDS = 0.05
"""How long a worker trains before it looks whether something is asked of it."""

Announce = Callable[[tuple[int, ...]], None]
Make = Callable[[Announce], "Engine"]
"""Makes an engine that announces which trials it computes, before it does."""


def engine_of(study: Study, data: Data, task: Task, plan: Plan, device: str) -> Make:
    """What makes the engine of a study in a worker, where the samples lie in memory that all processes share.

    `task` is this process's: functions of a user's own cannot be sent, so a worker loads them itself, and raises
    InputError where their files are no longer as this process has loaded them.
    """
    code, dtype = loaded_code(named_functions(study.document()), study.base), torch.get_default_dtype()
    sent = _Sent(study, replace(data, test=data.validation), tuple(task.optimizers), dtype, code)
    return partial(_make_engine, sent, plan, device)


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a task is made from. A user's code may have set the default type of numbers."""

    study: Study
    data: Data
    optimizers: tuple[str, ...]
    dtype: torch.dtype
    code: Mapping[Path, bytes]


def _make_engine(sent: _Sent, plan: Plan, device: str, announce: Announce) -> LocalEngine:
    torch.set_default_dtype(sent.dtype)
    own = {source: load_optimizer(source, sent.study.base) for source in sent.optimizers}
    task = replace(make_task(sent.study, sent.data), optimizers=own)
    if is_function(sent.study.model.source):
        load_function(sent.study.model.source, sent.study.base)
    changed = [path for path, code in sent.code.items() if code_now(path) != code]
    if changed:
        raise InputError(f"{', '.join(path.name for path in changed)} has changed since this search loaded it")
    return LocalEngine(task, plan, device, announce)


class Work:
    """The runs of one worker and the engine that trains them; `say` takes what it has to say.

    Runs that are trained again get an engine of their own beside one that holds others, for they are in other ticks.
    """

    def __init__(self, make: Make, say: Say, here: tuple[Engine, Iterable[Run]] | None = None) -> None:
        self._make, self._say = make, say
        self._place: dict[int, Engine] = {}
        self._engines: list[Engine] = []
        if here is not None:
            engine, runs = here
            self._engines.append(engine)
            self._place = {run.trial: engine for run in runs}
        else:
            self._another()
        self._left: dict[int, int] = {}
        self._replays: deque[tuple[set[int], Iterator[None]]] = deque()
        self._paused = False
        say(READY, None)

    @property
    def busy(self) -> bool:
        """Whether there is something to train now."""
        return not self._paused and bool(self._replays or self._left)

    def do(self, message: Message) -> None:
        """What the search says."""
        method, *arguments = message
        if method == TICK:
            counts = {place: sum(own is e for own in self._place.values()) for place, e in enumerate(self._engines)}
            self._left = {place: count for place, count in counts.items() if count}
        elif method == FREE:
            (run,) = arguments
            self._arrive(run)
            self._place.pop(run.trial).free(run)
        elif method == REVIVE:
            lost: list[Lost] = arguments[0]
            engine = next((own for own in self._engines if own not in self._place.values()), None) or self._another()
            self._place |= {own.run.trial: engine for own in lost}
            self._replays.append(({own.run.trial for own in lost}, self._revive(engine, lost)))
        elif method == PAUSE:
            self._paused = True
            self._say(PAUSED, None)
        elif method == GO_ON:
            self._paused = False
        else:
            self._answer(method, *arguments)

    def step(self) -> None:
        """Train for a slice of time, what is to be trained again first.

        Where memory runs out nothing is trained any more, and all that it holds can still be taken out.
        """
        try:
            self._train()
        except OutOfMemory as error:
            self._left.clear()
            self._replays.clear()
            self._say(FAILED, error)

    def close(self) -> None:
        """Let go of all that its engines hold."""
        for engine in self._engines:
            engine.close()

    def _train(self) -> None:
        if self._replays:
            for _ in self._replays[0][1]:
                return
            self._replays.popleft()
            return
        place = next(iter(self._left))
        measured = self._engines[place].advance(time.monotonic() + SLICE_SECONDS)
        self._left[place] -= len(measured)
        if not self._left[place]:
            del self._left[place]
        if measured:
            self._say(MEASURED, measured)
        if not self._left:
            self._say(AT_WORK, ())

    def _answer(self, method: str, run: Run, *more: Any) -> None:
        self._arrive(run)
        starts = method in ("start", "restore")
        if starts:
            self._say(AT_WORK, (run.trial,))
            self._place[run.trial] = self._between_ticks()
        engine = self._place[run.trial]
        try:
            value = getattr(engine, method)(run, *more)
        except TunecliError as error:
            if starts:
                del self._place[run.trial]
            self._say(RAISED, error)
            return
        if starts:
            self._say(AT_WORK, ())
        self._say(ANSWER, value)

    def _arrive(self, run: Run) -> None:
        """Have a run that is trained again come to where it was."""
        while any(run.trial in trials for trials, _ in self._replays):
            self.step()

    def _between_ticks(self) -> Engine:
        """An engine that no run is trained again in."""
        revived = [self._place[trial] for trials, _ in self._replays for trial in trials]
        return next((own for own in self._engines if own not in revived), None) or self._another()

    def _another(self) -> Engine:
        self._engines.append(self._make(partial(self._say, AT_WORK)))
        return self._engines[-1]

    def _revive(self, engine: Engine, lost: Sequence[Lost]) -> Iterator[None]:
        """Train them, slice by slice, so that all arrive in the same tick; say what those that are due show in it."""
        waiting = sorted(lost, key=lambda own: own.missing)
        running = 0
        measured: list[Measurement] = []
        for left in range(waiting[-1].missing, -1, -1):
            while waiting and waiting[-1].missing == left:
                own = waiting.pop()
                self._say(AT_WORK, (own.run.trial,))
                if own.snapshot is None:
                    engine.start(own.run)
                else:
                    engine.restore(own.run, own.snapshot)
                running += 1
                self._say(AT_WORK, ())
            measured = [] if left else measured
            while left and len(measured) < running:
                measured += engine.advance(time.monotonic() + SLICE_SECONDS)
                yield
        due = {own.run.trial for own in lost if own.due}
        self._say(MEASURED, [own for own in measured if own.trial in due])
        self._say(AT_WORK, ())
        self._say(REVIVED, {own.run.trial for own in lost})
