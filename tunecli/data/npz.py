"""A .npz file, or a folder of .npy files, of NumPy arrays: inputs and targets, in one part or in several.

The arrays are called `inputs` and `targets`, or `x` and `y`, in either case; `weights` beside them says how much each
sample counts. With a suffix they are parts: `_train` and `_test`, of which the training part gives up some samples for
validation, or `_train`, `_validation` (`_val`) and `_test`. Inputs that stream are not read: they are memory-mapped.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tunecli.data.mapped import Stored, streams
from tunecli.data.raw import Arrays
from tunecli.errors import DataError

ROLES = {"inputs": "inputs", "x": "inputs", "targets": "targets", "y": "targets", "weights": "weights"}
PARTS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
COMPLETE = ((None,), ("train", "test"), ("train", "validation", "test"))

_HINT = "name them inputs and targets (or x and y), in parts inputs_train, targets_train, inputs_test, targets_test"

Array = np.ndarray[Any, Any]


def read(path: Path, target: str | None = None, stream: bool | None = None) -> Arrays:
    """The arrays of a file; nothing in it is executed. `stream` as in `mapped.streams`. Raises DataError."""
    if target is not None:
        hint = "leave the target out: it is the array of targets"
        raise DataError(f"{path.name} has arrays and no column {target!r} to predict", hint=hint)
    found: dict[str | None, dict[str, Array]] = {}
    arrays, notices = _arrays(path, stream)
    for name, array in arrays.items():
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
    weights = [own for part in parts if (own := _weights(path, found[part])) is not None]
    if weights and len(weights) < len(parts):
        raise DataError(f"{path.name} holds weights for some parts only", hint="give each part weights, or none")
    return Arrays(path.stem, pairs, tuple(weights) or None, standardize=True, notices=notices)


def read_inputs(path: Path) -> Array:
    """The inputs alone, whatever lies beside them: those without a part, else those for test. Raises DataError."""
    named = {name.lower(): array for name, array in _arrays(path, None)[0].items()}
    for name in ("inputs", "x", "inputs_test", "x_test"):
        if name in named:
            if named[name].ndim < 2:
                shape = named[name].shape
                raise DataError(f"{path.name} holds inputs of shape {shape}", hint="inputs are (samples, features...)")
            return named[name]
    raise DataError(f"{path.name} holds no inputs but {', '.join(named) or 'nothing'}", hint="call the array inputs")


def _arrays(path: Path, stream: bool | None) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The arrays by name, inputs that stream memory-mapped, and a notice where they should and cannot be."""
    try:
        sizes, stored = _stored(path)
        inputs = [name for name in sizes if ROLES.get(name.lower().partition("_")[0]) == "inputs"]
        whole = sum(sizes[name] for name in inputs)
        if not streams(stream, whole):
            return _read_all(path), ()
        if stored.keys() >= set(inputs):
            rest = _read_all(path, but=inputs)
            # In the order of the file, whichever array comes from where.
            return {name: stored[name].open() if name in inputs else rest[name] for name in sizes}, ()
        told = f"{path.name} is compressed, or its arrays are in Fortran order: they cannot stay in the file"
        hint = "np.savez writes arrays that can, np.savez_compressed does not"
        if stream:
            raise DataError(f"data.stream = true, but {told}", hint=hint)
        return _read_all(path), (f"{told}, {whole / 2**30:.1f} GiB are read into memory; {hint}",)
    except (OSError, ValueError, EOFError, KeyError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if "pickle" in text.lower() and (path.is_dir() or zipfile.is_zipfile(path)):
            raise DataError(
                f"{path} holds Python objects, which are never unpickled", hint="save numbers or text, no object arrays"
            ) from error
        kind, writer = ("folder of .npy files", "np.save") if path.is_dir() else (".npz file", "np.savez")
        what = f"it is no {kind}, or not a whole one" if "pickle" in text.lower() else text
        raise DataError(f"{path} cannot be read: {what}", hint=f"write it with {writer}") from error


def _read_all(path: Path, but: Collection[str] = ()) -> dict[str, Array]:
    """Every array, read and checked."""
    if path.is_dir():
        files = {own.stem: own for own in sorted(path.glob("*.npy"))}
        return {name: np.load(file, allow_pickle=False) for name, file in files.items() if name not in but}
    with np.load(path, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array", hint="save both with np.savez(FILE, inputs=x, targets=y)")
        found = {name: file[name] for name in file.files if name not in but}
    if not all(isinstance(array, np.ndarray) for array in found.values()):
        raise DataError(f"{path} cannot be read: it holds files that are no arrays", hint="write it with np.savez")
    return found


def _stored(path: Path) -> tuple[dict[str, int], dict[str, Stored]]:
    """How many bytes each array has, and where those lie that can be memory-mapped; nothing of what is no such file."""
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        found = {own.stem: _stored_at(own, 0) for own in files}
        return {own.stem: own.stat().st_size for own in files}, {n: own for n, own in found.items() if own is not None}
    if not zipfile.is_zipfile(path):
        return {}, {}
    sizes, stored = {}, {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        name = member.filename.removesuffix(".npy")
        sizes[name] = member.file_size
        if member.compress_type == zipfile.ZIP_STORED and name != member.filename:
            with path.open("rb") as file:
                file.seek(member.header_offset + 26)
                begin = member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            with suppress(ValueError):  # no array, which is said when it is read
                if (own := _stored_at(path, begin)) is not None:
                    stored[name] = own
    return sizes, stored


def _stored_at(path: Path, begin: int) -> Stored | None:
    """The array whose .npy file begins at a byte of a file; None where it cannot be memory-mapped."""
    with path.open("rb") as file:
        file.seek(begin)
        version = np.lib.format.read_magic(file)
        known = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in known:
            return None
        shape, fortran, dtype = known[version](file)
        if dtype.hasobject or (fortran and len(shape) > 1):
            return None
        return Stored(path.absolute(), file.tell(), shape, dtype.str)


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
