"""BatchNorm for all rows at once, of which each has running statistics of its own: one operation of a graph.

It is there for C of our own, which does not only compute it but changes the statistics too: no graph could.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunecli.engine.norms import BatchNorm
from tunecli.engine.rowwise.called import InCAlone, Unrecordable, called
from tunecli.engine.rowwise.images import by_rows

CUMULATIVE = -1.0
"""A momentum by which all batches so far count alike: torch's None."""


def normed(
    inputs: Tensor,
    mean: Tensor,
    variance: Tensor,
    batches: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    fixed: bool,
    momentum: float,
    epsilon: float,
) -> Tensor:
    """Of rows (B, N, C, ...), by statistics of their own or, where these are `fixed`, by those so far (B, C); `batches`
    (B,), which they come from, and `momentum` say how C has them run on. weight and bias (B, C)."""
    if not fixed:
        others = [dim for dim in range(1, inputs.dim()) if dim != 2]
        variance, mean = torch.var_mean(inputs, others, correction=0)
    shape = len(inputs), 1, -1, *[1] * (inputs.dim() - 3)
    found = (inputs - mean.view(shape)) * (variance + epsilon).rsqrt().view(shape)
    return found if weight is None or bias is None else found * weight.view(shape) + bias.view(shape)


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        return called(normed, *arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise InCAlone("BatchNorm has a gradient in C alone")


def _alone(*arguments: Any) -> Tensor:
    alone: list[Any] = [own[None] if isinstance(own, Tensor) else own for own in arguments]
    return normed(*alone)[0]


_BY_ROWS = by_rows(_Normed, _alone)


def forward(self: BatchNorm, inputs: Tensor) -> Tensor:
    """torch's own, which writes into the running statistics. Raises Unrecordable where there are none."""
    self._check_input_dim(inputs)  # type: ignore[no-untyped-call]  # torch's own
    if self.running_mean is None:
        raise Unrecordable(f"{type(self).__name__} without running statistics mixes the samples of a batch")
    momentum = CUMULATIVE if self.momentum is None else self.momentum
    statistics = self.running_mean, self.running_var, self.num_batches_tracked
    how = not self.training, momentum, self.eps
    found: Tensor = _BY_ROWS.apply(inputs, *statistics, self.weight, self.bias, *how)
    return found
