"""An Optuna objective of the user's, run in a worker with a trial whose study is the search."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import random
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from tunecli.errors import SourceError
from tunecli.program.worker import Channel
from tunecli.source import describe, load_function, source_file


def run(channel: Channel) -> None:
    """Load the objective, call it, say how it ended; then end the process."""
    task = channel.task
    base, source = Path(task["base"]), task["objective"]
    path = source_file(source, base)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # As `python script.py` would have it.
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path)]
    # Before the script is loaded: a seed of its own then stands.
    random.seed(task["seed"])
    np.random.seed(task["seed"] % 2**32)
    sys.meta_path.insert(0, _SeedTorch(task["seed"]))
    try:
        objective = _load(source, base)
    except SourceError as error:
        channel.end("unloadable", reason=error.message, hint=error.hint)
        return
    channel.ask(ready=True)
    how, more = _call(objective, _make_trial(channel), path)
    # What the script leaves for the end of its process is done; threads that it left running are not waited for.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    channel.end(how, **more)
    os._exit(0)


class _SeedTorch(MetaPathFinder):
    """Seeds torch as soon as a script imports it: it takes two seconds to load, and not every script needs it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_seed(module: ModuleType) -> None:
                execute(module)
                module.manual_seed(self._seed)

            spec.loader.exec_module = execute_and_seed  # type: ignore[method-assign]
        return spec


class _OwnStudy(BaseException):
    """The script came to the search of its own, for which this one stands in."""


def _load(source: str, base: Path) -> Callable[[optuna.Trial], Any]:
    """The objective. A script without a main guard is read as far as the search that it would begin."""

    def optimize(self: Study, *args: object, **keys: object) -> None:
        raise _OwnStudy

    theirs, Study.optimize = Study.optimize, optimize  # type: ignore[method-assign]
    try:
        return load_function(source, base)
    except _OwnStudy:
        return load_function(source, base)  # its module is there, with all that stands above the search
    finally:
        Study.optimize = theirs  # type: ignore[method-assign]


def _call(objective: Callable[[optuna.Trial], Any], trial: optuna.Trial, path: Path) -> tuple[str, dict[str, Any]]:
    """How the objective ended, as `Channel.end` takes it."""
    try:
        value = objective(trial)
    except optuna.TrialPruned:
        return "pruned", {}
    except KeyboardInterrupt:
        return "interrupted", {}
    except (Exception, SystemExit) as error:
        traceback.print_exception(error)
        return "failed", {"reason": describe(error, path)}
    try:
        return "complete", {"value": float(value)}
    except (TypeError, ValueError):
        shown = repr(value) if len(repr(value)) <= 60 else type(value).__name__
        reason = f"the objective returned {shown}, which is no number"
        return "failed", {"reason": reason, "holds": _what_it_holds(value)}


def _what_it_holds(value: Any) -> str | None:
    """Whether what was returned is "data" or "a model": then the function is no objective at all."""
    if hasattr(value, "parameters") and hasattr(value, "forward"):
        return "a model"
    if isinstance(value, Mapping | tuple | list):
        parts = value.values() if isinstance(value, Mapping) else value
        return "data" if any(_what_it_holds(part) == "data" for part in parts) else None
    is_set = hasattr(value, "__getitem__") and hasattr(value, "__len__")  # a Dataset, a DataLoader
    if hasattr(value, "shape"):
        return "data" if value.shape else None  # of one number both NumPy and torch have an array
    return "data" if is_set and not isinstance(value, str | bytes) else None


def _make_trial(channel: Channel) -> optuna.Trial:
    """Optuna's own trial, in a study of one: what it samples, reports and asks goes to the search."""
    storage = _Storage(channel)
    study = optuna.create_study(
        storage=storage, sampler=_Sampler(storage), pruner=_Pruner(channel), direction=channel.task["direction"]
    )
    trial = study.ask()
    trial._cached_frozen_trial.number = channel.task["trial"]
    return trial


class _Storage(InMemoryStorage):
    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._answers: dict[str, float] = {}

    def answer(self, name: str, distribution: BaseDistribution) -> float:
        if name not in self._answers:
            described = _described(distribution)
            self._answers[name] = self._channel.ask(ask=name, distribution=described)
        return self._answers[name]

    def set_trial_param(self, trial_id: int, name: str, internal: float, distribution: BaseDistribution) -> None:
        self.answer(name, distribution)  # a range of one value is settled without the sampler
        super().set_trial_param(trial_id, name, internal, distribution)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._channel.say(report=intermediate_value, step=step)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)
        self._channel.say(attribute=key, value=value)


class _Sampler(BaseSampler):
    def __init__(self, storage: _Storage) -> None:
        self._storage = storage

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return param_distribution.to_external_repr(self._storage.answer(param_name, param_distribution))


class _Pruner(BasePruner):
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return bool(self._channel.ask(prune=True))


def _described(distribution: BaseDistribution) -> str:
    """The distribution as the database keeps it; a choice that is no text or number goes by its name."""
    if isinstance(distribution, CategoricalDistribution):
        distribution = CategoricalDistribution([_label(choice) for choice in distribution.choices])
    return distribution_to_json(distribution)


def _label(choice: Any) -> bool | int | float | str | None:
    if choice is None or isinstance(choice, bool | int | float | str):
        return choice
    if isinstance(choice, list | tuple):
        return json.dumps(choice, default=str)
    return str(getattr(choice, "__qualname__", choice))
