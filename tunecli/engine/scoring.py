"""What the rows of a block reach on samples, in evaluation mode: a chunk of the samples at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tunecli.data import Samples, Split, each
from tunecli.engine.batches import ROUND
from tunecli.engine.device import is_out_of_memory
from tunecli.engine.gradients import Looped, Shape
from tunecli.engine.rowwise import Rowwise
from tunecli.engine.task import Task
from tunecli.errors import TunecliError
from tunecli.source import describe

Scores = tuple[Tensor, Tensor, dict[int, str]]
"""The loss and the metric of each row, (B,) and (B,), and why a row has none."""


@dataclass(slots=True, eq=False)
class Scoring:
    """One evaluation of a block's rows on `samples`, `length` of them at once; `rows` of them are somebody's. `shape`
    shapes each row's loss.

    A row computed `alone` has a `module` of its own, whose samples may depend on each other.
    """

    task: Task
    way: Rowwise | Looped
    samples: Split
    shape: Shape
    module: nn.Module
    rows: int
    alone: bool
    length: int
    _outputs: list[Tensor] = field(default_factory=list)
    _targets: list[Tensor] = field(default_factory=list)

    def read(self, deadline: float) -> bool:
        """Go on with the samples, by one chunk at least; False where the deadline came first."""
        if self.task.step is not None and self.task.metric.function is None:
            return True
        for low in range(len(self._outputs) * self.length, len(self.samples), self.length):
            chunk = self.samples.take(slice(low, low + self.length))
            # All chunks have one length, but for a row alone: its model may not bear samples that only fill.
            missing = 0 if self.alone else -len(chunk) % ROUND
            filled = each(lambda own, more=missing: _filled(own, more), chunk.inputs) if missing else chunk.inputs
            self._outputs.append(self.way.outputs(filled, len(chunk) + missing)[:, : len(chunk)])
            self._targets.append(chunk.targets)
            if time.monotonic() >= deadline and len(self._outputs) * self.length < len(self.samples):
                return False
        return True

    def score(self) -> Scores:
        """The scores, once all samples are read. A metric that raises for one of several rows fails that one."""
        step = self.task.step
        if step is not None:
            loss = step.mean_loss(self.module, self.samples, self.length)[None]
            return loss, loss if self.task.metric.function is None else self.task.metric_of(*self._read()), {}
        outputs, targets = self._read()
        try:
            return *self.task.score(outputs, targets, self.shape), {}
        except (Exception, SystemExit) as error:
            if self.rows == 1 or is_out_of_memory(error):
                raise
        return self._score_each(outputs, targets)

    def _read(self) -> tuple[Tensor, Tensor]:
        """(B, N, ...) and the targets (N, ...)."""
        samples = self.samples
        return torch.cat(self._outputs, dim=1), samples.targets if isinstance(samples, Samples) else torch.cat(
            self._targets
        )

    def _score_each(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Each row scored in the midst of its own likes, so that the others show to the bit what they would have."""
        losses = torch.full((len(outputs),), float("nan"), dtype=torch.float64, device=outputs.device)
        metrics, failures = losses.clone(), {}
        for row in range(self.rows):
            alike = outputs[row].expand_as(outputs).contiguous()
            try:
                loss, metric = self.task.score(alike, targets, self.shape)
                losses[row], metrics[row] = loss[row], metric[row]
            except (Exception, SystemExit) as error:
                failures[row] = error.message if isinstance(error, TunecliError) else f"it raised {describe(error)}"
        return losses, metrics, failures


def _filled(part: Tensor, missing: int) -> Tensor:
    """The samples with the last one repeated `missing` times."""
    return torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])
