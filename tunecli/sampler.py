"""Who proposes: thin over Optuna, a pure function of what is recorded and of the trial's number."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tunecli.space import Range, Space, distribution_json
from tunecli.trial import Hparams, State, Trial, Value, derive_seed

_STATES = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    # group: conditional hparams are modelled together with the optimizer that reads them. constant_liar: trials in
    # flight count as bad, so that a window of trials does not crowd into one place.
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


_SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": _tpe,
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


class Proposer:
    """Proposes hparams for one trial after another.

    Trial n sees the hparams of all lower numbers, and the results of those that ended at least one tick before it
    starts. Each proposal has a sampler of its own, seeded by (study seed, n): nothing but the recorded trials matters,
    so a proposal is the same after a kill.
    """

    def __init__(self, space: Space, sampler: str, direction: str, study_seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._make_sampler = _SAMPLERS[sampler]
        self._seed = study_seed
        self._study = optuna.create_study(storage=_View(), direction=StudyDirection[direction.upper()])
        self._ended: list[Trial] = []
        self._distributions: dict[str, BaseDistribution] = {}

    def add(self, trial: Trial) -> None:
        """A trial that is recorded already, in the order of numbers; its result is still out of sight."""
        frozen = FrozenTrial(
            number=trial.number,
            trial_id=trial.number,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=_NEVER,
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        for name, (range_, internal) in self._space.encode(trial.hparams).items():
            distribution = self._distribution(name, range_)
            frozen.distributions[name] = distribution
            frozen.params[name] = distribution.to_external_repr(internal)
        self._study._storage.create_new_trial(self._study._study_id, template_trial=frozen)
        if trial.state.ended:
            self.end(trial)

    def end(self, trial: Trial) -> None:
        """A trial has ended; proposals see its result from the tick after the next on."""
        self._ended.append(trial)

    def propose(self, number: int, start_tick: int) -> Hparams:
        """The hparams of trial `number`, which starts in `start_tick`; the lower numbers must have been added."""
        self._reveal(start_tick - 2)
        seed = derive_seed(self._seed, number, "propose") % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = self._make_sampler(seed)
        trial = self._study.ask()
        if trial.number != number:
            raise AssertionError(f"trial {number} was asked for after {trial.number} trials")

        def ask(name: str, range_: Range) -> Value:
            distribution = self._distribution(name, range_)
            value = trial._suggest(name, distribution)
            return range_.external(distribution.to_internal_repr(value))

        return self._space.suggest(ask)

    def _reveal(self, up_to_tick: int) -> None:
        storage = self._study._storage
        waiting: list[Trial] = []
        for trial in self._ended:
            if trial.end_tick is None or trial.end_tick > up_to_tick:
                waiting.append(trial)
                continue
            for measurement in trial.curve:
                storage.set_trial_intermediate_value(trial.number, measurement.fidelity, measurement.metric)
            values = None if trial.state is State.FAILED or trial.value is None else [trial.value]
            storage.set_trial_state_values(trial.number, _STATES[trial.state], values)
        self._ended = waiting

    def _distribution(self, name: str, range_: Range) -> BaseDistribution:
        if name not in self._distributions:
            self._distributions[name] = json_to_distribution(distribution_json(range_))
        return self._distributions[name]


_NEVER = datetime(2000, 1, 1)
"""No sampler looks at the time at which a trial began, and no proposal may depend on it."""


class _View(InMemoryStorage):
    """The recorded trials as Optuna's samplers read them."""

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Forgets what a sampler notes for concurrent ones: a resumed search could not see it."""
