"""Losses and metrics by task. Each works on one row of outputs and is mapped over rows by the engine.

torch is imported where it is used: a study file is checked, and a report is printed, without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TASKS = ("classification", "regression")


@dataclass(frozen=True, slots=True)
class Loss:
    """`per_sample(outputs (N, O), targets (N,)) -> (N,)`; a model of `classes` classes needs `outputs(classes)`."""

    name: str
    task: str
    per_sample: Callable[[Tensor, Tensor], Tensor]
    one_output: bool

    def outputs(self, classes: int) -> int:
        return 1 if self.one_output else classes


@dataclass(frozen=True, slots=True)
class Metric:
    """`function(outputs (N, O), targets (N,), classes) -> ()`.

    None: the mean loss itself. A metric of squared targets is printed in the squares of the target's own unit, so
    `target_power` says by which power of the target's scale the engine multiplies it.
    """

    name: str
    task: str | None
    direction: str
    function: Callable[[Tensor, Tensor, int], Tensor] | None
    target_power: int = 0


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.cross_entropy(outputs, targets, reduction="none")


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype), reduction="none")


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets) ** 2


def predicted_class(outputs: Tensor) -> Tensor:
    """Class numbers (N,) from logits (N, C), or from the one logit of a binary model (N, 1)."""
    return (outputs[:, 0] > 0).long() if outputs.shape[-1] == 1 else outputs.argmax(-1)


def accuracy(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    return (predicted_class(outputs) == targets).double().mean()


def f1(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Macro F1: the mean over the classes that occur in the targets or the predictions, as in scikit-learn."""
    import torch

    numbers = torch.arange(classes, device=outputs.device)
    predicted = predicted_class(outputs)[:, None] == numbers  # (N, C)
    actual = targets[:, None] == numbers  # (N, C)
    hits = (predicted & actual).sum(0).double()
    total = predicted.sum(0) + actual.sum(0)
    occurs = total > 0
    return (2 * hits / total.clamp(min=1)).sum() / occurs.sum()


def mse(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    return ((outputs[:, 0].double() - targets.double()) ** 2).mean()


def r2(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """1 - residual / total sum of squares. Targets all alike: 1 where met exactly, else 0, as in scikit-learn."""
    import torch

    actual = targets.double()
    residual = ((actual - outputs[:, 0].double()) ** 2).sum()
    total = ((actual - actual.mean()) ** 2).sum()
    alike = torch.where(residual == 0, 1.0, 0.0).double()
    return torch.where(total == 0, alike, 1 - residual / total)


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", "classification", cross_entropy, one_output=False),
        Loss("binary_cross_entropy", "classification", binary_cross_entropy, one_output=True),
        Loss("mse", "regression", squared_error, one_output=True),
    )
}

METRICS = {
    metric.name: metric
    for metric in (
        Metric("loss", None, "minimize", None),
        Metric("accuracy", "classification", "maximize", accuracy),
        Metric("f1", "classification", "maximize", f1),
        Metric("mse", "regression", "minimize", mse, target_power=2),
        Metric("r2", "regression", "maximize", r2),
    )
}

DEFAULT_LOSS = {"classification": "cross_entropy", "regression": "mse"}
DEFAULT_METRIC = {"classification": "accuracy", "regression": "r2"}
