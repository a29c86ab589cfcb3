"""One trial of Syne Tune: a process that is given its hparams as arguments and reports each epoch."""

from __future__ import annotations

import argparse

import torch
from syne_tune import Reporter

from tests.benchmarks.peers import split_of
from tests.benchmarks.plain import BATCH_SIZES, EPOCHS, RATES, accuracies, rate_name, resident

NUMBERS = (*(f"learning_rate_{name}" for name in RATES), "momentum", "beta1", "beta2", "l1", "l2", "l2_adamw")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--optimizer")
    parser.add_argument("--batch_size", type=int, choices=BATCH_SIZES)
    parser.add_argument("--digits")
    for name in NUMBERS:
        parser.add_argument(f"--{name}", type=float)
    given = vars(parser.parse_known_args()[0])
    optimizer = given["optimizer"]
    hparams = {name: given[name] for name in ("optimizer", "batch_size", "l1")}
    hparams["learning_rate"] = given[f"learning_rate_{rate_name(optimizer)}"]
    hparams["l2"] = given["l2_adamw" if optimizer == "adamw" else "l2"]
    if optimizer in ("sgd", "rmsprop"):
        hparams["momentum"] = given["momentum"]
    if optimizer in ("adam", "adamw", "nadam"):
        hparams |= {"beta1": given["beta1"], "beta2": given["beta2"]}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = Reporter()
    curve = accuracies(hparams, split_of(given["digits"]), resident)
    for epoch in range(1, EPOCHS + 1):
        report(epoch=epoch, accuracy=next(curve))


if __name__ == "__main__":
    main()
