"""What people write: a training loop of torch's own parts, and Optuna's questions for the default space.

Needs torch alone, so that peers run the same in an environment of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

OPTIMIZERS = ("sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam")
BATCH_SIZES = (16, 32, 64, 128, 256)
RATES = {"sgd": (1e-4, 1.0), "adagrad": (1e-3, 1.0), "adaptive": (1e-5, 1e-1)}
EPOCHS, MIN_TICKS, REDUCTION_FACTOR = 30, 3, 3
"""What `tunecli search` does if nobody says: at most so many epochs, and the rungs of asha."""


class Split(NamedTuple):
    train_inputs: Tensor
    train_targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor


def rate_name(optimizer: str) -> str:
    """The range that an optimizer's learning rate is from: sgd, adagrad or adaptive."""
    return optimizer if optimizer in RATES else "adaptive"


def suggest(trial: Any) -> dict[str, Any]:
    """A point of the default space, asked of an Optuna trial."""
    optimizer = trial.suggest_categorical("optimizer", OPTIMIZERS)
    own = rate_name(optimizer)
    low, high = RATES[own]
    hparams = {
        "optimizer": optimizer,
        "learning_rate": trial.suggest_float(f"learning_rate_{own}", low, high, log=True),
    }
    if optimizer in ("sgd", "rmsprop"):
        hparams["momentum"] = trial.suggest_float("momentum", 0.0, 0.99)
    if optimizer in ("adam", "adamw", "nadam"):
        hparams["beta1"] = trial.suggest_float("beta1", 0.8, 0.99)
        hparams["beta2"] = trial.suggest_float("beta2", 0.9, 0.9999)
    hparams["batch_size"] = trial.suggest_categorical("batch_size", BATCH_SIZES)
    hparams["l1"] = trial.suggest_float("l1", 1e-8, 1e-2, log=True)
    if optimizer == "adamw":
        hparams["l2"] = trial.suggest_float("l2_adamw", 1e-4, 0.5, log=True)
    else:
        hparams["l2"] = trial.suggest_float("l2", 1e-8, 1e-2, log=True)
    return hparams


def make_model() -> nn.Module:
    """The narrow mlp, 64-128-10."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def make_optimizer(hparams: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "nadam": torch.optim.NAdam,
    }
    keys: dict[str, Any] = {"lr": hparams["learning_rate"], "weight_decay": hparams["l2"]}
    if "momentum" in hparams:
        keys["momentum"] = hparams["momentum"]
    if "beta1" in hparams:
        keys["betas"] = (hparams["beta1"], hparams["beta2"])
    return kinds[hparams["optimizer"]](model.parameters(), **keys)


Batches = Callable[[Split, int], Callable[[], Iterator[Any]]]
"""Of a split and a batch size: what gives an epoch's batches."""


def loaded(split: Split, size: int) -> Callable[[], Iterator[Any]]:
    """By a DataLoader, as in every tutorial."""
    loader = DataLoader(TensorDataset(split.train_inputs, split.train_targets), batch_size=size, shuffle=True)
    return lambda: iter(loader)


def resident(split: Split, size: int) -> Callable[[], Iterator[Any]]:
    """Indexed from tensors in memory: the fastest that the loop can read."""

    def epoch() -> Iterator[Any]:
        for index in torch.randperm(len(split.train_inputs)).split(size):
            yield split.train_inputs[index], split.train_targets[index]

    return epoch


def accuracies(
    hparams: Mapping[str, Any], split: Split, batches: Batches, model: nn.Module | None = None
) -> Iterator[float]:
    """Train without end; the validation accuracy after each epoch."""
    model = model or make_model()
    optimizer = make_optimizer(hparams, model)
    epoch = batches(split, hparams["batch_size"])
    while True:
        model.train()
        for inputs, targets in epoch():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            for parameter in model.parameters():
                parameter.grad.add_(parameter.detach().sign(), alpha=hparams["l1"])  # type: ignore[union-attr]
            optimizer.step()
        model.eval()
        with torch.no_grad():
            found = model(split.validation_inputs).argmax(1)
        yield (found == split.validation_targets).double().mean().item()
