"""One writer a study: a lock of the operating system, which dies with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunecli.errors import StorageError


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the study in `folder` for writing. Raises StorageError where another process does."""
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}", hint="choose another folder with --home"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise StorageError(
                f"the study in {folder} is held by another tunecli (process {holder or 'unknown'})",
                hint="wait until it ends, or give this search a name of its own",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
