"""Tables looked up for all rows at once, of which each has its own: vmap gives the padding of all rows but the first a
gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunecli.engine.rowwise.called import Unrecordable, called
from tunecli.engine.rowwise.images import by_rows


def looked_up(tables: Tensor, indices: Tensor, padding: int | None) -> Tensor:
    """Rows of tables (B, N, E) by whole numbers (B, ...) -> (B, ..., E); `padding` is the row that learns nothing."""
    return torch.embedding(tables.flatten(0, 1), _among_all(indices, tables.shape[1]))


def _among_all(indices: Tensor, rows: int) -> Tensor:
    """The same in tables of so many rows that stand one after the other."""
    return indices + torch.arange(0, len(indices) * rows, rows).to(indices).view(-1, *[1] * (indices.dim() - 1))


class _LookedUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tables: Tensor, indices: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.shape, ctx.padding = tables.shape, padding
        return called(looked_up, tables, indices, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        (indices,), (gradient,), (tables, rows, _) = ctx.saved_tensors, gradients, ctx.shape
        if ctx.padding is not None:
            gradient = gradient.masked_fill((indices == ctx.padding)[..., None], 0.0)
        places = _among_all(indices, rows)
        found = torch.ops.aten.embedding_dense_backward(gradient, places, tables * rows, -1, False)
        return found.view(ctx.shape), None, None


def _alone(tables: Tensor, indices: Tensor, padding: int | None) -> Tensor:
    return torch.nn.functional.embedding(indices, tables, padding)


_BY_ROWS = by_rows(_LookedUp, _alone)


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """torch's own. Raises Unrecordable where a batch changes the table, or the gradient."""
    if max_norm is not None or scale_grad_by_freq:
        raise Unrecordable("its nn.Embedding has max_norm or scale_grad_by_freq")
    found: Tensor = _BY_ROWS.apply(weight, input, None if padding_idx is None else padding_idx % len(weight))
    return found
