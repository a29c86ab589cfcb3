"""Losses and metrics by task, each by its name in a study file.

torch is imported where it is used: a study file is checked, and a report is printed, without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunecli.errors import did_you_mean, nearest
from tunecli.metrics import classification, losses, regression
from tunecli.metrics.classification import predicted_class
from tunecli.trial import Value

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DEFAULT_LOSS",
    "DEFAULT_METRIC",
    "LOSSES",
    "METRICS",
    "TASKS",
    "Loss",
    "Metric",
    "nearest_loss",
    "nearest_metric",
    "own_direction",
    "predicted_class",
]

TASKS = ("classification", "regression")


@dataclass(frozen=True, slots=True)
class Loss:
    """`per_sample(outputs (N, O), targets (N,), **shape) -> (N,)`; a model of `classes` classes needs
    `outputs(classes)`.

    `shaped_by` are the hparams that `per_sample` takes by their names, none of them required. A user's `own` gets
    outputs and targets as they are; with `per_batch` it is one number for a whole batch, the same for all samples.
    `of_rows`, where there is one, computes many rows at once, unshaped: outputs (K, N, O) -> (K, N).
    """

    name: str
    task: str | None
    per_sample: Callable[..., Tensor]
    one_output: bool
    shaped_by: tuple[str, ...] = ()
    own: bool = False
    per_batch: bool = False
    of_rows: Callable[[Tensor, Tensor], Tensor] | None = None

    def shape(self, settings: Mapping[str, Value]) -> dict[str, float]:
        """What `per_sample` is told of a run's settings; a label smoothing of zero is none."""
        told = {name: float(settings[name]) for name in self.shaped_by}  # type: ignore[arg-type]  # numbers by the space
        return {name: value for name, value in told.items() if value or name != "label_smoothing"}

    def outputs(self, classes: int) -> int:
        return 1 if self.one_output else classes


@dataclass(frozen=True, slots=True)
class Metric:
    """`function(outputs (*, N, O), targets (N,), classes) -> (*)`: all rows of a block at once.

    None: the mean loss itself. Regression targets may be standardized, and a metric is printed in the target's own
    unit: `target_power` says by which power of the target's scale it is multiplied; None, that it is none, and that
    outputs and targets are restored before. `binary` metrics need two classes, those of `every_class` a sample of each.
    A user's `own` gets outputs (*, N, ...) and targets as they are.
    """

    name: str
    task: str | None
    direction: str
    function: Callable[[Tensor, Tensor, int], Tensor] | None
    target_power: int | None = 0
    binary: bool = False
    every_class: bool = False
    own: bool = False

    def undefined_because(self, targets: Tensor, labels: Sequence[str]) -> str | None:
        """Why the metric has no value for these targets (N,) of classes `labels`, or None where it has one."""
        if self.binary and len(labels) != 2:
            return f"{self.name} needs two classes, not {len(labels)}"
        if self.every_class:
            present = set(targets.tolist())
            absent = [label for number, label in enumerate(labels) if number not in present]
            if absent:
                return f"{self.name} needs samples of every class, there are none of {absent[0]!r}"
        return None


LOSSES = {
    loss.name: loss
    for loss in (
        Loss(
            "cross_entropy",
            "classification",
            losses.cross_entropy,
            False,
            ("label_smoothing",),
            of_rows=losses.cross_entropies,
        ),
        Loss("binary_cross_entropy", "classification", losses.binary_cross_entropy, True, ("label_smoothing",)),
        Loss("focal", "classification", losses.focal, False, ("focal_gamma", "label_smoothing")),
        Loss("mse", "regression", losses.squared_error, True),
        Loss("mae", "regression", losses.absolute_error, True),
        Loss("huber", "regression", losses.huber, True, ("huber_delta",)),
    )
}


def _score(name: str, function: Callable[[Tensor, Tensor, int], Tensor], **needs: bool) -> Metric:
    return Metric(name, "classification", "maximize", function, **needs)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("loss", None, "minimize", None),
        _score("accuracy", classification.accuracy),
        _score("balanced_accuracy", classification.balanced_accuracy),
        _score("precision", classification.precision),
        _score("recall", classification.recall),
        _score("f1", classification.f1),
        # Every sample has one class, and every class counts: the three are one.
        _score("precision_micro", classification.accuracy),
        _score("recall_micro", classification.accuracy),
        _score("f1_micro", classification.accuracy),
        _score("precision_binary", classification.precision_binary, binary=True),
        _score("recall_binary", classification.recall_binary, binary=True),
        _score("f1_binary", classification.f1_binary, binary=True),
        _score("auroc", classification.auroc, every_class=True),
        _score("average_precision", classification.average_precision, every_class=True),
        Metric("log_loss", "classification", "minimize", classification.log_loss),
        Metric("mse", "regression", "minimize", regression.mse, target_power=2),
        Metric("rmse", "regression", "minimize", regression.rmse, target_power=1),
        Metric("mae", "regression", "minimize", regression.mae, target_power=1),
        Metric("mape", "regression", "minimize", regression.mape, target_power=None),
        Metric("r2", "regression", "maximize", regression.r2),
    )
}

DEFAULT_LOSS = {"classification": "cross_entropy", "regression": "mse"}
DEFAULT_METRIC = {"classification": "accuracy", "regression": "r2"}

_OTHER_LOSSES = {"bce": "binary_cross_entropy", "binary": "binary_cross_entropy", "nll": "cross_entropy", "l1": "mae"}
_OTHER_METRICS = {
    "f1_macro": "f1",
    "precision_macro": "precision",
    "recall_macro": "recall",
    "roc_auc": "auroc",
    "auc": "auroc",
    "ap": "average_precision",
    "neg_log_loss": "log_loss",
}


def own_direction(name: str) -> str:
    """Which way a user's own metric is better if nobody says: as the bundled one of its name, else minimized.

    A name that ends in `score` or `accuracy` is maximized, as scikit-learn's scores are.
    """
    if name in METRICS:
        return METRICS[name].direction
    return "maximize" if name.lower().endswith(("score", "accuracy")) else "minimize"


def nearest_loss(name: str) -> str | None:
    """A hint for an unknown loss; other tools' words for ours are known."""
    return _nearest(name, LOSSES, _OTHER_LOSSES)


def nearest_metric(name: str) -> str | None:
    """A hint for an unknown metric; other tools' words for ours are known."""
    return _nearest(name, METRICS, _OTHER_METRICS)


def _nearest(name: str, table: Mapping[str, object], others: Mapping[str, str]) -> str | None:
    near = nearest(name, [*table, *others])
    return f"did you mean {others.get(near, near)!r}?" if near is not None else did_you_mean(name, table)
