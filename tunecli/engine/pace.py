"""How long a tick of a run takes, and hence which worker gets the next one."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from tunecli.engine.worker import Worker
from tunecli.trial import Run


class Pace:
    """The mean over the ticks of runs that cost alike."""

    def __init__(self) -> None:
        self._seen: dict[Any, tuple[float, float]] = {}

    def learn(self, run: Run, seconds: float) -> None:
        for key in (_kind(run), None):
            count, sum_ = self._seen.get(key, (0.0, 0.0))
            self._seen[key] = count + 1, sum_ + seconds

    def choose(self, run: Run, workers: Collection[Worker], window: int) -> Worker:
        """A worker that has less than its share of the window to do: the one with most runs of the same optimizer,
        which are updated together; else the one with the least to do."""

        def alike(worker: Worker) -> int:
            return sum(own.hparams["optimizer"] == run.hparams["optimizer"] for own in worker.runs.values())

        share = window / len(workers) * self._mean() - self._of(run) / 2
        free = [worker for worker in workers if not worker.reviving and self._to_do(worker) <= share]
        return min(free, key=lambda own: (-alike(own), self._to_do(own))) if free else self.freest(workers)

    def freest(self, workers: Iterable[Worker]) -> Worker:
        """The worker that has the least to do."""
        return min(workers, key=lambda own: (bool(own.reviving), not own.ready, self._to_do(own)))

    def _to_do(self, worker: Worker) -> float:
        """The expected seconds of a tick of its runs; before any was seen, their number."""
        return sum(map(self._of, worker.runs.values()))

    def _mean(self) -> float:
        count, seconds = self._seen.get(None, (1.0, 1.0))
        return seconds / count

    def _of(self, run: Run) -> float:
        count, seconds = self._seen.get(_kind(run)) or self._seen.get(None) or (1.0, 1.0)
        return seconds / count


def _kind(run: Run) -> tuple[Any, ...]:
    """What the cost of a run depends on most: how it is batched, and what it is built from."""
    shaped = sorted(own for own in run.hparams.items() if own[0].startswith("model."))
    return run.hparams["batch_size"], run.hparams["optimizer"], *shaped
