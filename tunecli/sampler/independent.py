"""Every hparam drawn by itself, evenly over its range."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tunecli.given import fitting
from tunecli.points import at
from tunecli.space import Choice, Range, Space
from tunecli.trial import Hparams, Trial, Value, derive_seed


class Random:
    """Proposes what Optuna's RandomSampler would, one for each proposal, seeded by (study seed, n)."""

    exhausted = False

    def __init__(self, space: Space, study_seed: int) -> None:
        self._space, self._seed, self._random = space, study_seed, np.random.RandomState(0)

    def add(self, trial: Trial) -> None:
        """Nothing depends on it."""

    def hide(self, number: int) -> None:
        """Nothing depends on it."""

    def end(self, trial: Trial) -> None:
        """Nothing is learned from it."""

    def expect(self, count: int) -> None:
        """They share nothing."""

    def prepare(self, number: int, start_tick: int, given: Mapping[str, Value]) -> None:
        """It is made in no time."""

    def propose(self, number: int, start_tick: int, given: Mapping[str, Value] | None = None) -> Hparams:
        fixed = fitting(self._space, given or {})
        reseed(self._random, self._seed, number)

        def ask(name: str, range_: Range) -> Value:
            return fixed[name] if name in fixed else draw(range_, self._random)

        return self._space.suggest(ask)


def reseed(random: np.random.RandomState, study_seed: int, number: int) -> None:
    """Begin the random numbers of a proposal. A new generator would take its first seed from the system, slowly."""
    random.seed(derive_seed(study_seed, number, "propose") % 2**32)


def draw(range_: Range, random: np.random.RandomState) -> Value:
    """A value of the range, as Optuna draws it: a choice is the largest of as many numbers."""
    if isinstance(range_, Choice):
        single = len(range_.values) == 1
        return range_.values[0 if single else int(random.random_sample(len(range_.values)).argmax())]
    return at(range_, random.random_sample())
