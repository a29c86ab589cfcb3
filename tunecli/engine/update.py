"""The optimizers, each written once on (K, P): a row a run, P weights a model.

Every operation on weights is a single IEEE operation (no fused multiply-add, no lerp), so that a row's bits depend
neither on where it lies in the matrix nor on how many threads share the work. What depends on the number of the
update alone (bias corrections, schedules) is computed ahead in float64, for all updates of a tick at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunecli.trial import Hparams

DEFAULTS: dict[str, float] = {
    "momentum": 0.0,
    "dampening": 0.0,
    "nesterov": False,
    "beta1": 0.9,
    "beta2": 0.999,
    "l1": 0.0,
    "l2": 0.0,
}
"""What torch.optim takes for an hparam that a trial does not have."""

Columns = Mapping[str, Tensor]
"""Hparams of some rows: name -> (K, 1) in float64. `learning_rate` is (S, K, 1), one for each of S updates."""


@dataclass(slots=True)
class State:
    """What training changes, a row a run: all (K, P). `first` and `second` are the optimizer's two moments.

    `decay` is None, or (P,) ones and zeros: the weights that l1 and l2 hold for.
    """

    weights: Tensor
    first: Tensor
    second: Tensor
    decay: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """An optimizer. `scalars` gives (S, K, 1) columns from hparams and update numbers (S, K, 1), counted from 1;
    `step` takes one update with them, in place."""

    scalars: Callable[[Columns, Tensor], tuple[Tensor, ...]]
    step: Callable[..., None]
    decoupled: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """Neighbouring rows of one rule whose batch is complete, with the columns of this update, (k, 1) each.

    `share` is one over the number of samples in the batch, or over the sum of their weights; l1, l2 and shrink are
    None where they do nothing.
    """

    rows: slice
    rule: Rule
    scalars: tuple[Tensor, ...]
    share: Tensor
    l1: Tensor | None = None
    l2: Tensor | None = None
    shrink: Tensor | None = None


def update(state: State, gradient: Tensor, due: Iterable[Due]) -> None:
    """One optimizer step for every row that is due, in place; the other rows are left as they are.

    `gradient` is (K, P), summed over the samples of the batch. l1 adds l1 * sign(weight) to the mean gradient and l2
    adds l2 * weight, except for adamw, which shrinks the weights instead (Loshchilov & Hutter 2019).
    """
    for part in due:
        weights = state.weights[part.rows]  # (k, P)
        mean = gradient[part.rows] * part.share
        if part.l1 is not None:
            mean += _spared(weights.sign() * part.l1, state.decay)
        if part.l2 is not None:
            mean += _spared(weights * part.l2, state.decay)
        if part.shrink is not None:
            weights -= _spared(weights * part.shrink, state.decay)
        part.rule.step(weights, mean, state.first[part.rows], state.second[part.rows], *part.scalars)


def plan_updates(
    rule: str, hparams: Sequence[Hparams], numbers: Tensor, rates: Tensor, sizes: Tensor, dtype: torch.dtype
) -> Callable[[int, slice, slice], Due]:
    """The columns of S coming updates of K rows that share a rule; `(s, own, rows)` gives one of them.

    `numbers` (S, K) says which update of its run each is, from 1; `rates` (S, K) the schedule's factor on the learning
    rate; `sizes` (S, K) how many samples its batch has, or the sum of their weights. `own` are the rows' places among
    the K, `rows` in the state.
    """
    device = numbers.device
    names = ("learning_rate", *DEFAULTS)
    columns = {
        name: torch.tensor(
            [[float(h.get(name, DEFAULTS.get(name, 0.0)))] for h in hparams],  # type: ignore[arg-type]
            dtype=torch.float64,
            device=device,
        )
        for name in names
    }
    learning_rate = columns["learning_rate"] * rates.double()[..., None]  # (S, K, 1)
    columns["learning_rate"] = learning_rate
    chosen = RULES[rule]
    scalars = tuple(
        column.expand(learning_rate.shape).to(dtype) for column in chosen.scalars(columns, numbers.double()[..., None])
    )
    # A batch that counts nothing has no gradient, and none is divided by zero.
    share = torch.where(sizes > 0, 1 / sizes.double(), 1.0)[..., None].to(dtype)
    l1, l2 = columns["l1"].to(dtype), columns["l2"].to(dtype)
    shrink = (learning_rate * columns["l2"]).to(dtype)
    has_l1, has_l2 = [bool(h.get("l1")) for h in hparams], [bool(h.get("l2")) for h in hparams]

    def due(step: int, own: slice, rows: slice) -> Due:
        decays = any(has_l2[own])
        return Due(
            rows=rows,
            rule=chosen,
            scalars=tuple(column[step, own] for column in scalars),
            share=share[step, own],
            l1=l1[own] if any(has_l1[own]) else None,
            l2=l2[own] if decays and not chosen.decoupled else None,
            shrink=shrink[step, own] if decays and chosen.decoupled else None,
        )

    return due


def _spared(change: Tensor, decay: Tensor | None) -> Tensor:
    return change if decay is None else change * decay


def _power(of: Tensor, number: Tensor) -> Tensor:
    """`of ** number` for whole numbers, by squaring: torch's pow rounds by an element's place in its vector."""
    left = number.long()
    found = torch.ones_like(of * left)
    for _ in range(int(left.max()).bit_length()):
        found = torch.where(left % 2 == 1, found * of, found)
        of, left = of * of, left // 2
    return found


# Each rule equals torch.optim's of the same name; the order of its operations follows torch's single-tensor form.


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
    first.mul_(mom).add_(g * fresh)
    w -= (g.mul_(own).add_(first * buf)).mul_(lr)


def _adagrad_scalars(h: Columns, t: Tensor) -> tuple[Tensor, ...]:
    return (h["learning_rate"],)


def _adagrad(w: Tensor, g: Tensor, first: Tensor, second: Tensor, lr: Tensor) -> None:
    """Duchi et al. 2011, with torch's epsilon of 1e-10."""
    second.add_(g * g)
    w -= g.div_(second.sqrt().add_(1e-10)).mul_(lr)


def _rmsprop_scalars(h: Columns, t: Tensor) -> tuple[Tensor, ...]:
    return h["learning_rate"], h["momentum"]


def _rmsprop(w: Tensor, g: Tensor, first: Tensor, second: Tensor, lr: Tensor, mom: Tensor) -> None:
    """Hinton's lecture 6e, with torch's smoothing of 0.99 and epsilon of 1e-8."""
    second.mul_(0.99).add_((g * g).mul_(1 - 0.99))
    first.mul_(mom).add_(g.div_(second.sqrt().add_(1e-8)))
    w -= first * lr


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
    first.mul_(b1).add_(g * c1)
    second.mul_(b2).add_((g * g).mul_(c2))
    w -= (first * size).div_(second.sqrt().div_(root).add_(1e-8))


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
    first.mul_(b1).add_(g * c1)
    second.mul_(b2).add_((g * g).mul_(c2))
    denominator = second.sqrt().div_(root).add_(1e-8)
    w -= g.mul_(from_gradient).div_(denominator)
    w -= (first * from_moment).div_(denominator)


RULES: dict[str, Rule] = {
    "sgd": Rule(_sgd_scalars, _sgd),
    "adagrad": Rule(_adagrad_scalars, _adagrad),
    "rmsprop": Rule(_rmsprop_scalars, _rmsprop),
    "adam": Rule(_adam_scalars, _adam),
    "adamw": Rule(_adam_scalars, _adam, decoupled=True),
    "nadam": Rule(_nadam_scalars, _nadam),
}
"""Every optimizer by its name in a study file."""
