"""A .npz file of NumPy arrays: inputs and targets, in one part or in several.

The arrays are called `inputs` and `targets`, or `x` and `y`, in either case; `weights` beside them says how much each
sample counts. With a suffix they are parts: `_train` and `_test`, of which the training part gives up some samples for
validation, or `_train`, `_validation` (`_val`) and `_test`.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tunecli.data.raw import Arrays
from tunecli.errors import DataError

ROLES = {"inputs": "inputs", "x": "inputs", "targets": "targets", "y": "targets", "weights": "weights"}
PARTS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
COMPLETE = ((None,), ("train", "test"), ("train", "validation", "test"))

_HINT = "name them inputs and targets (or x and y), in parts inputs_train, targets_train, inputs_test, targets_test"

Array = np.ndarray[Any, Any]


def read(path: Path, target: str | None = None) -> Arrays:
    """The arrays of a file; nothing in it is executed. Raises DataError."""
    if target is not None:
        hint = "leave the target out: it is the array of targets"
        raise DataError(f"{path.name} has arrays and no column {target!r} to predict", hint=hint)
    found: dict[str | None, dict[str, Array]] = {}
    for name, array in _arrays(path).items():
        stem, _, suffix = name.lower().partition("_")
        if stem not in ROLES or (suffix and suffix not in PARTS):
            raise DataError(f"{path.name} holds an array {name!r} that is neither inputs nor targets", hint=_HINT)
        part = found.setdefault(PARTS[suffix] if suffix else None, {})
        if ROLES[stem] in part:
            raise DataError(f"{path.name} holds two arrays of {ROLES[stem]}, one is {name!r}", hint=_HINT)
        part[ROLES[stem]] = array
    parts = next((parts for parts in COMPLETE if set(parts) == set(found)), None)
    if parts is None:
        held = ", ".join(sorted(part or "samples without a part" for part in found)) or "nothing"
        raise DataError(f"{path.name} holds {held}", hint=_HINT)
    pairs = tuple(_pair(path, part, found[part]) for part in parts)
    weights = tuple(_weights(path, found[part]) for part in parts)
    if any(own is None for own in weights) and any(own is not None for own in weights):
        raise DataError(f"{path.name} holds weights for some parts only", hint="give each part weights, or none")
    return Arrays(path.stem, pairs, None if weights[0] is None else weights, standardize=True)  # type: ignore[arg-type]


def read_inputs(path: Path) -> Array:
    """The inputs alone, whatever lies beside them: those without a part, else those for test. Raises DataError."""
    named = {name.lower(): array for name, array in _arrays(path).items()}
    for name in ("inputs", "x", "inputs_test", "x_test"):
        if name in named:
            if named[name].ndim < 2:
                shape = named[name].shape
                raise DataError(f"{path.name} holds inputs of shape {shape}", hint="inputs are (samples, features...)")
            return named[name]
    raise DataError(f"{path.name} holds no inputs but {', '.join(named) or 'nothing'}", hint="call the array inputs")


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array", hint="save both with np.savez(FILE, inputs=x, targets=y)")
            found = {name: file[name] for name in file.files}
        if not all(isinstance(array, np.ndarray) for array in found.values()):
            raise DataError(f"{path} cannot be read: it holds files that are no arrays", hint="write it with np.savez")
        return found
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if "pickle" in text.lower() and zipfile.is_zipfile(path):
            raise DataError(
                f"{path} holds Python objects, which are never unpickled", hint="save numbers or text, no object arrays"
            ) from error
        what = "it is no .npz file, or not a whole one" if "pickle" in text.lower() else text
        raise DataError(f"{path} cannot be read: {what}", hint="write it with np.savez") from error


def _pair(path: Path, part: str | None, arrays: dict[str, Array]) -> tuple[Array, Array]:
    where = f" for {part}" if part else ""
    for role in ("inputs", "targets"):
        if role not in arrays:
            raise DataError(f"{path.name} holds no {role}{where}", hint=_HINT)
    inputs, targets = arrays["inputs"], arrays["targets"]
    if inputs.ndim < 2:
        raise DataError(
            f"{path.name} holds inputs of shape {inputs.shape}{where}", hint="inputs are (samples, features...)"
        )
    if targets.ndim < 1 or len(inputs) != len(targets):
        count = len(targets) if targets.ndim else 1
        raise DataError(
            f"{path.name} holds {len(inputs)} inputs and {count} targets{where}", hint="each sample has one target"
        )
    return inputs, targets


def _weights(path: Path, arrays: dict[str, Array]) -> Array | None:
    weights = arrays.get("weights")
    if weights is None:
        return None
    if weights.shape != (len(arrays["inputs"]),):
        raise DataError(f"{path.name} holds weights of shape {weights.shape}", hint="each sample has one weight")
    if weights.dtype.kind not in "iufb" or not bool(np.all(np.isfinite(weights) & (weights >= 0))):
        raise DataError(f"{path.name} holds a weight that is no number from 0 on", hint="mend or drop the weights")
    return weights.astype(np.float64)
