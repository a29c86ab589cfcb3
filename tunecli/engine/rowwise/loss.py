"""The losses of a block and their gradient with respect to the outputs, by hand where the loss is a common one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap

from tunecli.engine.compiler import has_functions
from tunecli.engine.gradients import Shape
from tunecli.engine.rowwise.called import called
from tunecli.engine.rowwise.compiled import cross_entropy
from tunecli.metrics import LOSSES, Loss

LossGradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""outputs (B, m, O), targets and what each sample counts (B, m) -> losses (B, m), and the gradient (B, m, O) of their
sum, each sample weighted by what it counts."""


def loss_gradient(loss: Loss, shape: Shape, *, compiled: bool = False) -> LossGradient:
    """The losses and their gradient; `shape` (B,) is what shapes the loss of each row. Where they are `compiled`, they
    are called in C by the graph that is being recorded."""
    known = _BY_HAND | _IN_C if compiled else _BY_HAND
    by_hand = None if shape else known.get(loss.per_sample)
    return by_hand or _by_autograd(loss.per_sample, shape)


def _cross_entropy(outputs: Tensor, targets: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    # Over the middle dimension: torch's softmax over a last dimension of ten is eight times slower.
    logs = torch.log_softmax(outputs.transpose(1, 2), 1)  # (B, C, m)
    own = targets[:, None]  # (B, 1, m)
    losses = -logs.gather(1, own)[:, 0]
    gradient = logs.exp().scatter_add_(1, own, torch.full_like(losses, -1)[:, None]).mul_(present[:, None])
    return losses, gradient.transpose(1, 2)


def _cross_entropy_in_c(outputs: Tensor, targets: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    if targets.dtype != torch.int64 or present.dtype != outputs.dtype or not has_functions(outputs.dtype):
        return _cross_entropy(outputs, targets, present)
    found = called(cross_entropy, outputs, targets, present)
    return found[:, -1], found[:, :-1].transpose(1, 2)


def _binary_cross_entropy(outputs: Tensor, targets: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    logits, truth = outputs[..., 0], targets.to(outputs.dtype)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return losses, (logits.sigmoid() - truth).mul_(present)[..., None]


def _squared_error(outputs: Tensor, targets: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    error = outputs[..., 0] - targets
    return error * error, (2 * error * present).to(outputs.dtype)[..., None]


def _by_autograd(per_sample: Callable[..., Tensor], shape: Shape) -> LossGradient:
    mapped = vmap(lambda outputs, targets, own: per_sample(outputs, targets, **own))

    def found(outputs: Tensor, targets: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            losses: Tensor = mapped(leaf, targets, shape)
            (gradient,) = torch.autograd.grad((losses * present).sum(), leaf)
        return losses.detach(), gradient

    return found


_IN_C: dict[Callable[..., Tensor], LossGradient] = {LOSSES["cross_entropy"].per_sample: _cross_entropy_in_c}
_BY_HAND: dict[Callable[..., Tensor], LossGradient] = {
    LOSSES["cross_entropy"].per_sample: _cross_entropy,
    LOSSES["binary_cross_entropy"].per_sample: _binary_cross_entropy,
    LOSSES["mse"].per_sample: _squared_error,
}
