"""The only loop: ask, fill slots, advance, record, decide, tell. Yields events; prints nothing.

torch and Optuna are loaded after the study's lock is held: a search that cannot begin says so at once.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli import __version__, checkpoint
from tunecli import data as data_room
from tunecli.errors import InputError, StorageError, TunecliError
from tunecli.pruner import Asha, rungs
from tunecli.space import Choice, Range
from tunecli.store import Record, Store, create_study, hold, is_unfinished, read
from tunecli.study import Study, differences
from tunecli.trial import Hparams, Measurement, Run, State, Trial, Value, best_trial, first_best

if TYPE_CHECKING:
    from tunecli.data import Data
    from tunecli.engine import Engine, Plan
    from tunecli.sampler import Proposer

PAUSE_SECONDS = 0.1
"""How long the engine works before the loop looks at signals and lets its events be shown."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The search begins or goes on: what is being searched."""

    study: Study
    folder: Path
    data: Data
    weights: int
    metric: str
    direction: str
    device: str
    plan: Plan
    looped_because: str | None
    done: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the study is: after each tick, and in the middle of long ones."""

    total: int
    counts: Mapping[State, int]
    best: Trial | None
    tick: int
    ended_now: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Differed:
    """A replayed run showed another value than was stored; the stored one stays."""

    trial: int
    fidelity: int
    stored: float
    replayed: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The loop has ended and everything is written. `how`: "done", "stopped" by a signal, or "timeout"."""

    how: str
    progress: Progress


Event = Opened | Progress | Differed | Ended


def search(
    study: Study,
    folder: Path,
    *,
    device: str = "auto",
    timeout_seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Search until the study's trials are done, `stop()` says so, or the time is up; then everything is written.

    The same call goes on where an earlier one ended, however it ended. Raises StorageError where another process
    holds the study, InputError where the study in `folder` was begun with another question.
    """
    with hold(folder):
        record = open_record(study, folder)
        if record is not None:
            study = study.with_window(int(record.document["search"]["window"]))
            if sum(trial.state.ended for trial in record.trials) >= study.search.trials:
                remove_unknown_checkpoints(folder, record.kept)
                yield Ended("done", _progress(study, record.trials, record.direction, 0, 0, 0.0))
                return
        else:
            study = study.with_window(study.window)
        loop = _Loop(study, folder, record, device)
        try:
            yield from loop.events(timeout_seconds, stop)
        finally:
            loop.close()


def open_record(study: Study, folder: Path) -> Record | None:
    """What the folder holds of this study, or None where it is new. Raises InputError where it is another question."""
    path = folder / "study.db"
    if is_unfinished(path):
        return None
    record = read(path)
    changes = differences(record.document, study.document())
    stored_window = record.document["search"].get("window")
    if study.search.window not in (None, stored_window):
        changes.append(f"search.window: {stored_window} -> {study.search.window}")
    if changes:
        raise contradiction(folder, changes)
    return record


def contradiction(folder: Path, changes: list[str]) -> InputError:
    lines = "\n".join(f"  {change}" for change in changes)
    return InputError(
        f"the study in {folder} was begun with another question:\n{lines}",
        hint="give this one another name (--set name=NEW), or begin anew with --fresh, which sets the old one aside",
    )


class _Loop:
    """The live study: its trials, and the rooms that the loop joins."""

    def __init__(self, study: Study, folder: Path, record: Record | None, device: str) -> None:
        from tunecli.engine import Plan, resolve_device
        from tunecli.engine.task import make_task
        from tunecli.sampler import Proposer

        self.study, self.folder, self.device = study, folder, resolve_device(device)
        self.data = _load_data(study)
        self.task = make_task(study, self.data)
        self.direction = self.task.metric.direction
        fingerprint = data_hash(self.data)
        if record is not None and record.data_hash != fingerprint:
            raise contradiction(folder, [f"data.source: {self.data.name} holds other samples than it did"])
        self._make_engine(Plan(**record.plan) if record is not None else None)
        if record is None:
            # After the model was tried: one that does not fit must not leave a study that its mending contradicts.
            self._create(self.plan, fingerprint)
        self.trials: list[Trial] = list(record.trials) if record else []
        self.kept = set(record.kept) if record else set()
        self._stale: set[int] = set()
        self.store = Store(folder / "study.db", study.space)
        self.proposer: Proposer = Proposer(study.space, study.search.sampler, self.direction, study.seed)
        for trial in self.trials:
            self.proposer.add(trial)
        self.pruner = self._make_pruner()
        self.tick = max((_last_tick(trial) for trial in self.trials), default=0)
        self._ended_now, self._began = 0, time.monotonic()
        remove_unknown_checkpoints(folder, self.kept)

    def _make_engine(self, stored: Plan | None) -> None:
        """The engine, and what the first model of the space that works says about it; raises where none works."""
        from tunecli.engine import LocalEngine, choose_plan

        faults: list[TunecliError] = []
        for hparams in _examples(self.study):
            run = self._run(0, hparams)
            try:
                module = self.task.build(run)
                self.weights = sum(p.numel() for p in module.parameters() if p.requires_grad)
                self.plan = stored or choose_plan(self.weights, self.study.window)
                self.engine: Engine = LocalEngine(self.task, self.plan, self.device)
                self.looped_because = self.engine.traits(run).looped_because
                return
            except TunecliError as error:
                faults.append(error)
        raise faults[0]

    def close(self) -> None:
        self.store.close()

    def events(self, timeout_seconds: float | None, stop: Callable[[], bool]) -> Iterator[Event]:
        done = sum(trial.state.ended for trial in self.trials)
        yield Opened(
            study=self.study,
            folder=self.folder,
            data=self.data,
            weights=self.weights,
            metric=self.task.metric.name,
            direction=self.direction,
            device=self.device,
            plan=self.plan,
            looped_because=self.looped_because,
            done=done,
        )
        until = None if timeout_seconds is None else self._began + timeout_seconds
        how = "done"
        yield from self._catch_up(stop)
        while not stop():
            if until is not None and time.monotonic() >= until:
                how = "timeout"
                break
            self._fill()
            if not self._in_flight():
                break
            measured = yield from self._advance(stop)
            if measured is None:
                break
            self.tick += 1
            self._decide(measured)
            self._commit()
            yield self.progress()
        if stop():
            how = "stopped"
        self.store.flush()
        self._remove_stale()
        yield Ended(how, self.progress())

    def progress(self) -> Progress:
        seconds = time.monotonic() - self._began
        return _progress(self.study, self.trials, self.direction, self.tick, self._ended_now, seconds)

    def _advance(self, stop: Callable[[], bool]) -> Generator[Event, None, list[Measurement] | None]:
        """Train every run in flight for one tick; returns the measurements, or None where a signal came first."""
        expected = len(self._in_flight())
        measured: list[Measurement] = []
        while len(measured) < expected:
            if stop():
                return None
            measured += self.engine.advance(time.monotonic() + PAUSE_SECONDS)
            if len(measured) < expected:
                # A long tick: what has begun can be seen by readers meanwhile.
                self.store.commit()
                yield self.progress()
        return sorted(measured, key=lambda measurement: measurement.trial)

    def _catch_up(self, stop: Callable[[], bool]) -> Iterator[Event]:
        """Train the trials that were in flight forward to where they were recorded, all arriving in the same tick."""
        waiting = sorted(self._in_flight(), key=lambda trial: -trial.fidelity)
        for left in range(waiting[0].fidelity if waiting else 0, 0, -1):
            while waiting and waiting[0].fidelity == left:
                self._start(waiting.pop(0))
            running = [trial for trial in self._in_flight() if trial.fidelity >= left]
            measured: list[Measurement] = []
            while len(measured) < len(running):
                if stop():
                    return
                measured += self.engine.advance(time.monotonic() + PAUSE_SECONDS)
                yield self.progress()
            for own in measured:
                stored = self.trials[own.trial].curve[own.fidelity - 1]
                if stored.metric != own.metric or stored.train_loss != own.train_loss:
                    yield Differed(own.trial, own.fidelity, stored.metric, own.metric)
        for trial in waiting:
            self._start(trial)

    def _fill(self) -> None:
        """Give every free slot the next trial."""
        while len(self._in_flight()) < self.study.window and len(self.trials) < self.study.search.trials:
            number = len(self.trials)
            hparams = self.proposer.propose(number, self.tick + 1)
            trial = Trial(number, State.RUNNING, hparams, start_tick=self.tick + 1)
            self.trials.append(trial)
            self.store.start(trial)
            self._start(trial)

    def _start(self, trial: Trial) -> None:
        try:
            self.engine.start(self._run(trial.number, trial.hparams))
        except StorageError:
            raise
        except TunecliError as error:
            # It ended before the tick in which it would have trained.
            ended = replace(trial, state=State.FAILED, value=None, best_tick=None, reason=error.message)
            self._end(replace(ended, end_tick=self.tick))

    def _decide(self, measured: list[Measurement]) -> None:
        self.store.record(measured)
        for own in measured:
            self.trials[own.trial] = _extended(self.trials[own.trial], own, self.direction)
            if self.pruner is not None:
                self.pruner.record(own)
        for own in measured:
            trial = self.trials[own.trial]
            reason = self.pruner.reason_to_prune(own) if self.pruner is not None and own.failure is None else None
            if own.failure is not None:
                ended = replace(trial, state=State.FAILED, value=None, best_tick=None, reason=own.failure)
            elif own.fidelity >= self.study.train.epochs:
                ended = replace(trial, state=State.COMPLETE)
            elif reason is not None:
                ended = replace(trial, state=State.PRUNED, reason=reason)
            else:
                continue
            self._end(replace(ended, end_tick=self.tick))
            self.engine.free(self._run(trial.number, trial.hparams))

    def _end(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        self._ended_now += 1
        if trial.state is State.COMPLETE:
            self._keep(trial)
        self.store.end(trial)
        self.proposer.end(trial)

    def _keep(self, trial: Trial) -> None:
        """Write the trial's checkpoint where it is among the best `keep`; what it displaces goes after the commit."""
        ranked = sorted((self.trials[number] for number in {*self.kept, trial.number}), key=self._rank)
        if trial not in ranked[: self.study.search.keep]:
            return
        weights = self.engine.weights(self._run(trial.number, trial.hparams))
        manifest = make_manifest(self.study, self.data, trial, self.task.metric.name)
        self.store.keep(trial, checkpoint.save(checkpoint_folder(self.folder, trial.number), weights, manifest))
        self.kept.add(trial.number)
        for displaced in ranked[self.study.search.keep :]:
            self.kept.discard(displaced.number)
            self.store.drop(displaced.number)
            self._stale.add(displaced.number)

    def _rank(self, trial: Trial) -> tuple[float, int]:
        value = trial.value if trial.value is not None else float("nan")
        return (-value if self.direction == "maximize" else value, trial.number)

    def _commit(self) -> None:
        if self.store.commit():
            self._remove_stale()

    def _remove_stale(self) -> None:
        for number in self._stale:
            checkpoint.remove(checkpoint_folder(self.folder, number))
        self._stale.clear()

    def _in_flight(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state is State.RUNNING]

    def _run(self, number: int, hparams: Hparams) -> Run:
        return Run(number, self.study.seed, hparams, self.study.train.epochs)

    def _make_pruner(self) -> Asha | None:
        if self.study.search.pruner == "none":
            return None
        options = self.study.search
        fidelities = rungs(options.min_ticks, options.reduction_factor, self.study.train.epochs)
        return Asha(fidelities, options.reduction_factor, self.direction, self.trials)

    def _create(self, plan: Plan, fingerprint: str) -> None:
        document = self.study.document()
        write_question(self.folder, self.study)
        create_study(
            self.folder / "study.db",
            name=self.study.name,
            metric=self.task.metric.name,
            direction=self.direction,
            document=document,
            plan=plan.as_dict(),
            data_hash=fingerprint,
            environment=environment(self.device),
        )


def set_aside(folder: Path) -> Path | None:
    """Give an earlier study a name of its own, so that a new one can begin; returns its new folder. Deletes nothing."""
    if not (folder / "study.db").exists():
        return None
    with hold(folder):
        aside = folder.with_name(f"{folder.name}-{datetime.now():%Y%m%d-%H%M%S}")
        try:
            folder.rename(aside)
        except OSError as error:
            raise StorageError(f"cannot rename {folder}: {error.strerror}", hint="mend its permissions") from error
    return aside


def remove_unknown_checkpoints(folder: Path, kept: Iterable[int]) -> None:
    """A kill can leave a checkpoint whose trial is not recorded as ended, which will be written again, or displaced."""
    known = {checkpoint_folder(folder, number).name for number in kept}
    for found in (folder / "checkpoints").glob("trial-*"):
        if found.name.removesuffix(".old") not in known:
            checkpoint.remove(found)


def checkpoint_folder(folder: Path, trial: int) -> Path:
    return folder / "checkpoints" / f"trial-{trial}"


def write_question(folder: Path, study: Study) -> None:
    """study.toml, the question as it was resolved; written before the database, so that none is without it."""
    path = folder / "study.toml"
    try:
        unfinished = path.with_suffix(".toml.new")
        unfinished.write_text(study.toml(), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}", hint="choose another folder with --home"
        ) from error


def make_manifest(study: Study, data: Data, trial: Trial, metric: str) -> dict[str, Any]:
    """All that is needed to predict from raw input, and where the weights come from."""
    from tunecli.engine.batches import batch_length
    from tunecli.engine.task import model_keys

    samples = len(data.train)
    batches = -(-samples // batch_length(trial.hparams["batch_size"], samples))
    return {
        "study": study.name,
        "trial": trial.number,
        "fidelity": trial.best_tick,
        "updates": (trial.best_tick or 0) * batches,
        "metric": metric,
        "value": trial.value,
        "split": "validation",
        "hparams": dict(trial.hparams),
        "model": {"source": study.model.source, "keys": model_keys(study, trial.hparams), "base": str(study.base)},
        "task": data.task,
        "classes": list(data.classes),
        "features": list(data.features),
        "preprocessing": dict(data.preprocessing),
        "tunecli": __version__,
    }


def data_hash(data: Data) -> str:
    """A fingerprint of all samples, in order, split by split."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (data.train, data.validation, data.test):
        for tensor in (part.inputs, part.targets):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def environment(device: str) -> dict[str, str]:
    """What a result may depend on beside the question."""
    import optuna
    import torch

    return {
        "tunecli": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "optuna": optuna.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def _load_data(study: Study) -> Data:
    section = study.data
    return data_room.load(
        section.source,
        section.keys,
        base=study.base,
        seed=study.seed,
        split=tuple(section.split),
        target=section.target,
        task=section.task,
    )


def _examples(study: Study) -> Iterator[Hparams]:
    """Points of the space, always the same, by which the model is tried before the first trial.

    The first has the first value of every choice; the others are there because a model may refuse that one alone.
    """
    choices = [d.range.values for d in study.space.dimensions if isinstance(d.range, Choice)]
    for place in range(max((len(values) for values in choices), default=1)):

        def ask(name: str, range_: Range, place: int = place) -> Value:
            return range_.values[place % len(range_.values)] if isinstance(range_, Choice) else range_.low

        yield study.space.suggest(ask)


def _last_tick(trial: Trial) -> int:
    return trial.end_tick if trial.end_tick is not None else trial.start_tick + trial.fidelity - 1


def _extended(trial: Trial, own: Measurement, direction: str) -> Trial:
    """The trial with one more tick seen."""
    trial = replace(trial, curve=(*trial.curve, own), seconds=trial.seconds + own.seconds)
    best = first_best(trial.curve, direction)
    return trial if best is None else replace(trial, value=best.metric, best_tick=best.fidelity)


def _progress(
    study: Study, trials: list[Trial] | tuple[Trial, ...], direction: str, tick: int, ended_now: int, seconds: float
) -> Progress:
    counts = {state: sum(trial.state is state for trial in trials) for state in State}
    best = best_trial(list(trials), direction)
    return Progress(study.search.trials, counts, best, tick, ended_now, seconds)
