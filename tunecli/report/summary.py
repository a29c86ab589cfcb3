"""What a study amounts to, as plain values: no drawing, no database."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunecli.trial import LEAST_COMPARED, Hparams, Importance, State, Trial, best_trial, better, ended_in


@dataclass(frozen=True, slots=True)
class Summary:
    """A study in numbers. `epochs` is None where its trials are runs of a program.

    `ranked` are the complete trials from the best on, `ties` how many share the best value. `exhausted` is how many
    points the space has, where all were tried. `outside` are the hparams by which the best trial lies outside of
    today's space. `command` is what ran the best trial, where a command did. `changes` are
    those of the question: the first trial that was asked anew, and a line for each key. `search` is its [search],
    `learned` how many trials the sampler chose by what others had come to, None where it looks at no value.
    `environment` is what a result depends on beside the question, as the study was begun.
    """

    study: str
    metric: str
    direction: str
    asked: int
    epochs: int | None
    trials: tuple[Trial, ...]
    counts: Mapping[State, int]
    best: Trial | None
    ranked: tuple[Trial, ...]
    ties: int
    seconds: float
    exhausted: int | None = None
    command: str | None = None
    importance: Importance | None = None
    changes: Sequence[tuple[int, Sequence[str]]] = ()
    outside: Sequence[str] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    learned: int | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def split(self) -> str | None:
        """What the values are from; what a program measures on, it alone knows."""
        return None if self.epochs is None else "validation"

    @property
    def what(self) -> str:
        """The metric and the split that it is from."""
        return self.metric if self.split is None else f"{self.metric} on {self.split}"

    @property
    def unit(self) -> str:
        """What a tick of a trial is."""
        return "report" if self.epochs is None else "epoch"

    @property
    def unexplained_because(self) -> str | None:
        """Why there is no importance of hparams, or None where there is."""
        if self.importance is None:
            compared = self.counts[State.COMPLETE] + self.counts[State.PRUNED]
            if compared < LEAST_COMPARED:
                return f"it takes {LEAST_COMPARED} complete or pruned trials, and there are {compared}"
            return f"it is computed when a search ends, of {LEAST_COMPARED} trials or more in the space as it is now"
        return None if self.importance.shares else "all trials are equally good"

    @property
    def ended(self) -> int:
        return ended_in(self.counts)


def summarize(
    *,
    study: str,
    metric: str,
    direction: str,
    asked: int,
    epochs: int | None,
    trials: Sequence[Trial],
    exhausted: int | None = None,
    importance: Importance | None = None,
) -> Summary:
    """Count, rank and add up. `asked` is the study's total of trials, `seconds` the training time of all of them."""
    sign = -1.0 if direction == "maximize" else 1.0
    complete = [trial for trial in trials if trial.state is State.COMPLETE and trial.value is not None]
    best = best_trial(list(trials), direction)
    return Summary(
        study=study,
        metric=metric,
        direction=direction,
        asked=asked,
        epochs=epochs,
        trials=tuple(trials),
        counts={state: sum(trial.state is state for trial in trials) for state in State},
        best=best,
        ranked=tuple(sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))),
        ties=sum(best is not None and trial.value == best.value for trial in complete),
        seconds=sum(trial.seconds for trial in trials),
        exhausted=exhausted,
        importance=importance,
    )


def failures(summary: Summary) -> list[tuple[str, list[Trial]]]:
    """The reasons for which trials failed, the most frequent first, each with its trials. When a trial failed is left
    out of its reason: those that differ in that alone count as one."""
    found: dict[str, list[Trial]] = {}
    for trial in summary.trials:
        if trial.state is State.FAILED:
            reason = re.sub(r" after \d+ (epoch|tick)s?$", "", trial.reason or "unknown")
            found.setdefault(reason, []).append(trial)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def against_divergence(summary: Summary) -> str | None:
    """Where to look where every trial diverged, whatever its learning rate; None where not all did."""
    found = [trial for reason, trials in failures(summary) if reason.startswith("diverged") for trial in trials]
    if not found or len(found) < summary.ended:
        return None
    rates = [rate for trial in found if isinstance(rate := trial.hparams.get("learning_rate"), float)]
    tried = f"all diverged, at learning rates from {min(rates):.3g} to {max(rates):.3g}" if rates else "all diverged"
    return (
        f"{tried}: where smaller ones do too, look for numbers too large, or none, in the data, the model or its loss"
    )


def as_document(summary: Summary) -> dict[str, Any]:
    """The summary as JSON: all trials, whatever is shown."""
    return {
        "study": summary.study,
        "metric": summary.metric,
        "direction": summary.direction,
        "split": summary.split,
        "asked": summary.asked,
        "counts": {str(state): count for state, count in summary.counts.items()},
        "ties": summary.ties,
        "seconds": summary.seconds,
        "importance": None if summary.importance is None else dict(summary.importance.shares),
        "exhausted": summary.exhausted is not None,
        "best": None if summary.best is None else trial_document(summary.best),
        **({} if summary.command is None else {"command": summary.command}),
        "environment": dict(summary.environment),
        "changes": [{"from_trial": number, "changes": list(lines)} for number, lines in summary.changes],
        "trials": [trial_document(trial) for trial in summary.trials],
    }


def trial_document(trial: Trial) -> dict[str, Any]:
    document: dict[str, Any] = {
        "number": trial.number,
        "state": str(trial.state),
        "value": value_so_far(trial),
        "hparams": {name: list(v) if isinstance(v, tuple) else v for name, v in trial.hparams.items()},
        "fidelity": trial.fidelity,
        "best_tick": trial.best_tick,
        "seconds": trial.seconds,
    }
    if trial.reason is not None:
        document["reason"] = trial.reason
    return document


def value_so_far(trial: Trial) -> float | None:
    """A trial's value; a failed one has none."""
    return None if trial.state is State.FAILED else trial.value


def curve_bars(values: Sequence[float], width: int, direction: str) -> str:
    """A curve as bars of eight heights, at most `width` of them, the best value of each stretch; higher is larger."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    count = min(width, len(finite))
    points = []
    for place in range(count):
        low, high = place * len(finite) // count, (place + 1) * len(finite) // count
        point = finite[low]
        for value in finite[low + 1 : high]:
            point = value if better(value, point, direction) else point
        points.append(point)
    bottom, top = min(points), max(points)
    scale = (top - bottom) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int((point - bottom) / scale * 8))] for point in points)


def short_hparams(hparams: Hparams, leave_out: Sequence[str] = ()) -> list[str]:
    """Each hparam as "name value", in the order of the space."""
    return [f"{name} {short(value)}" for name, value in hparams.items() if name not in leave_out]


def wrap(items: Sequence[str], width: int) -> str:
    """Items joined by commas, broken between items only, so that a name never parts from its value."""
    lines, line = [], ""
    for item in items:
        if line and len(line) + 2 + len(item) + 1 > width:
            lines.append(line + ",")
            line = item
        else:
            line = f"{line}, {item}" if line else item
    return "\n".join([*lines, line])


def short_seconds(seconds: float) -> str:
    """A trial's training time: a tenth of a second, or a thousandth of so short a one."""
    return f"{seconds:.1f}" if seconds >= 0.0995 or not seconds else f"{max(seconds, 0.001):.3f}"


def short(value: object) -> str:
    """A value as a person reads it: three digits for a number, a list for layer widths."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = f"{value:.3g}"
        # A beta of 0.9999 is no 1.
        return f"{value:.5g}" if text == "1" and value < 1 else text
    if isinstance(value, tuple | list):
        return "[" + ", ".join(short(item) for item in value) + "]"
    return str(value)
