"""The only loop: ask, fill slots, advance, record, decide, tell. Yields events; prints nothing.

torch and Optuna are loaded after the study's lock is held: a search that cannot begin says so at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tunecli.data import BUNDLED
from tunecli.errors import InputError, StorageError, TunecliError, UsageError
from tunecli.given import no_values, searched_part, shown, trial_of
from tunecli.home import find_database, is_begun, is_remembered, remember, remove_unknown_checkpoints, set_aside_by_half
from tunecli.loading import loading
from tunecli.points import first_point
from tunecli.sampler import points_left
from tunecli.search.events import Changed, Differed, Ended, Event, Noticed, Opened, OpenedProgram, Progress, Tally
from tunecli.space import EXHAUSTIVE
from tunecli.storage import Database, Shared
from tunecli.store import Earlier, Record, hold, is_deleted, is_unfinished, read, rename
from tunecli.study import ProgramStudy, Question, Study
from tunecli.study.overrides import back, differences, joins
from tunecli.trial import Hparams, State, Trial

if TYPE_CHECKING:
    from tunecli.search.loop import Loop
    from tunecli.search.programs import ProgramLoop

__all__ = [
    "Changed",
    "Differed",
    "Ended",
    "Event",
    "Noticed",
    "Opened",
    "OpenedProgram",
    "Progress",
    "search",
    "set_aside",
]


@dataclass(frozen=True, slots=True)
class Place:
    """Where trials are trained: on which device, in how many processes (None: as many as repay their start)."""

    device: str
    workers: int | None


@dataclass(frozen=True, slots=True)
class Begun:
    """What there is of a study: its folder, its database, what that holds (None: nothing yet), and the question that it
    was asked so far, where it has changed."""

    folder: Path
    database: Database
    record: Record | None
    earlier: Earlier | None


def search(
    study: Question,
    folder: Path,
    *,
    database: Database | None = None,
    device: str = "auto",
    workers: int | None = 1,
    timeout_seconds: float | None = None,
    tries: Sequence[Hparams] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Search until the study's trials are done, `stop()` says so, or the time is up; then everything is written.

    Trials go to `database`, by default where `folder` says (`home.find_database`); all else lies in `folder`.

    The same call goes on where an earlier one ended, however it ended. `tries` are hparams given by hand (checked by
    `given.given_point`), each tried once however often it is asked for: they count among the study's trials, and add
    to them where these are done. A sampler that tries every point ends the search after the last.

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
    if folder.is_dir() and not os.access(folder, os.W_OK):
        # Another's, or kept on a medium that is read only: it can be shown where nothing is left to write.
        found = _find(study, folder, database, tries)
        if found.ended is not None:
            _check_device(device)
            yield from found.told
            yield found.ended
            return
    with hold(folder, database) as held:
        found = _find(study, folder, held, tries)
        if found.record is not None:
            remember(folder, held)
        yield from found.told
        if found.record is not None and found.ended is not None:
            _check_device(device)
            remove_unknown_checkpoints(folder, found.record.kept)
            yield found.ended
            return
        begun = Begun(folder, held, found.record, found.earlier)
        with _loop(found.study, begun, Place(device, workers), found.queue) as loop:
            yield from loop.events(timeout_seconds, stop)


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is of a study, read and not yet written: what was asked of it before (`earlier`, where that has
    changed), what is to be `told` of it, the trials by hand to try next, and how it `ended` where nothing is left."""

    study: Question
    record: Record | None
    earlier: Earlier | None
    told: tuple[Event, ...]
    queue: list[Hparams]
    ended: Ended | None


def _find(study: Question, folder: Path, database: Database, tries: Sequence[Hparams]) -> _Found:
    record, changed = open_record(study, folder, database)
    told: list[Event] = []
    if record is not None:
        study = study.with_window(int(record.document["search"]["window"]))
        if isinstance(study, Study):
            study = study.with_stream(_streamed(record))
    else:
        study = study.with_window(study.window)
    if record is not None and changed:
        told.append(Changed(changed, study.search.sampler, *_seen(study, record)))
    if record is not None and isinstance(study, Study):
        record, notices = _refitted(study, record)
        told += map(Noticed, notices)
    trials = record.trials if record is not None else ()
    queue = _queue(study, trials, tries) if isinstance(study, Study) else []
    asked, total = study.search.trials, _total(study, trials, len(queue))
    begun = sum(trial.state is not State.WAITING for trial in trials)
    if asked < begun == total and any(trial.state is State.RUNNING for trial in trials):
        told.append(
            Noticed(f"{asked} trials are asked for, and {begun} have begun: those in flight go on to their end")
        )
    study = study.with_trials(total)
    earlier = _earlier(record) if record is not None and changed else None
    return _Found(study, record, earlier, tuple(told), queue, _ended(study, record, folder))


def _ended(study: Question, record: Record | None, folder: Path) -> Ended | None:
    """How a study ended of which nothing is left to do."""
    if record is None or (isinstance(study, Study) and _data_may_differ(study, record, folder)):
        return None
    ended = sum(trial.state.ended for trial in record.trials)
    if ended < study.search.trials:
        return None
    return Ended("done", Tally(record.trials, record.direction).progress(max(study.search.trials, ended)))


def _check_device(device: str) -> None:
    """Raise UsageError for a device that is none here, where nothing is left to compute too; one that is always there
    loads no torch."""
    if device not in ("auto", "cpu"):
        with loading():
            from tunecli.engine import resolve_device
        resolve_device(device)


def _refitted(study: Study, record: Record) -> tuple[Record, list[str]]:
    """The record with what was given by hand for trials that wait, as far as today's space has it; notices of what it
    has not, which is the sampler's to choose."""
    trials, notices = list(record.trials), []
    for trial in record.trials:
        if trial.state is not State.WAITING:
            continue
        asked = {**trial.given, **record.foreign.get(trial.number, {})}
        misfits = no_values(study.space, asked)
        notices += [
            f"{name} {asked[name]}, given for trial {trial.number}, is left out: {why}" for name, why in misfits.items()
        ]
        given = {name: value for name, value in trial.given.items() if name not in misfits}
        trials[trial.number] = replace(trial, hparams=given, given=given)
    return replace(record, trials=tuple(trials)), notices


def _seen(study: Question, record: Record) -> tuple[int, int]:
    """How many trials today's space shows to the sampler, and of how many."""
    begun = [trial for trial in record.trials if trial.state is not State.WAITING]
    train = study.train.settings if isinstance(study, Study) else {}
    return sum(shown(study.space, trial, train) is not None for trial in begun), len(begun)


def _earlier(record: Record) -> Earlier | None:
    """The question as it was asked so far, or None where nothing was asked by it."""
    until = sum(trial.state is not State.WAITING for trial in record.trials)
    before = record.earlier[-1].until if record.earlier else 0
    return Earlier(until, record.document) if until > before else None


@contextmanager
def _loop(study: Question, begun: Begun, place: Place, queue: list[Hparams]) -> Iterator[Loop | ProgramLoop]:
    with ExitStack() as stack:
        loop: Loop | ProgramLoop
        if isinstance(study, ProgramStudy):
            from tunecli.search.programs import ProgramLoop

            loop = ProgramLoop(study, begun)
        else:
            # A fork lacks all threads but one, and what they hold it never gets: those of a process that has computed
            # with torch, and whoever has begun others than a command's, which does nothing but wait for signals.
            forks = place.workers != 1 and "torch" not in sys.modules and threading.active_count() <= 2
            with loading():
                from tunecli.engine.template import forked
                from tunecli.search.loop import Loop

            template = stack.enter_context(forked()) if forks else None
            loop = Loop(study, begun, place, queue, template)
        stack.callback(loop.close)
        yield loop


def _queue(study: Study, trials: Sequence[Trial], tries: Iterable[Hparams]) -> list[Hparams]:
    """What is to be tried next before the sampler is asked: torch's defaults first of all, then what is asked for.

    What was tried before, or waits, is left out.
    """
    sampled = not trials and study.search.sampler not in EXHAUSTIVE
    queue: list[Hparams] = []
    for wanted in [*([first_point(study.space)] if sampled else []), *tries]:
        given = searched_part(study.space, wanted)
        if given not in queue and trial_of(study.space, given, trials) is None:
            queue.append(given)
    return queue


def _total(study: Question, trials: Sequence[Trial], queued: int) -> int:
    """How many trials the study has when it is done: no more than there are points, but all that have begun, and all
    that were given by hand."""
    total = study.search.trials
    if isinstance(study, Study):
        started = sum(trial.state is not State.WAITING for trial in trials)
        points = [own for trial in trials if (own := shown(study.space, trial, study.train.settings)) is not None]
        left = points_left(study.search.sampler, study.space, points)
        if left is not None:
            total = min(total, started + left)
    # Fewer may be asked for now than an interruption left in flight.
    return max(total, len(trials) + queued) if queued or not all(trial.state.ended for trial in trials) else total


def _data_may_differ(study: Study, record: Record, folder: Path) -> bool:
    """Whether the source is another file than it was, or was written since: then the samples have to be compared."""
    source = study.data.source
    if source in BUNDLED:
        return False
    path = study.base / source.partition(":")[0]
    if path.resolve() != (Path(record.document["base"]) / source.partition(":")[0]).resolve():
        return True
    return not path.is_file() or path.stat().st_mtime > (folder / "study.toml").stat().st_mtime


def open_record(study: Question, folder: Path, database: Database) -> tuple[Record | None, tuple[str, ...]]:
    """What there is of this study, None where it is new, and what has changed in its question since, a line each.

    Raises InputError where the study cannot go on with that, or not here."""
    if is_unfinished(database) or is_deleted(database):
        if isinstance(database, Shared) and is_remembered(folder):
            raise InputError(
                f"{database} no longer holds the study {database.study}, which was begun in it",
                hint="put it back, or begin anew with --fresh, which sets aside what is left",
            )
        return None, ()
    if isinstance(database, Shared) and not (folder / "study.toml").exists():
        raise InputError(
            f"the study {database.study} in {database} was begun in another home: its checkpoints are not in {folder}",
            hint="go on there, copy its folder here, or give this one another name (--set name=NEW)",
        )
    record = read(database)
    changes = differences(record.document, study.document())
    stored_window = record.document["search"].get("window")
    if study.search.window not in (None, stored_window):
        changes["search.window"] = f"search.window: {stored_window} -> {study.search.window}"
    if isinstance(study, Study) and study.data.stream not in (None, _streamed(record)):
        changes["data.stream"] = f"data.stream: {json.dumps(_streamed(record))} -> {json.dumps(study.data.stream)}"
    refused = {key: line for key, line in changes.items() if not joins(key)}
    if refused:
        raise contradiction(folder, list(refused.values()), back(record.document, list(refused)))
    return record, tuple(changes.values())


def _streamed(record: Record) -> bool:
    """Whether the data of a study were read from their files so far."""
    return bool(record.document.get("data", {}).get("stream"))  # a program's study has no data


def contradiction(folder: Path, changes: list[str], back: str | None = None) -> InputError:
    """`back` are the options by which the question would be the earlier one again."""
    lines = "\n".join(f"  {change}" for change in changes)
    goes_on = "" if back is None else f"{back} goes on with it; or "
    return InputError(
        f"the study in {folder} was begun with another question:\n{lines}",
        hint=f"{goes_on}give this one another name (--set name=NEW), or begin anew with --fresh, "
        "which sets the old one aside",
    )


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
