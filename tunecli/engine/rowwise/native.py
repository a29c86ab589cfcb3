"""A model's layers computed by C, `training.c`: all of them for one row after the other, many steps in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tunecli.alarm import held
from tunecli.data import Samples
from tunecli.data.samples import Inputs
from tunecli.engine.compiled import Compiled
from tunecli.engine.compiler import library
from tunecli.engine.rowwise.layers import Part
from tunecli.engine.rowwise.workspace import WHOLE, Network
from tunecli.metrics import LOSSES, Loss

_LOSSES: dict[Callable[..., Tensor], tuple[int, torch.dtype | None]] = {
    LOSSES[name].per_sample: (number, dtype)
    for number, (name, dtype) in enumerate(
        {"cross_entropy": torch.int64, "binary_cross_entropy": torch.int64, "mse": None}.items()
    )
}
"""The number of each loss in the source, and the kind of its targets where that is not the outputs'."""

SHAPES = frozenset(("label_smoothing",))
"""What C may be told of a row's loss."""

_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
"""Kinds of inputs that C reads beside its own, in the order of the source."""


def are_read(inputs: Inputs, dtype: torch.dtype) -> bool:
    """Whether a network of that kind reads such inputs."""
    return all(isinstance(own, Tensor) and own.dtype in (dtype, *_WHOLE_NUMBERS) for own in tree_leaves(inputs))


def _as_one(inputs: Inputs, dims: int, dtype: torch.dtype) -> Tensor:
    """All inputs of each sample, one after the other, (*samples, in), where samples have so many dimensions."""
    parts = [own.reshape(*own.shape[:dims], -1).to(dtype) for own in tree_leaves(inputs)]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dims)


class Rows:
    """The rows of a block that C computes: their weights, behind which running statistics may stand, and gradients, (B,
    *shape) each, and by how much the targets of each are smoothed (B,), if they are."""

    def __init__(
        self, network: Network, weights: Sequence[Tensor], gradients: Sequence[Tensor], smoothing: Tensor | None
    ) -> None:
        smoothed = None if smoothing is None else smoothing.to(network.dtype)
        self.network, self._kept = network, (weights, gradients, smoothed)
        own, size = [_place(one) for one in weights], network.dtype.itemsize
        found = [_place(one) for one in gradients] + [_NOWHERE] * (len(weights) - len(gradients))
        derived = iter(network.derived)
        for one in network.more:
            if isinstance(one, int):
                at, count = next(derived), network.layers[one].sizes[0]
                own.append(_Place(None, at, count))
                found.append(_Place(None, at + -(-count // WHOLE) * WHOLE, count))
            else:
                own.append(
                    _place_of(one, own, size) if isinstance(one, Part) else _Place(one.data_ptr(), 0, one.numel())
                )
                found.append(_place_of(one, found, size) if isinstance(one, Part) else _NOWHERE)
        self._places = places = [(_Place * len(own))(*own), (_Place * len(own))(*found)]
        self._told = _Block(
            len(weights[0]), *map(ctypes.addressof, places), None if smoothed is None else smoothed.data_ptr()
        )
        self.address = ctypes.addressof(self._told)
        self.functions = library(network.dtype)

    def __len__(self) -> int:
        return self._told.rows  # type: ignore[no-any-return]  # a field

    def add_gradient(
        self,
        inputs: Inputs,
        targets: Tensor,
        present: Tensor,
        counts: Tensor,
        keys: Tensor | None,
        real: Tensor,
        *,
        over: bool,
    ) -> Tensor:
        """The loss sums (B,) of a step; the gradients are added to what is there, or written `over` it. Of inputs (B,
        m, *feature) and of targets (B, m) each counts as `present` (B, m), in the gradient by its `counts`; the first
        ones are `real` (B,), the others only fill."""
        given = _as_one(inputs, 2, self.network.dtype), targets, present, counts, keys, real
        read = [None if own is None else own.contiguous() for own in given]
        step = _Step(*(None if own is None else own.data_ptr() for own in read))
        losses = present.new_empty(len(self))
        told = self.network.address, self.address, ctypes.addressof(step)
        self.functions.learn_step(*told, losses.data_ptr(), over, self.network.shared(len(self)))
        return losses

    def evaluate(self, inputs: Inputs) -> Tensor:
        """The outputs (B, N, *shape) for inputs (N, *feature), N a multiple of what the network reads at once."""
        read = _as_one(inputs, 1, self.network.dtype)
        found = read.new_empty(len(self), len(read), *self.network.shape)
        threads = self.network.shared(len(self) * len(read) // (3 * self.network.samples))  # forward is a third
        places = self.network.address, self.address, len(read), read.data_ptr(), found.data_ptr()
        self.functions.evaluate(*places, threads)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class LaidOut:
    """Steps that are laid out for the rows of a block: `index`, `present` and, where something is drawn, `keys` (S, B,
    m); `shares`, `active` and `real` (S, B), as `Epoch` has them. `index` may be that of some steps alone, from the
    `first` on."""

    index: Tensor
    present: Tensor
    shares: Tensor
    active: Tensor
    real: Tensor
    keys: Tensor | None
    first: int = 0

    @property
    def end(self) -> int:
        """Up to which step it is known what is read."""
        return self.first + len(self.index)


class Steps:
    """Steps that are laid out for the rows of a block, trained many at once, updates by `update.c` included. `samples`
    lie in memory, whole; inputs of bytes that are scaled are what `meanings` (256,) have of each."""

    def __init__(self, rows: Rows, samples: Samples, laid_out: LaidOut, meanings: Sequence[Tensor | None]) -> None:
        self._functions, network = rows.functions, rows.network
        told = [None if own is None else own.to(network.dtype) for own in meanings]
        parts = [_given(*own, network.dtype) for own in zip(tree_leaves(samples.inputs), told, strict=True)]
        self._inputs = samples.inputs, told, (_Given * len(parts))(*parts)
        aims = samples.targets.new_empty(network.threads, network.batch)
        given: dict[str, Tensor | None] = {"targets": samples.targets, "aims": aims}
        given |= {own.name: getattr(laid_out, own.name) for own in fields(laid_out) if own.name != "first"}
        given["active"] = laid_out.active.to(torch.uint8)
        self._rows, self._kept = rows, {name: None if own is None else own.contiguous() for name, own in given.items()}
        self._told = _Stretch(network.address, rows.address, len(parts), ctypes.addressof(self._inputs[-1]))
        self._told.first, self.until = laid_out.first, laid_out.end
        for name, own in self._kept.items():
            setattr(self._told, name, None if own is None else own.data_ptr())
        self.at_once = max(1, AT_ONCE * network.threads // (len(rows) * network.operations))
        """So many steps take a tenth of a second."""

    _begun: Any = None

    def begin(self, low: int, high: int, updates: Compiled, losses: Tensor, norms: Tensor, *, over: bool) -> None:
        """Begin with the steps from one to another of the stretch, on other threads than this one. Until they `end`
        nobody else may touch the block's weights.

        The loss sums are added to `losses` (B,), `norms` (B,) are those of the last updates. What each row has of a
        gradient is zero where it was used up, whatever it was before if the first is written `over` it.
        """
        told, self._written = self._told, (updates, losses, norms)
        told.low, told.high, told.over, told.updates = low, high, over, updates.address()
        told.losses, told.norms = losses.data_ptr(), norms.data_ptr()
        told.threads = self._threads(high - low)
        with held():  # or who they are were lost, and they would write where others compute
            self._begun = self._functions.begin_training(ctypes.addressof(told))
        if self._begun is None:
            raise MemoryError("no memory to begin threads with")

    def is_shared(self, steps: int) -> bool:
        """Whether so many steps, or as many of them as are trained at once, are worth other threads."""
        return self._threads(min(steps, self.at_once)) > 1

    def _threads(self, steps: int) -> int:
        return self._rows.network.shared(steps * len(self._rows))

    @property
    def busy(self) -> bool:
        """Whether steps have begun that have not been ended."""
        return self._begun is not None

    @property
    def elsewhere(self) -> bool:
        """Whether other threads train what has begun."""
        return self._begun is not None and self._told.threads > 1

    @property
    def taken(self) -> bool:
        """Whether nothing is left of that for this thread to take."""
        return self._begun is None or bool(self._functions.is_taken(self._begun))

    def end(self) -> int:
        """Help with the steps that have begun until they are over; how many they were."""
        if self._begun is None:
            return 0
        with held():
            self._functions.end_sharing(self._begun)
            self._begun = None
        return int(self._told.high - self._told.low)

    def __del__(self) -> None:
        self.end()  # where it was left in the middle of its work: what it reads and writes must outlast it


AT_ONCE = 1 << 32
"""Products and sums in one call: beyond, nobody could stop what runs."""

MOST_NUMBERS = 1 << 26
"""Of a batch that is read at once so many are kept for the backward pass, 256 MiB for each thread: a larger one is left
to torch. Up to here C is faster, though less so than where all that it keeps is near the core."""


def loss_number(loss: Loss, dtype: torch.dtype, targets: Tensor) -> int | None:
    """Which loss of the source this is, None where it is none; of outputs of a kind."""
    number, wanted = _LOSSES.get(loss.per_sample, (None, None))
    return number if targets.dim() == 2 and targets.dtype == (wanted or dtype) else None


class _Place(ctypes.Structure):
    """`struct place` of the source."""

    _fields_ = (("at", ctypes.c_void_p), ("row", ctypes.c_ssize_t), ("count", ctypes.c_ssize_t))


_NOWHERE = _Place(None, 0, 0)


def _place(rows: Tensor) -> _Place:
    return _Place(rows.data_ptr(), rows.stride(0), rows[0].numel())


def _place_of(part: Part, places: Sequence[_Place], size: int) -> _Place:
    """Where a part of what is at some place is, of numbers of a `size` in bytes."""
    whole = places[part.of]
    at = None if whole.at is None else whole.at + part.begin * size
    return _Place(at, whole.row, part.count)


class _Block(ctypes.Structure):
    """`struct block`."""

    _fields_ = (
        ("rows", ctypes.c_ssize_t),
        *((name, ctypes.c_void_p) for name in ("weights", "gradients", "smoothing")),
    )


class _Step(ctypes.Structure):
    """`struct step`."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("inputs", "targets", "present", "counts", "keys", "real"))


class _Given(ctypes.Structure):
    """`struct given`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("at", "bytes")),
        *((name, ctypes.c_ssize_t) for name in ("width", "number")),
    )


def _given(inputs: Tensor, meaning: Tensor | None, dtype: torch.dtype) -> _Given:
    """Inputs (N, *feature) as C is told of them."""
    number = (dtype, *_WHOLE_NUMBERS).index(inputs.dtype)
    return _Given(inputs.data_ptr(), None if meaning is None else meaning.data_ptr(), inputs[0].numel(), number)


class _Stretch(ctypes.Structure):
    """`struct stretch`."""

    _fields_ = (
        ("network", ctypes.c_void_p),
        ("block", ctypes.c_void_p),
        ("parts", ctypes.c_ssize_t),
        *((name, ctypes.c_void_p) for name in ("inputs", "targets", "index")),
        ("first", ctypes.c_ssize_t),
        *((name, ctypes.c_void_p) for name in ("present", "shares", "active", "keys", "real", "aims", "updates")),
        *((name, ctypes.c_ssize_t) for name in ("low", "high", "over", "threads")),
        *((name, ctypes.c_void_p) for name in ("losses", "norms")),
    )
