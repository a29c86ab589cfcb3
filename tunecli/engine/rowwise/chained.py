"""A chain of layers computed by `chain.c`: all of a model for one row after the other, many steps in one call."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tunecli.data import Samples
from tunecli.engine.compiler import library
from tunecli.engine.rowwise.chain import KINDS, Layer
from tunecli.engine.rowwise.compiled import windows_over
from tunecli.metrics import LOSSES, Loss

_LOSSES: dict[Callable[..., Tensor], tuple[int, torch.dtype | None]] = {
    LOSSES[name].per_sample: (number, dtype)
    for number, (name, dtype) in enumerate(
        {"cross_entropy": torch.int64, "binary_cross_entropy": torch.int64, "mse": None}.items()
    )
}
"""The number of each loss in the source, and the kind of its targets where that is not the outputs'."""


class Chain:
    """What computes the losses and the gradients of rows of a model with these layers, of so many `samples` a row."""

    def __init__(self, layers: Sequence[Layer], samples: int, loss: int, dtype: torch.dtype) -> None:
        self.samples, self.inputs, self.outputs, self.dtype = samples, layers[0].inputs, layers[-1].outputs, dtype
        self.operations = samples * sum(map(_operations, layers))
        self._kept: list[Any] = []
        at, widest, scratch = self.inputs * samples, 0, 0
        self._layers = (_Layer * len(layers))()
        for layer, told in zip(layers, self._layers, strict=True):
            told.kind, told.inputs, told.outputs = KINDS.index(layer.kind), layer.inputs, layer.outputs
            told.weight, told.bias, told.scale, told.dropped = layer.weight, layer.bias, layer.scale, layer.dropped
            told.at, at = at, at + layer.outputs * samples
            widest = max(widest, layer.inputs, layer.outputs + 1)
            if layer.windows is not None:
                over = windows_over(layer.shape, layer.windows)
                self._kept.append(over)
                told.over = ctypes.addressof(over)
                unfolded = samples * over.unfolded if layer.kind == "convolution" else 0
                told.windows, at = at, at + unfolded
                scratch = max(scratch, unfolded)
            if layer.kind == "linear":
                whole = -(-layer.inputs // WHOLE) * WHOLE
                scratch = max(scratch, whole * (samples + layer.outputs))
            if layer.elements is not None:
                self._kept.append(layer.elements)
                told.elements = layer.elements.data_ptr()
        first = next(place for place, layer in enumerate(layers) if layer.weight >= 0)
        gradients, scratch_at = (at, at + widest * samples), at + 2 * widest * samples
        self._told = _Chain(
            ctypes.addressof(self._layers), len(layers), first, samples, self.inputs, loss, gradients, scratch_at
        )
        self.address = ctypes.addressof(self._told)
        self.workspace = torch.zeros(scratch_at + scratch, dtype=dtype)


def _operations(layer: Layer) -> int:
    """Products and sums of a sample, forward and backward, or how many take as long."""
    if layer.windows is None:
        return (6 * layer.inputs if layer.kind == "linear" else FUNCTION) * layer.outputs
    return layer.outputs * math.prod(layer.windows.kernel) * (6 * layer.shape[1] if layer.kind == "convolution" else 1)


class Rows:
    """The rows of a block that a chain computes: their weights and gradients, (B, *shape) each."""

    def __init__(self, chain: Chain, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self.chain, self._kept = chain, (weights, gradients)
        places = [(_Place * len(own))(*(_Place(one.data_ptr(), one.stride(0)) for one in own)) for own in self._kept]
        self._places = places
        self._told = _Block(len(weights[0]), *map(ctypes.addressof, places), chain.workspace.data_ptr())
        self.address = ctypes.addressof(self._told)
        self._functions = library(chain.dtype)

    def __len__(self) -> int:
        return self._told.rows  # type: ignore[no-any-return]  # a field

    def add_gradient(
        self, inputs: Tensor, targets: Tensor, present: Tensor, counts: Tensor, keys: Tensor | None, *, over: bool
    ) -> Tensor:
        """The loss sums (B,) of a step; the gradients are added to what is there, or written `over` it. Of inputs (B,
        m, *feature) and of targets (B, m) each counts as `present` (B, m), in the gradient by its `counts`."""
        read = [own.contiguous() for own in (inputs, targets, present, counts, *([] if keys is None else [keys]))]
        step = _Step(*(own.data_ptr() for own in read))
        losses = present.new_empty(len(self))
        told = self.chain.address, self.address, ctypes.addressof(step)
        self._functions.chain(*told, losses.data_ptr(), over)
        return losses

    def evaluate(self, inputs: Tensor) -> Tensor:
        """The outputs (B, N, O) for inputs (N, *feature), N as many times as it may be what the chain reads at once."""
        inputs = inputs.contiguous()
        found = inputs.new_empty(len(self), len(inputs), self.chain.outputs)
        self._functions.evaluate(self.chain.address, self.address, len(inputs), inputs.data_ptr(), found.data_ptr())
        return found


class Steps:
    """Steps that are laid out for the rows of a block: many at once, updates by `update.c` included.

    `index`, `present` and, where something is drawn, `keys` (S, B, m); `shares` and `active` (S, B), as `Stretch` and
    the block have them. `samples` lie in memory, whole.
    """

    def __init__(
        self,
        rows: Rows,
        samples: Samples,
        index: Tensor,
        present: Tensor,
        shares: Tensor,
        active: Tensor,
        keys: Tensor | None,
    ) -> None:
        self._rows, chain = rows, rows.chain
        assert isinstance(samples.inputs, Tensor)
        read = torch.empty(chain.samples, chain.inputs, dtype=chain.dtype), present.new_empty(chain.samples)
        aims = samples.targets.new_empty(chain.samples)
        given = samples.inputs, samples.targets, index, present, shares, active.to(torch.uint8), keys
        self._kept = [*(None if own is None else own.contiguous() for own in given), *read, aims]
        self._told = _Stretch()
        names = "inputs", "targets", "index", "present", "shares", "active", "keys", "read", "counts", "aims"
        for name, own in zip(names, self._kept, strict=True):
            setattr(self._told, name, None if own is None else own.data_ptr())
        self.at_once = max(1, AT_ONCE // (len(rows) * chain.operations))
        """So many steps take a tenth of a second."""

    def train(self, low: int, high: int, updates: int, losses: Tensor, norms: Tensor, *, over: bool) -> None:
        """The steps from one to another of the stretch. `updates` is the address of a `struct rows`; the loss sums are
        added to `losses` (B,), `norms` (B,) are those of the last updates. What each row has of a gradient is zero
        where it was used up, whatever it was before if the first is written `over` it."""
        self._told.losses, self._told.norms = losses.data_ptr(), norms.data_ptr()
        told = self._rows.chain.address, self._rows.address, ctypes.addressof(self._told), updates
        self._rows._functions.train(*told, low, high, over)


AT_ONCE = 1 << 32
"""Products and sums in one call: beyond, nobody could stop what runs."""

FUNCTION = 256
"""So many of them take as long as GELU, the slowest layer between others: where such layers are wide and their products
small, a call that counted these alone took seconds."""

WHOLE = 16
"""So many numbers fill whole vectors, of either kind."""


def loss_number(loss: Loss, dtype: torch.dtype, targets: Tensor) -> int | None:
    """Which loss of the source this is, None where it is none; of outputs of a kind."""
    number, wanted = _LOSSES.get(loss.per_sample, (None, None))
    return number if targets.dim() == 2 and targets.dtype == (wanted or dtype) else None


class _Place(ctypes.Structure):
    """`struct place` of the source."""

    _fields_ = (("at", ctypes.c_void_p), ("row", ctypes.c_ssize_t))


class _Layer(ctypes.Structure):
    """`struct layer`."""

    _fields_ = (
        *((name, ctypes.c_ssize_t) for name in ("kind", "inputs", "outputs", "weight", "bias", "at", "windows")),
        ("over", ctypes.c_void_p),
        ("elements", ctypes.c_void_p),
        ("dropped", ctypes.c_ssize_t),
        ("scale", ctypes.c_double),
    )


class _Chain(ctypes.Structure):
    """`struct chain`."""

    _fields_ = (
        ("layers", ctypes.c_void_p),
        *((name, ctypes.c_ssize_t) for name in ("count", "first", "samples", "inputs", "loss")),
        ("gradients", ctypes.c_ssize_t * 2),
        ("scratch", ctypes.c_ssize_t),
    )


class _Block(ctypes.Structure):
    """`struct block`."""

    _fields_ = (
        ("rows", ctypes.c_ssize_t),
        *((name, ctypes.c_void_p) for name in ("weights", "gradients", "workspace")),
    )


class _Step(ctypes.Structure):
    """`struct step`."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("inputs", "targets", "present", "counts", "keys"))


class _Stretch(ctypes.Structure):
    """`struct stretch`."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("inputs", "targets", "index", "present", "shares", "active", "keys", "losses", "norms")
    ) + tuple((name, ctypes.c_void_p) for name in ("read", "counts", "aims"))
