"""What a search and its workers say to each other.

    search                                     worker
    what makes its engine, at its start        READY, once it is made
    (METHOD, *arguments), one of Engine's      ANSWER and what it returns, or RAISED and its error
    (FREE, run)
    (TICK,)                                    MEASURED and measurements as runs finish it, or FAILED and an error
    (REVIVE, lost runs)                        MEASURED and what those that are due show, REVIVED and all their trials
    (PAUSE,)                                   PAUSED, between two steps; it computes nothing until
    (GO_ON,)

Before it computes runs it says which (AT_WORK), before it ends by an error, which one (FELL); and each line that a
user's code prints (PRINTED). What is asked of it in the middle of a tick it answers between two steps, and after FAILED
for want of memory as well. More can be asked before it has answered: it does all in the order in which it was said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.multiprocessing  # from here on a tensor is sent as the memory that both processes then share
from torch import Tensor

from tunecli.engine.snapshot import Snapshot
from tunecli.trial import Run

READY, ANSWER, RAISED, MEASURED, FAILED, REVIVED, PAUSED, AT_WORK, FELL, PRINTED = range(10)
FREE, TICK, REVIVE, PAUSE, GO_ON = "free", "tick", "revive", "pause", "go on"

Say = Callable[[int, Any], None]
Message = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """A run whose worker died after it had seen `ticks`. One that is `due` has still to show its next tick."""

    run: Run
    ticks: int
    due: bool
    snapshot: Snapshot | None = None

    @property
    def missing(self) -> int:
        """How many ticks bring it where the others are."""
        return self.ticks + self.due - (0 if self.snapshot is None else self.snapshot.fidelity)


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A tensor as a copy: shared memory costs more than it saves where both sides keep their own."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    content: bytes


def packed(value: Any) -> Any:
    """A part of a message with its tensors by their bytes: those of state dicts and of snapshots."""
    return _each(value, _bytes)


def unpacked(value: Any) -> Any:
    """What `packed` was given."""
    return _each(value, _tensor)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Snapshot):
        return replace(value, tensors=_each(dict(value.tensors), change))
    if isinstance(value, Lost):
        return replace(value, snapshot=_each(value.snapshot, change))
    if isinstance(value, list):
        return [_each(own, change) for own in value]
    return {name: change(own) for name, own in value.items()} if isinstance(value, dict) else value


def _bytes(own: Tensor) -> _Bytes:
    return _Bytes(own.dtype, tuple(own.shape), own.reshape(-1).view(torch.uint8).numpy().tobytes())


def _tensor(own: _Bytes) -> Tensor:
    if not own.content:
        return torch.empty(own.shape, dtype=own.dtype)
    return torch.frombuffer(bytearray(own.content), dtype=torch.uint8).view(own.dtype).reshape(own.shape)
