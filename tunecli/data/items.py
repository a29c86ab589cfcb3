"""Items: samples that are read from a Dataset one by one, each time they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import ConcatDataset, Subset

from tunecli.data.randomness import seeded, set_seed
from tunecli.data.readers import Readers
from tunecli.data.samples import LAST, NOWHERE, Features, Samples
from tunecli.errors import DataError, SourceError
from tunecli.source import describe, function_name, load_function
from tunecli.trial import derive_seed

FINGERPRINTED = 16
"""Items that a fingerprint covers, evenly spread: reading all of them may take as long as an epoch."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How items of a Dataset become a batch, and the batch samples. `path` is the user's file, for what it raises."""

    source: str
    path: Path
    collate: Callable[[list[Any]], Any]
    target_at: str | int | None
    task: str | None

    def batch(self, dataset: Any, index: Sequence[int], seed: Callable[[int], int]) -> Any:
        """The items of an index, collated. Whatever an item draws comes from its own seed. Raises SourceError."""
        items = []
        with seeded(0):
            for place in index:
                set_seed(seed(place))
                try:
                    items.append(dataset[place])
                except (Exception, SystemExit) as error:
                    raise SourceError(
                        f"item {place} of {self.source} raised {describe(error, self.path)}",
                        hint="each item from 0 to its length has to be readable",
                    ) from error
            try:
                return self.collate(items)
            except Exception as error:
                raise SourceError(
                    f"items of {self.source} cannot be collated: {describe(error, self.path)}",
                    hint="give items of one shape, or return a DataLoader with a collate_fn",
                ) from error

    def readers(self, dataset: Any, workers: int) -> Readers | None:
        """Processes that read batches of a Dataset; None where there are to be none."""
        return Readers(partial(_read, self, dataset), workers, self.source) if workers else None

    def samples(self, batch: Any, count: int) -> Samples:
        """Inputs and targets of a batch. Raises DataError where it has none."""
        if self.target_at == NOWHERE:
            return Samples(tuple(batch) if isinstance(batch, list) else batch, torch.empty(count, 0), None, NOWHERE)
        if isinstance(self.target_at, str):
            inputs: Any = {str(name): part for name, part in batch.items() if name != self.target_at}
            targets = batch[self.target_at]
        else:
            *inputs, targets = batch
            inputs = tuple(inputs) if self.target_at == LAST else inputs[0]
        inputs = tuple(inputs) if isinstance(inputs, list) else inputs
        for part in tree_leaves(inputs):
            if not isinstance(part, Tensor):
                raise DataError(
                    f"{self.source} returned items with a {type(part).__name__} in their inputs",
                    hint="turn it into a tensor in the Dataset or its collate_fn, or train with a step of your own",
                )
        return Samples(inputs, self._encoded(targets, count), None, self.target_at)

    def _encoded(self, targets: Any, count: int) -> Tensor:
        if not isinstance(targets, Tensor) or targets.shape[:1] != (count,):
            got = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
            raise DataError(
                f"{self.source} returned targets {got}, one a sample is needed", hint="numbers, as tensors are"
            )
        if self.task == "classification":
            return targets.long()
        return targets.to(torch.get_default_dtype()) if self.task == "regression" else targets


def _read(reading: Reading, dataset: Any, places: Sequence[int], seeds: Sequence[int]) -> Any:
    return reading.batch(dataset, places, dict(zip(places, seeds, strict=True)).__getitem__)


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """As Samples, of some items of a Dataset, read anew each time. `seed` gives the seed of an item by its number."""

    dataset: Any
    index: Tensor
    reading: Reading
    features: Features
    seed: Callable[[int], int]
    device: torch.device | None = None
    readers: Readers | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, whose first act is to load the user's file: the Dataset's class is in it."""
        code = _Code(self.reading.path, function_name(self.reading.source))
        return _received, (code, *(getattr(self, own.name) for own in fields(self)))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def weights(self) -> None:
        return None

    def take(self, index: Tensor | slice) -> Samples:
        """The samples of an index (n,) or a slice, read now."""
        chosen = self._chosen(index)
        return self._samples(self.reading.batch(self.dataset, chosen, self.seed), len(chosen))

    def stream(self, wanted: Iterable[Tensor | slice]) -> Iterator[Samples]:
        """What `take` gives of each index in its turn; where there are readers, they read ahead."""
        if self.readers is None:
            yield from map(self.take, wanted)
            return
        asked, known = tee(map(self._chosen, wanted))
        batches = self.readers.batches((chosen, [self.seed(place) for place in chosen]) for chosen in asked)
        for batch, chosen in zip(batches, known, strict=True):
            yield self._samples(batch, len(chosen))

    def _chosen(self, index: Tensor | slice) -> list[int]:
        return self.index[index if isinstance(index, slice) else index.cpu()].tolist()

    def _samples(self, batch: Any, count: int) -> Samples:
        if self.device is not None and self.device.type != "cpu":
            batch = tree_map(lambda part: part.to(self.device) if isinstance(part, Tensor) else part, batch)
        return self.reading.samples(batch, count)

    def drawn_by(self, seed: Callable[[int], int]) -> Items:
        """The same items, what they draw coming from other seeds."""
        return replace(self, seed=seed)

    def to(self, device: torch.device) -> Items:
        return replace(self, device=device)

    def join(self, other: Items) -> Items:
        """These items, then the other ones."""
        both: ConcatDataset[Any] = ConcatDataset([Subset(own.dataset, own.index.tolist()) for own in (self, other)])
        readers = None if self.readers is None else self.reading.readers(both, self.readers.workers)
        return replace(self, dataset=both, index=torch.arange(len(both)), readers=readers)

    def leaves(self) -> Iterator[bytes]:
        """What a fingerprint is made of: the length, and some items. Those that differ from one reading to the next,
        all seeds being the same, have only their kinds in it."""
        yield f"{type(self.dataset).__name__} of {len(self)}".encode()
        for place in np.linspace(0, len(self) - 1, min(FINGERPRINTED, len(self))).round().astype(int).tolist():
            first, second = (
                _leaves(self.reading.batch(self.dataset, [int(self.index[place])], self.seed)) for _ in "12"
            )
            yield from (leaf for leaf, again in zip(first, second, strict=True) if leaf == again)


@dataclass(frozen=True, slots=True)
class _Code:
    """What loads a user's file where it is received."""

    path: Path
    function: str

    def __reduce__(self) -> tuple[Any, ...]:
        return load_function, (f"{self.path.name}:{self.function}", self.path.parent)


def _received(code: Any, *parts: Any) -> Items:
    return Items(*parts)


def _leaves(batch: Any) -> list[bytes]:
    found = []
    for leaf in tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch):
        if isinstance(leaf, Tensor | np.ndarray):
            tensor = torch.as_tensor(leaf)
            found.append(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.append(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        else:
            plain = isinstance(leaf, str | bytes | int | float | None)
            found.append((repr(leaf) if plain else type(leaf).__name__).encode())
    return found


def evaluation_seed(study_seed: int) -> Callable[[int], int]:
    """Items that draw numbers draw the same ones in every evaluation: trials are compared on equal terms."""
    return partial(derive_seed, study_seed, 0, "item")
