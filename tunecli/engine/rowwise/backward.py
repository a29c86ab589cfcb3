"""Where the gradients of a network's lines lie, and which of its layers write them or add to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tunecli.engine.rowwise.layers import KINDS, Layer

_IN_PLACE = {
    "add",
    "weigh",
    "shift",
    "normalize",
    "softmax",
    "log_softmax",
    "batch_norm",
    *KINDS[KINDS.index("dropout") :],
}
"""Layers that may write the gradient of what they read over that of what they give."""


@dataclass(frozen=True, slots=True)
class Source:
    """Lines that a layer reads, and where their gradient begins, -1 where none is wanted: it is added to what is there
    or written over it."""

    lines: range
    gradient: int = -1
    add: bool = False


@dataclass(slots=True)
class Backward:
    """How a layer's gradient is passed on: where that of its outputs begins, what has to be cleared before, and whether
    its weight's and its bias's gradients are the first of those weights. A gather adds to the lines `gathered`, or to
    none where that is below 0."""

    wanted: bool
    gradient: int = 0
    cleared: list[range] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    gathered: Tensor | None = None
    fresh: tuple[bool, bool] = (True, True)


def backward_of(layers: Sequence[Layer], inputs: int, trained: frozenset[int]) -> tuple[list[Backward], int]:
    """For each of the layers of a network with so many inputs, and how many lines all gradients need at once. The
    weights at some places are `trained`.

    The last layer's gradient has one line more, for the losses.
    """
    return _Gradients(layers, inputs, trained).passed_on()


class _Gradients:
    def __init__(self, layers: Sequence[Layer], inputs: int, trained: frozenset[int]) -> None:
        self._layers = layers
        self._starts = torch.tensor([inputs, *(layer.outputs for layer in layers)]).cumsum(0)
        self._room, self._begun = _Room(), torch.zeros(int(self._starts[-1]), dtype=torch.bool)
        self._found: list[Backward] = []
        for layer in layers:
            above = any(self._found[own].wanted for own in self._read(layer) if own >= 0)
            self._found.append(Backward(above or not trained.isdisjoint((layer.weight, layer.bias))))
        self._placed: set[int] = set()  # whose gradient has a place

    def passed_on(self) -> tuple[list[Backward], int]:
        last, used = len(self._layers) - 1, set[int]()
        self._place(last, 1)
        self._begun[self._own(last).start :] = True
        for place in reversed(range(last + 1)):
            layer, found = self._layers[place], self._found[place]
            found.fresh = layer.weight not in used, layer.bias not in used
            used |= {layer.weight, layer.bias}
            if found.wanted:
                if place not in self._placed and layer.outputs:  # nothing reads it
                    self._place(place)
                self._clear(found, self._own(place))
            if layer.kind == "gather":
                found.gathered = self._gathered(found, layer)
            else:
                found.sources = [self._source(place, lines, first=not k) for k, lines in enumerate(layer.reads)]
            given_on = any(own.gradient == found.gradient and not own.add for own in found.sources)
            if place in self._placed and not given_on:
                self._room.free(found.gradient)
        return self._found, self._room.most

    def _source(self, place: int, lines: range, *, first: bool) -> Source:
        owner, layer, found = self._owner(lines.start), self._layers[place], self._found[place]
        unlearned = layer.kind == "embedding" or (layer.kind == "mask" and not first)
        if unlearned or not found.wanted or owner < 0 or not self._found[owner].wanted:
            return Source(lines)
        own = self._own(owner)
        if owner not in self._placed:
            if layer.kind in _IN_PLACE and first and lines == own:
                self._found[owner].gradient = found.gradient
                self._placed.add(owner)
                self._begun[own.start : own.stop] = True
                return Source(lines, found.gradient)
            self._place(owner)
        add = bool(self._begun[lines.start : lines.stop].any())
        if add:
            self._clear(found, lines)
        self._begun[lines.start : lines.stop] = True
        return Source(lines, self._found[owner].gradient + lines.start - own.start, add)

    def _gathered(self, found: Backward, layer: Layer) -> Tensor:
        assert layer.elements is not None
        lines = layer.elements.long()
        gradients = torch.full_like(lines, -1)
        for owner in self._read(layer) if found.wanted else ():
            if owner < 0 or not self._found[owner].wanted:
                continue
            if owner not in self._placed:
                self._place(owner)
            own = self._own(owner)
            here = (lines >= own.start) & (lines < own.stop)
            self._clear(found, range(int(lines[here].min()), int(lines[here].max()) + 1))
            gradients[here] = lines[here] - own.start + self._found[owner].gradient
        return gradients

    def _place(self, place: int, more: int = 0) -> None:
        self._found[place].gradient = self._room.take(self._layers[place].outputs + more)
        self._placed.add(place)

    def _clear(self, found: Backward, lines: range) -> None:
        """Have a layer clear what nothing was written to yet, of lines of one layer."""
        owner = self._owner(lines.start)
        start = self._found[owner].gradient - self._own(owner).start
        begun = self._begun[lines.start : lines.stop]
        edges = torch.diff((~begun).int(), prepend=torch.zeros(1), append=torch.zeros(1))
        for low, high in zip(
            *(own.flatten().tolist() for own in (edges.eq(1).nonzero(), edges.eq(-1).nonzero())), strict=True
        ):
            found.cleared.append(range(start + lines.start + low, start + lines.start + high))
        begun[:] = True

    def _read(self, layer: Layer) -> list[int]:
        """The layers of which a layer reads something; -1 are the inputs."""
        if layer.kind != "gather":
            return [self._owner(own.start) for own in layer.reads]
        assert layer.elements is not None
        return sorted({*(torch.searchsorted(self._starts, layer.elements.long(), right=True) - 1).tolist()})

    def _owner(self, line: int) -> int:
        """The layer that gives a line, -1 where it is an input."""
        return int(torch.searchsorted(self._starts, line, right=True)) - 1

    def _own(self, place: int) -> range:
        return range(int(self._starts[place]), int(self._starts[place + 1]))


class _Room:
    """Places for lines, each given to someone else when it is free again."""

    def __init__(self) -> None:
        self._taken: list[range] = []
        self.most = 0

    def take(self, count: int) -> int:
        """The first place at which so many are free."""
        start = 0
        for own in self._taken:
            if own.start - start >= count:
                break
            start = own.stop
        self._taken = sorted([*self._taken, range(start, start + count)], key=lambda own: own.start)
        self.most = max(self.most, start + count)
        return start

    def free(self, start: int) -> None:
        self._taken = [own for own in self._taken if own.start != start]
