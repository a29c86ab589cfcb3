"""Weights worth keeping: safetensors and a JSON manifest, written so that no crash loses them.

The manifest holds the SHA-256 of the weights and ends with its own, of all the bytes before it: what is loaded is what
was written, to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli.errors import CheckpointError, StorageError
from tunecli.files import make_folder, sync_folder, write_new

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"

DAMAGED_HINT = "run the search again with --fresh, or choose another trial with --trial N"


def save(folder: Path, weights: Mapping[str, Tensor], manifest: Mapping[str, Any], *, sync: bool = True) -> str:
    """Write a checkpoint to `folder` in one step and return the SHA-256 of its weights.

    Whatever happens, `folder` holds either the previous checkpoint whole or this one; without `sync` a power failure
    may leave one that `load` finds damaged. Raises StorageError.
    """
    from safetensors.torch import save as to_bytes

    # Cloned, for safetensors refuses tied weights: two names of one memory are written twice and read back as two.
    data = to_bytes({name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()})
    digest = hashlib.sha256(data).hexdigest()
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    try:
        make_folder(folder.parent)
        if old.exists() and not folder.exists():
            old.rename(folder)  # a crash fell between the two renames below: this is the one whole checkpoint
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        make_folder(new)
        write_new(new / WEIGHTS, data, sync=sync)
        write_new(new / MANIFEST, _seal({**manifest, "sha256": digest}), sync=sync)
        if sync:
            sync_folder(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        if sync:
            sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"cannot write the checkpoint {folder}: {error.strerror}", hint="free some space or mend the permissions"
        ) from error
    return digest


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the manifest of a checkpoint, verified. Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    manifest = load_manifest(folder)
    path = _whole(folder) / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
        raise damaged(path, "is not what was written")
    try:
        return from_bytes(data), manifest
    except SafetensorError as error:  # written by something else, with a hash of its own
        raise damaged(path, f"holds no weights: {error}") from error


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest alone, verified, without loading torch. Raises CheckpointError."""
    path = _whole(folder) / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        if path.parent.exists():
            raise damaged(path, "is missing") from error
        raise CheckpointError(f"no checkpoint at {folder}", hint="`tunecli report` lists the trials") from error
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from error
    if not _is_sealed(data):
        raise damaged(path, "is not what was written")
    manifest: dict[str, Any] = json.loads(data)
    del manifest[_OWN_HASH]
    return manifest


def damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(f"damaged checkpoint: {path} {how}", hint=DAMAGED_HINT)


def remove(folder: Path) -> None:
    """Delete a checkpoint that is no longer kept; one that is gone already is no error."""
    # What a crash left beside it goes first, or it would be taken for the checkpoint.
    for suffix in (".new", ".old", ""):
        shutil.rmtree(folder.with_name(folder.name + suffix), ignore_errors=True)


_OWN_HASH = "manifest_sha256"
_END = b'"\n}\n'


def _seal(manifest: Mapping[str, Any]) -> bytes:
    """JSON whose last value is the SHA-256 of the bytes before that value; a line for each key, as what is indented
    throughout takes ten times as long to write."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in manifest.items()]
    before = "".join(["{\n", *lines, f'  "{_OWN_HASH}": "']).encode()
    return before + hashlib.sha256(before).hexdigest().encode() + _END


def _is_sealed(data: bytes) -> bool:
    before, digest = data[: -64 - len(_END)], data[-64 - len(_END) : -len(_END)]
    return data.endswith(_END) and hashlib.sha256(before).hexdigest().encode() == digest


def _whole(folder: Path) -> Path:
    """`folder`, or the previous checkpoint where a crash fell between the two renames of `save`."""
    old = folder.with_name(folder.name + ".old")
    return old if old.exists() and not folder.exists() else folder
