"""One update of every run that is due, by the rule of its optimizer: on (K, P), a row a run, P weights a model.

What depends on the number of the update alone (bias corrections, schedules) is computed ahead, for all updates of a
tick at once. A row's bits depend neither on where it lies in the matrix nor on its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunecli.engine.compiled import TOLD, Compiled
from tunecli.engine.due import Group, Kind, Span, Step, lay_out
from tunecli.engine.gradients import Gradient
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
class Trained:
    """Who updates a row, and with what."""

    rule: Rule
    hparams: Hparams


@dataclass(frozen=True, slots=True, eq=False)
class Coming:
    """The S coming updates of K rows, (S, K) each: `numbers` says which update of its run each is, from 1; `rates` is
    the schedule's factor on the learning rate."""

    numbers: Tensor
    rates: Tensor


class Updates:
    """The updates of the first K rows of a block, each row by its own rule at its own pace; the other rows are empty.

    `due` (S, K) says after which of S micro-steps a row's batch is complete, `last` (S, K) where it is the last one of
    the epoch. A row that is not due is left as it is, and nothing is computed for it. Where gradients lie apart,
    `update.c` updates the rows whose rule it has.
    """

    def __init__(self, state: State, gradient: Gradient, rows: Sequence[Trained], due: Tensor, last: Tensor) -> None:
        self._state, self._gradient, self._rows = state, gradient, rows
        self._told = [_told(row) for row in rows]
        self._whole = due.all(1).tolist()
        numbers = [row.rule.compiled if gradient.apart else -1 for row in rows]
        self._in_c = {place for place, number in enumerate(numbers) if number >= 0}
        self._compiled: Compiled | None = None
        if self._in_c:
            matrices = {name: getattr(state, name) for name in ("weights", "first", "second", "average", "decay")}
            told = [[own[name] for name in TOLD] for own in self._told]
            self._compiled = Compiled(numbers, told, due, last, gradient.pieces, gradient.views, **matrices)
            due = due & (torch.tensor(numbers) < 0)
        self._steps: list[Step | None] = [None] * len(due)
        if self.compiled is None:
            self._prepare_others(due, last)

    def _prepare_others(self, due: Tensor, last: Tensor) -> None:
        """Lay out the updates of the rows that C does not update."""
        state, gradient, rows = self._state, self._gradient, self._rows
        # What torch updates is in rows of a matrix, for a moment at least.
        self._means = torch.zeros_like(gradient.memory) if gradient.apart else gradient.memory
        fusible = self._means.device.type == "cpu" and state.decay is None
        self._fused = [row.rule.fused if fusible else None for row in rows]
        self._each = list(
            zip(state.weights.unbind(), self._means.unbind(), state.first.unbind(), state.second.unbind(), strict=True)
        )
        self._rules: list[Rule] = []
        self._places: list[list[int]] = []
        self._steps = lay_out([self._kind(place) for place in range(len(rows))], due, last)

    def _kind(self, place: int) -> Kind:
        row = self._rows[place]
        told, number = row.hparams, None
        if self._fused[place] is None and place not in self._in_c:
            number = next((n for n, rule in enumerate(self._rules) if rule is row.rule), len(self._rules))
            if number == len(self._rules):
                self._rules.append(row.rule)
                self._places.append([])
            self._places[number].append(place)
        l2 = bool(told.get("l2")) and not row.rule.takes_l2
        return Kind(number, bool(told.get("l1")), l2, bool(told.get("clip_norm")), bool(told.get("ema_decay")))

    def begin(self, coming: Coming) -> None:
        """Compute ahead what depends on hparams and on the numbers of the coming updates alone."""
        # On the CPU, whatever the device: a few numbers, of which a GPU takes all at once.
        columns = {name: _column([own[name] for own in self._told]) for name in self._told[0]}
        if self._compiled is not None:
            self._compiled.begin(columns["learning_rate"][:, 0] * coming.rates, coming.numbers)
        if self.compiled is not None:
            return
        # The average begins with the weights after the first update, as torch's AveragedModel does.
        keep = torch.where(coming.numbers == 1, 0.0, columns["ema_decay"][:, 0])
        self._kept = _Slices(keep[:, None, :, None].to(self._means))  # (S, 1, K, 1)
        self._l1, self._clip = columns["l1"].to(self._means), columns["clip_norm"].to(self._means)
        self._rates = (columns["learning_rate"][:, 0] * coming.rates.double()).tolist()
        self._numbers = coming.numbers.float()
        self._l2 = [columns["l2"][places].to(self._means) for places in self._places]
        known = zip(self._rules, self._places, strict=True)
        self._scalars = [self._of_rule(rule, places, columns, coming) for rule, places in known]

    def _of_rule(self, rule: Rule, places: list[int], columns: Mapping[str, Tensor], coming: Coming) -> _Slices:
        """What a rule computes of its rows' hparams for each update, (S, n, K', 1); by how much l2 shrinks is first."""
        own = {name: column[places] for name, column in columns.items()}
        own["learning_rate"] = own["learning_rate"] * coming.rates[:, places].double()[..., None]
        scalars = rule.scalars(own, coming.numbers[:, places].double()[..., None])
        shape = own["learning_rate"].shape
        parts = [own["learning_rate"] * own["l2"], *(column.expand(shape) for column in scalars)]
        return _Slices(torch.stack(parts, dim=1).to(self._means))

    @property
    def compiled(self) -> Compiled | None:
        """What updates all rows in C; None where torch updates one of them."""
        return self._compiled if len(self._in_c) == len(self._rows) else None

    def reads_elsewhere(self, step: int) -> bool:
        """Whether the update after a step would as well read each weight's gradient from elsewhere."""
        return len(self._in_c) == len(self._gradient) == 1 and bool(self._whole[step])

    @torch.no_grad()
    def apply(
        self, step: int, norm: Tensor, count: Tensor | None = None, elsewhere: Sequence[Tensor] | None = None
    ) -> bool:
        """Update the rows that are due after a micro-step, by their mean gradients (K, P), and use these up: they are
        zero again, or where True is returned whatever they may be, as all rows were due: the next are written over.

        With `count` (K,), which becomes zero again, they are sums over so many samples. l1 adds l1 * sign(weight)
        to the mean gradient and l2 adds l2 * weight, except where the rule is decoupled: then it shrinks the weights
        (Loshchilov & Hutter 2019). The gradient is clipped before either, by its norm over all weights, as torch's
        clip_grad_norm_ does. Where it is the last batch of the epoch, `norm` (K,) gets its norm.

        The gradients may be `elsewhere`, of each weight one, as `reads_elsewhere` allows.
        """
        whole: bool = self._whole[step]
        if self._compiled is not None:
            self._compiled.apply(step, norm, count, elsewhere, whole=whole)
        due = self._steps[step]
        if due is None:
            return whole
        if self._gradient.apart:
            self._gather(due, whole=whole)
        for span in due.spans:
            self._prepare(span, norm, count)
        numbers = self._numbers[step]
        for row in due.each:
            fused = self._fused[row]
            assert fused is not None
            fused(*self._each[row], self._told[row], self._rates[step][row], numbers[row])
        for group in due.groups:
            self._step(group, step)
        for span in due.spans:
            if span.averages and self._state.average is not None:
                (keep,) = self._kept.at(step, span.rows)
                self._state.average[span.rows].mul_(keep).addcmul_(self._state.weights[span.rows], 1 - keep)
            if not whole:
                self._means[span.rows].zero_()
        return whole

    def _gather(self, due: Step, *, whole: bool) -> None:
        """Put the gradients of rows that torch updates into rows of a matrix."""
        for span in due.spans:
            for row in range(span.rows.start, span.rows.stop):
                self._means[row] = self._gradient.row(row)
                if not whole:
                    self._gradient.zero_row(row)

    def _prepare(self, span: Span, norm: Tensor, count: Tensor | None) -> None:
        """Make of the gradients of some rows what their rules take."""
        rows = span.rows
        mean = self._means[rows]
        if count is not None:
            own = count[rows]
            mean *= torch.where(own > 0, 1 / own, 1.0)[:, None].to(mean)
            own.zero_()
        if span.last:
            norm[rows] = mean.double().norm(dim=1)
        if span.clip:
            mean *= (self._clip[rows] / (mean.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
        if span.l1:
            mean.addcmul_(_spared(self._state.weights[rows].sign(), self._state.decay), self._l1[rows])

    def _step(self, group: Group, step: int) -> None:
        state, rows = self._state, group.rows
        weights, mean, rule = state.weights[rows], self._means[rows], self._rules[group.rule]
        shrink, *scalars = self._scalars[group.rule].at(step, group.own)
        if group.l2 and rule.decoupled:
            weights.addcmul_(_spared(weights, state.decay), shrink, value=-1)
        elif group.l2:
            mean.addcmul_(_spared(weights, state.decay), self._l2[group.rule][group.own])
        where = {"matrices": state.matrices} if rule.by_matrix else {}
        rule.step(weights, mean, state.first[rows], state.second[rows], *scalars, **where)


class _Slices:
    """Columns (S, n, K, 1), taken apart by steps and stretches of rows at once: slicing each costs as much as a small
    update."""

    def __init__(self, columns: Tensor) -> None:
        self._columns = columns
        self._taken: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    def at(self, step: int, rows: slice) -> tuple[Tensor, ...]:
        """The n columns of one step, (k, 1) each."""
        place = rows.start, rows.stop
        if place not in self._taken:
            self._taken[place] = self._columns[:, :, rows].unbind()
        return self._taken[place][step].unbind()


def _told(row: Trained) -> dict[str, float]:
    """Every hparam that a rule may read, and whether l2 is decoupled."""
    defaults = {**DEFAULTS, **row.rule.defaults}
    read = {name: row.hparams.get(name, defaults.get(name, 0.0)) for name in ("learning_rate", *defaults)}
    return {"decoupled": float(row.rule.decoupled)} | {name: float(value) for name, value in read.items()}  # type: ignore[arg-type]  # rules read numbers alone


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def _spared(of: Tensor, decay: Tensor | None) -> Tensor:
    return of if decay is None else of * decay
