"""An earlier study, given a name of its own, so that a new one can begin under this one."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tunecli.errors import StorageError, TunecliError
from tunecli.home import find_database, is_begun, set_aside_by_half
from tunecli.storage import Database, Shared
from tunecli.store import hold, is_unfinished, rename


def set_aside(folder: Path, wanted: Database | None = None) -> Path | None:
    """Give an earlier study a name of its own, so that a new one can begin in `wanted`; returns its new folder.

    Deletes nothing. Where a kill had come between the two names, the second one follows.
    """
    if not is_begun(folder):
        return _finish_setting_aside(folder, wanted)
    database = find_database(folder)
    with hold(folder, database) as held:
        aside = folder.with_name(f"{folder.name}-{datetime.now():%Y%m%d-%H%M%S}")
        _rename(folder, aside)
        if isinstance(held, Shared) and not is_unfinished(held):
            try:
                rename(held, aside.name)
            except TunecliError:
                _rename(aside, folder)
                raise
    return aside


def _finish_setting_aside(folder: Path, database: Database | None) -> Path | None:
    if not isinstance(database, Shared) or (aside := set_aside_by_half(folder, database)) is None:
        return None
    if is_unfinished(database) or not is_unfinished(replace(database, study=aside.name)):
        return None
    with hold(folder, database) as held:
        assert isinstance(held, Shared)
        rename(held, aside.name)
    return aside


def _rename(folder: Path, to: Path) -> None:
    try:
        folder.rename(to)
    except OSError as error:
        raise StorageError(f"cannot rename {folder}: {error.strerror}", hint="mend its permissions") from error
