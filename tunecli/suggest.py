"""Who answers an objective that asks for its hparams one by one: thin over Optuna, as `sampler` is."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.distributions import json_to_distribution
from optuna.study import StudyDirection

from tunecli.sampler.model import STATES, View, make_sampler
from tunecli.space import external_value
from tunecli.trial import State, Trial, derive_seed

Asked = Mapping[str, tuple[str, float]]
"""What a trial has asked for: name -> (Optuna's distribution, as JSON, and its internal value), in order."""


class Suggester:
    """Suggests values for names and ranges that only the objective knows.

    A trial sees what has ended when it asks. Each has a sampler of its own, seeded by (study seed, number): where
    trials run one at a time, nothing but the recorded ones matters, so the answers are the same after a kill.

    `today`, name -> Optuna's distribution, is what is known beforehand: a trial that had another one of that name is
    seen with this, or, where its value lies outside, not at all.
    """

    def __init__(self, sampler: str, direction: str, study_seed: int, today: Mapping[str, str]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sampler, self._seed, self._today = sampler, study_seed, today
        self._hidden: set[int] = set()
        self._storage = View()
        self._study = optuna.create_study(storage=self._storage, direction=StudyDirection[direction.upper()])
        self._trials: dict[int, optuna.Trial] = {}

    def add(self, trial: Trial, asked: Asked) -> None:
        """A trial that has ended already, in the order of numbers."""
        self._storage.create_new_trial(self._study._study_id)
        for name, (distribution, internal) in asked.items():
            self.put(trial.number, name, distribution, internal)
        self.end(trial)

    def start(self, number: int) -> None:
        """Trial `number`, the next one, is in flight."""
        sampler = make_sampler(self._sampler, derive_seed(self._seed, number, "propose") % 2**32)
        # A study of its own over the same trials: it is the study that knows the sampler.
        study = optuna.Study(self._study.study_name, self._storage, sampler)
        self._trials[number] = study.ask()
        if self._trials[number].number != number:
            raise AssertionError(f"trial {number} was started after {self._trials[number].number} trials")

    def suggest(self, number: int, name: str, distribution: str) -> float:
        """Optuna's internal value of the answer. Raises ValueError where the range contradicts an earlier trial's."""
        asked = json_to_distribution(distribution)
        return asked.to_internal_repr(self._trials[number]._suggest(name, asked))

    def put(self, number: int, name: str, distribution: str, internal: float) -> None:
        """Another answer than the one suggested was recorded, and stands."""
        own = json_to_distribution(self._today.get(name, distribution))
        try:
            internal = own.to_internal_repr(external_value(distribution, internal))
        except ValueError:  # no choice any more
            self._hidden.add(number)
            return
        if own._contains(internal):
            self._storage.set_trial_param(number, name, internal, own)
        else:
            self._hidden.add(number)

    def end(self, trial: Trial) -> None:
        """A trial has ended; whoever asks from now on sees its result."""
        for step, own in enumerate(trial.curve, start=1):
            self._storage.set_trial_intermediate_value(trial.number, step if own.step is None else own.step, own.metric)
        # No sampler looks at a trial that failed.
        state = State.FAILED if trial.number in self._hidden else trial.state
        values = None if state is State.FAILED or trial.value is None else [trial.value]
        self._storage.set_trial_state_values(trial.number, STATES[state], values)
        self._trials.pop(trial.number, None)
