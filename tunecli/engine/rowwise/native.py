"""A model's layers computed by `network.c`: all of them for one row after the other, many steps in one call."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tunecli.alarm import held
from tunecli.data import Samples
from tunecli.engine.compiled import Compiled
from tunecli.engine.compiler import library
from tunecli.engine.rowwise.backward import Source, backward_of
from tunecli.engine.rowwise.layers import KINDS, Layer, Layers
from tunecli.engine.rowwise.places import places_of
from tunecli.engine.rowwise.taps import padded_numbers, taps_back, taps_of, windows_back, windows_of
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


class Network:
    """What computes the losses and the gradients of rows of a model, which reads a `batch` in a step, so many `samples`
    at once; so many `threads` share the rows, which changes no bit."""

    def __init__(
        self, model: Layers, samples: int, batch: int, loss: int, dtype: torch.dtype, threads: int = 1
    ) -> None:
        layers, self.inputs, self.shape = model.layers, model.inputs, model.shape
        self.samples, self.batch, self.dtype = samples, batch, dtype
        self.operations = batch * sum(map(_operations, layers))
        self._kept: list[Any] = []
        told, end = self._forward(layers)
        each = end + self._backward(told, layers, end)
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
            if layer.kind == "convolution":
                self._convolve(own, layer)
                end += padded_numbers(windows_of(layer))
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

    def _backward(self, told: Any, layers: Sequence[Layer], start: int) -> int:
        """Tell the layers how gradients are passed on, which begin in the workspace at `start`; how many numbers."""
        found, lines = backward_of(layers, self.inputs)
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
        stripe, back = STRIPE_BYTES // self.dtype.itemsize, windows_back(layer)
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
    if layer.kind == "convolution":
        back = windows_back(layer)
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
    return layer.outputs * math.prod(layer.windows.kernel) * (6 * layer.shape[1] if layer.kind == "convolution" else 1)


class Rows:
    """The rows of a block that C computes: their weights, behind which running statistics may stand, and gradients, (B,
    *shape) each, and by how much the targets of each are smoothed (B,), if they are."""

    def __init__(
        self, network: Network, weights: Sequence[Tensor], gradients: Sequence[Tensor], smoothing: Tensor | None
    ) -> None:
        smoothed = None if smoothing is None else smoothing.to(network.dtype)
        self.network, self._kept = network, (weights, gradients, smoothed)
        places = [
            (_Place * len(own))(*(_Place(one.data_ptr(), one.stride(0)) for one in own)) for own in (weights, gradients)
        ]
        self._places = places
        self._told = _Block(
            len(weights[0]), *map(ctypes.addressof, places), None if smoothed is None else smoothed.data_ptr()
        )
        self.address = ctypes.addressof(self._told)
        self.functions = library(network.dtype)

    def __len__(self) -> int:
        return self._told.rows  # type: ignore[no-any-return]  # a field

    def add_gradient(
        self,
        inputs: Tensor,
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
        inputs = inputs.to(self.network.dtype)
        given = inputs, targets, present, counts, keys, real
        read = [None if own is None else own.contiguous() for own in given]
        step = _Step(*(None if own is None else own.data_ptr() for own in read))
        losses = present.new_empty(len(self))
        told = self.network.address, self.address, ctypes.addressof(step)
        self.functions.learn_step(*told, losses.data_ptr(), over, self.network.shared(len(self)))
        return losses

    def evaluate(self, inputs: Tensor) -> Tensor:
        """The outputs (B, N, *shape) for inputs (N, *feature), N a multiple of what the network reads at once."""
        inputs = inputs.to(self.network.dtype).contiguous()
        found = inputs.new_empty(len(self), len(inputs), *self.network.shape)
        threads = self.network.shared(len(self) * len(inputs) // (3 * self.network.samples))  # forward is a third
        places = self.network.address, self.address, len(inputs), inputs.data_ptr(), found.data_ptr()
        self.functions.evaluate(*places, threads)
        return found


class Steps:
    """Steps that are laid out for the rows of a block: many at once, updates by `update.c` included.

    `index`, `present` and, where something is drawn, `keys` (S, B, m); `shares`, `active` and `real` (S, B), as
    `Stretch` and the block have them. `samples` lie in memory, whole.
    """

    def __init__(
        self,
        rows: Rows,
        samples: Samples,
        index: Tensor,
        present: Tensor,
        shares: Tensor,
        active: Tensor,
        real: Tensor,
        keys: Tensor | None,
    ) -> None:
        self._functions, network = rows.functions, rows.network
        assert isinstance(samples.inputs, Tensor)
        aims = samples.targets.new_empty(network.threads, network.batch)
        given = samples.inputs, samples.targets, index, present, shares, active.to(torch.uint8), real, keys, aims
        self._rows, self._kept = rows, [None if own is None else own.contiguous() for own in given]
        self._told = _Stretch(network.address, rows.address, not samples.inputs.is_floating_point())
        names = "inputs", "targets", "index", "present", "shares", "active", "real", "keys", "aims"
        for name, own in zip(names, self._kept, strict=True):
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


def loss_number(loss: Loss, dtype: torch.dtype, targets: Tensor) -> int | None:
    """Which loss of the source this is, None where it is none; of outputs of a kind."""
    number, wanted = _LOSSES.get(loss.per_sample, (None, None))
    return number if targets.dim() == 2 and targets.dtype == (wanted or dtype) else None


class _Place(ctypes.Structure):
    """`struct place` of the source."""

    _fields_ = (("at", ctypes.c_void_p), ("row", ctypes.c_ssize_t))


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
    )


class _Block(ctypes.Structure):
    """`struct block`."""

    _fields_ = (
        ("rows", ctypes.c_ssize_t),
        *((name, ctypes.c_void_p) for name in ("weights", "gradients", "smoothing")),
    )


class _Step(ctypes.Structure):
    """`struct step`."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("inputs", "targets", "present", "counts", "keys", "real"))


class _Stretch(ctypes.Structure):
    """`struct stretch`."""

    _fields_ = (
        ("network", ctypes.c_void_p),
        ("block", ctypes.c_void_p),
        ("whole", ctypes.c_ssize_t),
        *((name, ctypes.c_void_p) for name in ("inputs", "targets", "index", "present", "shares", "active", "keys")),
        *((name, ctypes.c_void_p) for name in ("real", "aims", "updates")),
        *((name, ctypes.c_ssize_t) for name in ("low", "high", "over", "threads")),
        *((name, ctypes.c_void_p) for name in ("losses", "norms")),
    )
