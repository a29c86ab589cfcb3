"""What a search begins with: what is searched, how it is computed, and what has changed since."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from rich.text import Text

from tunecli.data import Features
from tunecli.output import broken
from tunecli.report.summary import short, wrap
from tunecli.sampler import says
from tunecli.search import Changed, Opened, OpenedProgram
from tunecli.source import is_function
from tunecli.space import EXHAUSTIVE, Choice, Float, Int
from tunecli.study import ProgramStudy, Question, Study


def opening(event: Opened | OpenedProgram, width: int, *, whole: bool = False) -> Text:
    """What is being searched, a few lines; of one that goes on what was said when it began is left out, unless it is
    asked for as a `whole`."""
    paragraphs = _of_model(event) if isinstance(event, Opened) else _of_program(event)
    if event.done or event.in_flight:
        if not whole:
            paragraphs = [*_named(event), *(own for own in paragraphs if own[0] in _SAID_AGAIN)]
        total = event.study.search.trials
        paragraphs.append(("", [f"{event.done} of {total} done", f"{total - event.done} to go", *_going_on(event)]))
    text = Text()
    for label, items in paragraphs:
        lines = broken(wrap(items, width - 7), width - 7).splitlines()
        text.append(f"{label:<7}", style="bold")
        text.append("\n       ".join(lines) + "\n")
    text.right_crop(1)
    return text


_SAID_AGAIN = ("run", "search", "device", "logs", "note")


def _named(event: Opened | OpenedProgram) -> list[tuple[str, list[str]]]:
    if isinstance(event, OpenedProgram):
        return []
    return [("study", [f"{event.study.name}: {event.study.model.source} on {event.data.name}"])]


def _going_on(event: Opened | OpenedProgram) -> list[str]:
    """What becomes of the trials that an interrupted search left in flight."""
    if not event.in_flight:
        return []
    if isinstance(event, OpenedProgram):
        return [f"{len(event.in_flight)} of them run again from their start"]
    first, last = min(event.in_flight), max(event.in_flight)
    where = f"epoch {first}" if first == last else f"epochs {first} to {last}"
    return [f"{len(event.in_flight)} of them in flight at {where}"]


def explain(event: Opened) -> Text:
    """How the plan was chosen: what it was measured against, or by which rule and why; a few lines."""
    from tunecli.engine.plan import ALL_IN_C

    if event.timings:
        lines = ["measured on this machine, in microseconds for a sample of one trial:"]
        for timing in sorted(event.timings, key=lambda timing: timing.seconds):
            cost = "too slow" if math.isinf(timing.seconds) else f"{timing.seconds * 1e6:8.2f}"
            lines.append(f"{cost}  {timing.plan}")
    elif event.done or event.in_flight:
        lines = ["kept from when the study began", *([ALL_IN_C] if event.native else [])]
    else:
        lines = [f"by rule, as {_unmeasured_because(event)}:", _rule(event)]
    if event.device == "cpu":
        shared = "" if event.plan.lacks_compiler(event.device) else ", in several threads"
        lines.append("compiled C updates the weights" if event.plan.compiled else f"torch updates the weights{shared}")
    return Text.assemble(("plan   ", "bold"), "\n       ".join(lines))


def _unmeasured_because(event: Opened) -> str:
    from tunecli.data import Samples

    if event.native:
        return "its plans take about the same time"
    if event.study.train.step is not None or not isinstance(event.data.train, Samples):
        return "a step or a Dataset of your own is not measured"
    return "so short a study would not repay two seconds of measuring"


def _rule(event: Opened) -> str:
    from tunecli.engine.plan import reason

    if event.looped_because is not None:
        return "of this model only one trial can be computed at a time"
    return reason(event.weights, event.study.window or 1, native=event.native, gpu=event.device != "cpu")


def change(event: Changed, width: int) -> Text:
    """What has changed in the question, and what that means for the trials so far."""
    hidden = event.trials - event.shown
    means = [f"the {event.trials} trials so far stay"]
    if event.sampler in ("random", "qmc", *EXHAUSTIVE):
        pass  # it looks at no value
    elif not hidden:
        means.append(f"{event.sampler} sees them all as today's space has them")
    else:
        means.append(f"{hidden} of them lie outside today's space and are hidden from {event.sampler}")
    lines = wrap([*event.lines, *(means if event.trials else [])], width - 9).splitlines()
    return Text.assemble(("changed  ", "bold"), "\n         ".join(lines))


def _of_model(event: Opened) -> list[tuple[str, list[str]]]:
    study, data = event.study, event.data
    samples = [len(part) for part in (data.train, data.validation, data.test)]
    shape = _shape(data.features)
    kind = f"{len(data.classes)} classes" if data.classes else _TARGETS.get(data.task, data.task)
    looped = event.looped_because
    return [
        ("data", [f"{data.name}: {sum(samples):,} samples{' of ' if shape else ''}{shape}", kind, *_split(samples)]),
        *(("", [notice]) for notice in data.notices),
        ("model", [study.model.source, *_keys(study), *_searched_keys(study), _weights(event)]),
        ("space", list(_ranges(study))),
        (
            "search",
            [
                f"{study.search.trials} trials of up to {_count(study.train.epochs, 'epoch')}",
                f"{min(study.window or 1, study.search.trials)} in flight",
                _pruner(study),
                f"{event.metric} on validation is {event.direction}d",
            ],
        ),
        *([("", _ASSUMED.format(event.direction).split(", "))] if _direction_is_assumed(study) else []),
        ("", says(study.search.sampler, study.space, study.window).split(", ")),
        ("device", [event.device, *_computed(event)]),
        *([("", f"({looped})".split(", "))] if looped else []),
        *([("note", without)] if (without := _without_compiler(event)) else []),
    ]


def _without_compiler(event: Opened) -> list[str]:
    """Why a study trains more slowly than it could, and how to have it faster; nothing where it is as fast as it is."""
    if not event.plan.lacks_compiler(event.device):
        return []
    from tunecli.engine.compiler import can_compile

    if can_compile(event.device):
        return ["without a C compiler, as it was so far: --fresh begins anew with the one that works here now"]
    if event.done or event.in_flight:
        return []
    return ["no C compiler works here (cc, or CC)", "so torch trains the models", "more slowly: install gcc or clang"]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _computed(event: Opened) -> list[str]:
    plan = event.plan if event.workers else replace(event.plan, threads=event.threads)
    how = "trials one after another" if event.looped_because else str(plan)
    if event.workers:
        return [f"{event.workers} worker processes", *f"in each {how}".split(", ")]
    return how.split(", ")


def _of_program(event: OpenedProgram) -> list[tuple[str, list[str]]]:
    study = event.study
    search = study.search
    return [
        ("run", [study.program.objective or study.program.command or "", f"in {study.base}"]),
        ("space", list(_ranges(study)) if study.space.dimensions else ["as the objective suggests it"]),
        (
            "search",
            [
                f"{search.trials} trials",
                f"{study.window} at a time",
                search.sampler,
                _pruner(study),
                f"{event.metric} is {study.direction}d",
            ],
        ),
        ("logs", [f"{event.folder / 'logs'}"]),
    ]


def _pruner(study: Question) -> str:
    return "no pruner" if study.search.pruner == "none" else study.search.pruner


_ASSUMED = "note: nothing says which way the metric is better, {} is taken, train.direction tells"


def _direction_is_assumed(study: Study) -> bool:
    return is_function(study.train.metric or "") and study.train.direction is None


_TARGETS = {"own": "targets as they are"}
"""What the targets of a task are called where it is not its own name."""


def _shape(features: Features) -> str:
    """3 x 4; of several inputs each, with its name if it has one."""
    if isinstance(features, dict):
        return ", ".join(f"{name} {_shape(shape) or 'one number'}" for name, shape in features.items())
    if any(isinstance(size, tuple) for size in features):
        return " and ".join(_shape(shape) or "one number" for shape in features if isinstance(shape, tuple))
    return " x ".join(str(size) for size in features)


def _split(samples: list[int]) -> list[str]:
    return [f"{count:,} {name}" for count, name in zip(samples, ("train", "validation", "test"), strict=True)]


def _keys(study: Study) -> list[str]:
    return [f"{key} {short(value)}" for key, value in study.model.keys.items()]


def _searched_keys(study: Study) -> list[str]:
    return [f"{name.removeprefix('model.')} searched" for name in _of_shape(study)]


def _of_shape(study: Study) -> list[str]:
    """The hparams that the model function takes, by which each trial has a model of its own."""
    return [name for name in study.space.searched() if name.startswith("model.")]


def _weights(event: Opened) -> str:
    """Those of the model that was tried first, where not all trials have the same."""
    return f"{event.weights:,} weights" + (" in the first tried" if _of_shape(event.study) else "")


def _ranges(study: Study | ProgramStudy) -> Iterator[str]:
    """Each hparam with its range; where optimizers have ranges of their own, from the lowest to the highest."""
    for hparam in dict.fromkeys(dimension.hparam for dimension in study.space.dimensions):
        ranges = [dimension.range for dimension in study.space.dimensions if dimension.hparam == hparam]
        first = ranges[0]
        if isinstance(first, Choice):
            yield f"{hparam} {'|'.join(short(choice) for choice in first.values)}"
        elif isinstance(first, Float | Int):
            bounds = [own for own in ranges if isinstance(own, Float | Int)]
            yield f"{hparam} {min(own.low for own in bounds):g}..{max(own.high for own in bounds):g}"
        else:
            yield f"{hparam} = {short(first)}"
