"""Weights worth keeping: safetensors and a JSON manifest with its SHA-256, written so that no crash loses them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"

DAMAGED_HINT = "run the search again with --fresh, or choose another trial with --trial N"


def save(folder: Path, weights: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> str:
    """Write a checkpoint to `folder` in one step and return the SHA-256 of its weights.

    Whatever happens, `folder` holds either the previous checkpoint whole or this one. Raises StorageError.
    """
    from safetensors.torch import save as to_bytes

    # Cloned, for safetensors refuses tied weights: two names of one memory are written twice and read back as two.
    data = to_bytes({name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()})
    digest = hashlib.sha256(data).hexdigest()
    text = json.dumps({**manifest, "sha256": digest}, indent=2)
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if old.exists() and not folder.exists():
            old.rename(folder)  # a crash fell between the two renames below: this is the one whole checkpoint
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir(mode=0o700)
        _write(new / WEIGHTS, data)
        _write(new / MANIFEST, text.encode())
        _sync(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"cannot write the checkpoint {folder}: {error.strerror}", hint="free some space or mend the permissions"
        ) from error
    return digest


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the manifest of a checkpoint, verified. Raises CheckpointError."""
    from safetensors.torch import load as from_bytes

    manifest = load_manifest(folder)
    source = _whole(folder)
    try:
        data = (source / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {source / WEIGHTS}: {error.strerror}", hint=DAMAGED_HINT) from error
    if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
        raise CheckpointError(
            f"damaged checkpoint: {source / WEIGHTS} is not what was written",
            hint=DAMAGED_HINT,
        )
    return from_bytes(data), manifest


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest alone, without loading torch. Raises CheckpointError."""
    path = _whole(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"no checkpoint at {folder}", hint="`tunecli report` lists the trials") from error
    except ValueError as error:
        raise CheckpointError(f"damaged checkpoint: {path} is no JSON", hint=DAMAGED_HINT) from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"damaged checkpoint: {path} holds no manifest", hint=DAMAGED_HINT)
    return manifest


def remove(folder: Path) -> None:
    """Delete a checkpoint that is no longer kept; one that is gone already is no error."""
    # What a crash left beside it goes first, or it would be taken for the checkpoint.
    for suffix in (".new", ".old", ""):
        shutil.rmtree(folder.with_name(folder.name + suffix), ignore_errors=True)


def _whole(folder: Path) -> Path:
    """`folder`, or the previous checkpoint where a crash fell between the two renames of `save`."""
    old = folder.with_name(folder.name + ".old")
    return old if old.exists() and not folder.exists() else folder


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
