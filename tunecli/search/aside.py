"""An earlier study, given a name of its own, so that a new one can begin under this one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tunecli.errors import StorageError, TunecliError
from tunecli.home import find_database, is_begun, is_remembered, is_set_aside
from tunecli.storage import Database, Shared
from tunecli.store import hold, is_unfinished, rename


class StoppedBefore(Exception):
    """A signal came before the new study had begun."""


class Held:
    """What lies in `folder`, held by this process; a study in it can make way for a new one in `wanted`.

    `database` is where the trials are as they are held, `aside` the folder of the study that made way.
    """

    def __init__(self, folder: Path, wanted: Database, stop: Callable[[], bool], *, fresh: bool) -> None:
        self._folder, self._wanted, self._stop, self._locks = folder, wanted, stop, ExitStack()
        earlier = find_database(folder) if fresh and is_begun(folder) else wanted
        self.database = self._locks.enter_context(hold(folder, earlier))
        self.aside: Path | None = None

    def make_way(self) -> Database:
        """Set aside what lies there, and hold the place for the new study: returns its database as it is held.

        Raises StoppedBefore where `stop()` says so: what lies there stays.
        """
        if self._stop():
            raise StoppedBefore
        self.aside = set_aside(self._folder, self.database)
        if self.aside is not None:
            # The lock went with the folder. Whoever takes the place now begins a study, and this one does not.
            self._locks.close()
            self.database = self._locks.enter_context(hold(self._folder, self._wanted))
        return self.database

    def close(self) -> None:
        """Let go of it. Where no new study came of it, an earlier one in a file of its own has its name back."""
        self._locks.close()
        self._put_back()

    def _put_back(self) -> None:
        if self.aside is not None and not self._folder.exists() and not isinstance(find_database(self.aside), Shared):
            with suppress(OSError):  # another search has begun there since
                self.aside.rename(self._folder)


def set_aside(folder: Path, database: Database) -> Path | None:
    """Give an earlier study a name of its own; returns its new folder. The caller holds it, its trials in `database`.

    Deletes nothing. Where a kill had come between the two names, the second one follows.
    """
    if not is_begun(folder):
        aside = _half(folder, database)
        if aside is not None:
            assert isinstance(database, Shared)
            rename(database, aside.name)
        return aside
    aside = folder.with_name(f"{folder.name}-{datetime.now():%Y%m%d-%H%M%S}")
    _rename(folder, aside)
    if isinstance(database, Shared) and not is_unfinished(database):
        try:
            rename(database, aside.name)
        except TunecliError:
            _rename(aside, folder)
            raise
    return aside


def may_make_way(folder: Path, database: Database) -> bool:
    """Whether what `database` holds by this name may be set aside by a search in `folder`: it lies here, or did."""
    if not isinstance(database, Shared) or is_unfinished(database):
        return True
    if is_begun(folder):
        return str(find_database(folder)) == str(database)
    return _half(folder, database) is not None


def _half(folder: Path, database: Database) -> Path | None:
    """The folder that has its new name already, where its study in a shared database has not: a kill came between."""
    if not isinstance(database, Shared) or is_unfinished(database):
        return None
    for found in sorted(folder.parent.glob(f"{folder.name}-*")):
        its_own = is_set_aside(found) and len(found.name) == len(folder.name) + len("-20260102-030405")
        if its_own and is_remembered(found) and str(find_database(found)) == str(database):
            return found if is_unfinished(replace(database, study=found.name)) else None
    return None


def _rename(folder: Path, to: Path) -> None:
    try:
        folder.rename(to)
    except OSError as error:
        raise StorageError(f"cannot rename {folder}: {error.strerror}", hint="mend its permissions") from error
