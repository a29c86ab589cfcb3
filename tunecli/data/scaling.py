"""How raw inputs of a file become the numbers that a model reads: learned once, applied when samples are taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunecli.data.samples import rows_of

LARGEST = float(np.finfo(np.float32).max)
"""What training can hold. In a table a number beyond it, infinities included, counts as missing."""

LEARNED_AT_ONCE = 1 << 24
"""Numbers that are widened to float64 at once where mean and scale are learned: 128 MiB."""

KEPT_RAW = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.bool)
"""What is a half of float32 at most, and so stays as it is in memory until samples are taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """(input - mean) / scale as float32. Both are numbers (), or hold one a feature (F,); no mean is one of zero."""

    mean: Tensor | None
    scale: Tensor

    @classmethod
    def of(cls, learned: Mapping[str, Any]) -> Scaling:
        """What `learn` found, read back from a manifest."""
        mean = torch.tensor(learned["mean"])
        return cls(mean if mean.any() else None, torch.tensor(learned["scale"]))

    def __call__(self, inputs: Tensor) -> Tensor:
        values = inputs.float()
        if self.mean is not None:
            values = values - self.mean
        # In place where it is a copy by now: temporaries of all samples at once would be as large as they are.
        values = values / self.scale if values is inputs else values.div_(self.scale)
        return values.clamp_(-LARGEST, LARGEST) if inputs.is_floating_point() else values

    def of_bytes(self, kind: torch.dtype) -> Tensor | None:
        """What becomes of inputs of one byte each, (256,) float32 by how it reads unsigned; None for inputs of another
        kind, or where that depends on the feature."""
        if kind.itemsize > 1 or self.scale.dim() or (self.mean is not None and self.mean.dim()):
            return None
        return self(torch.arange(256, dtype=torch.uint8).view(kind))

    def to(self, device: torch.device) -> Scaling:
        return Scaling(None if self.mean is None else self.mean.to(device), self.scale.to(device))


UNSCALED = {"mean": 0.0, "scale": 1.0}
"""Numbers that are taken as they are, by a model that reads float32 alone."""

BYTES = {"mean": 0.0, "scale": 255.0}


def learn(train: Tensor, fitted: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and scale of the training inputs (N, *feature), a number each; of flat ones a list, one a feature. Bytes are
    pictures, whose 0 to 255 become 0 to 1 whatever the samples.

    `fitted` is an earlier preprocessing to be used instead, where it fits.
    """
    if fitted.get("kind") == "array" and np.size(fitted["mean"]) in (1, train.shape[-1]):
        return {"mean": fitted["mean"], "scale": fitted["scale"]}
    if train.dtype == torch.uint8:
        return dict(BYTES)
    axes = (0,) if train.dim() == 2 else tuple(range(train.dim()))
    samples = max(1, LEARNED_AT_ONCE // max(1, math.prod(train.shape[1:])))
    count, mean, variance = 0, torch.zeros(()), torch.zeros(())
    for low in range(0, len(train), samples):
        part = rows_of(train, slice(low, low + samples)).double()
        own_variance, own_mean = torch.var_mean(part, axes, correction=0)
        # Chan et al. 1983: the moments of two sets together from those of each.
        share = len(part) / (count + len(part))
        apart = own_mean - mean
        variance = own_variance if not count else variance + share * (own_variance - variance + (1 - share) * apart**2)
        mean = own_mean if not count else mean + share * apart
        count += len(part)
    scale = variance.sqrt()
    return {"mean": mean.tolist(), "scale": torch.where(scale > 0, scale, 1.0).tolist()}
