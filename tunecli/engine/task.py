"""What an engine trains: samples, a loss, a metric, and how a run's model is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import vmap

from tunecli.data import Samples
from tunecli.metrics import Loss, Metric
from tunecli.trial import Run


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """`build(run)` gives a run's model with its initial weights; what does not require a gradient is frozen.

    `validation` is None where there is nothing to choose by: a run's weights are then those after its last tick.
    `target_scale` is the unit of a standardized regression target. `decay_biases` as in a study file.
    """

    train: Samples
    validation: Samples | None
    loss: Loss
    metric: Metric
    classes: int
    build: Callable[[Run], nn.Module]
    target_scale: float = 1.0
    decay_biases: bool = True

    def score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss and the metric of each row: (K,) and (K,) from outputs (K, N, O) and targets (N,)."""
        loss: Tensor = vmap(self.loss.per_sample, in_dims=(0, None))(outputs, targets).double().mean(1)
        function = self.metric.function
        if function is None:
            return loss, loss
        metric: Tensor = vmap(lambda row: function(row, targets, self.classes))(outputs)
        return loss, metric * self.target_scale**self.metric.target_power
