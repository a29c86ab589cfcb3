"""A study as its database tells it: values, which whoever reads a study is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tunecli.command import Command
from tunecli.given import shown
from tunecli.space import Space, build_space
from tunecli.trial import Importance, Trial


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a split, with its date: what for, and what was read."""

    read_at: datetime
    split: str
    purpose: str
    trial: int | None
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Earlier:
    """A question that the study was asked before: by those of its trials below `until` that no earlier one asked."""

    until: int
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """A study as its database tells it. `document` is the question as it is asked now, `earlier` as it was before, the
    oldest first. `kept`: trial -> SHA-256 of its checkpoint.

    `asked`: trial -> what it asked for, in order: name -> (Optuna's distribution as JSON, its internal value).
    `foreign`: trial -> what was enqueued for it by Optuna's names, and that no question so far had a place for.
    """

    name: str
    metric: str
    direction: str
    document: Mapping[str, Any]
    plan: Mapping[str, Any]
    data_hash: str
    environment: Mapping[str, Any]
    created: datetime
    trials: tuple[Trial, ...]
    kept: Mapping[int, str]
    readings: tuple[Reading, ...]
    importance: Importance | None
    asked: Mapping[int, Mapping[str, tuple[str, float]]]
    earlier: tuple[Earlier, ...] = ()
    foreign: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def space(self) -> Space:
        return space_of(self.document)

    def shown(self) -> list[Trial]:
        """The trials as today's space has them, which leaves out those that it does not hold."""
        space, train = self.space, self.document.get("train", {})
        return [own for trial in self.trials if (own := shown(space, trial, train)) is not None]

    @property
    def of_program(self) -> bool:
        """Whether its trials are runs of a user's program."""
        return "program" in self.document

    @property
    def command(self) -> Command | None:
        """What its trials ran, where they ran one."""
        text = self.document.get("program", {}).get("command")
        return None if text is None else Command.parse(text)


def space_of(document: Mapping[str, Any]) -> Space:
    """The search space of a question; a program's is no part of it."""
    return build_space(document.get("space", {}), document.get("train", {}))
