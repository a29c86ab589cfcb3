"""Losses, one number a sample, on one row of outputs; the engine maps them over rows.

What shapes a loss beyond its name (label smoothing, focal's gamma, Huber's delta) comes as numbers or tensors without
dimensions: each row has its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: Tensor | float | None = None) -> Tensor:
    from torch.nn import functional

    if label_smoothing is None:
        return functional.cross_entropy(outputs, targets, reduction="none")
    return _smoothed(-outputs.log_softmax(-1), targets, label_smoothing)


def cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    """(K, N) of K rows of outputs (K, N, C), each of which has the bits that it has alone."""
    from torch.nn import functional

    # Over the middle dimension: torch's softmax over a last one of ten is eight times slower.
    return functional.cross_entropy(outputs.transpose(1, 2), targets.expand(len(outputs), -1), reduction="none")


def focal(
    outputs: Tensor,
    targets: Tensor,
    focal_gamma: Tensor | float = 2.0,
    label_smoothing: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy times (1 - p) ** gamma, p the probability of the class (Lin et al. 2017, over C classes)."""
    import torch

    logs = outputs.log_softmax(-1)
    # The power has no gradient at zero for a gamma below one.
    missing = (-torch.expm1(logs)).clamp(min=torch.finfo(logs.dtype).tiny)
    losses = -logs * missing**focal_gamma  # (N, C)
    if label_smoothing is None:
        return losses.gather(-1, targets[:, None])[:, 0]
    return _smoothed(losses, targets, label_smoothing)


def _smoothed(losses: Tensor, targets: Tensor, smoothing: Tensor | float) -> Tensor:
    """What is expected of losses (N, C) when a share of the target is spread evenly (Szegedy et al. 2016)."""
    own = losses.gather(-1, targets[:, None])[:, 0]
    return own * (1 - smoothing) + losses.mean(-1) * smoothing


def binary_cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: Tensor | float | None = None) -> Tensor:
    from torch.nn import functional

    targets = targets.to(outputs.dtype)
    if label_smoothing is not None:
        targets = targets * (1 - label_smoothing) + label_smoothing / 2
    return functional.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets) ** 2


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets).abs()


def huber(outputs: Tensor, targets: Tensor, huber_delta: Tensor | float = 1.0) -> Tensor:
    """Squared up to delta and linear beyond (Huber 1964), as torch's HuberLoss."""
    import torch

    error = (outputs[:, 0] - targets).abs()
    return torch.where(error <= huber_delta, 0.5 * error * error, huber_delta * (error - 0.5 * huber_delta))
