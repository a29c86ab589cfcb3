"""Dropout drawn by a counter hash of (run, epoch, sample, module, element): the same whatever is computed beside it.

A hash of its own and no generator: what is drawn depends neither on the order of the samples nor on how many are read
at once. Whole numbers below 2**32 in int64, which no device rounds and nothing overflows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


class Dropout:
    """Elements set to zero with probability p, the others scaled by 1 / (1 - p) (Srivastava et al. 2014)."""

    def __init__(self, module: nn.Dropout, number: int) -> None:
        self._p, self._number = module.p, number
        self._scale = 1 / (1 - module.p) if module.p < 1 else 0.0
        self._keys: Tensor | None = None
        self._elements: Tensor | None = None

    def draw_by(self, keys: Tensor | None) -> None:
        """Draw the coming pass by these keys (B, m); None lets everything through, as in evaluation."""
        self._keys = keys

    def forward(self, inputs: Tensor) -> Tensor:
        if self._keys is None or not self._p:
            self._kept = None
            return inputs
        drawn = self._draw(self._keys, inputs[0, 0].numel())  # (B, m, E)
        kept = (drawn >= round(self._p * 2**32)).to(inputs.dtype).mul_(self._scale)
        self._kept = kept.view(inputs.shape)
        return inputs * self._kept

    def _draw(self, keys: Tensor, elements: int) -> Tensor:
        if self._elements is None:
            place = torch.arange(elements, device=keys.device) + self._number * 0x9E3779B1
            self._elements = mix(place & MASK)
        drawn = keys[..., None] ^ self._elements
        drawn.mul_(FACTOR).bitwise_and_(MASK)
        drawn.bitwise_xor_(drawn >> 16)
        return drawn.mul_(FACTOR).bitwise_and_(MASK)

    def backward(self, gradient: Tensor, further: bool) -> Tensor | None:
        return gradient if self._kept is None else gradient.mul_(self._kept)
