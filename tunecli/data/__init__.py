"""Data: a source -> tensors, split and preprocessed.

Only names and values here, so that a study file is checked without loading torch, scikit-learn or pandas.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from tunecli.data.samples import Features, Samples, each, tensors
from tunecli.errors import DataError, did_you_mean
from tunecli.source import is_function, source_file

if TYPE_CHECKING:
    from torch import Tensor

    from tunecli.data.items import Items
    from tunecli.data.raw import Raw

__all__ = [
    "BUNDLED",
    "COLUMN_SUFFIXES",
    "PICTURE_SUFFIXES",
    "TABLE_SUFFIXES",
    "Data",
    "Features",
    "Samples",
    "Split",
    "check_source",
    "each",
    "holds_arrays",
    "holds_pictures",
    "is_arrays",
    "load",
    "tensors",
    "weigh",
]

Split: TypeAlias = "Samples | Items"
"""The samples of train, validation or test: in memory, or read from a Dataset item by item."""

BUNDLED = ("breast_cancer", "diabetes", "digits", "iris", "wine")
"""Data that scikit-learn ships."""

COLUMN_SUFFIXES = (".csv", ".tsv", ".parquet")
"""Files of columns that have names."""

TABLE_SUFFIXES = (*COLUMN_SUFFIXES, ".npz")
"""Files that are data themselves: those of columns, and NumPy's arrays."""


PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """A source, split and ready to train on.

    `classes` are the labels in the order of their numbers, empty for regression. `preprocessing` is JSON: all that was
    learned from the training split, enough to prepare raw input in the same way. A standardized regression target has
    a scale and a mean there; `target_scale` is the scale, 1 where the target was taken as it is.
    """

    name: str
    task: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    target_scale: float = 1.0
    notices: tuple[str, ...] = ()

    @property
    def categories(self) -> tuple[int, ...]:
        return categories(self.preprocessing)

    @property
    def features(self) -> Features:
        """The shape of one sample, or of each of its inputs."""
        return self.train.features

    @property
    def streamed(self) -> bool:
        """Whether the inputs stay in their files, and are read in another order."""
        return isinstance(self.train, Samples) and self.train.chunked is not None

    @property
    def target_mean(self) -> float:
        """What was taken off a regression target before it was divided by `target_scale`."""
        return float(self.preprocessing.get("target", {}).get("mean", 0.0))

    def fingerprint(self) -> str:
        """A hash of all samples, in order, split by split; of a Dataset, or inputs in a file, of some of them."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.train, self.validation, self.test):
            for leaf in part.leaves():
                digest.update(leaf)
        return digest.hexdigest()


def categories(preprocessing: Mapping[str, Any]) -> tuple[int, ...]:
    """The last features of a table may be codes of categories, for a model to embed: how many codes each has.

    0 is what is missing or was not seen in training.
    """
    if preprocessing.get("kind") != "table":
        return ()
    return tuple(len(own["levels"]) + 1 for own in preprocessing["columns"] if own["kind"] == "code")


LOOKED_INTO = 1000
"""So many folders are looked into for a picture: somebody may name the root of a disk."""


def holds_arrays(folder: Path) -> bool:
    """Whether it is a folder of NumPy's arrays, each in a .npy file."""
    return any(folder.glob("*.npy"))


def is_arrays(path: Path) -> bool:
    """Whether it is NumPy's: a .npz file, or a folder of arrays."""
    return path.suffix.lower() == ".npz" or (path.is_dir() and holds_arrays(path))


def holds_pictures(folder: Path) -> bool:
    """Whether it is a folder of class folders with pictures in them, or of parts of such."""
    below = islice(os.walk(folder, followlinks=True), 1, LOOKED_INTO)
    return any(name.lower().endswith(PICTURE_SUFFIXES) for _, _, names in below for name in names)


def check_source(source: str, base: Path) -> None:
    """Raises DataError where `source` names neither bundled data nor a table or a function whose file is there."""
    if source in BUNDLED:
        return
    path = source_file(source, base) if is_function(source) else (base / source).expanduser()
    if path.is_dir() and not is_function(source):
        if not holds_arrays(path) and not holds_pictures(path):
            raise DataError(
                f"{path} holds neither folders of pictures nor .npy files",
                hint=f"a folder a class: {path.name}/cat/1.jpg, {path.name}/dog/1.jpg; or inputs.npy and targets.npy",
            )
        return
    if is_function(source) or path.suffix.lower() in TABLE_SUFFIXES:
        if not path.is_file():
            raise DataError(f"no such file: {path}", hint=f"paths in a study file are relative to it, here {base}")
        return
    if path.suffix.lower() == ".npy":
        raise DataError(
            f"{source} is a single array",
            hint="a folder with inputs.npy and targets.npy is data: tunecli search FOLDER",
        )
    kinds = f'a {" or ".join(TABLE_SUFFIXES)} file, a folder of pictures, "file.py:function" or bundled data'
    raise DataError(f"unknown data source {source!r}", hint=f"give {kinds}; {did_you_mean(source, BUNDLED)}")


def picture_size(keys: Mapping[str, Any]) -> Sequence[int] | None:
    """`data.size`, the height and width that pictures are made; None where it is not given. Raises DataError."""
    size = keys.get("size")
    whole = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if size is not None and not whole:
        raise DataError(f"data.size must be [height, width] in pixels, got {size!r}", hint="size = [64, 64]")
    return size


def load(
    source: str,
    keys: Mapping[str, Any],
    *,
    base: Path,
    seed: int,
    split: tuple[float, ...] = (8, 1, 1),
    target: str | None = None,
    features: Sequence[str] | None = None,
    weight: str | None = None,
    task: str | None = None,
    fitted: Mapping[str, Any] | None = None,
    embed: bool = False,
    targets: str = "one",
    cache: bool = False,
    scale_bytes: bool = False,
    workers: int | None = None,
    stream: bool | None = None,
    as_is: bool = False,
) -> Data:
    """Read, split and preprocess a source; the same split for one seed on every machine.

    `keys` go to a user's function; pictures have one, `size`. Of a table, `target` names the column to predict,
    `features` those to use (None: all others) and `weight` the one that says how much a row counts in training. `task`
    overrules what is inferred from the targets. `fitted` is an earlier `preprocessing`, used instead of learning one
    from this training split. `embed` says that the model embeds columns of codes (`Data.categories`). `targets` of a
    user's function are "one" a sample, "any" or "optional" (`prepare.Wishes`); `cache` keeps in memory what would be
    read each epoch. `scale_bytes` says that the model cannot read bytes, as those of a user's function are left to it.
    `workers` processes read the items of Datasets ahead; None: as many as their DataLoader says, or none. `stream` says
    whether inputs stay in their files; None: where they are large, `mapped.streams`. `as_is` leaves inputs in a
    file of arrays as they are: else they are standardized.
    Raises DataError, or SourceError from the user's function.
    """
    from tunecli.data import bundled, npz, prepare, user

    check_source(source, base)
    wishes = prepare.Wishes(
        split, seed, task, fitted, features, embed, target, targets, cache, scale_bytes, workers, stream, as_is
    )
    path = (base / source).expanduser()
    raw: Raw
    if is_function(source):
        raw = user.read(source, keys, base, wishes)
    elif source in BUNDLED:
        raw = bundled.read(source)
    elif path.suffix.lower() in COLUMN_SUFFIXES:
        from tunecli.data import read, table

        levelled = table.written((fitted or {}).get("columns", ()))
        raw = read.read(path, target, weight, levelled)
    elif path.is_dir() and not holds_arrays(path):
        from tunecli.data import images

        raw = images.read(path, picture_size(keys), fitted or {}, stream)
    else:
        raw = npz.read(path, target, stream)
    return prepare.prepare(raw, wishes)


def held(part: Split, why: str) -> Samples:
    """The samples that are in memory. Raises DataError where they are read from a Dataset, which `why` cannot be."""
    if isinstance(part, Samples):
        return part
    raise DataError(
        f"{why} needs samples in memory, those of a Dataset are read each epoch",
        hint="keep them with cache = true in [data]",
    )


def joined(first: Split, second: Split) -> Split:
    """The samples of the first, then those of the second; both are in memory, or both are read from Datasets."""
    if isinstance(first, Samples):
        return first.join(held(second, "joining"))
    assert not isinstance(second, Samples)
    return first.join(second)


def weigh(data: Data, class_weight: Mapping[str, float] | str) -> Data:
    """The same samples, each of training and validation counting as its class does, times the weight that it had.

    "balanced" gives a class n / (classes * count), n and count those of the training samples, as in scikit-learn;
    else the weights of classes by label, 1 for those that are not named. Raises DataError where a label is no class.
    """
    import torch

    if data.task != "classification":
        raise DataError(f"class_weight is for classification, {data.name} is {data.task}", hint="leave it out")
    if isinstance(class_weight, Mapping):
        unknown = next((label for label in class_weight if label not in data.classes), None)
        if unknown is not None:
            raise DataError(
                f"class_weight: {data.name} has no class {unknown!r}", hint=did_you_mean(unknown, data.classes)
            )
        of_class = torch.tensor([float(class_weight.get(label, 1)) for label in data.classes])
    else:
        counts = torch.bincount(held(data.train, "class_weight").targets.flatten(), minlength=len(data.classes))
        of_class = len(data.train) / (len(data.classes) * counts.clamp(min=1))

    def weighed(part: Samples) -> Samples:
        own = of_class[part.targets.flatten()]
        return replace(part, weights=own if part.weights is None else own * part.weights)

    train = weighed(held(data.train, "class_weight"))
    if not bool((cast("Tensor", train.weights) > 0).any()):
        raise DataError("class_weight gives no training sample a weight above zero", hint="give one class more")
    return replace(data, train=train, validation=weighed(held(data.validation, "class_weight")))
