"""How long a tick of a run takes: what says which worker has the least to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunecli.trial import Run


class Pace:
    """The mean over the ticks of runs that cost alike."""

    def __init__(self) -> None:
        self._seen: dict[Any, tuple[float, float]] = {}

    def learn(self, run: Run, seconds: float) -> None:
        for key in (_kind(run), None):
            count, sum_ = self._seen.get(key, (0.0, 0.0))
            self._seen[key] = count + 1, sum_ + seconds

    def mean(self) -> float:
        count, seconds = self._seen.get(None, (1.0, 1.0))
        return seconds / count

    def of(self, runs: Iterable[Run]) -> float:
        """The expected seconds of a tick of them; before any was seen, their number."""
        return sum(map(self._of, runs))

    def _of(self, run: Run) -> float:
        count, seconds = self._seen.get(_kind(run)) or self._seen.get(None) or (1.0, 1.0)
        return seconds / count


def _kind(run: Run) -> tuple[Any, ...]:
    """What the cost of a run depends on most: how it is batched, and what it is built from."""
    shaped = sorted(own for own in run.hparams.items() if own[0].startswith("model."))
    return run.hparams["batch_size"], run.hparams["optimizer"], *shaped
