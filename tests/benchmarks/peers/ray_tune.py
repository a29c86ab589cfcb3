"""The search in Ray Tune: OptunaSearch and ASHA, two workers whose processes are used again.

    .venv-peers/bin/python -m tests.benchmarks.peers.ray_tune DIGITS.npz TRIALS FOLDER

The last line that it prints is what came of it, as JSON.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from tests.benchmarks.peers import split_of
from tests.benchmarks.plain import EPOCHS, MIN_TICKS, REDUCTION_FACTOR, accuracies, resident, suggest


class Training(tune.Trainable):
    """A step is an epoch."""

    def setup(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.reset_config(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        torch.manual_seed(0)
        self._curve = accuracies(config, split_of(config["digits"]), resident)
        return True

    def step(self) -> dict[str, float]:
        return {"accuracy": next(self._curve)}


def ask(trial: Any, digits: str) -> dict[str, Any]:
    return suggest(trial) | {"digits": digits}


def main(digits: str, trials: int, folder: str) -> None:
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=f"{folder}/daemons"
    )
    tuner = tune.Tuner(
        Training,
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            search_alg=OptunaSearch(partial(ask, digits=digits), metric="accuracy", mode="max", seed=0),
            scheduler=ASHAScheduler(max_t=EPOCHS, grace_period=MIN_TICKS, reduction_factor=REDUCTION_FACTOR),
            num_samples=trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=folder,
            stop={"training_iteration": EPOCHS},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    found = tuner.fit()
    curves = [own.metrics_dataframe["accuracy"] for own in found]
    seen = sum(len(curve) for curve in curves)
    print(json.dumps({"trials": len(curves), "epochs": seen, "best": max(curve.max() for curve in curves)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
