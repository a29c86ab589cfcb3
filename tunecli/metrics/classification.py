"""Metrics of classification: outputs (*, N, C) logits, or (*, N, 1) of class one, and targets (N,) -> (*).

Each equals scikit-learn's of the same name. `*` are the rows of a block, or nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def predicted_class(outputs: Tensor) -> Tensor:
    """Class numbers (*, N) from logits (*, N, C), or from the one logit of a binary model (*, N, 1)."""
    return (outputs[..., 0] > 0).long() if outputs.shape[-1] == 1 else outputs.argmax(-1)


def log_probabilities(outputs: Tensor) -> Tensor:
    """(*, N, C) in float64; the one logit of a binary model is that of class one."""
    import torch

    logits = outputs.double()
    if logits.shape[-1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], -1)
    return logits.log_softmax(-1)


def accuracy(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    return (predicted_class(outputs) == targets).double().mean(-1)


def balanced_accuracy(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """The mean recall over the classes that occur in the targets."""
    hits, _, actual = _counts(outputs, targets, classes)
    return _mean(hits / actual.clamp(min=1), actual > 0)


def precision(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Macro: the mean over the classes that occur in the targets or the predictions, zero where none is predicted."""
    hits, predicted, actual = _counts(outputs, targets, classes)
    return _mean(hits / predicted.clamp(min=1), predicted + actual > 0)


def recall(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Macro, as `precision`, zero for a class that does not occur in the targets."""
    hits, predicted, actual = _counts(outputs, targets, classes)
    return _mean(hits / actual.clamp(min=1), predicted + actual > 0)


def f1(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Macro F1: the mean over the classes that occur in the targets or the predictions."""
    hits, predicted, actual = _counts(outputs, targets, classes)
    total = predicted + actual
    return _mean(2 * hits / total.clamp(min=1), total > 0)


def precision_binary(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Of class one, as the other two: zero where there is nothing to divide by."""
    hits, predicted, _ = _counts(outputs, targets, classes)
    return (hits / predicted.clamp(min=1))[..., 1]


def recall_binary(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    hits, _, actual = _counts(outputs, targets, classes)
    return (hits / actual.clamp(min=1))[..., 1]


def f1_binary(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    hits, predicted, actual = _counts(outputs, targets, classes)
    return (2 * hits / (predicted + actual).clamp(min=1))[..., 1]


def auroc(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """The area under the ROC curve, ties counted half; over several classes the mean of each against the rest."""
    scores, positive = _against_the_rest(outputs, targets, classes)
    ordered = scores.sort(-1).values  # (*, B, N)
    rank = _count_below(ordered, scores, right=False) + _count_below(ordered, scores, right=True) + 1
    own = positive.sum(-1)
    wins = (rank.double() / 2 * positive).sum(-1) - own * (own + 1) / 2  # Mann & Whitney's U
    return (wins / (own * (targets.shape[0] - own))).mean(-1)


def average_precision(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """The mean precision at each positive sample's own score; over several classes the mean of each."""
    import torch

    scores, positive = _against_the_rest(outputs, targets, classes)
    above = targets.shape[0] - _count_below(scores.sort(-1).values, scores, right=False)
    hidden = torch.where(positive, scores, -torch.inf).sort(-1).values
    hits = targets.shape[0] - _count_below(hidden, scores, right=False)
    return ((hits.double() / above * positive).sum(-1) / positive.sum(-1)).mean(-1)


def log_loss(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """The mean of -log p of the true class, with p not below 2.2e-16, as scikit-learn clips it."""
    import math
    import sys

    logs = log_probabilities(outputs).clamp(min=math.log(sys.float_info.epsilon))
    own = logs.gather(-1, targets[:, None].expand(*logs.shape[:-1], 1))
    return -own[..., 0].mean(-1)


def _counts(outputs: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """By class, each (*, C) float64: predicted rightly, predicted, and, (C,), in the targets."""
    import torch

    numbers = torch.arange(classes, device=outputs.device)
    predicted = predicted_class(outputs)[..., None] == numbers  # (*, N, C)
    actual = targets[:, None] == numbers  # (N, C)
    return (predicted & actual).sum(-2).double(), predicted.sum(-2).double(), actual.sum(-2).double()


def _mean(by_class: Tensor, occurs: Tensor) -> Tensor:
    return (by_class * occurs).sum(-1) / occurs.sum(-1)


def _against_the_rest(outputs: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Scores (*, B, N) and who is positive (B, N): class one for two classes (B = 1), else each class."""
    import torch

    if classes == 2:
        logits = outputs.double()
        # The difference and not the probability: a saturated one would make ties where there are none.
        score = logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]
        return score[..., None, :], (targets == 1)[None]
    numbers = torch.arange(classes, device=outputs.device)
    scores = log_probabilities(outputs)[..., :classes].exp().transpose(-1, -2)
    return scores.contiguous(), targets == numbers[:, None]


def _count_below(ordered: Tensor, values: Tensor, *, right: bool) -> Tensor:
    """How many of `ordered` (*, N), rising, are below `values` (*, N), or equal to it where `right`."""
    import torch

    return torch.searchsorted(ordered, values.contiguous(), right=right)
