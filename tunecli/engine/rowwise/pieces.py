"""What torch's operations are made of when they are read: a layer, or a few, of lines that an index tells of."""

from __future__ import annotations

import torch
from torch import Tensor

from tunecli.engine.rowwise.layers import OWNER, Layer, demand, is_of_all, owners
from tunecli.engine.rowwise.reader import Constant, Drawn, Found, Reader, Values, Weights


def each(reader: Reader, kind: str, index: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """A layer that makes one number of one."""
    lines = reader.lines.read(index)
    return reader.lines.emit(Layer(kind, (lines,), len(lines), scale=scale, shift=shift), owners(index))


def join(reader: Reader, kind: str, one: Tensor, other: Tensor, scale: float = 1.0) -> Tensor:
    """A layer that makes one number of two, repeated to have one shape; times a scale the other one is added."""
    one, other = together(reader, one, other)
    of, lines = owners(one), reader.lines.read(one)
    return reader.lines.emit(Layer(kind, (lines, reader.lines.read(other)), len(lines), scale=scale), of)


def told(reader: Reader, kind: str, index: Tensor, values: Tensor) -> Tensor:
    """Lines that are weighed or shifted by constants, truth values say."""
    index, values = alike(index, values if values.is_floating_point() else values.double())
    of, lines = owners(index), reader.lines.read(index)
    layer = Layer(kind, (lines,), len(lines), values=reader.lines.of_samples(of, values).clone())
    return reader.lines.emit(layer, of)


def combined(reader: Reader, kind: str, index: Tensor, other: Found, scale: float = 1.0) -> Tensor:
    """What lines and something else come to where they "add" or "multiply"; the other one times a scale."""
    if isinstance(other, Values):
        return join(reader, kind, index, other.index, scale)
    by_weights = "shift" if kind == "add" else "weigh"
    if isinstance(other, Constant):
        return told(reader, by_weights, index, other.index * scale)
    if isinstance(other, Drawn):
        demand(kind == "multiply")
        return _dropped(reader, index, other)
    demand(isinstance(other, Weights))
    index, beside = alike(index, other.index)
    return reader.weighed(by_weights, index, beside, scale).index


def _dropped(reader: Reader, index: Tensor, drawn: Drawn) -> Tensor:
    index, by = together(reader, index, drawn.index)
    of, lines, dropped = owners(index), reader.lines.read(index), round((1 - drawn.odds) * 2**32)
    demand(dropped < 2**32 and torch.equal(of, owners(by)))
    elements = drawn.elements[reader.lines.of_samples(of, by % OWNER)].to(torch.int32)
    layer = Layer("dropout", (lines,), len(lines), scale=drawn.scale, dropped=dropped, elements=elements)
    return reader.lines.emit(layer, of)


def group(reader: Reader, kind: str, index: Tensor, dims: int = 1, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """A layer whose groups are the last dimensions of what it reads; a sum and a maximum have one number of each."""
    lines, of = reader.lines.read(index), owners(index)
    grouped = of.flatten(index.dim() - dims)
    demand(torch.equal(grouped, grouped[..., :1].expand_as(grouped)))
    sizes = len(lines) // grouped.shape[-1], grouped.shape[-1]
    outputs, of = (sizes[0], grouped[..., 0]) if kind in ("sum", "maximum") else (len(lines), of)
    return reader.lines.emit(Layer(kind, (lines,), outputs, sizes=sizes, scale=scale, shift=shift), of)


def constant(reader: Reader, value: float) -> Tensor:
    """A line that has this number of every sample: its index (2 * m,), by sample."""
    of = torch.arange(2 * reader.samples)
    return reader.lines.emit(Layer("constant", (), 1, values=torch.tensor([value], dtype=torch.float64)), of)


def together(reader: Reader, one: Tensor, other: Tensor) -> list[Tensor]:
    """Both of one shape and of the same samples: what is of all samples is each one's."""
    one, other = alike(one, other)
    of, beside = owners(one), owners(other)
    demand(torch.equal(reader.rows_of(of), reader.rows_of(beside)))
    if is_of_all(one) != is_of_all(other):
        of = beside = of.minimum(beside)
    demand(torch.equal(of, beside))
    return [own % OWNER + of * OWNER for own in (one, other)]


def alike(one: Tensor, other: Tensor) -> list[Tensor]:
    """Both of one shape, repeated."""
    return list(torch.broadcast_tensors(one, other))  # type: ignore[no-untyped-call]  # torch's own
