"""One writer a study: a lock of the operating system, which dies with its process; in a database that several share
also one there: a file beside SQLite's, for the study may have a second home, or PostgreSQL's, which goes with its
connection."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tunecli.errors import InputError, StorageError
from tunecli.files import find_link, make_folder
from tunecli.home import unwritable
from tunecli.storage import Database, Shared
from tunecli.store.database import file_of, holding, is_held_there


@contextmanager
def hold(folder: Path, database: Database | None = None) -> Iterator[Database]:
    """Hold the study in `folder` for writing; yields the database to write to, by default the file in the folder.

    Raises StorageError where another process holds it, InputError where the folder has links in it; it may be one.
    A study that comes to nothing, because its question is a mistake, leaves no folder behind.
    """
    home_is_new = not folder.parent.exists()
    descriptor = _acquire(lambda: _open(folder), folder / "lock", f"the study in {folder}")
    try:
        _sign(descriptor, folder / "lock")
        database = database or folder / "study.db"
        if isinstance(database, Shared) and database.address.file is None:
            # Here, and on every other machine that searches there.
            with holding(database) as held:
                yield held
        elif isinstance(database, Shared):
            with _holding_file(database):
                yield database
        else:
            yield database
    finally:
        with suppress(OSError):  # it may have been renamed, and others may be beginning their studies
            # After a rename another search may lie here: its lock is none of ours.
            if os.listdir(folder) == ["lock"] and _is_at(descriptor, folder / "lock"):
                (folder / "lock").unlink()
                folder.rmdir()
                if home_is_new:
                    folder.parent.rmdir()
        os.close(descriptor)


@contextmanager
def _holding_file(database: Shared) -> Iterator[None]:
    """Hold the study in an SQLite database that it shares, whatever its home."""
    path = _beside(database)
    descriptor = _acquire(
        lambda: _open_beside(database), _beside(database), f"the study {database.study} in {database}"
    )
    try:
        _sign(descriptor, path)
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _beside(database: Shared) -> Path:
    file = file_of(database)
    assert file is not None
    return file.with_name(f"{file.name}.{database.study}.lock")


def _open_beside(database: Shared) -> int:
    try:
        return os.open(_beside(database), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StorageError(
            f"cannot write {database}: {error.strerror}", hint="is its folder there, and may you write to it?"
        ) from error


def _sign(descriptor: int, path: Path) -> None:
    """Say in the lock who holds it."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except OSError as error:
        raise unwritable(path, error) from error


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that lies there now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _acquire(open_lock: Callable[[], int], path: Path, study: str) -> int:
    """The descriptor of the locked file, which lies at `path`."""
    while True:
        descriptor = open_lock()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise StorageError(
                f"{study} is held by another tunecli (process {holder or 'unknown'})",
                hint="wait until it ends, or give this search a name of its own",
            ) from error
        if _is_at(descriptor, path):
            return descriptor
        # Another process removed it, which came to its end, or renamed its folder, after it was opened here.
        os.close(descriptor)


def _open(folder: Path) -> int:
    path = folder / "lock"
    try:
        make_folder(folder)
        if (link := find_link(folder)) is not None:
            # What it points to is perhaps another study's, whose checkpoints would go when they are displaced here.
            raise InputError(
                f"{link} is a link, and what a study writes to must be its own", hint="put a copy in its place"
            )
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise unwritable(path, error) from error


def is_held(folder: Path | None, database: Database | None = None) -> bool:
    """Whether a process holds the study: on any machine where PostgreSQL has it, else on this one, in `folder` or
    in a file that it shares.

    Does not disturb one that is about to. Raises StorageError or InputError where the server cannot be asked.
    """
    if isinstance(database, Shared) and database.address.file is None:
        return is_held_there(database)
    if isinstance(database, Shared):
        lock = _beside(database)
    elif folder is not None:
        lock = folder / "lock"
    else:
        return False
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        # Asked only where the process that held it last still lives: a lock taken to look could turn a search away.
        if not holder.isdigit() or not _lives(int(holder)):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True
