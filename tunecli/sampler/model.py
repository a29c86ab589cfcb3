"""Optuna's samplers, each made anew for every proposal."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tunecli.given import encode_given
from tunecli.sampler import STARTUP_TRIALS
from tunecli.space import Range, Space, distribution_json
from tunecli.trial import Hparams, State, Trial, Value, derive_seed

STATES = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


def make_sampler(sampler: str, seed: int, population_size: int = 8) -> optuna.samplers.BaseSampler:
    """One of Optuna's samplers, which proposes once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _make(sampler, seed, population_size)


def _make(sampler: str, seed: int, population_size: int) -> optuna.samplers.BaseSampler:
    samplers = optuna.samplers
    if sampler == "tpe":
        # group: conditional hparams are modelled together with the optimizer that reads them. constant_liar: trials in
        # flight count as bad, so that a window of trials does not crowd into one place.
        return samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, group=True, constant_liar=True
        )
    if sampler == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)
    if sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=population_size)
    return samplers.RandomSampler(seed=seed)


class Model:
    """Each proposal has a sampler of its own, seeded by (study seed, n), that sees what may be seen of the trials."""

    exhausted = False

    def __init__(self, space: Space, sampler: str, direction: str, study_seed: int, population_size: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # gp warns that it would like to have greenlet
        self._space = space
        self._sampler, self._seed, self._population_size = sampler, study_seed, population_size
        self._view = View()
        self._study = optuna.create_study(storage=self._view, direction=StudyDirection[direction.upper()])
        self._renew(0)
        self._ended: list[Trial] = []
        self._distributions: dict[str, BaseDistribution] = {}

    def add(self, trial: Trial) -> None:
        self._reveal(trial.start_tick - 2)
        frozen = _blank(trial.number, TrialState.RUNNING)
        for name, (range_, internal) in self._space.encode(trial.hparams).items():
            distribution = self._distribution(name, range_)
            frozen.distributions[name] = distribution
            frozen.params[name] = distribution.to_external_repr(internal)
        trial_id = self._study._storage.create_new_trial(self._study._study_id, template_trial=frozen)
        self._settle(trial_id)
        if trial.state.ended:
            self.end(trial)

    def hide(self, number: int) -> None:
        # No sampler looks at a trial that failed.
        self._study._storage.create_new_trial(self._study._study_id, template_trial=_blank(number, TrialState.FAIL))

    def end(self, trial: Trial) -> None:
        self._ended.append(trial)

    def expect(self, count: int) -> None:
        """They share nothing."""

    def prepare(self, number: int, start_tick: int, given: Mapping[str, Value]) -> None:
        """Only what can be taken back is made before it is asked for: see `Ahead`."""

    def propose(self, number: int, start_tick: int, given: Mapping[str, Value] | None = None) -> Hparams:
        self._reveal(start_tick - 2)
        self._renew(number)
        if given:
            self._study.enqueue_trial(encode_given(self._space, given))
        trial = self._study.ask()
        if trial.number != number:
            raise AssertionError(f"trial {number} was asked for after {trial.number} trials")

        def ask(name: str, range_: Range) -> Value:
            distribution = self._distribution(name, range_)
            value = trial._suggest(name, distribution)
            return range_.external(distribution.to_internal_repr(value))

        hparams = self._space.suggest(ask)
        self._settle(trial._trial_id)
        return hparams

    def forget(self, number: int) -> None:
        """For gp: nsga2 keeps generations by what was complete when they were first asked for."""
        self._view.forget(number)

    def _renew(self, number: int) -> None:
        seed = derive_seed(self._seed, number, "propose") % 2**32
        self._study.sampler = make_sampler(self._sampler, seed, self._population_size)

    def _settle(self, trial_id: int) -> None:
        """Note the generation of a trial, of one that is added as it was when it was proposed."""
        sampler = self._study.sampler
        if isinstance(sampler, optuna.samplers.NSGAIISampler):
            self._study._thread_local.cached_all_trials = None
            trial = self._study._storage.get_trial(trial_id)
            # Both are kept where they are first asked for, and depend on what was complete then.
            sampler.get_parent_population(self._study, sampler.get_trial_generation(self._study, trial))

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
            storage.set_trial_state_values(trial.number, STATES[trial.state], values)
        self._ended = waiting

    def _distribution(self, name: str, range_: Range) -> BaseDistribution:
        if name not in self._distributions:
            self._distributions[name] = json_to_distribution(distribution_json(range_))
        return self._distributions[name]


_NEVER = datetime(2000, 1, 1)
"""No sampler looks at the time at which a trial began, and no proposal may depend on it."""


def _blank(number: int, state: TrialState) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=None,
        datetime_start=_NEVER,
        datetime_complete=_NEVER if state.is_finished() else None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )


class View(InMemoryStorage):
    """The recorded trials as Optuna's samplers read them."""

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Forgets what a sampler notes for concurrent ones, which a resumed search could not see; not a generation."""
        if key.endswith(":generation"):
            super().set_trial_system_attr(trial_id, key, value)

    def forget(self, number: int) -> None:
        """There are no trials from this number on; a trial's id is its number."""
        for study_id, study in self._studies.items():
            for trial in study.trials[number:]:
                del self._trial_id_to_study_id_and_number[trial._trial_id]
            del study.trials[number:]
            # From here on it looks for trials that wait.
            self._prev_waiting_trial_number[study_id] = min(self._prev_waiting_trial_number[study_id], number)
        self._max_trial_id = number - 1
