"""A network as C is told of it: its layers, and where in a workspace each has its values and gradients."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunecli.engine.rowwise.backward import Source, backward_of
from tunecli.engine.rowwise.layers import KINDS, Layer, Layers
from tunecli.engine.rowwise.places import places_of
from tunecli.engine.rowwise.taps import padded_numbers, taps_back, taps_of, windows_back, windows_of


class Network:
    """What computes the losses and the gradients of rows of a model, which reads a `batch` in a step, so many `samples`
    at once; so many `threads` share the rows, which changes no bit."""

    def __init__(
        self, model: Layers, samples: int, batch: int, loss: int, dtype: torch.dtype, threads: int = 1
    ) -> None:
        layers, self.inputs, self.shape = model.layers, model.inputs, model.shape
        self.layers = layers
        self.derived: list[int] = []  # where a micro-batch has each of what it derives, and its gradient behind it
        self.more = [own.to(dtype).contiguous() if isinstance(own, Tensor) else own for own in model.more]
        self.samples, self.batch, self.dtype = samples, batch, dtype
        self.operations = batch * sum(map(_operations, layers))
        self._kept: list[Any] = []
        told, end = self._forward(layers)
        each = end + self._backward(told, layers, end, model.trained)
        self.numbers = each // samples
        end = each * (batch // samples)
        scratch = end, end + max(_scratch(layer, samples) for layer in layers)
        read = scratch[1] + max(own.lines for layer in told for own in layer.sources) * samples
        counts = read + self.inputs * batch
        size = counts + -(-batch // APART) * APART
        self.threads = max(1, min(threads, MOST_SHARED // size))
        workspaces = self._keep(torch.zeros(self.threads, size, dtype=dtype))
        self._told = _Network(
            ctypes.addressof(told),
            len(told),
            samples,
            batch,
            self.inputs,
            loss,
            each,
            scratch,
            read,
            counts,
            workspaces.data_ptr(),
            size,
            self._keep(torch.tensor(model.unused, dtype=torch.int64)).data_ptr(),
            len(model.unused),
        )
        self.address = ctypes.addressof(self._told)

    def shared(self, steps: int) -> int:
        """How many threads are to share so many steps of a row each."""
        return self.threads if steps * self.operations >= SHARED else 1

    def _forward(self, layers: Sequence[Layer]) -> tuple[Any, int]:
        """What C is told of the layers, and where their values end."""
        told = self._keep((_Layer * len(layers))())
        self._places, lines = places_of(layers, self.inputs)
        start, end = self.inputs, lines * self.samples
        for layer, own in zip(layers, told, strict=True):
            own.kind, own.out, own.weight, own.bias = KINDS.index(layer.kind), layer.outputs, layer.weight, layer.bias
            own.at, start, own.more = self._place(start), start + layer.outputs, end
            own.scale, own.shift = layer.scale, layer.shift
            own.sizes[: len(layer.sizes)] = layer.sizes
            if layer.windows is not None:
                own.over = ctypes.addressof(self._keep(windows_of(layer)))
            if layer.kind in ("convolution", "transposed"):
                self._convolve(own, layer)
                end += padded_numbers(windows_of(layer)) * layer.sizes[0]
            if layer.kind == "derive":
                self.derived.append(end)
                end += 2 * -(-layer.sizes[0] // WHOLE) * WHOLE
            if layer.kind == "normalize":
                end += self.samples * layer.sizes[0]
            if layer.kind == "batch_norm":
                end += -(-6 * layer.sizes[0] // WHOLE) * WHOLE
            if layer.elements is not None:
                elements = self._places[layer.elements].int() if layer.kind == "gather" else layer.elements
                own.elements = self._keep(elements.contiguous()).data_ptr()
                own.dropout = _Dropout(own.elements, layer.dropped, layer.scale)
            if layer.values is not None:
                own.values = self._keep(layer.values.to(self.dtype)).data_ptr()
        return told, end

    def _place(self, line: int) -> int:
        """Where a line is in the workspace, in numbers."""
        return int(self._places[line]) * self.samples

    def _backward(self, told: Any, layers: Sequence[Layer], start: int, trained: frozenset[int]) -> int:
        """Tell the layers how gradients are passed on, which begin in the workspace at `start`; how many numbers."""
        found, lines = backward_of(layers, self.inputs, trained)
        for own, how in zip(told, found, strict=True):
            own.wanted, own.gradient, own.fresh[:] = how.wanted, start + how.gradient * self.samples, how.fresh
            cleared = [_Some(start + lines.start * self.samples, len(lines)) for lines in how.cleared]
            own.cleared = ctypes.addressof(self._keep((_Some * len(cleared))(*cleared)))
            own.clearings = len(cleared)
            sources = [self._source(source, start) for source in how.sources]
            own.sources[: len(sources)] = sources
            if how.gathered is not None:
                to = torch.where(how.gathered < 0, -1, start + how.gathered * self.samples)
                own.gathered = self._keep(to).data_ptr()
        return lines * self.samples

    def _convolve(self, own: Any, layer: Layer) -> None:
        """Tell C where the numbers are that filters are multiplied by, forward and back."""
        stripe = STRIPE_BYTES // self.dtype.itemsize
        back = windows_back(layer) if layer.kind == "convolution" else None
        own.taps = ctypes.addressof(self._keep(taps_of(layer, stripe)))
        if back is not None:
            own.over_back = ctypes.addressof(self._keep(back))
            own.taps_back = ctypes.addressof(self._keep(taps_back(layer, back, stripe)))

    def _source(self, source: Source, start: int) -> _Source:
        gradient = -1 if source.gradient < 0 else start + source.gradient * self.samples
        return _Source(self._place(source.lines.start), gradient, len(source.lines), source.add)

    def _keep(self, told: Any) -> Any:
        """C reads it as long as there is this network."""
        self._kept.append(told)
        return told


def _scratch(layer: Layer, samples: int) -> int:
    """How many numbers a layer needs for a moment."""
    if layer.kind in ("convolution", "transposed"):
        back = windows_back(layer) if layer.kind == "convolution" else None
        return samples * windows_of(layer).unfolded if back is None else padded_numbers(back)
    if layer.kind == "linear":
        _, inputs, outputs, turned = layer.sizes
        rows, columns = (inputs, outputs) if turned else (outputs, inputs)
        return -(-columns // WHOLE) * WHOLE * (samples + rows)
    return 0


def _operations(layer: Layer) -> int:
    """Products and sums of a sample, forward and backward, or how many take as long."""
    if layer.kind in ("linear", "product"):
        return 6 * math.prod(own for own in layer.sizes if own)
    if layer.windows is None:
        return FUNCTION * layer.outputs
    if layer.kind == "pooling":
        return layer.outputs * math.prod(layer.windows.kernel)
    over = windows_of(layer)
    found: int = 6 * layer.sizes[1] * over.out_height * over.out_width * over.channels * math.prod(layer.windows.kernel)
    return found


MOST_SHARED = 1 << 28
"""So many have the workspaces of all threads together, a gibibyte: fewer threads share the rows of a large model."""

FUNCTION = 256
"""So many of them take as long as GELU, the slowest layer between others: where such layers are wide and their products
small, a call that counted these alone took seconds."""

SHARED = 1 << 30
"""Products and sums that are worth other threads: a few milliseconds, of which they take a tenth to be there."""

APART = 32
"""So many numbers between two threads' workspaces, at least: none writes into a line of the cache that is another's."""

WHOLE = 16
"""So many numbers fill whole vectors, of either kind."""

STRIPE_BYTES = 64
"""Of the longest vector."""


class _Source(ctypes.Structure):
    """`struct source`."""

    _fields_ = tuple((name, ctypes.c_ssize_t) for name in ("at", "gradient", "lines", "add"))


class _Some(ctypes.Structure):
    """`struct some`."""

    _fields_ = (("at", ctypes.c_ssize_t), ("lines", ctypes.c_ssize_t))


class _Dropout(ctypes.Structure):
    """`struct dropout`."""

    _fields_ = (("elements", ctypes.c_void_p), ("dropped", ctypes.c_uint32), ("scale", ctypes.c_double))


class _Layer(ctypes.Structure):
    """`struct layer`."""

    _fields_ = (
        *((name, ctypes.c_ssize_t) for name in ("kind", "out", "weight", "bias")),
        ("fresh", ctypes.c_ssize_t * 2),
        *((name, ctypes.c_ssize_t) for name in ("at", "more", "gradient", "wanted")),
        ("sources", _Source * 2),
        ("gathered", ctypes.c_void_p),
        ("cleared", ctypes.c_void_p),
        ("clearings", ctypes.c_ssize_t),
        ("sizes", ctypes.c_ssize_t * 4),
        *((name, ctypes.c_void_p) for name in ("over", "taps", "over_back", "taps_back")),
        ("dropout", _Dropout),
        ("elements", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        ("shift", ctypes.c_double),
    )


class _Network(ctypes.Structure):
    """`struct network`."""

    _fields_ = (
        ("layers", ctypes.c_void_p),
        *((name, ctypes.c_ssize_t) for name in ("count", "samples", "batch", "inputs", "loss", "each")),
        ("scratch", ctypes.c_ssize_t * 2),
        *((name, ctypes.c_ssize_t) for name in ("read", "counts")),
        ("workspaces", ctypes.c_void_p),
        ("size", ctypes.c_ssize_t),
        ("unused", ctypes.c_void_p),
        ("unused_count", ctypes.c_ssize_t),
    )
