"""Operations that take what whole numbers say, of tables or of the samples themselves, as layers of
`network.c`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from tunecli.engine.rowwise.layers import Layer, demand, owners
from tunecli.engine.rowwise.lookup import looked_up
from tunecli.engine.rowwise.pieces import each, group, join, told
from tunecli.engine.rowwise.reader import Codes, Constant, Found, Mask, Operation, Reader, Values, Weights, value_of

aten = torch.ops.aten

MOST_ROWS = 1 << 24
"""Of a table: their numbers are exact in single precision."""


def _copied(reader: Reader, node: fx.Node, given: Any, *, dtype: torch.dtype) -> Found:
    codes = reader.found[given]
    if isinstance(codes, Codes | Mask):
        demand(not getattr(codes, "cut", False))
        demand(dtype in (torch.int64, torch.int32, torch.float32, torch.float64))
        return Values(codes.index) if dtype.is_floating_point else Codes(codes.index)
    demand(dtype == torch.int64)
    return Codes(reader.index(given), cut=True)


def _looked_up(reader: Reader, node: fx.Node, tables: Any, given: Any, padding: int | None) -> Found:
    codes = reader.found[given]
    if isinstance(codes, Constant):  # the places of a sequence, say
        index = reader.weights_of(tables)
        return Weights(torch.stack([own[places.long()] for own, places in zip(index, codes.index, strict=True)]))
    demand(isinstance(codes, Codes))
    weight, (rows, width) = reader.whole(tables), value_of(tables).shape[1:]
    demand(rows <= MOST_ROWS)
    lines, of = reader.lines.read(codes.index), owners(codes.index)
    sizes = rows, width, -1 if padding is None else padding
    layer = Layer("embedding", (lines,), len(lines) * width, weight, sizes=sizes)
    return reader.emit(layer, of[..., None].expand(*of.shape, width))


def _picked(reader: Reader, node: fx.Node, given: Any, places: Any) -> Found:
    """What stands at places that are constants, or one of which whole numbers say."""
    found = reader.found[given]
    demand(isinstance(found, Values | Weights | Codes | Mask))
    known = [None if own is None else reader.found[own] for own in places]
    demand(all(own is None or isinstance(own, Constant | Codes) for own in known))
    at = [None if own is None else own.index for own in known]
    by_codes = [place for place, own in enumerate(known) if isinstance(own, Codes)]
    if not by_codes:
        return replace(found, index=aten.index.Tensor(found.index, at))
    demand(len(by_codes) == 1 and isinstance(found, Values) and None not in at)
    (dim,) = by_codes
    demand(not any(isinstance(own, Codes) and own.cut for own in known))
    codes: Any = at[dim]
    each_of = [[*at[:dim], torch.tensor(own), *at[dim + 1 :]] for own in range(found.index.shape[dim])]
    all_of = torch.stack([aten.index.Tensor(found.index, own) for own in each_of], -1)
    return _chosen(reader, all_of, codes.view(*codes.shape, *[1] * (all_of.dim() - 1 - codes.dim())))


def _gathered(reader: Reader, node: fx.Node, given: Any, dim: int, places: Any) -> Found:
    found, known = reader.found[given], reader.found[places]
    demand(isinstance(found, Values | Weights | Codes | Mask))
    if isinstance(known, Constant):
        return replace(found, index=found.index.gather(dim, known.index))
    demand(isinstance(found, Values) and isinstance(known, Codes) and not known.cut)
    shape = known.index.shape
    index = found.index[tuple(slice(None) if n == dim else slice(own) for n, own in enumerate(shape))]
    return _chosen(reader, index.unsqueeze(dim).movedim(dim + 1, -1).expand(*shape, -1), known.index)


def _chosen(reader: Reader, index: Tensor, codes: Tensor) -> Values:
    """Of each of the last dimension that one which a whole number says, those below zero from the end on."""
    count = index.shape[-1]
    numbers = torch.arange(count, dtype=torch.float64)
    it, backwards = (
        each(reader, "equal", told(reader, "shift", codes.unsqueeze(-1), more - numbers)) for more in (0, count)
    )
    is_none = each(reader, "scale", join(reader, "add", it, backwards), -1.0, 1.0)
    return Values(group(reader, "sum", join(reader, "mask", index, is_none, 0.0)))


CHOICES: dict[Any, Operation] = {
    aten._to_copy.default: _copied,
    looked_up: _looked_up,
    aten.index.Tensor: _picked,
    aten.gather.default: _gathered,
}
