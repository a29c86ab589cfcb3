"""Trials, runs and measurements: frozen values that every room passes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Value = bool | int | float | str | tuple[int | float | str, ...]
Hparams = Mapping[str, Value]
"""One point of the search space, by the names that a user knows: `learning_rate`, `batch_size`, `model.hidden`."""


class State(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (State.COMPLETE, State.PRUNED, State.FAILED)


def ended_in(counts: Mapping[State, int]) -> int:
    """How many trials have ended, of so many in each state."""
    return sum(count for state, count in counts.items() if state.ended)


def derive_seed(study_seed: int, trial: int, purpose: str, *more: int) -> int:
    """A seed in [0, 2**63) that depends on its arguments alone: the same on every machine and in every version.

    All randomness of a study comes from here, so that a run's result depends on nothing but itself.
    """
    text = "/".join(str(part) for part in (study_seed, trial, purpose, *more))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Run:
    """One training of one trial. `settings` hold where its hparams say nothing: the keys of [train]."""

    trial: int
    study_seed: int
    hparams: Hparams = field(hash=False)
    epochs: int
    settings: Hparams = field(default_factory=dict, hash=False)

    def seed(self, purpose: str, *more: int) -> int:
        return derive_seed(self.study_seed, self.trial, purpose, *more)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run showed after one tick. `fidelity` counts the ticks seen, this one included.

    A report of a program has its metric alone; `step` is the number that the program gave it, where that is another.
    """

    trial: int
    fidelity: int
    train_loss: float
    validation_loss: float
    metric: float
    gradient_norm: float
    seconds: float
    failure: str | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """Hparams and what came of them.

    `value` is the validation metric at `best_tick`, the first of equals; `curve` holds the measurements in order.
    Ticks are counted from 1 over the whole study; `end_tick` is None while the trial is in flight. `given` is the part
    of the hparams that was fixed by hand; a trial that waits has no others yet, and no tick.
    """

    number: int
    state: State
    hparams: Hparams
    start_tick: int
    end_tick: int | None = None
    value: float | None = None
    best_tick: int | None = None
    seconds: float = 0.0
    reason: str | None = None
    curve: tuple[Measurement, ...] = ()
    given: Hparams = field(default_factory=dict)

    @property
    def fidelity(self) -> int:
        return len(self.curve)

    @property
    def last_tick(self) -> int:
        """The last tick of the study that this trial has seen, 0 for none."""
        if self.state is State.WAITING:
            return 0
        return self.end_tick if self.end_tick is not None else self.start_tick + self.fidelity - 1


LEAST_COMPARED = 20
"""With fewer trials there is no best tenth to speak of: two trials."""


@dataclass(frozen=True, slots=True)
class Importance:
    """Each hparam's share in what sets the best of so many trials apart, from the largest on; empty where nothing does.

    The shares add up to 1. `best` is how many trials are the best, `among_best` how many of them have each hparam: not
    all do where it is one optimizer's alone. A study that was explained before these were counted has none.
    """

    trials: int
    shares: Mapping[str, float]
    best: int = 0
    among_best: Mapping[str, int] = field(default_factory=dict)


def better(value: float, than: float, direction: str) -> bool:
    """Whether `value` is strictly better; a NaN is better than nothing."""
    return value > than if direction == "maximize" else value < than


def first_best(curve: Iterable[Measurement], direction: str) -> Measurement | None:
    """The measurement that a trial's value comes from: the best one, the first of equals. Failed ones do not count."""
    best: Measurement | None = None
    for own in curve:
        if own.failure is None and (best is None or better(own.metric, best.metric, direction)):
            best = own
    return best


def best_trial(trials: list[Trial], direction: str) -> Trial | None:
    """The best complete trial; ties go to the lower number. Pruned and failed trials never compete."""
    best: Trial | None = None
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state is not State.COMPLETE or trial.value is None:
            continue
        if best is None or best.value is None or better(trial.value, best.value, direction):
            best = trial
    return best
