"""The search in Syne Tune: ASHA over random points, two workers, each trial a process on this machine.

    .venv-peers/bin/python -m tests.benchmarks.peers.syne_tune_search DIGITS.npz TRIALS

It has no conditional hparams: every trial samples all and reads its own. The last line that it prints is what came of
it, as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend import LocalBackend
from syne_tune.config_space import choice, loguniform, uniform
from syne_tune.optimizer.baselines import ASHA

from tests.benchmarks.plain import BATCH_SIZES, EPOCHS, MIN_TICKS, OPTIMIZERS, RATES, REDUCTION_FACTOR


def main(digits: str, trials: int) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    space = {
        "optimizer": choice(list(OPTIMIZERS)),
        **{f"learning_rate_{name}": loguniform(low, high) for name, (low, high) in RATES.items()},
        "momentum": uniform(0.0, 0.99),
        "beta1": uniform(0.8, 0.99),
        "beta2": uniform(0.9, 0.9999),
        "batch_size": choice(list(BATCH_SIZES)),
        "l1": loguniform(1e-8, 1e-2),
        "l2": loguniform(1e-8, 1e-2),
        "l2_adamw": loguniform(1e-4, 0.5),
        "digits": digits,
    }
    asha = ASHA(
        space,
        metric="accuracy",
        time_attr="epoch",
        max_t=EPOCHS,
        do_minimize=False,
        random_seed=0,
        grace_period=MIN_TICKS,
        reduction_factor=REDUCTION_FACTOR,
    )
    tuner = Tuner(
        trial_backend=LocalBackend(str(Path(__file__).with_name("syne_tune_trial.py"))),
        scheduler=asha,
        stop_criterion=StoppingCriterion(max_num_trials_started=trials - 1),  # it stops above
        n_workers=2,
        sleep_time=0.1,  # its 5 s would be most of what is measured
        wait_trial_completion_when_stopping=True,
        save_tuner=False,
    )
    tuner.run()
    status = tuner.tuning_status
    seen = status.overall_metric_statistics
    best = seen.max_metrics["accuracy"]
    print(json.dumps({"trials": status.num_trials_started, "epochs": seen.count, "best": best}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
