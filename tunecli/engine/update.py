"""One update of every run that is due, by the rule of its optimizer: on (K, P), a row a run, P weights a model.

What depends on the number of the update alone (bias corrections, schedules) is computed ahead, for all updates of a
tick at once. A row's bits depend neither on where it lies in the matrix nor on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunecli.engine.rules import DEFAULTS, Matrices, Rule
from tunecli.trial import Hparams


@dataclass(slots=True)
class State:
    """What training changes, a row a run: all (K, P). `first` and `second` are the optimizer's two moments.

    `decay` is None, or (P,) ones and zeros: the weights that l1 and l2 hold for. `matrices` are those among P.
    `average` is None, or the exponential moving average of the weights.
    """

    weights: Tensor
    first: Tensor
    second: Tensor
    decay: Tensor | None = None
    matrices: Matrices = ()
    average: Tensor | None = None

    def part(self, rows: slice) -> State:
        """A view of some rows."""
        average = None if self.average is None else self.average[rows]
        return State(self.weights[rows], self.first[rows], self.second[rows], self.decay, self.matrices, average)


@dataclass(frozen=True, slots=True)
class Due:
    """Neighbouring rows of one rule whose batch is complete, with the columns of this update, (k, 1) each.

    `share` is one over the number of samples in the batch, or over the sum of their weights; `clip` is the largest
    norm of a gradient, `keep` what the average keeps of itself. l1, l2, shrink, clip and keep are None where they do
    nothing; in a row that has no clip of its own it is zero.
    """

    rows: slice
    rule: Rule
    scalars: tuple[Tensor, ...]
    share: Tensor
    l1: Tensor | None = None
    l2: Tensor | None = None
    shrink: Tensor | None = None
    clip: Tensor | None = None
    keep: Tensor | None = None


def update(state: State, gradient: Tensor, due: Iterable[Due]) -> None:
    """One optimizer step for every row that is due, in place; the other rows are left as they are.

    `gradient` is (K, P), summed over the samples of the batch. l1 adds l1 * sign(weight) to the mean gradient and l2
    adds l2 * weight, except where the rule is decoupled: then it shrinks the weights (Loshchilov & Hutter 2019).
    The gradient is clipped before either, by its norm over all weights, as torch's clip_grad_norm_ does. The rows of
    the gradient that are due are used up.
    """
    for part in due:
        weights = state.weights[part.rows]  # (k, P)
        mean = gradient[part.rows].mul_(part.share)
        if part.clip is not None:
            found = part.clip / (mean.norm(dim=1, keepdim=True) + 1e-6)
            mean *= torch.where(part.clip > 0, found.clamp(max=1), 1.0)
        if part.l1 is not None:
            mean.addcmul_(_spared(weights.sign(), state.decay), part.l1)
        if part.l2 is not None:
            mean.addcmul_(_spared(weights, state.decay), part.l2)
        if part.shrink is not None:
            weights.addcmul_(_spared(weights, state.decay), part.shrink, value=-1)
        told = {"matrices": state.matrices} if part.rule.by_matrix else {}
        part.rule.step(weights, mean, state.first[part.rows], state.second[part.rows], *part.scalars, **told)
        if part.keep is not None and state.average is not None:
            average = state.average[part.rows]
            average.mul_(part.keep).addcmul_(weights, 1 - part.keep)


def plan_updates(
    rule: Rule, hparams: Sequence[Hparams], numbers: Tensor, rates: Tensor, sizes: Tensor, dtype: torch.dtype
) -> Callable[[int, slice, slice], Due]:
    """The columns of S coming updates of K rows that share a rule; `(s, own, rows)` gives one of them.

    `numbers` (S, K) says which update of its run each is, from 1; `rates` (S, K) the schedule's factor on the learning
    rate; `sizes` (S, K) how many samples its batch has, or the sum of their weights. `own` are the rows' places among
    the K, `rows` in the state.
    """
    device = numbers.device
    defaults = {**DEFAULTS, **rule.defaults}
    names = ("learning_rate", *defaults)
    columns = {
        name: torch.tensor(
            [[float(h.get(name, defaults.get(name, 0.0)))] for h in hparams],  # type: ignore[arg-type]
            dtype=torch.float64,
            device=device,
        )
        for name in names
    }
    learning_rate = columns["learning_rate"] * rates.double()[..., None]  # (S, K, 1)
    columns["learning_rate"] = learning_rate
    scalars = tuple(
        column.expand(learning_rate.shape).to(dtype) for column in rule.scalars(columns, numbers.double()[..., None])
    )
    # A batch that counts nothing has no gradient, and none is divided by zero.
    share = torch.where(sizes > 0, 1 / sizes.double(), 1.0)[..., None].to(dtype)
    l1, l2 = columns["l1"].to(dtype), columns["l2"].to(dtype)
    shrink = (learning_rate * columns["l2"]).to(dtype)
    clip = columns["clip_norm"].to(dtype)
    # The average begins with the weights after the first update, as torch's AveragedModel does.
    keep = torch.where(numbers[..., None] == 1, 0.0, columns["ema_decay"]).to(dtype)
    clips, averages = [bool(h.get("clip_norm")) for h in hparams], any(h.get("ema_decay") for h in hparams)
    has_l1, has_l2 = [bool(h.get("l1")) for h in hparams], [bool(h.get("l2")) for h in hparams]

    # Side by side, and taken apart at once for all steps: slicing each column costs as much as a small update.
    moving = torch.stack([share, shrink, keep, *scalars], dim=1)  # (S, n, K, 1)
    steps: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    def due(step: int, own: slice, rows: slice) -> Due:
        decays = any(has_l2[own]) and not rule.takes_l2
        place = own.start, own.stop
        if place not in steps:
            steps[place] = moving[:, :, own].unbind()
        share, shrink, keep, *scalars = steps[place][step].unbind()
        return Due(
            rows=rows,
            rule=rule,
            scalars=tuple(scalars),
            share=share,
            l1=l1[own] if any(has_l1[own]) else None,
            l2=l2[own] if decays and not rule.decoupled else None,
            shrink=shrink if decays and rule.decoupled else None,
            clip=clip[own] if any(clips[own]) else None,
            keep=keep if averages else None,
        )

    return due


def _spared(of: Tensor, decay: Tensor | None) -> Tensor:
    return of if decay is None else of * decay
