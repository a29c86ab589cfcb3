"""What a search yields: values that a view shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunecli.study import Study
from tunecli.trial import State, Trial, best_trial

if TYPE_CHECKING:
    from tunecli.data import Data
    from tunecli.engine import Plan


@dataclass(frozen=True, slots=True)
class Opened:
    """The search begins or goes on: what is being searched."""

    study: Study
    folder: Path
    data: Data
    weights: int
    metric: str
    direction: str
    device: str
    plan: Plan
    looped_because: str | None
    done: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the study is: after each tick, and in the middle of long ones."""

    total: int
    counts: Mapping[State, int]
    best: Trial | None
    tick: int
    ended_now: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Differed:
    """A replayed run showed another value than was stored; the stored one stays."""

    trial: int
    fidelity: int
    stored: float
    replayed: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The loop has ended and everything is written. `how`: "done", "stopped" by a signal, or "timeout"."""

    how: str
    progress: Progress


Event = Opened | Progress | Differed | Ended


def progress(
    asked: int, trials: Iterable[Trial], direction: str, tick: int, ended_now: int, seconds: float
) -> Progress:
    """Where a study of `asked` trials is; `ended_now` of them ended in the last `seconds`."""
    trials = list(trials)
    counts = {state: sum(trial.state is state for trial in trials) for state in State}
    best = best_trial(trials, direction)
    return Progress(asked, counts, best, tick, ended_now, seconds)
