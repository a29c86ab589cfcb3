"""The shelf: the checkpoints of the best trials, and what stands in their manifests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from tunecli import __version__, checkpoint
from tunecli.data import Data
from tunecli.engine.task import model_keys, outputs_of
from tunecli.errors import CheckpointError
from tunecli.home import checkpoint_folder, remove_unknown_checkpoints
from tunecli.metrics import Metric
from tunecli.store import Store
from tunecli.study import Study
from tunecli.study.code import changed_code, code_of_model
from tunecli.trial import Trial


class Shelf:
    """Keeps the checkpoints of the best complete trials, as many as the study asks for; ties to the lower number.

    A checkpoint is on disk before the commit that records its trial, and goes after the one that drops it.
    """

    def __init__(self, folder: Path, study: Study, data: Data, metric: Metric, kept: Iterable[Trial]) -> None:
        self._folder, self._study, self._data, self._metric = folder, study, data, metric.name
        self._sign = -1.0 if metric.direction == "maximize" else 1.0
        self._kept = {trial.number: trial for trial in kept}
        self._stale: set[int] = set()
        remove_unknown_checkpoints(folder, self._kept)

    def notices(self) -> Iterator[str]:
        """What to know of the code of the model where trials go on: by which the first of those kept was trained."""
        for number in sorted(self._kept)[:1]:
            with suppress(CheckpointError):  # which whoever uses it is told of
                manifest = checkpoint.load_manifest(checkpoint_folder(self._folder, number))
                if (changed := changed_code(manifest, self._study.base)) is not None:
                    yield f"{changed}: trials from now on are another model's, --fresh begins anew"

    def has_room_for(self, trial: Trial) -> bool:
        """Whether a trial that is complete now is among the best."""
        return trial in self._ranked(trial)[: self._study.search.keep]

    def put(self, trial: Trial, weights: Mapping[str, Tensor], epoch_updates: int, store: Store) -> None:
        """Write a trial's checkpoint and record it; the one that it displaces goes with the next commit."""
        manifest = make_manifest(self._study, self._data, trial, self._metric, epoch_updates)
        store.keep(trial, checkpoint.save(checkpoint_folder(self._folder, trial.number), weights, manifest))
        ranked = self._ranked(trial)
        self._kept[trial.number] = trial
        for displaced in ranked[self._study.search.keep :]:
            del self._kept[displaced.number]
            store.drop(displaced.number)
            self._stale.add(displaced.number)

    def clear_away(self) -> None:
        """Delete what was displaced; call it once that is committed."""
        for number in self._stale:
            checkpoint.remove(checkpoint_folder(self._folder, number))
        self._stale.clear()

    def _ranked(self, trial: Trial) -> list[Trial]:
        def rank(own: Trial) -> tuple[float, int]:
            return (self._sign * own.value if own.value is not None else float("inf"), own.number)

        return sorted([*self._kept.values(), trial], key=rank)


def make_manifest(study: Study, data: Data, trial: Trial, metric: str, epoch_updates: int) -> dict[str, Any]:
    """All that is needed to predict from raw input, and where the weights come from."""
    model = {
        "source": study.model.source,
        "keys": model_keys(study, trial.hparams),
        "outputs": outputs_of(study, data, trial.hparams),
        "base": str(study.base),
    }
    return {
        "study": study.name,
        "trial": trial.number,
        "fidelity": trial.best_tick,
        "updates": (trial.best_tick or 0) * epoch_updates,
        "metric": metric,
        "value": trial.value,
        "split": "validation",
        "hparams": dict(trial.hparams),
        "model": model,
        "code": code_of_model(study),
        "task": data.task,
        "classes": list(data.classes),
        "features": data.features,
        "preprocessing": dict(data.preprocessing),
        "tunecli": __version__,
    }
