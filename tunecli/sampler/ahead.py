"""Proposals made before they are asked for, while others train: the same ones, only sooner."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

from tunecli.sampler import Proposer
from tunecli.trial import Hparams, Trial, Value

Asked = tuple[int, int, Mapping[str, Value]]


class Retractable(Proposer, Protocol):
    """A proposer that can take back what it proposed last."""

    def forget(self, number: int) -> None:
        """The trials from this number on have never been proposed; none of them has ended."""


class Ahead:
    """What a trial that starts in tick t is to have depends on what had ended by tick t - 2, and on the lower numbers:
    it can be known while tick t - 1 is trained. Whether it is, and for how many trials, changes nothing: what was made
    and then not needed is taken back."""

    def __init__(self, proposer: Retractable) -> None:
        self._proposer = proposer
        self._made: deque[tuple[Asked, Hparams]] = deque()

    def add(self, trial: Trial) -> None:
        self._proposer.add(trial)

    def hide(self, number: int) -> None:
        self._proposer.hide(number)

    def end(self, trial: Trial) -> None:
        if self._made and (trial.end_tick or 0) <= self._made[0][0][1] - 2:
            self._take_back()  # it ended without training, when a replay could not start it, and should have been seen
        self._proposer.end(trial)

    def expect(self, count: int) -> None:
        self._proposer.expect(max(count - len(self._made), 0))

    def prepare(self, number: int, start_tick: int, given: Mapping[str, Value]) -> None:
        if self._made and self._made[-1][0][:2] != (number - 1, start_tick):
            self._take_back()
        self._made.append(((number, start_tick, given), self._proposer.propose(number, start_tick, given)))

    def propose(self, number: int, start_tick: int, given: Mapping[str, Value] | None = None) -> Hparams:
        if self._made and self._made[0][0] == (number, start_tick, given or {}):
            return self._made.popleft()[1]
        self._take_back()
        return self._proposer.propose(number, start_tick, given)

    def _take_back(self) -> None:
        if self._made:
            self._proposer.forget(self._made[0][0][0])
            self._made.clear()

    @property
    def exhausted(self) -> bool:
        return self._proposer.exhausted
