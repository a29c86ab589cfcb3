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
from tunecli.source import call, source_file

_HINT = "return (inputs, targets), or three such pairs: train, validation, test"


def read(source: str, keys: Mapping[str, Any], base: Path) -> Arrays:
    """Call `file.py:function` with the keys of [data]. Raises SourceError from it, DataError for what it returns."""
    name = source_file(source, base).stem
    returned = call(source, keys, base)
    if _is_pair(returned):
        return Arrays(name, (_arrays(returned, source),))
    if isinstance(returned, tuple | list) and len(returned) == 3 and all(_is_pair(part) for part in returned):
        return Arrays(name, tuple(_arrays(part, source) for part in returned))
    raise DataError(f"{source} returned {_describe(returned)}", hint=_HINT)


def read_inputs(source: str, base: Path) -> Any:
    """The inputs alone that `file.py:function` returns, with or without targets beside them."""
    returned = call(source, {}, base)
    if _is_pair(returned):
        returned = returned.tensors[0] if isinstance(returned, TensorDataset) else returned[0]
    elif isinstance(returned, tuple):
        raise DataError(f"{source} returned {_describe(returned)}", hint="return the inputs, or (inputs, targets)")
    inputs = _array(returned, "inputs", source)
    if inputs.ndim < 2:
        raise DataError(
            f"{source} returned inputs of shape {tuple(inputs.shape)}", hint="return (samples, features...)"
        )
    return inputs


def _is_pair(value: object) -> bool:
    if isinstance(value, TensorDataset):
        return len(value.tensors) == 2
    # Two pairs are no pair; an `inputs` list of two rows is none either.
    return isinstance(value, tuple | list) and len(value) == 2 and not _holds_arrays(value[0])


def _holds_arrays(value: object) -> bool:
    if isinstance(value, TensorDataset):
        return True
    return isinstance(value, tuple | list) and len(value) == 2 and len(getattr(value[0], "shape", ())) > 1


def _arrays(pair: Any, source: str) -> tuple[Any, Any]:
    inputs, targets = pair.tensors if isinstance(pair, TensorDataset) else pair
    inputs, targets = _array(inputs, "inputs", source), _array(targets, "targets", source)
    if inputs.ndim < 2:
        raise DataError(
            f"{source} returned inputs of shape {tuple(inputs.shape)}", hint="inputs are (samples, features...)"
        )
    if targets.ndim < 1:
        raise DataError(f"{source} returned {_describe(pair[1])} for targets", hint=_HINT)
    if len(inputs) != len(targets):
        raise DataError(
            f"{source} returned {len(inputs)} inputs and {len(targets)} targets", hint="each sample has one target"
        )
    return inputs, targets


def _array(part: Any, role: str, source: str) -> Any:
    """A tensor as it is; a frame, a series or a list as an array."""
    if isinstance(part, Tensor):
        return part
    try:
        return np.asarray(part)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{source} returned {role} that are no array: {' '.join(str(error).split())}",
            hint="return arrays, tensors, or lists of one shape",
        ) from error


def _describe(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}: {', '.join(type(part).__name__ for part in value[:4])}"
    return type(value).__name__
