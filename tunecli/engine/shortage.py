"""Memory ran out while a block computed: what was being written then, and whether its rows fit one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from tunecli.engine.device import is_out_of_memory, release_memory
from tunecli.engine.gradients import Gradient, Shape
from tunecli.engine.rowwise import Rowwise
from tunecli.errors import OutOfMemory

if TYPE_CHECKING:
    from tunecli.engine.lane import Lane

GRADIENTS, STATE = "gradients", "state"


@dataclass(slots=True, eq=False)
class Shortage:
    """`writing` is what a step is about to write, its GRADIENTS or the STATE that an update changes, and stays what it
    was where the step came to nothing. `error` is what the block was given up with."""

    writing: str | None = None
    error: OutOfMemory | None = None

    def tears(self, *, amid: bool) -> bool:
        """Whether what a run has was left half written: its state, or `amid` a batch its gradient so far."""
        return self.writing == STATE or (self.writing == GRADIENTS and amid)

    def give_up(self, error: OutOfMemory, gradient: Gradient, amid: Sequence[bool]) -> NoReturn:
        """Raise the error, after which the runs can be taken out; `amid` says which rows have read a part of a batch:
        the others have no gradient yet."""
        for row, is_amid in enumerate(amid):
            if self.writing == GRADIENTS and not is_amid:
                gradient.zero_row(row)
        self.error = error
        raise error


def fits_alone(lane: Lane, weights: Tensor, shape: Shape, index: Tensor, present: Tensor, keys: Tensor | None) -> bool:
    """Whether a step of a row could be computed without the other rows of its block, which are all alike.

    weights (1, P); index, present and, where something is drawn, keys (1, m).
    """
    release_memory()
    assert lane.recorded is not None
    try:
        gradient, statistics = Gradient(lane.layout, torch.zeros_like(weights)), lane.statistics[:1].clone()
        alone = Rowwise(lane.recorded, weights, gradient, shape, statistics)
        alone.draw_by(keys)
        alone.add_gradient(lane.train.take(index), present)
    except Exception as error:
        return not is_out_of_memory(error)
    return True
