"""A user's own data function: arrays, tensors and Datasets, taken as they are.

It returns one set of samples, to be split, or three, train, validation and test, or two, train and test, the first of
which is split into train and validation. A set is a pair (inputs, targets), its
inputs a tensor or an array, a tuple or a dict of them; a dict of arrays with its targets in it; a torch Dataset; or a
DataLoader, which gives its Dataset and its collate_fn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from tunecli.data.prepare import Wishes
from tunecli.data.raw import Arrays, Part, Stream, StreamPart
from tunecli.data.samples import LAST, NOWHERE, target_key
from tunecli.data.split import PARTS
from tunecli.data.stream import read_all
from tunecli.errors import DataError
from tunecli.source import call, function_name, source_file

_HINT = "return (inputs, targets), or three such pairs: train, validation, test"


def _hint(returned: Any) -> str:
    """What to return instead: many have arrays side by side."""
    parts = returned if isinstance(returned, tuple | list) else ()
    if len(parts) in (4, 6) and all(len(getattr(part, "shape", ())) for part in parts):
        return "return pairs: (inputs, targets) of train, and of test, or of all three parts"
    return _HINT


def read(source: str, keys: Mapping[str, Any], base: Path, wishes: Wishes) -> Arrays | Stream:
    """Call `file.py:function` with the keys of [data]. Raises SourceError from it, DataError for what it returns."""
    path, returned = source_file(source, base), call(source, keys, base)
    name = f"{path.name}:{function_name(source)}"  # a file may have several
    reader = _Reader(source, wishes.target, wishes.targets == "optional", wishes.workers)
    parts = [reader.part(value) for value in _sets(returned) or (returned,)]
    notices = [notice for part in parts if isinstance(part, StreamPart) for notice in part.notices]
    if len(parts) == 2 and not isinstance(returned, Mapping):
        notices.append(f"{name}: the second of its two sets is the test split")
        _check_unlike(source, parts)
    if wishes.cache:
        parts, told = _cached(parts, reader, path, wishes.seed)
        notices += told
    if all(isinstance(part, Part) for part in parts):
        places = {part.target_at for part in parts if isinstance(part, Part)}
        if len(places) > 1:
            raise DataError(f"{source} returned sets of different kinds", hint=_HINT)
        pairs = tuple((part.inputs, part.targets) for part in parts if isinstance(part, Part))
        return Arrays(name, pairs, target_at=places.pop(), notices=tuple(dict.fromkeys(notices)))
    if not all(isinstance(part, StreamPart) for part in parts):
        raise DataError(f"{source} returned both tensors and Datasets", hint="return sets of one kind")
    streams = tuple(part for part in parts if isinstance(part, StreamPart))
    return Stream(name, source, path, streams, wishes.target, tuple(dict.fromkeys(notices)))


def _check_unlike(source: str, parts: Sequence[Part | StreamPart]) -> None:
    """Raises DataError where two sets could as well be inputs and targets, of two each."""
    plain = [own for own in parts if isinstance(own, Part) and not isinstance(own.inputs, tuple | dict)]
    shapes = {(np.shape(own.inputs), np.shape(own.targets)) for own in plain}
    if len(plain) == 2 and len(shapes) == 1:
        raise DataError(
            f"{source} returned two pairs of one size: train and test, or inputs and targets?",
            hint='name them: return {"train": (inputs, targets), "test": (inputs, targets)}',
        )


def read_inputs(source: str, base: Path) -> Any:
    """The inputs alone that `file.py:function` returns, with or without targets beside them."""
    returned = call(source, {}, base)
    if isinstance(returned, tuple) and not _is_pair(returned):
        raise DataError(f"{source} returned {_describe(returned)}", hint="return the inputs, or (inputs, targets)")
    rows = returned if isinstance(returned, list) and not _is_pair(returned) else None
    part = _Reader(source, None, alone=True).part(returned if rows is None else np.asarray(rows))
    if isinstance(part, StreamPart):
        raise DataError(f"{source} returned {_describe(returned)}", hint="return the inputs as tensors or arrays")
    if not isinstance(part.inputs, tuple | dict) and part.inputs.ndim < 2:
        shape = tuple(part.inputs.shape)
        raise DataError(f"{source} returned inputs of shape {shape}", hint="return (samples, features...)")
    return part.inputs


def _cached(
    parts: list[Part | StreamPart], reader: _Reader, path: Path, seed: int
) -> tuple[list[Part | StreamPart], list[str]]:
    """The same with all items in memory, or as they were, with a notice why."""
    found = [part if isinstance(part, Part) else read_all(reader.source, path, part, seed) for part in parts]
    why = next((own for own in found if isinstance(own, str)), None)
    if why is not None:
        return parts, [f"{reader.source}: not cached, {why}; its items are read each epoch"]
    return [own if isinstance(own, Part) else reader.collated(own) for own in found], []


def _sets(returned: Any) -> tuple[Any, ...] | None:
    """The two or three sets of samples, if it is so many; a dict may name them."""
    if isinstance(returned, Mapping):
        lower = {str(name).lower(): part for name, part in returned.items()}
        named = {_NAMES.get(name, name): part for name, part in lower.items()}
        parts = next((own for own in (PARTS, _WITHOUT_VALIDATION) if set(own) == set(named)), None)
        return None if parts is None else tuple(named[part] for part in parts)
    if isinstance(returned, tuple | list) and len(returned) in (2, 3) and not _is_pair(returned):
        return tuple(returned) if all(map(_is_set, returned)) else None
    return None


_NAMES = {"val": "validation", "valid": "validation"}
_WITHOUT_VALIDATION = ("train", "test")


def _is_set(value: Any) -> bool:
    if _is_pair(value):
        return not any(isinstance(own, int | float) for own in value)  # two targets, say
    return isinstance(value, Mapping) or _is_dataset(value)


def _is_pair(value: Any) -> bool:
    # Two pairs are no pair; an `inputs` list of two rows is none either.
    if not isinstance(value, tuple | list) or len(value) != 2 or _is_dataset(value[0]):
        return False
    first, second = value
    if isinstance(first, list) and len(first) == 2 and len(getattr(first[0], "shape", ())) > 1:
        return False
    if isinstance(second, Mapping):
        return False
    return not (isinstance(second, tuple | list) and any(len(getattr(own, "shape", ())) for own in second))


def _is_dataset(value: Any) -> bool:
    """A torch Dataset or DataLoader, or what is like one: a Hugging Face Dataset has items and a length."""
    if isinstance(value, Dataset | DataLoader):
        return True
    plain = isinstance(value, str | bytes | tuple | list | Mapping | type) or hasattr(value, "shape")
    return not plain and hasattr(value, "__getitem__") and hasattr(value, "__len__")


class _Reader:
    """Recognises one set of samples."""

    def __init__(self, source: str, target: str | None, alone: bool, workers: int | None = None) -> None:
        self.source, self._target, self._alone, self._workers = source, target, alone, workers

    def collated(self, batch: Any) -> Part:
        """A set of samples from all its items, collated."""
        if isinstance(batch, tuple | list) and len(batch) != 2:
            batch = TensorDataset(*batch)
        elif isinstance(batch, tuple | list) and isinstance(batch[0], list):
            batch = tuple(batch[0]), batch[1]
        found = self.part(batch)
        assert isinstance(found, Part)
        return found

    def part(self, value: Any) -> Part | StreamPart:
        if _is_dataset(value):
            return self._dataset(value)
        if isinstance(value, Mapping):
            return self._dict(value)
        if _is_pair(value):
            inputs, targets = value
            return self._checked(self._inputs(inputs), targets, None)
        if self._alone and len(getattr(value, "shape", ())) > 0:
            return self._checked(self._array(value, "inputs"), None, NOWHERE)
        raise DataError(f"{self.source} returned {_describe(value)}", hint=_hint(value))

    def _dataset(self, value: Any) -> Part | StreamPart:
        collate: Callable[[list[Any]], Any] = default_collate
        notices: tuple[str, ...] = ()
        workers = self._workers or 0
        if isinstance(value, DataLoader):
            notices = (f"{self.source}: the DataLoader's batch size and order are not used, trials have theirs",)
            collate = value.collate_fn if value.batch_size is not None else default_collate
            workers = value.num_workers if self._workers is None else workers
            value = value.dataset
        if isinstance(value, IterableDataset) or not hasattr(value, "__len__"):
            raise DataError(
                f"{self.source} returned {type(value).__name__}, whose items have no numbers",
                hint="each trial reads in an order of its own: return a Dataset with __getitem__ and __len__",
            )
        tensors = _plain_tensors(value) if collate is default_collate else None
        if tensors is None:
            return StreamPart(value, collate, notices, workers)
        if len(tensors) == 1 and not self._alone:
            raise DataError(f"{self.source} returned TensorDataset of 1 tensor", hint=_HINT)
        if len(tensors) == 1:
            return self._checked(tensors, None, NOWHERE)
        *inputs, targets = tensors
        if len(inputs) == 1:
            return self._checked(inputs[0], targets, None)
        return self._checked(tuple(inputs), targets, LAST)

    def _dict(self, value: Mapping[Any, Any]) -> Part:
        key = target_key(value, self._target, self.source, alone=self._alone)
        inputs = {str(name): self._array(part, str(name)) for name, part in value.items() if name != key}
        if not inputs:
            raise DataError(
                f"{self.source} returned a dict of {key!r} alone", hint="give the inputs beside the targets"
            )
        return self._checked(inputs, None if key is None else value[key], NOWHERE if key is None else key)

    def _inputs(self, inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            return {str(name): self._array(part, str(name)) for name, part in inputs.items()}
        if isinstance(inputs, tuple) and all(len(getattr(part, "shape", ())) for part in inputs):
            return tuple(self._array(part, f"input {place}") for place, part in enumerate(inputs))
        return self._array(inputs, "inputs")

    def _checked(self, inputs: Any, targets: Any, target_at: str | int | None) -> Part:
        every = inputs.items() if isinstance(inputs, dict) else enumerate(inputs) if isinstance(inputs, tuple) else ()
        lengths = {name: len(part) for name, part in every} or {"inputs": len(inputs)}
        if not isinstance(inputs, dict | tuple) and inputs.ndim < 2 and not self._alone:
            shape = tuple(inputs.shape)
            raise DataError(f"{self.source} returned inputs of shape {shape}", hint="inputs are (samples, features...)")
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{length} of {name!r}" for name, length in lengths.items())
            raise DataError(f"{self.source} returned {told}", hint="each sample has one of each input")
        samples = next(iter(lengths.values()))
        if target_at == NOWHERE:
            return Part(inputs, np.empty((samples, 0), dtype=np.float32), target_at)
        given, targets = targets, self._array(targets, "targets")
        if targets.ndim < 1:
            raise DataError(f"{self.source} returned {_describe(given)} for targets", hint=_HINT)
        if len(targets) != samples:
            raise DataError(
                f"{self.source} returned {samples} inputs and {len(targets)} targets", hint="each sample has one target"
            )
        return Part(inputs, targets, target_at)

    def _array(self, part: Any, role: str) -> Any:
        """A tensor as it is; a frame, a series or a list as an array."""
        if isinstance(part, Tensor):
            return part
        try:
            array = np.asarray(part)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{self.source} returned {role} that are no array: {' '.join(str(error).split())}",
                hint="return arrays, tensors, or lists of one shape",
            ) from error
        if role != "targets" and hasattr(part, "columns") and array.dtype == object:
            raise DataError(
                f"inputs must be numbers, got {array.dtype}",
                hint="turn text and dates into numbers first, or name the table's file itself as data.source",
            )
        return array


def _plain_tensors(dataset: Any) -> tuple[Tensor, ...] | None:
    """The tensors of a TensorDataset, or of a Subset of one; None for any other Dataset."""
    if type(dataset) is TensorDataset:
        return dataset.tensors
    if type(dataset) is Subset and (whole := _plain_tensors(dataset.dataset)) is not None:
        return tuple(tensor[list(dataset.indices)] for tensor in whole)
    return None


def _describe(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}: {', '.join(type(part).__name__ for part in value[:4])}"
    return type(value).__name__
