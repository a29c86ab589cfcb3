"""Files and folders of a study: for their owner alone, whatever the umask, and on the disk once they are written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def cache_folder(name: str) -> Path:
    """A folder of the user's cache: `$XDG_CACHE_HOME/tunecli/NAME`, by default below `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(cache or Path.home() / ".cache", "tunecli", name)
    except RuntimeError as error:  # a user without a home, as in a container
        raise OSError(str(error)) from error


def keep_in_cache(path: Path, data: bytes) -> None:
    """Write a file of a cache whole, in the place of what was there. Raises OSError."""
    make_folder(path.parent)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    write_new(part, data)
    part.rename(path)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing; what is there stays as it is. Raises OSError."""
    if not folder.exists():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def open_new(path: Path) -> BinaryIO:
    """A file to write in the place of whatever has this name, as `write_new` has it. Raises OSError."""
    path.unlink(missing_ok=True)
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))


def write_new(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file in the place of whatever has this name; a link is replaced, never followed. Raises OSError.

    Without `sync` a kill of the process loses nothing, a power failure may.
    """
    with open_new(path) as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power failure. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_link(folder: Path) -> Path | None:
    """The first link below a folder, which may be one itself."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (path := Path(place, name)).is_symlink():
                return path
    return None
