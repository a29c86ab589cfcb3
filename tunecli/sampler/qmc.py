"""A quasi-random sequence, which fills the space more evenly than chance: a trial's place in it is its number."""

from __future__ import annotations

from collections.abc import Mapping

from tunecli.points import at
from tunecli.space import Range, Space
from tunecli.trial import Hparams, Trial, Value


class Sobol:
    """Scrambled Sobol points (Owen 1998), a coordinate for each name of Optuna's, conditional ones included.

    A coordinate that a trial does not read is left unused. Where every trial reads all, these are the points of
    Optuna's QMCSampler, which leaves conditional hparams to chance.
    """

    exhausted = False

    def __init__(self, space: Space, study_seed: int) -> None:
        self._space, self._seed = space, study_seed
        self._names = sorted(d.name for d in space.dimensions if isinstance(d.range, Range))
        self._hparam_of = {dimension.name: dimension.hparam for dimension in space.dimensions}

    def add(self, trial: Trial) -> None:
        """The sequence goes on by numbers alone."""

    def hide(self, number: int) -> None:
        """The sequence goes on by numbers alone."""

    def end(self, trial: Trial) -> None:
        """Nothing is learned from it."""

    def expect(self, count: int) -> None:
        """They share nothing."""

    def prepare(self, number: int, start_tick: int, given: Mapping[str, Value]) -> None:
        """It is made in no time."""

    def propose(self, number: int, start_tick: int, given: Mapping[str, Value] | None = None) -> Hparams:
        share = dict(zip(self._names, self._point(number), strict=True))
        given = given or {}

        def ask(name: str, range_: Range) -> Value:
            hparam = self._hparam_of[name]
            return given[hparam] if hparam in given else at(range_, share[name])

        return self._space.suggest(ask)

    def _point(self, number: int) -> list[float]:
        if not self._names:
            return []
        from scipy.stats import qmc

        sequence = qmc.Sobol(len(self._names), seed=self._seed, scramble=True)
        if number > 0:  # it cannot be forwarded by nothing
            sequence.fast_forward(number)
        return [float(share) for share in sequence.random(1)[0]]
