"""Samples: inputs, targets and weights, gathered and moved in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from tunecli.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tunecli.data.order import Chunked
    from tunecli.data.scaling import Scaling

Inputs: TypeAlias = "Tensor | tuple[Tensor, ...] | dict[str, Tensor]"

LAST, NOWHERE = -1, -2
"""Where the targets of a batch may stand, beside a key."""

TARGET_KEYS = ("label", "labels", "target", "targets", "y")
"""Where the targets of a dict are, unless data.target names them."""

AHEAD = 1 << 18
"""Bytes of inputs that are taken at once for steps to come: a quarter of what lies near a core."""

LEAVES = 4096
"""Samples whose bytes a fingerprint takes at once: a copy of all would double the memory."""

SPREAD = 256
"""Samples of a file that a fingerprint covers."""

Features = tuple[int, ...] | tuple[tuple[int, ...], ...] | dict[str, tuple[int, ...]]
"""The shape of one sample, or a tuple or a dict of the shapes of its inputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """inputs (N, *feature), or a tuple or a dict of such; targets (N,): class numbers, or the regression target.

    `weights` (N,) float32, not negative, or None: how much each sample counts where it is trained on. A batch's loss is
    the weighted sum over its samples, divided by the sum of their weights, as torch's `cross_entropy(weight=...)`.
    Evaluation never reads them: validation has some only for the day it is joined to training.

    Where the study's loss or step is the user's own, targets may be (N, ...); a step may do without, and they are
    (N, 0) then. `target_at` says where they stand in a batch as the user's data have it: None in (inputs, targets), a
    key of the dict, LAST of a flat tuple, NOWHERE.

    Where there is a `scaling`, inputs are raw, the bytes of pictures say, and samples that are taken have float32.

    Samples that stream have their inputs in files: a `Mapped` stands in the place of each tensor, until samples are
    taken, and `chunked` is the order in which they are read.
    """

    inputs: Inputs
    targets: Tensor
    weights: Tensor | None = None
    target_at: str | int | None = None
    scaling: Scaling | None = None
    chunked: Chunked | None = None

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
        found = self.raw(index)
        scaling = self.scaling
        return found if scaling is None else replace(found, inputs=each(scaling, found.inputs), scaling=None)

    def stream(self, wanted: Iterable[Tensor | slice]) -> Iterator[Samples]:
        """What `take` gives of each index in its turn. Where they are the rows of one tensor several are taken at once,
        for it takes longer to ask for small samples than to copy them."""
        from torch import Tensor

        at_once = self._at_once(wanted[:1].numel()) if isinstance(wanted, Tensor) else 1
        if not isinstance(wanted, Tensor) or at_once < 2:  # and nothing is kept while the next is taken
            yield from map(self.take, wanted)
            return
        for several in wanted.split(at_once):  # type: ignore[no-untyped-call]  # torch's own
            found = self.take(several)
            yield from (found.at(place) for place in range(len(several)))

    def _at_once(self, samples: int) -> int:
        """How often so many samples are taken at once: none that stream, for their order is that of their file."""
        if self.chunked is not None:
            return 1
        one = self.take(slice(0, 1))  # as it is taken: bytes become numbers then
        return AHEAD // max(samples * sum(part.nbytes for _, part in tensors(one.inputs)), 1)

    def at(self, place: int) -> Samples:
        """One of what was taken by an index of more than one dimension."""
        return replace(
            self,
            inputs=each(lambda part: part[place], self.inputs),
            targets=self.targets[place],
            weights=None if self.weights is None else self.weights[place],
        )

    def raw(self, index: Tensor | slice) -> Samples:
        """The same, their inputs as they are kept."""
        return replace(
            self,
            inputs=each(lambda part: rows_of(part, index), self.inputs),
            targets=rows_of(self.targets, index),
            weights=None if self.weights is None else rows_of(self.weights, index),
            chunked=None,
        )

    def part(self, index: Tensor) -> Samples:
        """Some of the samples, in rising order; those that stream stay in their files."""
        if self.chunked is None:
            return self.raw(index)
        targets = rows_of(self.targets, index)
        weights = None if self.weights is None else rows_of(self.weights, index)
        chunked = replace(self.chunked, samples=len(index))
        inputs = each(lambda part: part.rows(index), self.inputs)  # a Mapped
        return replace(self, inputs=inputs, targets=targets, weights=weights, chunked=chunked)

    def batch(self) -> Any:
        """The samples as the user's own data have them, for a step: a tensor, a tuple or a dict."""
        if self.target_at is None:
            return self.inputs, self.targets
        if isinstance(self.target_at, str):
            assert isinstance(self.inputs, dict)
            return {**self.inputs, self.target_at: self.targets}
        if self.target_at == NOWHERE:
            return self.inputs
        assert isinstance(self.inputs, tuple)
        return *self.inputs, self.targets

    def to(self, device: torch.device) -> Samples:
        weights = None if self.weights is None else self.weights.to(device)
        inputs = each(lambda part: part.to(device), self.inputs)
        scaling = None if self.scaling is None else self.scaling.to(device)
        return replace(self, inputs=inputs, targets=self.targets.to(device), weights=weights, scaling=scaling)

    def leaves(self) -> Iterator[bytes]:
        """What a fingerprint is made of: every tensor, its kind and its bytes; inputs as they are when taken."""
        more = () if self.weights is None else (("weights", self.weights),)
        for name, tensor in (*tensors(self.inputs), ("", self.targets), *more):
            scaling = None if tensor is self.targets or tensor is self.weights else self.scaling
            kind = tensor.dtype if scaling is None else "torch.float32"
            yield f"{name}{kind}{tuple(tensor.shape)}".encode()
            # Of a file a part has to do: to read all of it may take as long as an epoch.
            mapped = self.chunked is not None and tensor is not self.targets and tensor is not self.weights
            for part in [_spread(tensor)] if mapped else tensor.split(LEAVES):
                yield _bytes(part if scaling is None else scaling(part))

    def join(self, other: Samples) -> Samples:
        """These samples, then the other ones. Where only some have weights, each of the rest weighs 1."""
        import torch

        weights = None
        if self.weights is not None or other.weights is not None:
            both = (torch.ones(len(own)) if own.weights is None else own.weights for own in (self, other))
            weights = torch.cat(list(both))
        chunked = None if self.chunked is None else replace(self.chunked, samples=len(self) + len(other))
        inputs = each(_joined if chunked is None else _joined_in_files, self.inputs, other.inputs)
        targets = torch.cat([self.targets, other.targets])
        return replace(self, inputs=inputs, targets=targets, weights=weights, chunked=chunked)


def _bytes(tensor: Tensor) -> bytes:
    import torch

    # NumPy has no bfloat16.
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _joined(first: Tensor, second: Tensor) -> Tensor:
    import torch

    return torch.cat([first, second])


def _joined_in_files(first: Any, second: Any) -> Any:
    return first.join(second)


def _spread(mapped: Any) -> Tensor:
    """Some rows, evenly spread over all."""
    import torch

    return cast("Tensor", mapped.take(torch.linspace(0, len(mapped) - 1, SPREAD, dtype=torch.float64).long()))


def rows_of(part: Tensor, index: Tensor | slice) -> Tensor:
    """The rows of an index of any shape, or in a slice, which copies nothing of a tensor; of a list (texts, say) those
    in a slice."""
    if hasattr(part, "rows"):
        found: Tensor = part.take(index)  # type: ignore[arg-type]  # a Mapped, which takes slices as well
        return found
    if isinstance(index, slice):
        return part[index]
    # Copies whole samples: a third of the time of part[index], which gives the same.
    return part.index_select(0, index.flatten().to(part.device)).view(*index.shape, *part.shape[1:])


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


def target_key(sample: Mapping[Any, Any], named: str | None, source: str, *, alone: bool) -> str | None:
    """The key of the targets of a dict: the one that data.target names, else the usual ones. Raises DataError."""
    if named is not None:
        if named not in sample:
            known = [str(key) for key in sample]
            raise DataError(f"{source} returned no {named!r}, which data.target names", hint=did_you_mean(named, known))
        return named
    found = [key for key in TARGET_KEYS if key in sample]
    if len(found) == 1 or alone:
        return found[0] if len(found) == 1 else None
    which = " and ".join(repr(key) for key in found) if found else ", ".join(map(str, sample))
    raise DataError(
        f"{source} returned a dict of {which}: which key is the target?", hint='name it: target = "KEY" in [data]'
    )
