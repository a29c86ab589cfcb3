"""Data: a source -> tensors, split and preprocessed.

Only names and values here, so that a study file is checked without loading torch, scikit-learn or pandas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli.data.samples import Features, Samples, each, tensors
from tunecli.errors import DataError, did_you_mean
from tunecli.source import is_function, source_file

if TYPE_CHECKING:
    from tunecli.data.raw import Raw

__all__ = ["BUNDLED", "TABLE_SUFFIXES", "Data", "Features", "Samples", "check_source", "each", "load", "tensors"]

BUNDLED = ("breast_cancer", "diabetes", "digits", "iris", "wine")
"""Data that scikit-learn ships."""

TABLE_SUFFIXES = (".csv",)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """A source, split and ready to train on.

    `classes` are the labels in the order of their numbers, empty for regression. `preprocessing` is JSON: all that was
    learned from the training split, enough to prepare raw input in the same way. A standardized regression target has
    a scale and a mean there; `target_scale` is the scale, 1 where the target was taken as it is.
    """

    name: str
    task: str
    train: Samples
    validation: Samples
    test: Samples
    classes: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    target_scale: float = 1.0
    notices: tuple[str, ...] = ()

    @property
    def features(self) -> Features:
        """The shape of one sample, or of each of its inputs."""
        return self.train.features

    @property
    def target_mean(self) -> float:
        """What was taken off a regression target before it was divided by `target_scale`."""
        return float(self.preprocessing.get("target", {}).get("mean", 0.0))

    def fingerprint(self) -> str:
        """A hash of all samples, in order, split by split."""
        import torch

        digest = hashlib.blake2b(digest_size=16)
        for part in (self.train, self.validation, self.test):
            more = () if part.weights is None else (("weights", part.weights),)
            for name, tensor in (*tensors(part.inputs), ("", part.targets), *more):
                digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
                # As bytes: NumPy has no bfloat16.
                digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def check_source(source: str, base: Path) -> None:
    """Raises DataError where `source` names neither bundled data nor a table or a function whose file is there."""
    if source in BUNDLED:
        return
    path = source_file(source, base) if is_function(source) else (base / source).expanduser()
    if is_function(source) or path.suffix.lower() in TABLE_SUFFIXES:
        if not path.is_file():
            raise DataError(f"no such file: {path}", hint=f"paths in a study file are relative to it, here {base}")
        return
    kinds = f'a {" or ".join(TABLE_SUFFIXES)} file, "file.py:function" or bundled data'
    raise DataError(f"unknown data source {source!r}", hint=f"give {kinds}; {did_you_mean(source, BUNDLED)}")


def load(
    source: str,
    keys: Mapping[str, Any],
    *,
    base: Path,
    seed: int,
    split: tuple[float, ...] = (8, 1, 1),
    target: str | None = None,
    task: str | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> Data:
    """Read, split and preprocess a source; the same split for one seed on every machine.

    `keys` go to a user's function, `target` names a table's column, `task` overrules what is inferred from the targets.
    `fitted` is an earlier `preprocessing`, used instead of learning one from this training split.
    Raises DataError, or SourceError from the user's function.
    """
    from tunecli.data import bundled, prepare, table, user

    check_source(source, base)
    raw: Raw
    if is_function(source):
        raw = user.read(source, keys, base)
    elif source in BUNDLED:
        raw = bundled.read(source)
    else:
        raw = table.read((base / source).expanduser(), target)
    return prepare.prepare(raw, split=split, seed=seed, task=task, fitted=fitted)
