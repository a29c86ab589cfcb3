"""What there is of a study, and what is left of it to do: read, and nothing of it written yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunecli.data import BUNDLED
from tunecli.errors import InputError
from tunecli.given import no_values, searched_part, shown, trial_of
from tunecli.home import is_remembered
from tunecli.points import first_point
from tunecli.sampler import points_left
from tunecli.search.aside import may_make_way
from tunecli.search.events import Changed, Ended, Event, Noticed, Tally
from tunecli.space import EXHAUSTIVE
from tunecli.storage import Database, Shared
from tunecli.store import Earlier, Record, is_deleted, is_unfinished, read
from tunecli.study import Question, Study, load_data
from tunecli.study.overrides import back, differences, joins
from tunecli.trial import Hparams, State, Trial


@dataclass(frozen=True, slots=True)
class Found:
    """A study as it is to be gone on with: where it lies, what its database holds (None: nothing yet), what was asked
    of it before (`earlier`, where that has changed), what is to be `told` of it, the trials by hand to try next, and
    how it `ended` where nothing is left to do.

    Where it `makes_way`, what lies there is not read: `make_way` sets it aside, and returns the database to write to.
    """

    study: Question
    folder: Path
    database: Database
    record: Record | None
    earlier: Earlier | None
    told: tuple[Event, ...]
    queue: list[Hparams]
    ended: Ended | None
    makes_way: bool = False
    make_way: Callable[[], Database] | None = None


def find(study: Question, folder: Path, database: Database, tries: Sequence[Hparams], *, fresh: bool = False) -> Found:
    """What there is of a study that is asked now, and of `tries`, the hparams given by hand, what was not tried yet.

    A study all of whose trials failed makes way for another question of its name. Raises InputError where one cannot go
    on with what is asked, or not here.
    """
    record = _read(folder, database, fresh=fresh)
    changes = {} if record is None else _changes(study, record)
    refused = {key: line for key, line in changes.items() if not joins(key)}
    makes_way = fresh
    if record is not None and refused:
        columns = refused.keys() & {"data.target", "data.weight", "data.features"}
        if isinstance(study, Study) and columns and "data.source" not in refused:
            load_data(study)  # a mistyped column is no other question: it is told for what it is
        if any(trial.state not in (State.FAILED, State.WAITING) for trial in record.trials):
            raise contradiction(folder, list(refused.values()), back(record.document, list(refused)))
        record, changes, makes_way = None, {}, True
    changed = tuple(changes.values())
    told: list[Event] = []
    if record is not None:
        study = study.with_window(int(record.document["search"]["window"]))
        if isinstance(study, Study):
            study = study.with_data(**_found_out(record))
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
    ended = _ended(study, record, folder)
    return Found(study, folder, database, record, earlier, tuple(told), queue, ended, makes_way)


def _ended(study: Question, record: Record | None, folder: Path) -> Ended | None:
    """How a study ended of which nothing is left to do."""
    if record is None or (isinstance(study, Study) and _data_may_differ(study, record, folder)):
        return None
    ended = sum(trial.state.ended for trial in record.trials)
    if ended < study.search.trials:
        return None
    return Ended("done", Tally(record.trials, record.direction).progress(max(study.search.trials, ended)))


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


def _read(folder: Path, database: Database, *, fresh: bool) -> Record | None:
    """What is recorded of a study, None where it is new, or begins anew (`fresh`). Raises InputError where it is not
    this home's, or lost."""
    if fresh and may_make_way(folder, database):
        return None
    if is_unfinished(database) or is_deleted(database):
        if isinstance(database, Shared) and is_remembered(folder):
            raise InputError(
                f"{database} no longer holds the study {database.study}, which was begun in it",
                hint="put it back, or begin anew with --fresh, which sets aside what is left",
            )
        return None
    if isinstance(database, Shared) and (fresh or not (folder / "study.toml").exists()):
        raise InputError(
            f"the study {database.study} in {database} was begun in another home: its checkpoints are not in {folder}",
            hint="go on there, copy its folder here, or give this one another name (--set name=NEW)",
        )
    return read(database)


def _changes(study: Question, record: Record) -> dict[str, str]:
    """What has changed in the question since, a line a key."""
    changes = differences(record.document, study.document())
    stored_window = record.document["search"].get("window")
    if study.search.window not in (None, stored_window):
        changes["search.window"] = f"search.window: {stored_window} -> {study.search.window}"
    stated = study.data.model_dump() if isinstance(study, Study) else {}
    for key, stored in _found_out(record).items():
        if (now := stated.get(key)) not in (None, bool(stored)):
            changes[f"data.{key}"] = f"data.{key}: {json.dumps(bool(stored))} -> {json.dumps(now)}"
    return changes


def _found_out(record: Record) -> dict[str, bool | None]:
    """How the data of a study were read so far, where that is found out unless it is stated."""
    data = record.document.get("data", {})  # a program's study has none
    return {"stream": bool(data.get("stream")), "as_is": data.get("as_is") or None}


def contradiction(folder: Path, changes: list[str], back: str | None = None) -> InputError:
    """What to raise of a study that cannot become another; `back` are the options by which it would be asked as it
    was."""
    lines = "\n".join(f"  {change}" for change in changes)
    goes_on = "" if back is None else f"{back} goes on with it; or "
    return InputError(
        f"the study in {folder} was begun with another question:\n{lines}",
        hint=f"{goes_on}give this one another name (--set name=NEW), or begin anew with --fresh, "
        "which sets the old one aside",
    )
