"""Dropout drawn by a counter hash of (run, epoch, sample, module, element): the same whatever is computed beside it.

A hash of its own and no generator: what is drawn depends neither on the order of the samples nor on how many are read
at once. Whole numbers below 2**32 in int64, which no device rounds and nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MASK = 0xFFFFFFFF
# Thomas Mueller's multiplier, found by search: a changed bit of the input changes each of the output with odds of half.
FACTOR = 0x45D9F3B


def mix(numbers: Tensor) -> Tensor:
    """A hash of whole numbers in [0, 2**32) to such numbers."""
    mixed = (numbers ^ (numbers >> 16)) * FACTOR & MASK
    mixed = (mixed ^ (mixed >> 16)) * FACTOR & MASK
    return mixed ^ (mixed >> 16)


def sample_keys(seeds: Tensor, index: Tensor) -> Tensor:
    """What a run draws for a sample in an epoch: (B, m) from seeds (B,) below 2**32 and the samples' numbers (B, m)."""
    return mix(mix(index & MASK) ^ seeds[:, None])


@dataclass(frozen=True, slots=True)
class Draw:
    """Ones with odds of `odds`, else zeros, in a tensor (B, *shape). Its m samples stand at `axis`; at 1 there may be
    several in the place of each, one after the other, as in (B, m * heads, ...)."""

    odds: float
    shape: tuple[int, ...]
    axis: int
    elements: Tensor


def which_draw(func: Any, args: Any, keys: Tensor, number: int) -> Draw | None:
    """What a call of torch draws for a model's `number`-th dropout; None where that is no dropout of m samples."""
    if func not in _ODDS:
        return None
    shape, (rows, samples) = tuple(args[0].shape), keys.shape
    axis = 1 if len(shape) > 1 and shape[1] % samples == 0 else None
    axis = axis or next((place for place, size in enumerate(shape) if place > 1 and size == samples), None)
    if axis is None or shape[0] != rows:
        return None
    place = torch.arange(args[0].numel() // keys.numel(), device=keys.device) + number * 0x9E3779B1
    odds = args[1] if len(args) > 1 else 0.5  # torch leaves out what is its default
    return Draw(_ODDS[func](odds), shape, axis, mix(place & MASK))


_ODDS: dict[Any, Callable[[float], float]] = {
    torch.ops.aten.bernoulli_.float: lambda odds: odds,
    torch.ops.aten.bernoulli.p: lambda odds: odds,
    torch.ops.aten.native_dropout.default: lambda p: 1 - p,
}


def noise(keys: Tensor, elements: Tensor, odds: float, shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> Tensor:
    """The ones and zeros of a draw for the keys of the samples (B, m)."""
    drawn = keys[..., None] ^ elements  # (B, m, E)
    drawn.mul_(FACTOR).bitwise_and_(MASK)
    drawn.bitwise_xor_(drawn >> 16)
    kept = (drawn.mul_(FACTOR).bitwise_and_(MASK) >= round((1 - odds) * 2**32)).to(dtype)
    if axis == 1:
        return kept.view(shape)
    others = [size for place, size in enumerate(shape) if place not in (0, axis)]
    return kept.view(*keys.shape, *others).movedim(1, axis)


class Drawing(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """While it holds, dropout in a module's own forward pass is drawn for the keys (m,) of the samples it reads."""

    def __init__(self, keys: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._keys, self._drawn = keys[None], 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `record`

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        draw = which_draw(func, (args[0][None], *args[1:]), self._keys, self._drawn) if func in _ODDS else None
        if draw is None:
            return func(*args, **(kwargs or {}))
        self._drawn += 1
        like = args[0]
        kept = noise(self._keys, draw.elements, draw.odds, draw.shape, draw.axis, like.dtype)[0]
        if func is torch.ops.aten.bernoulli_.float:
            return like.copy_(kept)
        return (like * kept / draw.odds, kept.bool()) if func is torch.ops.aten.native_dropout.default else kept
