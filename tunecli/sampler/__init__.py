"""Who proposes: a pure function of what is recorded, the trial's number and the study's seed.

gp and nsga2 are Optuna's, reached through `model`, which loads it. `tpe` and `independent` propose what Optuna's would,
in less time; sequences have files of their own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from tunecli.points import all_points, always_read, key
from tunecli.space import EXHAUSTIVE, Space
from tunecli.trial import Hparams, State, Trial, Value

STARTUP_TRIALS = 10
"""So many trials are random before tpe and gp have seen enough to model."""


class Proposer(Protocol):
    """Proposes hparams for one trial after another.

    Trial n sees the hparams of all lower numbers, and the results of those that ended at least one tick before it
    starts. It holds nothing that the recorded trials do not tell, so a proposal is the same after a kill.
    """

    def add(self, trial: Trial) -> None:
        """A trial that is recorded already, in the order of numbers."""

    def hide(self, number: int) -> None:
        """A trial of an earlier space, recorded already: its number is taken, and nothing is learned from it."""

    def end(self, trial: Trial) -> None:
        """A trial has ended; proposals see its result from the tick after the next on."""

    def propose(self, number: int, start_tick: int, given: Mapping[str, Value] | None = None) -> Hparams:
        """The hparams of trial `number`, which starts in `start_tick`; the lower numbers must have been added.

        What was `given` by hand stays as it is; the sampler chooses the rest.
        """

    def expect(self, count: int) -> None:
        """So many proposals are likely to be asked for next, all for one tick: what they share can be done at once. It
        changes no proposal."""

    def prepare(self, number: int, start_tick: int, given: Mapping[str, Value]) -> None:
        """Make this proposal before it is asked for, where that takes time. It changes no proposal.

        Those of one tick come in the order of numbers, once all that ended two ticks before has been told.
        """

    @property
    def exhausted(self) -> bool:
        """Whether every point of the space has been proposed."""


def make_proposer(space: Space, sampler: str, direction: str, study_seed: int, window: int) -> Proposer:
    """The proposer of this name, before any trial."""
    if sampler in EXHAUSTIVE:
        from tunecli.sampler.grid import Grid

        # In the order of the space, neighbours come one after another; shuffled, a part of the points covers it all.
        return Grid(space, study_seed, shuffled=sampler == "grid")
    if sampler == "qmc":
        from tunecli.sampler.qmc import Sobol

        return Sobol(space, study_seed)
    if sampler == "random":
        from tunecli.sampler.independent import Random

        return Random(space, study_seed)
    from tunecli.sampler.ahead import Ahead

    if sampler == "tpe":
        from tunecli.sampler.tpe import Tpe

        return Ahead(Tpe(space, direction, study_seed))
    from tunecli.sampler.model import Model

    model = Model(space, sampler, direction, study_seed, population_size(window))
    return Ahead(model) if sampler == "gp" else model


def points_left(sampler: str, space: Space, trials: Iterable[Trial]) -> int | None:
    """How many points none of the trials, as the space has them, has begun to try; None where the sampler does not try
    them all."""
    if sampler not in EXHAUSTIVE:
        return None
    tried = {key(space, trial.hparams) for trial in trials if trial.state is not State.WAITING}
    return len({key(space, point) for point in all_points(space)} - tried)


def learned(sampler: str, trials: Sequence[Trial]) -> int | None:
    """How many of the trials were proposed by what others had come to; None where the sampler looks at no value, or
    has no beginning at random."""
    counted = {"tpe": (State.COMPLETE, State.PRUNED), "gp": (State.COMPLETE,)}.get(sampler)
    if counted is None:
        return None
    ended = sorted(trial.end_tick for trial in trials if trial.state in counted and trial.end_tick is not None)
    began = (trial.start_tick for trial in trials if trial.state is not State.WAITING)
    return sum(bisect_right(ended, tick - 2) >= STARTUP_TRIALS for tick in began)


def population_size(window: int) -> int:
    """How many complete trials make a generation of nsga2: a window, for pruned ones do not count."""
    return max(window, 8)


def says(sampler: str, space: Space, window: int) -> str:
    """Which hparams the sampler models, and who samples the others: a line for the beginning of a search."""
    if sampler in EXHAUSTIVE:
        order = "in random order" if sampler == "grid" else "one after another"
        return f"{sampler} tries every point of the space once, {len(all_points(space)):,} in all, {order}"
    if sampler == "qmc":
        return "qmc gives every hparam a coordinate of one scrambled Sobol sequence"
    if sampler == "random":
        return "random draws every hparam by itself"
    if sampler == "tpe":
        return (
            f"tpe models all hparams, those that trials share jointly, after {STARTUP_TRIALS} random trials have ended"
        )
    shared = always_read(space)
    rest = [name for name in space.searched() if name not in shared]
    if sampler == "gp":
        models = f"gp models {', '.join(shared) or 'nothing'} jointly, once {STARTUP_TRIALS} trials are complete"
    else:
        models = f"nsga2 crosses {', '.join(shared) or 'nothing'}, in generations of {population_size(window)}"
    others = f"; random draws {', '.join(rest)}, whose range not every trial has" if rest else ""
    return models + others
