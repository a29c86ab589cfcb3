"""Samples: inputs, targets and weights, gathered and moved in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Inputs: TypeAlias = "Tensor | tuple[Tensor, ...] | dict[str, Tensor]"

Features = tuple[int, ...] | tuple[tuple[int, ...], ...] | dict[str, tuple[int, ...]]
"""The shape of one sample, or a tuple or a dict of the shapes of its inputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """inputs (N, *feature), or a tuple or a dict of such; targets (N,): class numbers, or the regression target.

    `weights` (N,) float32, not negative, or None: how much each sample counts where it is trained on. A batch's loss is
    the weighted sum over its samples, divided by the sum of their weights, as torch's `cross_entropy(weight=...)`.
    Evaluation never reads them: validation has some only for the day it is joined to training.
    """

    inputs: Inputs
    targets: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def features(self) -> Features:
        if isinstance(self.inputs, tuple):
            return tuple(tuple(part.shape[1:]) for part in self.inputs)
        if isinstance(self.inputs, dict):
            return {name: tuple(part.shape[1:]) for name, part in self.inputs.items()}
        return tuple(self.inputs.shape[1:])

    def take(self, index: Tensor | slice) -> Samples:
        """The samples at an index of any shape, (..., *feature), or in a slice, which copies nothing."""
        weights = None if self.weights is None else _take(self.weights, index)
        return Samples(each(lambda part: _take(part, index), self.inputs), _take(self.targets, index), weights)

    def to(self, device: torch.device) -> Samples:
        weights = None if self.weights is None else self.weights.to(device)
        return Samples(each(lambda part: part.to(device), self.inputs), self.targets.to(device), weights)

    def join(self, other: Samples) -> Samples:
        """These samples, then the other ones. Where only some have weights, each of the rest weighs 1."""
        import torch

        weights = None
        if self.weights is not None or other.weights is not None:
            both = (torch.ones(len(own)) if own.weights is None else own.weights for own in (self, other))
            weights = torch.cat(list(both))
        inputs = each(lambda *parts: torch.cat(parts), self.inputs, other.inputs)
        return Samples(inputs, torch.cat([self.targets, other.targets]), weights)


def _take(part: Tensor, index: Tensor | slice) -> Tensor:
    if isinstance(index, slice):
        return part[index]
    # Copies whole samples: a third of the time of part[index], which gives the same.
    return part.index_select(0, index.flatten()).view(*index.shape, *part.shape[1:])


def stored_features(stored: Any) -> Features:
    """The features that a manifest holds, where JSON has made lists of tuples."""
    if isinstance(stored, dict):
        return {name: tuple(shape) for name, shape in stored.items()}
    return tuple(tuple(part) if isinstance(part, list) else part for part in stored)


def each(function: Callable[..., Tensor], inputs: Inputs, *more: Any) -> Inputs:
    """The function of every tensor of the inputs, and of those in the same place of `more`."""
    if isinstance(inputs, tuple):
        return tuple(function(*parts) for parts in zip(inputs, *more, strict=True))
    if isinstance(inputs, dict):
        return {name: function(part, *(own[name] for own in more)) for name, part in inputs.items()}
    return function(inputs, *more)


def tensors(inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the inputs with its name: its key or its place, and "" where it is the only one."""
    if isinstance(inputs, tuple):
        yield from ((str(place), part) for place, part in enumerate(inputs))
    elif isinstance(inputs, dict):
        yield from inputs.items()
    else:
        yield "", inputs
