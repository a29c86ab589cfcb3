"""What a search yields: values that a view shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunecli.study import ProgramStudy, Study
from tunecli.trial import State, Trial, best_trial, ended_in

if TYPE_CHECKING:
    from tunecli.data import Data
    from tunecli.engine import Plan
    from tunecli.engine.calibration import Timing


@dataclass(frozen=True, slots=True)
class Opened:
    """The search begins or goes on: what is being searched, and in how many worker processes, 0 for none, or by how
    many threads of this one.

    `in_flight` is how many ticks are recorded of each trial that an interruption left in flight; `timings` are those
    that the plan was chosen by, if any. `looped_because` and `native` are as `Traits` has them.
    """

    study: Study
    folder: Path
    data: Data
    weights: int
    metric: str
    direction: str
    device: str
    plan: Plan
    timings: Sequence[Timing]
    looped_because: str | None
    native: bool
    done: int
    in_flight: Sequence[int] = ()
    workers: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class OpenedProgram:
    """The search begins or goes on: the program whose runs are its trials."""

    study: ProgramStudy
    folder: Path
    metric: str
    done: int
    in_flight: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """The question is not what it was: `lines` say in what, and the sampler sees `shown` of the `trials` so far."""

    lines: tuple[str, ...]
    sampler: str
    shown: int
    trials: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the study is: after each tick, and in the middle of long ones. `left_seconds` is how long it takes to
    its end, None where that is not known yet."""

    total: int
    counts: Mapping[State, int]
    best: Trial | None
    tick: int
    ended_now: int
    seconds: float
    left_seconds: float | None = None

    @property
    def ended(self) -> int:
        return ended_in(self.counts)


@dataclass(frozen=True, slots=True)
class Differed:
    """A replayed run showed another value than was stored, or where that is the same, another training loss (`of`);
    the stored one stays."""

    trial: int
    fidelity: int
    stored: float
    replayed: float
    of: str = "value"


@dataclass(frozen=True, slots=True)
class Failed:
    """A trial has failed, for the `reason`."""

    trial: int
    reason: str


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something that a user may want to know: a worker process died, and its trials go on."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The loop has ended and everything is written. `how`: "done", "stopped" by a signal, "timeout",
    or "hopeless": too many trials failed in a row."""

    how: str
    progress: Progress


Event = Opened | OpenedProgram | Changed | Progress | Differed | Failed | Noticed | Ended


class Tally:
    """How many trials are in which state, and the best of them; kept as they change, for there may be thousands."""

    def __init__(self, trials: Iterable[Trial], direction: str) -> None:
        trials = list(trials)
        self._direction = direction
        self._counts = dict.fromkeys(State, 0) | Counter(trial.state for trial in trials)
        self._best = best_trial(trials, direction)

    def change(self, trial: Trial, before: State | None) -> None:
        """A trial is new (`before` is None) or in another state than before."""
        self._counts[trial.state] += 1
        if before is not None:
            self._counts[before] -= 1
        self._best = best_trial([trial] if self._best is None else [self._best, trial], self._direction)

    @property
    def ended(self) -> int:
        return ended_in(self._counts)

    def progress(self, total: int, tick: int = 0, ended_now: int = 0, seconds: float = 0.0) -> Progress:
        """Where the study is; `ended_now` of its trials ended in the last `seconds`."""
        return Progress(total, dict(self._counts), self._best, tick, ended_now, seconds)
