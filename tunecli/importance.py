"""How much each hparam had to do with a trial being among the best: Optuna's PED-ANOVA, over what was tried."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime

import optuna
from optuna.distributions import json_to_distribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tunecli.space import Range, Space, distribution_json
from tunecli.trial import LEAST_COMPARED, Hparams, Importance, State, Trial

Asked = Mapping[str, tuple[str, float]]
"""Name -> (Optuna's distribution as JSON, its internal value)."""


def asked_by_hparam(space: Space, hparams: Hparams) -> dict[str, tuple[str, float]]:
    """A point under the names that a user knows: `learning_rate` is one hparam, whatever range it has for whom."""
    return {
        dimension.hparam: (distribution_json(dimension.range), dimension.range.internal(hparams[dimension.hparam]))
        for dimension in space.dimensions
        if isinstance(dimension.range, Range) and dimension.applies(hparams)
    }


def importance(trials: Sequence[Trial], asked: Mapping[int, Asked], direction: str) -> Importance | None:
    """The share of each hparam in what sets the best tenth of the trials apart (Watanabe et al. 2023, and the form for
    conditional spaces, in which each range of an hparam, and its absence, is a regime of its own).

    Pruned trials count, with the best value that they reached: leaving them out would hide what they were pruned for.
    None for too few trials.
    """
    compared = [
        trial
        for trial in trials
        if trial.state in (State.COMPLETE, State.PRUNED) and trial.value is not None and math.isfinite(trial.value)
    ]
    if len(compared) < LEAST_COMPARED:
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=InMemoryStorage(), direction=StudyDirection[direction.upper()])
    for trial in compared:
        study._storage.create_new_trial(study._study_id, template_trial=_frozen(trial, asked[trial.number]))
    with warnings.catch_warnings():
        # It warns of regimes of one trial, which it leaves out.
        warnings.simplefilter("ignore")
        found = optuna.importance.PedAnovaImportanceEvaluator().evaluate(study)
    total = sum(found.values())
    shares = {name: own / total for name, own in found.items()} if total > 0 else {}
    # By its share, and of equals by its name: Optuna collects names in a set.
    return Importance(len(compared), dict(sorted(shares.items(), key=lambda item: (-item[1], item[0]))))


def _frozen(trial: Trial, asked: Asked) -> FrozenTrial:
    distributions = {name: json_to_distribution(distribution) for name, (distribution, _) in asked.items()}
    return FrozenTrial(
        number=trial.number,
        trial_id=trial.number,
        state=TrialState.COMPLETE,
        value=trial.value,
        datetime_start=datetime(2000, 1, 1),
        datetime_complete=datetime(2000, 1, 1),
        params={name: own.to_external_repr(asked[name][1]) for name, own in distributions.items()},
        distributions=distributions,
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )
