"""Which rows of a block take an update at which micro-step: stretches of neighbours, never a mask."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from tunecli.engine.batches import Batches

if TYPE_CHECKING:
    from tunecli.engine.lane import Slot


def rule_stretches(slots: list[Slot]) -> list[tuple[int, int, str]]:
    """(low, high, optimizer) of each stretch of slots that share an optimizer."""
    found, low = [], 0
    for rule, group in groupby(slots, key=lambda slot: str(slot.run.hparams["optimizer"])):
        high = low + len(list(group))
        found.append((low, high, rule))
        low = high
    return found


def due_table(
    slots: list[Slot], batches: list[Batches], starts: list[int]
) -> list[list[tuple[int, slice, slice, bool]]]:
    """For each micro-step the stretches of rows whose batch is then complete, and that have the same penalties.

    (which of `rule_stretches`, the rows within it, the rows within the block, whether it is their last batch of the
    epoch). A row is due from the step on at which it starts.
    """
    steps = max(own.steps for own in batches)
    table: list[list[tuple[int, slice, slice, bool]]] = []
    ends = [own.ends.tolist() for own in batches]
    for step in range(steps):
        row: list[tuple[int, slice, slice, bool]] = []
        for number, (low, high, _) in enumerate(rule_stretches(slots)):
            keys = [
                (starts[k] <= step < len(ends[k]) and ends[k][step], step == len(ends[k]) - 1, slots[k].penalties)
                for k in range(low, high)
            ]
            start = low
            for (due, last, _), stretch in groupby(keys):
                stop = start + len(list(stretch))
                if due:
                    row.append((number, slice(start - low, stop - low), slice(start, stop), last))
                start = stop
        table.append(row)
    return table
