"""The runs in flight: tick by tick, and their snapshots, which keep what an interruption would cost."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from tunecli.data import Data
from tunecli.engine import Plan, Snapshot
from tunecli.errors import OutOfMemory, TunecliError
from tunecli.search.crew import Crew
from tunecli.snapshots import Kept, Snapshots, code_of
from tunecli.study import Study
from tunecli.trial import Measurement, Run


class Flight:
    """What a crew trains, and what an earlier search left of it."""

    def __init__(self, crew: Crew, snapshots: Snapshots) -> None:
        self._crew, self._snapshots = crew, snapshots
        self._runs: dict[int, Run] = {}
        self._found: dict[int, Kept] = {}
        self._parked: dict[int, Kept] = {}
        self._ahead: dict[int, tuple[Run, Snapshot]] = {}
        self._measured: dict[int, Measurement] = {}
        self._ticks: dict[int, int] = {}
        self._stale: set[int] = set()

    def find(self, run: Run, fidelity: int) -> tuple[int, str | None]:
        """How many of the ticks recorded of a run need not be trained again; a note where a snapshot is damaged."""
        parked = self._parked.pop(run.trial, None)
        kept, note = (parked, None) if parked is not None else self._snapshots.load(run)
        if kept is None:
            return 0, note
        reached = kept.snapshot.fidelity
        if reached > fidelity and not (kept.measured is not None and reached == fidelity + 1):
            return 0, None  # of ticks that were never recorded
        self._found[run.trial] = kept if reached > fidelity else replace(kept, measured=None)
        return min(reached, fidelity), None

    def start(self, runs: Iterable[Run]) -> dict[int, TunecliError]:
        """Runs take their places, where their snapshots left them if there are any; the errors of those that cannot,
        by trial."""
        fresh, failed = [], {}
        for run in runs:
            kept = self._found.pop(run.trial, None)
            if kept is None:
                fresh.append(run)
            elif kept.measured is not None:
                # It was through with this tick when others were not: it sits the rest of it out.
                self._ahead[run.trial], self._measured[run.trial] = (run, kept.snapshot), kept.measured
            else:
                try:
                    self._crew.engine.restore(run, kept.snapshot)
                except TunecliError as error:
                    failed[run.trial] = error
                else:
                    self._runs[run.trial], self._ticks[run.trial] = run, kept.snapshot.fidelity
        failed |= self._crew.engine.start_all(fresh)
        started = [run for run in fresh if run.trial not in failed]
        self._runs |= {run.trial: run for run in started}
        self._ticks |= {run.trial: 0 for run in started}
        return failed

    def park(self) -> None:
        """Take all runs out of an engine that is to be replaced; `find` and `start` have them go on where they are, or
        where their last snapshot is."""
        self._parked |= self._found
        for run in self._runs.values():
            if (kept := self._take(run)) is not None:
                self._parked[run.trial] = kept
        self._parked |= {trial: Kept(own, self._measured[trial]) for trial, (_, own) in self._ahead.items()}
        self._runs, self._found, self._ahead, self._measured = {}, {}, {}, {}

    def begin(self) -> bool:
        """Begin the tick where others train; whether this process has time for something else while they do."""
        return bool(self._runs) and self._crew.engine.begin()

    def advance(self, seconds: float) -> int:
        """Train for so long, or until runs have finished their tick; how many have by now."""
        if len(self._measured) < len(self._runs) + len(self._ahead):
            self._measured |= {own.trial: own for own in self._crew.engine.advance(time.monotonic() + seconds)}
        return len(self._measured)

    def end_tick(self) -> list[Measurement]:
        """What every run showed in this tick, by the number of its trial; the next one begins."""
        for run, snapshot in self._ahead.values():
            self._crew.engine.restore(run, snapshot)
            self._runs[run.trial] = run
        measured = sorted(self._measured.values(), key=lambda own: own.trial)
        self._ticks |= {own.trial: own.fidelity for own in measured}
        self._ahead, self._measured = {}, {}
        return measured

    def free(self, run: Run) -> None:
        self._crew.engine.free(self._runs.pop(run.trial))
        del self._ticks[run.trial]
        self._stale.add(run.trial)

    @property
    def is_due(self) -> bool:
        """Whether it is time for snapshots again; what they go on from has to be committed first."""
        return self._snapshots.due

    def keep(self, within_seconds: float = 60.0) -> list[str]:
        """Write the snapshots of all runs; what a user should know of it."""
        return self._snapshots.write(self._runs.values(), self._take, within_seconds)

    def _take(self, run: Run) -> Kept | None:
        """A run as it is now; None where what it has just come through could not be heard."""
        snapshot = self._crew.engine.snapshot(run)
        if snapshot is not None and snapshot.fidelity > self._ticks[run.trial] and run.trial not in self._measured:
            # A worker has just brought it through the tick. Where memory ran out there, the next tick is told of it.
            with suppress(OutOfMemory):
                self.advance(0.0)
        measured = self._measured.get(run.trial)
        known = measured.fidelity if measured is not None else self._ticks[run.trial]
        return Kept(snapshot, measured) if snapshot is not None and snapshot.fidelity <= known else None

    def clear_away(self) -> None:
        """Remove the snapshots of runs that have ended; call it once that is committed."""
        for trial in self._stale:
            self._snapshots.remove(trial)
        self._stale.clear()


def trained_by(study: Study, data: Data, fingerprint: str, plan: Plan) -> dict[str, object]:
    """What a run's bits depend on beside itself, as far as it can change between two searches."""
    document = study.document()
    told = {name: document[name] for name in ("model", "train")}
    # How many processes read changes no bit, and may change from one search to the next; how numbers are, samples tell.
    told["data"] = {key: value for key, value in document["data"].items() if key not in ("workers", "stream", "as_is")}
    # A run goes on from what it reached under a plan that took more memory.
    computed = {key: value for key, value in plan.as_dict().items() if key not in ("block_rows", "evaluated")}
    how = {"plan": computed, "code": code_of(document, study.base)}
    return {**told, **how, "samples": fingerprint, "streamed": data.streamed}
