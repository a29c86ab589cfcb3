"""torch's own fused updates, a row at a time: one pass over memory where the rules on (K, P) take six to ten.

torch.optim's `fused=True` ends in the same calls. Each row has hparams of its own, so each is a call of its own: worth
it on a CPU, where a call costs a few microseconds; on a GPU many launches would cost more than they save. A row starts
on a whole vector, so its bits do not depend on where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Told = Mapping[str, float]
"""The hparams of a row; its learning rate is told apart, as the schedule has it."""

FusedStep = Callable[[Tensor, Tensor, Tensor, Tensor, Told, float, Tensor], None]
"""(weights, mean gradient, first, second) of a row, (P,) each, what it is told, its rate, the update's number, ()."""


def _sgd(w: Tensor, g: Tensor, first: Tensor, second: Tensor, told: Told, rate: float, number: Tensor) -> None:
    momentum = told["momentum"]
    torch._fused_sgd_(
        [w],
        [g],
        [first] if momentum else [],
        weight_decay=told["l2"],
        momentum=momentum,
        lr=rate,
        dampening=told["dampening"],
        nesterov=bool(told["nesterov"] and momentum),
        maximize=False,
        # The first update fills the buffer with the gradient itself: nothing is dampened yet.
        is_first_step=int(number) == 1,
    )


def _adagrad(w: Tensor, g: Tensor, first: Tensor, second: Tensor, told: Told, rate: float, number: Tensor) -> None:
    l2 = told["l2"]
    torch._fused_adagrad_(
        [w], [g], [second], [number], lr=rate, lr_decay=0.0, weight_decay=l2, eps=1e-10, maximize=False
    )


def _adam(w: Tensor, g: Tensor, first: Tensor, second: Tensor, told: Told, rate: float, number: Tensor) -> None:
    _adam_by(torch._fused_adam_, w, g, first, second, told, rate, number)


def _adamw(w: Tensor, g: Tensor, first: Tensor, second: Tensor, told: Told, rate: float, number: Tensor) -> None:
    _adam_by(torch._fused_adamw_, w, g, first, second, told, rate, number)


def _adam_by(
    step: Callable[..., None],
    w: Tensor,
    g: Tensor,
    first: Tensor,
    second: Tensor,
    told: Told,
    rate: float,
    number: Tensor,
) -> None:
    step(
        [w],
        [g],
        [first],
        [second],
        [],
        [number],
        lr=rate,
        beta1=told["beta1"],
        beta2=told["beta2"],
        weight_decay=told["l2"],
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )


FUSED: dict[str, FusedStep] = {"sgd": _sgd, "adagrad": _adagrad, "adam": _adam, "adamw": _adamw}
"""Those of the optimizers that torch has fused on a CPU."""
