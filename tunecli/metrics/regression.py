"""Metrics of regression: outputs (*, N, 1) and targets (N,) -> (*). Each equals scikit-learn's of the same name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mse(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    return ((outputs[..., 0].double() - targets.double()) ** 2).mean(-1)


def rmse(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    return mse(outputs, targets, classes).sqrt()


def mae(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    return (outputs[..., 0].double() - targets.double()).abs().mean(-1)


def mape(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """The mean of |error| / |target|, a target of zero taken for 2.2e-16: 0.1 is ten percent."""
    import sys

    actual = targets.double()
    return ((outputs[..., 0].double() - actual).abs() / actual.abs().clamp(min=sys.float_info.epsilon)).mean(-1)


def r2(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """1 - residual / total sum of squares. Targets all alike: 1 where met exactly, else 0, as in scikit-learn."""
    import torch

    actual = targets.double()
    residual = ((actual - outputs[..., 0].double()) ** 2).sum(-1)
    total = ((actual - actual.mean()) ** 2).sum()
    alike = torch.where(residual == 0, 1.0, 0.0).double()
    return torch.where(total == 0, alike, 1 - residual / total)
