"""A study is held, what there is of it is read, and a loop goes on with it. Yields events; prints nothing.

torch and Optuna are loaded after the study's lock is held: a search that cannot begin says so at once.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunecli.errors import UsageError
from tunecli.home import find_database, is_begun, remember, remove_unknown_checkpoints
from tunecli.loading import loading
from tunecli.search.aside import Held, StoppedBefore
from tunecli.search.events import (
    Changed,
    Differed,
    Ended,
    Event,
    Failed,
    Noticed,
    Opened,
    OpenedProgram,
    Progress,
    Tally,
)
from tunecli.search.resume import Found, find
from tunecli.storage import Database
from tunecli.store import is_unfinished
from tunecli.study import ProgramStudy, Question
from tunecli.trial import Hparams

if TYPE_CHECKING:
    from tunecli.search.loop import Loop
    from tunecli.search.programs import ProgramLoop

__all__ = [
    "Changed",
    "Differed",
    "Ended",
    "Event",
    "Failed",
    "Noticed",
    "Opened",
    "OpenedProgram",
    "Progress",
    "search",
]


def search(
    study: Question,
    folder: Path,
    *,
    database: Database | None = None,
    device: str = "auto",
    workers: int | None = 1,
    timeout_seconds: float | None = None,
    tries: Sequence[Hparams] = (),
    fresh: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Search until the study's trials are done, `stop()` says so, or the time is up; then everything is written.

    Trials go to `database`, by default where `folder` says (`home.find_database`); all else lies in `folder`.

    The same call goes on where an earlier one ended, however it ended. `tries` are hparams given by hand (checked by
    `given.given_point`), each tried once however often it is asked for: they count among the study's trials, and add
    to them where these are done. A sampler that tries every point ends the search after the last.

    With `fresh` the study begins anew, and an earlier one is set aside under a name of its own, once its data are read
    and its model was tried. So is an earlier one all of whose trials failed, where it cannot become this one.

    With more than one of `workers`, trials are trained in so many processes of their own: the same trials and values.
    None leaves it to the search, which begins in this process and starts workers where the study is long enough.

    A question may have changed since, as far as `study.overrides.joins` says: the trials so far stay as they are, and
    the sampler sees them as today's space has them.

    Raises StorageError where another process holds the study, InputError where the study in `folder` was begun with
    a question that cannot become this one.
    """
    if isinstance(study, ProgramStudy) and device != "auto":
        raise UsageError(f"--device {device} is for a study of a model", hint="a program chooses its device itself")
    if isinstance(study, ProgramStudy) and workers is not None and workers > 1:
        raise UsageError(
            f"--workers {workers} is for a study of a model",
            hint="each run of a program is a process already; --window says how many run at a time",
        )
    database = database or find_database(folder)
    if folder.is_dir() and not os.access(folder, os.W_OK) and not fresh:
        # Another's, or kept on a medium that is read only: it can be shown where nothing is left to write.
        found = find(study, folder, database, tries)
        if found.ended is not None:
            _check_device(device)
            yield from found.told
            yield found.ended
            return
    with closing(Held(folder, database, stop, fresh=fresh)) as held:
        if fresh and (folder / "study.toml").exists() and not (is_begun(folder) or is_unfinished(held.database)):
            remember(folder, held.database)  # a kill came before it was
        found = find(study, folder, database if fresh else held.database, tries, fresh=fresh)
        if found.makes_way:
            found = replace(found, database=database, make_way=held.make_way)
        if found.record is not None:
            remember(folder, held.database)
        yield from found.told
        if found.record is not None and found.ended is not None:
            _check_device(device)
            remove_unknown_checkpoints(folder, found.record.kept)
            yield found.ended
            return
        try:
            with _loop(found, device, workers) as loop:
                if held.aside is not None:
                    why = "" if fresh else ": none of its trials came to a value"
                    yield Noticed(f"the earlier study is now {held.aside}{why}")
                yield from loop.events(timeout_seconds, stop)
        except StoppedBefore:
            yield Ended("stopped", Tally((), "minimize").progress(found.study.search.trials))


def _check_device(device: str) -> None:
    """Raise UsageError for a device that is none here, where nothing is left to compute too; one that is always there
    loads no torch."""
    if device not in ("auto", "cpu"):
        with loading():
            from tunecli.engine import resolve_device
        resolve_device(device)


@contextmanager
def _loop(found: Found, device: str, workers: int | None) -> Iterator[Loop | ProgramLoop]:
    with ExitStack() as stack:
        loop: Loop | ProgramLoop
        if isinstance(found.study, ProgramStudy):
            from tunecli.search.programs import ProgramLoop

            loop = ProgramLoop(found)
        else:
            # A fork lacks all threads but one, and what they hold it never gets: those of a process that has computed
            # with torch, and whoever has begun others than a command's, which does nothing but wait for signals.
            forks = workers != 1 and "torch" not in sys.modules and threading.active_count() <= 2
            with loading():
                from tunecli.engine.template import forked
                from tunecli.search.loop import Loop

            template = stack.enter_context(forked()) if forks else None
            loop = Loop(found, device, workers, template)
        stack.callback(loop.close)
        yield loop
