"""The rules of the optimizers, each written once on (K, P): a row a run, P weights a model.

Each equals torch.optim's of the same name; the order of its operations follows torch's single-tensor form. Every
operation on weights rounds alike for every element of a tensor (torch's addcmul and addcdiv do), so that a row's bits
depend neither on where it lies in the matrix nor on how many threads share the work. What depends on the number of the
update alone (bias corrections) is computed ahead in float64, for all updates of a tick at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tunecli.engine.compiled import NUMBERS
from tunecli.engine.fused import FUSED, FusedStep

DEFAULTS: dict[str, float] = {
    "momentum": 0.0,
    "dampening": 0.0,
    "nesterov": False,
    "beta1": 0.9,
    "beta2": 0.999,
    "l1": 0.0,
    "l2": 0.0,
    "clip_norm": 0.0,
    "ema_decay": 0.0,
}
"""What torch.optim takes for an hparam that a trial does not have; the last two are off."""

Columns = Mapping[str, Tensor]
"""Hparams of some rows: name -> (K, 1) in float64. `learning_rate` is (S, K, 1), one for each of S updates."""

Matrices = tuple[tuple[int, int, int], ...]
"""Where the matrices among the weights of a row lie, in order: (offset, rows, columns)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """An optimizer. `scalars` gives (S, K, 1) columns from hparams and update numbers (S, K, 1), counted from 1;
    `step` takes one update with them, in place.

    `decoupled`: l2 shrinks the weights instead of adding to the gradient; `takes_l2`: `step` sees to it itself.
    `by_matrix`: `step` is told where in a row the `matrices` lie. `defaults` are where it has not the usual ones.
    `fused` and `compiled`: the same update of one row at a time, for a CPU: torch's own, and the number of ours in
    `update.c`, below 0 where there is none.
    """

    scalars: Callable[[Columns, Tensor], tuple[Tensor, ...]]
    step: Callable[..., None]
    decoupled: bool = False
    takes_l2: bool = False
    by_matrix: bool = False
    defaults: Mapping[str, float] = field(default_factory=dict)
    fused: FusedStep | None = None
    compiled: int = -1


def _power(of: Tensor, number: Tensor) -> Tensor:
    """`of ** number` for whole numbers, by squaring: torch's pow rounds by an element's place in its vector."""
    left = number.long()
    found = torch.ones_like(of * left)
    for _ in range(int(left.max()).bit_length()):
        found = torch.where(left % 2 == 1, found * of, found)
        of, left = of * of, left // 2
    return found


def _sgd_scalars(h: Columns, t: Tensor) -> tuple[Tensor, ...]:
    # The first update fills the buffer with the gradient itself: nothing is dampened yet.
    fresh = torch.where(t == 1, 1.0, 1 - h["dampening"])
    nesterov = h["nesterov"]
    own = torch.where(h["momentum"] == 0, 1.0, nesterov)
    buffered = torch.where(h["momentum"] == 0, 0.0, torch.where(nesterov > 0, h["momentum"], 1.0))
    return h["learning_rate"], h["momentum"], fresh, own, buffered


def _sgd(
    w: Tensor,
    g: Tensor,
    first: Tensor,
    second: Tensor,
    lr: Tensor,
    mom: Tensor,
    fresh: Tensor,
    own: Tensor,
    buf: Tensor,
) -> None:
    first.mul_(mom).addcmul_(g, fresh)
    w.addcmul_(g.mul_(own).addcmul_(first, buf), lr, value=-1)


def rate_alone(h: Columns, t: Tensor) -> tuple[Tensor, ...]:
    return (h["learning_rate"],)


def _adagrad(w: Tensor, g: Tensor, first: Tensor, second: Tensor, lr: Tensor) -> None:
    """Duchi et al. 2011, with torch's epsilon of 1e-10."""
    second.addcmul_(g, g)
    w.addcdiv_(g.mul_(lr), second.sqrt().add_(1e-10), value=-1)


def _rmsprop_scalars(h: Columns, t: Tensor) -> tuple[Tensor, ...]:
    return h["learning_rate"], h["momentum"]


def _rmsprop(w: Tensor, g: Tensor, first: Tensor, second: Tensor, lr: Tensor, mom: Tensor) -> None:
    """Hinton's lecture 6e, with torch's smoothing of 0.99 and epsilon of 1e-8."""
    second.mul_(0.99).addcmul_(g, g, value=1 - 0.99)
    first.mul_(mom).addcdiv_(g, second.sqrt().add_(1e-8))
    w.addcmul_(first, lr, value=-1)


def _adam_scalars(h: Columns, t: Tensor) -> tuple[Tensor, ...]:
    b1, b2 = h["beta1"], h["beta2"]
    return h["learning_rate"] / (1 - _power(b1, t)), b1, 1 - b1, b2, 1 - b2, (1 - _power(b2, t)).sqrt()


def _adam(
    w: Tensor,
    g: Tensor,
    first: Tensor,
    second: Tensor,
    size: Tensor,
    b1: Tensor,
    c1: Tensor,
    b2: Tensor,
    c2: Tensor,
    root: Tensor,
) -> None:
    """Kingma & Ba 2015, algorithm 1, with epsilon 1e-8."""
    _average(g, first, second, b1, c1, b2, c2)
    w.addcdiv_(first * size, torch.sqrt(second, out=g).div_(root).add_(1e-8), value=-1)


def _average(g: Tensor, first: Tensor, second: Tensor, b1: Tensor, c1: Tensor, b2: Tensor, c2: Tensor) -> None:
    """The two moments of the Adam family."""
    first.mul_(b1).addcmul_(g, c1)
    second.mul_(b2).addcmul_(g, g * c2)


def _nadam_scalars(h: Columns, t: Tensor) -> tuple[Tensor, ...]:
    b1, b2 = h["beta1"], h["beta2"]
    products = _nadam_products(b1, int(t.max()))  # (T, K, 1), at T the product up to mu_T
    number = t.long().clamp(min=1)
    product = products.gather(0, (number - 1).expand(-1, b1.shape[0], -1))
    mu, following = _nadam_mu(b1, t), _nadam_mu(b1, t + 1)
    from_gradient = h["learning_rate"] * (1 - mu) / (1 - product)
    from_moment = h["learning_rate"] * following / (1 - product * following)
    return from_gradient, from_moment, b1, 1 - b1, b2, 1 - b2, (1 - _power(b2, t)).sqrt()


def _nadam_mu(b1: Tensor, t: Tensor) -> Tensor:
    decay = torch.tensor(0.96**0.004, dtype=torch.float64, device=b1.device)
    return b1 * (1 - 0.5 * _power(decay, t))


def _nadam_products(b1: Tensor, last: int) -> Tensor:
    numbers = torch.arange(1, max(last, 1) + 1, dtype=torch.float64, device=b1.device)[:, None, None]
    return _nadam_mu(b1, numbers).cumprod(0)


def _nadam(
    w: Tensor,
    g: Tensor,
    first: Tensor,
    second: Tensor,
    from_gradient: Tensor,
    from_moment: Tensor,
    b1: Tensor,
    c1: Tensor,
    b2: Tensor,
    c2: Tensor,
    root: Tensor,
) -> None:
    """Dozat 2016, with torch's momentum decay of 0.004 and epsilon of 1e-8."""
    _average(g, first, second, b1, c1, b2, c2)
    step = g.mul_(from_gradient).addcmul_(first, from_moment)
    w.addcdiv_(step, second.sqrt().div_(root).add_(1e-8), value=-1)


def _radam_scalars(h: Columns, t: Tensor) -> tuple[Tensor, ...]:
    b1, b2 = h["beta1"], h["beta2"]
    power = _power(b2, t)
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * t * power / (1 - power)
    rectified = length > 5
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    size = torch.where(rectified, ratio, 1.0).sqrt() * torch.where(rectified, 1 - power, 1.0).sqrt()
    return h["learning_rate"] / (1 - _power(b1, t)) * size, b1, 1 - b1, b2, 1 - b2, rectified.double()


def _radam(
    w: Tensor,
    g: Tensor,
    first: Tensor,
    second: Tensor,
    size: Tensor,
    b1: Tensor,
    c1: Tensor,
    b2: Tensor,
    c2: Tensor,
    rectified: Tensor,
) -> None:
    """Liu et al. 2020: Adam once the variance of its step is bounded, momentum before. Epsilon 1e-8."""
    _average(g, first, second, b1, c1, b2, c2)
    w -= (first * size).div_(torch.where(rectified > 0, second.sqrt().add_(1e-8), 1.0))


def _adamax_scalars(h: Columns, t: Tensor) -> tuple[Tensor, ...]:
    b1 = h["beta1"]
    return h["learning_rate"] / (1 - _power(b1, t)), b1, 1 - b1, h["beta2"]


def _adamax(
    w: Tensor, g: Tensor, first: Tensor, second: Tensor, size: Tensor, b1: Tensor, c1: Tensor, b2: Tensor
) -> None:
    """Kingma & Ba 2015, algorithm 2, with torch's epsilon of 1e-8 on the gradient."""
    first.mul_(b1).addcmul_(g, c1)
    torch.maximum(second.mul_(b2), g.abs().add_(1e-8), out=second)
    w.addcdiv_(first * size, second, value=-1)


def _adadelta(w: Tensor, g: Tensor, first: Tensor, second: Tensor, lr: Tensor) -> None:
    """Zeiler 2012, with torch's rho of 0.9 and epsilon of 1e-6. `first` averages squared steps."""
    second.mul_(0.9).addcmul_(g, g, value=1 - 0.9)
    step = first.add(1e-6).sqrt_().div_(second.add(1e-6).sqrt_()).mul_(g)
    first.mul_(0.9).addcmul_(step, step, value=1 - 0.9)
    w.addcmul_(step, lr, value=-1)


def _lion_scalars(h: Columns, t: Tensor) -> tuple[Tensor, ...]:
    return h["learning_rate"], h["beta1"], 1 - h["beta1"], h["beta2"], 1 - h["beta2"]


def _lion(
    w: Tensor,
    g: Tensor,
    first: Tensor,
    second: Tensor,
    lr: Tensor,
    b1: Tensor,
    c1: Tensor,
    b2: Tensor,
    c2: Tensor,
) -> None:
    """Chen et al. 2023, algorithm 2: the sign of momentum, and l2 decoupled. torch has none."""
    w.addcmul_((first * b1).addcmul_(g, c1).sign_(), lr, value=-1)
    first.mul_(b2).addcmul_(g, c2)


def _muon_scalars(h: Columns, t: Tensor) -> tuple[Tensor, ...]:
    return h["learning_rate"], h["momentum"], 1 - h["momentum"], *_adam_scalars(h, t)


def _muon(
    w: Tensor,
    g: Tensor,
    first: Tensor,
    second: Tensor,
    lr: Tensor,
    mom: Tensor,
    fresh: Tensor,
    *adam: Tensor,
    matrices: Matrices,
) -> None:
    """Jordan et al. 2024, as torch.optim.Muon by default: Nesterov momentum made orthogonal, in bfloat16.

    It takes matrices only. What is none (biases, norms, filters of convolutions) goes by adamw at the same learning
    rate, with betas of 0.9 and 0.999.
    """
    low = 0
    for offset, rows, columns in (*matrices, (w.shape[1], 0, 0)):
        rest = slice(low, offset)
        _adam(w[:, rest], g[:, rest], first[:, rest], second[:, rest], *adam)
        own = slice(offset, offset + rows * columns)
        low = own.stop
        if rows:
            moment, gradient = first[:, own], g[:, own]
            moment.mul_(mom).addcmul_(gradient, fresh)
            ahead = (gradient * fresh).add_(moment * mom).view(-1, rows, columns)
            size = lr * max(1.0, rows / columns) ** 0.5
            w[:, own] -= _orthogonal(ahead).to(w.dtype).reshape(moment.shape).mul_(size)


def _orthogonal(matrices: Tensor) -> Tensor:
    """(k, R, C) with all singular values near one, by torch's five Newton-Schulz iterations."""
    found = matrices.bfloat16()
    if upright := found.shape[1] > found.shape[2]:
        found = found.mT
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), found, beta=3.4445)
    return found.mT if upright else found


RULES: dict[str, Rule] = {
    "sgd": Rule(_sgd_scalars, _sgd, fused=FUSED["sgd"], compiled=NUMBERS["sgd"]),
    "adagrad": Rule(rate_alone, _adagrad, fused=FUSED["adagrad"], compiled=NUMBERS["adagrad"]),
    "rmsprop": Rule(_rmsprop_scalars, _rmsprop, compiled=NUMBERS["rmsprop"]),
    "adam": Rule(_adam_scalars, _adam, fused=FUSED["adam"], compiled=NUMBERS["adam"]),
    "adamw": Rule(_adam_scalars, _adam, decoupled=True, fused=FUSED["adamw"], compiled=NUMBERS["adam"]),
    "nadam": Rule(_nadam_scalars, _nadam, compiled=NUMBERS["nadam"]),
    "radam": Rule(_radam_scalars, _radam, compiled=NUMBERS["radam"]),
    "adamax": Rule(_adamax_scalars, _adamax, compiled=NUMBERS["adamax"]),
    "adadelta": Rule(rate_alone, _adadelta, compiled=NUMBERS["adadelta"]),
    "lion": Rule(_lion_scalars, _lion, decoupled=True, defaults={"beta2": 0.99}, compiled=NUMBERS["lion"]),
    "muon": Rule(_muon_scalars, _muon, decoupled=True, by_matrix=True, defaults={"momentum": 0.95}),
}
"""Every optimizer by its name in a study file."""
