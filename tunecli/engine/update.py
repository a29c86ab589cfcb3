"""One update of every run that is due, by the rule of its optimizer: on (K, P), a row a run, P weights a model.

What depends on the number of the update alone (bias corrections, schedules) is computed ahead, for all updates of a
tick at once. A row's bits depend neither on where it lies in the matrix nor on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunecli.engine.fused import Told
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
    nothing; in a row that has no clip of its own it is zero. `each` is None, or what the fused update of each row is
    told, which then sees to l2 as well.
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
    each: Sequence[tuple[Told, Tensor]] | None = None


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
        _step(part, state, weights, mean)
        if part.keep is not None and state.average is not None:
            average = state.average[part.rows]
            average.mul_(part.keep).addcmul_(weights, 1 - part.keep)


def _step(part: Due, state: State, weights: Tensor, mean: Tensor) -> None:
    rule, first, second = part.rule, state.first[part.rows], state.second[part.rows]
    if part.each is None:
        where = {"matrices": state.matrices} if rule.by_matrix else {}
        rule.step(weights, mean, first, second, *part.scalars, **where)
        return
    assert rule.fused is not None
    rows = zip(weights.unbind(), mean.unbind(), first.unbind(), second.unbind(), part.each, strict=True)
    for own, gradient, own_first, own_second, (told, number) in rows:
        rule.fused(own, gradient, own_first, own_second, told, number)


@dataclass(frozen=True, slots=True, eq=False)
class Coming:
    """The S coming updates of K rows, (S, K) each: `numbers` says which update of its run each is, from 1; `rates` is
    the schedule's factor on the learning rate; `sizes` how many samples its batch has, or the sum of their weights."""

    numbers: Tensor
    rates: Tensor
    sizes: Tensor


def plan_updates(
    rule: Rule, hparams: Sequence[Hparams], coming: Coming, dtype: torch.dtype, *, fused: bool = False
) -> Callable[[int, slice, slice], Due]:
    """The columns of the coming updates of rows that share a rule; `(s, own, rows)` gives one of them.

    `own` are the rows' places among the K, `rows` in the state. `fused` takes the rule's own update of a row, which
    l2 holds for every weight in: on a CPU, where no weight is spared.
    """
    columns = _columns(rule, hparams, coming.numbers.device)
    learning_rate = columns["learning_rate"] * coming.rates.double()[..., None]  # (S, K, 1)
    columns["learning_rate"] = learning_rate
    if fused := fused and rule.fused is not None:
        scalars: tuple[Tensor, ...] = ()
    else:
        of_updates = rule.scalars(columns, coming.numbers.double()[..., None])
        scalars = tuple(column.expand(learning_rate.shape).to(dtype) for column in of_updates)
    # A batch that counts nothing has no gradient, and none is divided by zero.
    share = torch.where(coming.sizes > 0, 1 / coming.sizes.double(), 1.0)[..., None].to(dtype)
    l1, l2 = columns["l1"].to(dtype), columns["l2"].to(dtype)
    shrink = (learning_rate * columns["l2"]).to(dtype)
    clip = columns["clip_norm"].to(dtype)
    # The average begins with the weights after the first update, as torch's AveragedModel does.
    keep = torch.where(coming.numbers[..., None] == 1, 0.0, columns["ema_decay"]).to(dtype)
    clips, averages = [bool(h.get("clip_norm")) for h in hparams], any(h.get("ema_decay") for h in hparams)
    has_l1, has_l2 = [bool(h.get("l1")) for h in hparams], [bool(h.get("l2")) for h in hparams]

    # Side by side, and taken apart at once for all steps: slicing each column costs as much as a small update.
    moving = torch.stack([share, shrink, keep, *scalars], dim=1)  # (S, n, K, 1)
    steps: dict[tuple[int, int], tuple[Tensor, ...]] = {}
    tell = _teller(columns, coming) if fused else None

    def due(step: int, own: slice, rows: slice) -> Due:
        decays = any(has_l2[own]) and not (rule.takes_l2 or fused)
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
            each=tell(step, own) if tell is not None else None,
        )

    return due


def _columns(rule: Rule, hparams: Sequence[Hparams], device: torch.device) -> dict[str, Tensor]:
    """Every hparam that a rule may read, (K, 1)."""
    defaults = {**DEFAULTS, **rule.defaults}
    return {
        name: torch.tensor(
            [[float(h.get(name, defaults.get(name, 0.0)))] for h in hparams],  # type: ignore[arg-type]
            dtype=torch.float64,
            device=device,
        )
        for name in ("learning_rate", *defaults)
    }


def _teller(columns: Mapping[str, Tensor], coming: Coming) -> Callable[[int, slice], list[tuple[Told, Tensor]]]:
    """What the fused updates of some rows are told in one step."""
    steps, rows = coming.numbers.shape
    fixed = [{name: float(column[row]) for name, column in columns.items() if column.dim() == 2} for row in range(rows)]
    rates = columns["learning_rate"].view(steps, rows).tolist()
    numbers = coming.numbers.float()

    def tell(step: int, own: slice) -> list[tuple[Told, Tensor]]:
        known = zip(fixed[own], rates[step][own], numbers[step, own].unbind(), strict=True)
        return [({**row, "learning_rate": rate}, number) for row, rate, number in known]

    return tell


def _spared(of: Tensor, decay: Tensor | None) -> Tensor:
    return of if decay is None else of * decay
