"""The loop of a study whose trials are runs of a program: each in a process of its own, each report a tick."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunecli.alarm import overdue
from tunecli.errors import SourceError
from tunecli.importance import importance
from tunecli.patience import PAUSE_SECONDS
from tunecli.program import NO_VALUE, Child, wait
from tunecli.pruner import make_pruner
from tunecli.search.begin import open_store
from tunecli.search.events import Differed, Ended, Event, OpenedProgram, Progress
from tunecli.search.launch import Launcher, no_objective, printable, unloadable
from tunecli.search.ledger import Ledger, failed
from tunecli.search.resume import Found
from tunecli.space import Choice, Range, distribution_json, external_value
from tunecli.store import read
from tunecli.study import ProgramStudy
from tunecli.suggest import Asked, Suggester
from tunecli.trial import Measurement, State, Trial

UNKNOWN_LENGTH = 10**9
"""How many reports a trial may make: no program says."""


BLIND_FAILURES = 5
"""As many trials that fail whatever was sampled end a search: all would fail so."""


def fails_blindly(trial: Trial) -> bool:
    """Whether a trial failed for nothing that was sampled: before its objective asked for an hparam, or with a program
    that came to its end and told no value."""
    silent = (trial.reason or "").startswith(NO_VALUE)
    return trial.state is State.FAILED and (not trial.hparams or silent)


@dataclass(slots=True)
class _Run:
    """A trial in flight. What an earlier search recorded of it is replayed: `stored` and `asked` stand."""

    child: Child
    stored: Trial
    asked: Asked
    reported_at: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.monotonic)
    ready: bool = False
    curve: list[Measurement] = field(default_factory=list)
    reason_to_prune: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


class ProgramLoop:
    """One search, from where the record ends to where it stops."""

    def __init__(self, found: Found) -> None:
        study, folder, record = found.study, found.folder, found.record
        assert isinstance(study, ProgramStudy)
        self.study, self.folder, self.database = study, folder, found.database
        self.metric = study.metric or "value"
        self.is_new, self.is_mistake = record is None, False
        self.runs: dict[int, _Run] = {}
        self.launcher = Launcher(study, folder)
        # Before anything is written: a script that cannot be loaded is no study.
        check = record is None or study.command is not None
        self.first = self.launcher.check(begins=found.make_way is None) if check else None
        trials = record.trials if record is not None else ()
        self.asked = record.asked if record is not None else {}
        self.store = open_store(found, study, metric=self.metric, direction=study.direction, plan={}, data_hash="")
        self.placeholders = {
            own.name: distribution_json(own.range if isinstance(own.range, Range) else Choice((own.range,)))
            for own in study.space.dimensions
        }
        self.suggester = Suggester(study.search.sampler, study.direction, study.seed, self.placeholders)
        for trial in trials:
            if trial.state.ended:
                self.suggester.add(trial, self.asked[trial.number])
            else:
                self.suggester.start(trial.number)
        # Those in flight are run again from their start, and what they report counts from then on.
        ended = [trial for trial in trials if trial.state.ended]
        options = study.search.pruner_options
        pruner = make_pruner(study.search.pruner, options, UNKNOWN_LENGTH, study.direction, study.seed, ended)
        self.ledger = Ledger(self.store, pruner, study.direction, study.search.trials, trials)

    def close(self) -> None:
        """End every program that still runs."""
        for child in [*(run.child for run in self.runs.values()), *([self.first] if self.first else [])]:
            child.kill()
        self.runs.clear()
        self.store.close()
        if self.is_mistake and isinstance(self.database, Path):
            # In a database that others share it stays, with trials that failed; here nothing has to.
            self.database.unlink()
            (self.folder / "study.toml").unlink()
            shutil.rmtree(self.folder / "logs", ignore_errors=True)

    def events(self, timeout_seconds: float | None, stop: Callable[[], bool]) -> Iterator[Event]:
        flight = [trial.fidelity for trial in self.ledger.in_flight]
        yield OpenedProgram(self.study, self.folder, self.metric, self.ledger.done, flight)
        how = "done"
        self.ledger.hope_again(self._most_failures())
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        for trial in self.ledger.in_flight:
            self.store.restart(trial.number)
            self._launch(trial)
        while not stop():
            if until is not None and time.monotonic() >= until:
                how = "timeout"
                break
            self._fill()
            if self.ledger.is_hopeless(self._most_failures()) and self.ledger.missing > 0:
                how = "hopeless"
                break
            if not self.runs:
                break
            yield from self._listen()
            yield from self.ledger.newly_failed()
            self.store.commit()
            yield self._progress()
        if how == "done" and stop() and (self.runs or self.ledger.missing > 0):
            how = "stopped"
        self.store.flush()
        # What the objectives asked for is in the record, and nowhere else.
        record = read(self.database)
        found = importance(record.trials, record.asked, self.study.direction)
        if found is not None:
            self.store.explain(found)
            self.store.flush()
        yield Ended(how, self.ledger.progress())

    def _progress(self) -> Progress:
        """What is left is told by the mean trial so far, once as many have ended as run at a time."""
        now = self.ledger.progress()
        if now.ended_now < self.study.window:
            return now
        left = len(self.ledger.in_flight) + self.ledger.missing
        return replace(now, left_seconds=now.seconds / now.ended_now * left)

    def _fill(self) -> None:
        """Give every free slot the next trial."""
        most = self._most_failures()
        while len(self.runs) < self.study.window and self.ledger.missing > 0 and not self.ledger.is_hopeless(most):
            trial = Trial(len(self.ledger.trials), State.RUNNING, {}, start_tick=self.ledger.tick + 1)
            self.ledger.start(trial)
            self.suggester.start(trial.number)
            self._launch(trial)

    def _most_failures(self) -> int:
        """How many failed trials in a row end the search: a few, where nothing that is sampled can mend them."""
        most = self.study.search.max_failures
        ended = (trial for trial in self.ledger.trials if trial.state.ended)
        return min(most, BLIND_FAILURES) if all(map(fails_blindly, ended)) else most

    def _launch(self, trial: Trial) -> None:
        """Run a trial from its start, for the first time or again."""
        number, command = trial.number, self.study.command
        asked = self.asked.get(number, {})
        if command is None:
            first, self.first = self.first, None
            child = first or self.launcher.objective(number)
            self.runs[number] = _Run(child, trial, asked, ready=first is not None)
            if first is not None:
                first.go()
            return
        for name, distribution in self.placeholders.items():
            self._suggest(number, asked, name, distribution)
        arguments = command.filled(self.ledger.trials[number].hparams)
        child = self.launcher.program(number, arguments)
        self.runs[number] = _Run(child, trial, asked, ready=True)

    def _listen(self) -> Iterator[Event]:
        """Take in what the programs say, for a moment."""
        limit = self.study.search.trial_seconds
        for run in list(self.runs.values()):
            if limit is not None and time.monotonic() - run.began > limit:
                self._end(run, failed(self.ledger.trials[run.stored.number], overdue(limit)))
        children = {number: run.child for number, run in self.runs.items()}
        heard = wait(children.values(), PAUSE_SECONDS)
        for number, child in children.items():
            gone = child.gone  # asked first: what a process says before it ends is read after
            if child not in heard and not gone:
                continue
            for message in child.messages():
                yield from self._hear(self.runs[number], message)
                if number not in self.runs:
                    break
            if gone and number in self.runs:
                self._lose(self.runs[number])

    def _hear(self, run: _Run, message: dict[str, Any]) -> Iterator[Event]:
        number = run.stored.number
        if "ask" in message:
            try:
                run.child.answer(self._suggest(number, run.asked, message["ask"], message["distribution"]))
            except ValueError as error:
                run.child.refuse(str(error))
        elif "report" in message:
            yield from self._report(run, message["report"], message["step"])
        elif "prune" in message:
            run.child.answer(run.reason_to_prune is not None)
        elif "attribute" in message:
            run.attributes[message["attribute"]] = message["value"]
        elif "ready" in message:
            run.ready = True
            run.child.go()
        else:
            self._hear_end(run, message)

    def _suggest(self, number: int, asked: Asked, name: str, distribution: str) -> float:
        """Optuna's internal value for what a trial asks for. Asked again after a kill, it is the one recorded."""
        internal = self.suggester.suggest(number, name, distribution)
        if name in asked:
            if asked[name] != (distribution, internal):
                distribution, internal = asked[name]
                self.suggester.put(number, name, distribution, internal)
            return internal
        self.store.suggest(number, name, distribution, internal)
        trial = self.ledger.trials[number]
        hparams = {**trial.hparams, name: external_value(distribution, internal)}
        self.ledger.trials[number] = replace(trial, hparams=hparams)
        return internal

    def _report(self, run: _Run, value: float, step: int) -> Iterator[Event]:
        now, fidelity = time.monotonic(), len(run.curve) + 1
        own = Measurement(
            trial=run.stored.number,
            fidelity=fidelity,
            train_loss=math.nan,
            validation_loss=math.nan,
            metric=value,
            gradient_norm=math.nan,
            seconds=now - run.reported_at,
            failure="the value is nan" if math.isnan(value) else None,
            step=None if step == fidelity else step,
        )
        run.reported_at = now
        if fidelity <= run.stored.fidelity:
            before = run.stored.curve[fidelity - 1]
            if before.metric != own.metric and not math.isnan(own.metric):
                yield Differed(own.trial, fidelity, before.metric, own.metric)
            own = before
            if self.ledger.pruner is not None:
                self.ledger.pruner.record(own)
        else:
            self.ledger.tick += 1
            self.ledger.record([own])
        run.curve.append(own)
        # Asked or not, a decision stands: an objective may report often and ask now and then.
        if own.failure is not None and self.ledger.pruner is not None:
            run.reason_to_prune = run.reason_to_prune or f"report {fidelity} is nan"
        run.reason_to_prune = run.reason_to_prune or self.ledger.reason_to_prune(own)

    def _hear_end(self, run: _Run, message: dict[str, Any]) -> None:
        how, trial = message["end"], self.ledger.trials[run.stored.number]
        if how == "unloadable":
            raise unloadable(message)
        if how == "interrupted":
            self.store.flush()
            raise KeyboardInterrupt
        if how == "failed" and message.get("holds") and not (trial.hparams or self._has_values()):
            raise self._no_objective(message["holds"], printable(message["reason"]))
        if how == "failed":
            trial = failed(trial, printable(message["reason"]))
        elif how == "pruned":
            last = run.curve[-1].metric if run.curve and run.curve[-1].failure is None else None
            reason = run.reason_to_prune or "the objective raised TrialPruned"
            trial = replace(trial, state=State.PRUNED, value=last, best_tick=None, reason=reason)
        elif math.isnan(message["value"]):
            trial = failed(trial, "its value is nan")
        else:
            trial = replace(trial, state=State.COMPLETE, value=message["value"], best_tick=None)
        self._end(run, trial)

    def _has_values(self) -> bool:
        """Whether any trial has come to a number yet."""
        return any(trial.curve or trial.value is not None for trial in self.ledger.trials)

    def _no_objective(self, holds: str, reason: str) -> SourceError:
        """What to raise of a function that returns what is to be searched, and has nothing to search itself. All its
        trials failed; where the study began with this search, there is none to keep."""
        self.is_mistake = self.is_new
        for run in list(self.runs.values()):
            self._end(run, failed(self.ledger.trials[run.stored.number], reason))
        self.store.flush()
        return no_objective(self.study.program.objective, holds)

    def _lose(self, run: _Run) -> None:
        """A process has ended without a word."""
        if not run.ready:
            raise self.launcher.lost(run.child)
        self._end(run, failed(self.ledger.trials[run.stored.number], run.child.last_words()))

    def _end(self, run: _Run, trial: Trial) -> None:
        run.child.kill()
        del self.runs[trial.number]
        trial = replace(trial, end_tick=self.ledger.tick)
        self.store.note(trial.number, run.attributes)
        self.ledger.end(trial)
        self.suggester.end(trial)
