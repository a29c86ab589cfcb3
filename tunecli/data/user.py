"""A user's own data function: arrays and tensors, taken as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import TensorDataset

from tunecli.data.raw import Arrays
from tunecli.errors import DataError
from tunecli.source import call, load_function, source_file

_HINT = "return (inputs, targets), or three such pairs: train, validation, test"


def read(source: str, keys: Mapping[str, Any], base: Path) -> Arrays:
    """Call `file.py:function` with the keys of [data]. Raises SourceError from it, DataError for what it returns."""
    name = source_file(source, base).stem
    returned = call(load_function(source, base), keys, source)
    if _is_pair(returned):
        return Arrays(name, (_arrays(returned, source),))
    if isinstance(returned, tuple | list) and len(returned) == 3 and all(_is_pair(part) for part in returned):
        return Arrays(name, tuple(_arrays(part, source) for part in returned))
    raise DataError(f"{source} returned {_describe(returned)}", hint=_HINT)


def _is_pair(value: object) -> bool:
    if isinstance(value, TensorDataset):
        return len(value.tensors) == 2
    return isinstance(value, tuple | list) and len(value) == 2 and not _is_pair(value[0])


def _arrays(pair: Any, source: str) -> tuple[Any, Any]:
    inputs, targets = pair.tensors if isinstance(pair, TensorDataset) else pair
    found = tuple(
        part if isinstance(part, Tensor) else np.asarray(part)  # a frame, a series or a list becomes an array
        for part in (inputs, targets)
    )
    if len(found[0].shape) < 2:
        raise DataError(
            f"{source} returned inputs of shape {tuple(found[0].shape)}", hint="inputs are (samples, features...)"
        )
    if len(found[0]) != len(found[1]):
        raise DataError(f"{source} returned {len(found[0])} inputs and {len(found[1])} targets", hint=_HINT)
    return found[0], found[1]


def _describe(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}: {', '.join(type(part).__name__ for part in value[:4])}"
    return type(value).__name__
