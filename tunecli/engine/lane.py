"""A lane: the slots of one model shape and one micro-batch length, their rows kept in matrices (K, P).

At each tick the occupied rows are compacted into blocks of one height and sorted by batch size, so that the rows whose
batches end together lie side by side: an update works on slices and never on a mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from tunecli.alarm import overdue
from tunecli.data import Split
from tunecli.engine.attributes import attributes, written
from tunecli.engine.block import Block
from tunecli.engine.compiler import is_compiled
from tunecli.engine.gradients import Layout
from tunecli.engine.own import own_rule
from tunecli.engine.plan import block_height
from tunecli.engine.rowwise import Recorded
from tunecli.engine.rules import RULES, Rule
from tunecli.engine.schedule import Plateau, warmup_updates
from tunecli.engine.snapshot import Partial
from tunecli.engine.task import Task
from tunecli.engine.update import State
from tunecli.metrics import Loss
from tunecli.space import settings_of
from tunecli.trial import Hparams, Measurement, Run, better


@dataclass(slots=True, eq=False)
class Slot:
    """The place of a run in flight: its progress, and its row in the lane's matrices.

    Until it has a row, `rows` (P,) are what it begins with; `partial` is where, if in the middle of a tick.
    `attributes` is what a module of its own keeps in such as it begins, as they are written.
    """

    run: Run
    lane: Lane
    module: nn.Module
    rule: Rule
    settings: Hparams
    rows: dict[str, Tensor]
    attributes: Mapping[str, str]
    partial: Partial | None = None
    plateau: Plateau = field(default_factory=Plateau)
    row: int = -1
    ticks: int = 0
    updates: int = 0
    seconds: float = 0.0
    best_metric: float | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def hparams(self) -> Hparams:
        """All that the run trains with."""
        return {**self.settings, **self.run.hparams}

    @property
    def averages(self) -> bool:
        """Whether the weights that count are the average of those trained."""
        return bool(self.settings["ema_decay"])

    @property
    def order(self) -> tuple[str, tuple[bool, ...], str, int]:
        """By this the slots of a lane are sorted: rows that are due together, and updated alike, lie side by side."""
        told = self.hparams
        alike = tuple(bool(told.get(name)) for name in ("l1", "clip_norm", "ema_decay", "l2"))
        return str(told["batch_size"]).zfill(12), alike, str(told["optimizer"]), self.run.trial

    def see(self, metric: float, direction: str) -> None:
        """A tick was evaluated: what a schedule may remember of it."""
        if self.settings["schedule"] != "plateau":
            return
        total = self.run.epochs * self.updates // self.ticks
        if self.updates > warmup_updates(self.settings, total):
            rate = float(self.run.hparams["learning_rate"])  # type: ignore[arg-type]  # a number by the space
            self.plateau.see(metric, direction, self.settings, rate)

    def best_weights(self) -> dict[str, Tensor]:
        """The state dict at the best tick: the trained weights from the row, the rest from the module."""
        trained = self.lane.layout.views(self.lane.rows(self)["best"][None])
        state = {name: tensor.detach() for name, tensor in self.module.state_dict().items()} | self.best_state
        rows = self.lane.rows(self)
        if self.lane.recorded is not None and self.lane.recorded.statistics.names:
            trained |= self.lane.recorded.statistics.views(rows["best_statistics"][None])
        first: dict[Tensor, str] = {}  # what is trained may have several names, of which a layout knows the first
        named = self.module.named_parameters(remove_duplicate=False), self.module.named_buffers(remove_duplicate=False)
        for name, tensor in chain(*named):
            if (own := first.setdefault(tensor, name)) in trained and name in state:
                state[name] = trained[own][0].to(tensor.dtype)
        return {name: tensor.clone(memory_format=torch.contiguous_format).cpu() for name, tensor in state.items()}


class Lane:
    """Slots whose runs read micro-batches of `micro` samples (None: whole batches) with models of one layout."""

    def __init__(
        self,
        *,
        task: Task,
        train: Split,
        validation: Split | None,
        layout: Layout,
        way: str,
        block_rows: int,
        micro: int | None,
        stochastic: bool,
        mixes_samples: bool,
        evaluated: int,
        compiled: bool,
        native: bool,
        threads: int,
        cap: int | None,
        device: torch.device,
    ) -> None:
        self.task, self.train, self.validation = task, train, validation
        self.evaluated, self.compiled, self.native, self.threads = evaluated, compiled, native, threads
        self.layout, self.way, self.block_rows, self.micro, self._cap = layout, way, block_rows, micro, cap
        self.stochastic, self.mixes_samples = stochastic, mixes_samples
        self._slots: list[Slot] = []
        self._blocks: list[Block] = []
        self._changed = True
        self.weights = None if train.weights is None else train.weights.cpu()
        self.whole_weight = len(train) if self.weights is None else float(self.weights.double().sum())
        empty = torch.zeros(0, layout.width, device=device)
        self.state = State(empty, empty, empty)
        self.gradient = self.best = empty
        self.statistics = self.best_statistics = empty
        self._shared: nn.Module | None = None
        self.recorded: Recorded | None = None

    def start(self, run: Run, module: nn.Module) -> Slot:
        rule = RULES.get(str(run.hparams["optimizer"])) or self._own_rule(run, module)
        settings = settings_of(run.settings, run.hparams)
        initial = self.layout.row(module)
        kept = written(attributes(module)) if self.micro is None else {}
        slot = Slot(run, self, module, rule, settings, rows={"weights": initial, "best": initial}, attributes=kept)
        if self.micro is not None:
            # The rows share one module; what it does not train is the same in every trial.
            self._shared = slot.module = self._shared or module
            if self.recorded is None:
                assert isinstance(self.task.loss, Loss)  # a step is looped
                compiled = self.compiled and is_compiled(initial.dtype, initial.device)
                self.recorded = Recorded(
                    module,
                    self.layout,
                    self.task.loss,
                    compiled=compiled,
                    native=compiled and self.native,
                    threads=self.threads,
                    cap=self._cap,
                )
            if self.recorded.statistics.names:
                begun = self.recorded.statistics.row(module)
                slot.rows |= {"statistics": begun, "best_statistics": begun}
        self._slots.append(slot)
        self._changed = True
        return slot

    def _own_rule(self, run: Run, module: nn.Module) -> Rule:
        kind = self.task.optimizers[str(run.hparams["optimizer"])]
        return own_rule(kind, run, module, self.layout, decay_biases=self.task.decay_biases)

    def free(self, slot: Slot) -> None:
        self._slots.remove(slot)
        self._changed = True

    def see(self, slot: Slot, values: Sequence[float], seconds: float, failure: str | None) -> Measurement:
        """What a run showed in a tick that took it so long, or why it failed; its best weights are kept.

        `values` are the loss in training, loss and metric on validation and the norm of the last gradient.
        """
        train_loss, loss, metric, norm = values
        slot.seconds += seconds
        if failure is None and self.task.trial_seconds is not None and slot.seconds > self.task.trial_seconds:
            failure = overdue(self.task.trial_seconds)
        seen = {"training loss": train_loss}
        if self.validation is not None:
            seen |= {"validation loss": loss, "validation metric": metric}
        diverged = next((name for name, value in seen.items() if not math.isfinite(value)), None)
        if failure is None and diverged is not None:
            epochs = "1 epoch" if slot.ticks == 1 else f"{slot.ticks} epochs"
            failure = f"diverged: {diverged} is {seen[diverged]} after {epochs}"
        direction = self.task.metric.direction
        if failure is None and (
            self.validation is None or slot.best_metric is None or better(metric, slot.best_metric, direction)
        ):
            slot.best_metric = metric
            trained = self.state.average if slot.averages else self.state.weights
            assert trained is not None
            self.best[slot.row] = trained[slot.row]
            self.best_statistics[slot.row : slot.row + 1] = self.statistics[slot.row : slot.row + 1]
            if self.micro is None:
                kept = slot.module.state_dict().keys()  # a buffer that is not persistent is in no state dict
                buffers = slot.module.named_buffers()
                slot.best_state = {name: buffer.clone() for name, buffer in buffers if name in kept}
        if failure is None and self.validation is not None:
            slot.see(metric, direction)
        return Measurement(slot.run.trial, slot.ticks, train_loss, loss, metric, norm, seconds, failure)

    def rows(self, slot: Slot) -> dict[str, Tensor]:
        """What the lane's matrices hold of a run, (P,) each: its weights, both moments, its best and its average; and
        its running statistics, (Q,), now and at its best."""
        if slot.rows:
            return slot.rows
        found = self._matrices()
        return {name: own[slot.row] for name, own in found.items() if name != "average" or slot.averages}

    def _matrices(self) -> dict[str, Tensor]:
        state = self.state
        found = {"weights": state.weights, "first": state.first, "second": state.second, "best": self.best}
        if self._statistics_width:
            found |= {"statistics": self.statistics, "best_statistics": self.best_statistics}
        return found if state.average is None else {**found, "average": state.average}

    @property
    def _statistics_width(self) -> int:
        return 0 if self.recorded is None else self.recorded.statistics.width

    def partial(self, slot: Slot) -> Partial | None:
        """Where a run stands in its tick, None at the end of one."""
        return slot.partial or next((block.partial(slot) for block in self._blocks if slot in block.slots), None)

    def is_torn(self, slot: Slot) -> bool:
        """Whether a step of a run was left half done."""
        return any(slot in block.slots and block.is_torn(slot) for block in self._blocks)

    def begin_tick(self) -> list[Block]:
        """The blocks of occupied rows, each ready to train one tick."""
        if self._changed:
            self._compact()
            # A block that is entered in the middle of its tick lays the next one out anew.
            self._changed = any(slot.partial is not None for slot in self._slots)
        for block in self._blocks:
            block.begin()
        return list(self._blocks)

    def _compact(self) -> None:
        """Move the occupied rows to the front, in order, into as few blocks of one height; empty rows are zero.

        Where memory runs out on the way, each run has its rows for itself again.
        """
        self._slots.sort(key=lambda slot: slot.order)
        height = block_height(len(self._slots), self.block_rows)
        rows = -(-len(self._slots) // height) * height
        like = next((slot.rows["weights"] for slot in self._slots if slot.rows), self.state.weights)
        names = ["weights", "first", "second", "best"]
        names += ["average"] if any(slot.averages for slot in self._slots) else []
        widths = dict.fromkeys(names, self.layout.width)
        if self._statistics_width:
            widths |= dict.fromkeys(("statistics", "best_statistics"), self._statistics_width)
        old, new, kept = self._matrices(), {}, self.gradient
        empty = kept[:0]
        # Of a slot without a row yet any will do: it has rows of its own.
        source = torch.tensor([max(slot.row, 0) for slot in self._slots], dtype=torch.int64, device=like.device)
        self._blocks, self.state, self.best = [], State(empty, empty, empty), empty
        self.statistics = self.best_statistics = empty
        try:
            for name, width in widths.items():
                # The old matrix goes before the next one comes: both of all would be twice the memory.
                before = old.get(name, empty)
                matrix = torch.zeros(rows, width, dtype=like.dtype, device=like.device)
                if len(before):
                    torch.index_select(before, 0, source, out=matrix[: len(self._slots)])
                for row, slot in enumerate(self._slots):
                    if slot.rows:
                        matrix[row] = slot.rows.get(name, 0.0)
                new[name] = matrix
                old.pop(name, None)
                del before
        except (RuntimeError, MemoryError):
            for row, slot in enumerate(self._slots):
                moved = {name: own[row] for name, own in new.items()}
                slot.rows = slot.rows or {**moved, **{name: own[slot.row] for name, own in old.items()}}
            raise
        for row, slot in enumerate(self._slots):
            slot.row, slot.rows = row, {}
        decay = None if self.task.decay_biases else self.layout.decay_mask(like.device, like.dtype)
        moments = new["first"], new["second"]
        self.state = State(new["weights"], *moments, decay, self.layout.matrices(), new.get("average"))
        self.best = new["best"]
        self.statistics, self.best_statistics = (new.get(name, empty) for name in ("statistics", "best_statistics"))
        self.gradient = kept.zero_() if kept.shape == self.best.shape else torch.zeros_like(self.best)
        self._blocks = [
            Block(self, self._slots[low : low + height], slice(low, low + height)) for low in range(0, rows, height)
        ]
