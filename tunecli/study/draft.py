"""A study file drafted for data: what is asked, and beside it, commented out, what holds by default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import tomlkit

from tunecli import models
from tunecli.data import BUNDLED, Data
from tunecli.metrics import DEFAULT_LOSS, DEFAULT_METRIC, LOSSES, METRICS, Loss, Metric
from tunecli.output import visible
from tunecli.space import DEFAULT_OPTIMIZERS, HPARAMS, SCHEDULES
from tunecli.study import Study
from tunecli.study.sections import DataSection, SearchSection, TrainSection

NOTES_AT = 46
"""The column at which remarks stand."""


def draft(study: Study, data: Data, file: str) -> str:
    """The text of a study file that asks what `study` does; to be written as `file`, in the study's base folder."""
    return "\n".join(_lines(study, data, file)) + "\n"


def _lines(study: Study, data: Data, file: str) -> Iterator[str]:
    # A file's name may hold a line feed, and what follows one is no comment.
    yield f"# Which recipe trains a model of {' '.join(visible(data.name).split())} best?"
    yield f"#   tunecli search {file}"
    yield "# What is commented out holds by default, or is an example where it says so."
    yield ""
    yield _key("name", study.name)
    yield _key("seed", study.seed)
    yield "\n[data]"
    is_file = study.data.source not in BUNDLED
    yield _key("source", study.data.source, "relative to this file" if is_file else "")
    if study.data.target is not None:
        yield _key("target", study.data.target)
    stated = study.data.model_dump(exclude_unset=True, exclude={"source", "target"})
    for name, value in stated.items():
        yield _key(name, value)
    for name, value, note in _data_defaults(study, data):
        if name not in stated:
            yield _default(name, value, note)
    yield "\n[model]"
    bundled = ", ".join(name for name in models.BUNDLED if name != study.model.source)
    yield _key("source", study.model.source, f'or {bundled}, or your own "file.py:function"')
    if study.model.source == "cnn":
        yield _default("channels", [16, 32], "of its convolutions")
        yield _default("hidden", 64, "the width of its hidden layer")
    else:
        yield _default("hidden", [128], "the widths of its hidden layers")
    yield "\n[train]"
    yield _default("epochs", TrainSection.model_fields["epochs"].default)
    metric, loss = DEFAULT_METRIC[data.task], DEFAULT_LOSS[data.task]
    yield _default("metric", metric, _others(metric, METRICS.values(), data.task))
    yield _default("loss", loss, _others(loss, LOSSES.values(), data.task))
    if data.task == "classification":
        yield _default("class_weight", "balanced", "an example: rare classes count as much as common ones")
    yield _default("schedule", HPARAMS["schedule"].default, "or " + ", ".join(SCHEDULES[1:]))
    yield "\n" + _line("[space]", "what is left out has its default range")
    yield _default("optimizer", list(DEFAULT_OPTIMIZERS))
    yield _line("# learning_rate = { low = 1e-4, high = 0.1 }", "an example")
    yield _default("l1", 0, "an example: a plain value fixes it")
    widths = [[8], [16, 32], [16, 32, 64]] if study.model.source == "cnn" else [[64], [128], [64, 64]]
    yield _default("model.channels" if study.model.source == "cnn" else "model.hidden", widths, "an example")
    yield "\n[search]"
    for name in ("trials", "sampler", "pruner"):
        yield _default(name, SearchSection.model_fields[name].default)
    yield _default("trial_timeout", "10m", "an example: a trial that takes longer has failed")
    failures = "so many trials that fail in a row end the search"
    yield _default("max_failures", SearchSection.model_fields["max_failures"].default, failures)


def _data_defaults(study: Study, data: Data) -> Iterator[tuple[str, Any, str]]:
    yield "task", data.task, "inferred"
    if "columns" in data.preprocessing and study.data.source not in BUNDLED:
        columns = [own["name"] for own in data.preprocessing["columns"][:2]]
        yield "features", columns, "an example: the columns to use, all others left out"
    if data.preprocessing.get("kind") == "pictures":
        yield "size", data.preprocessing["size"], "height and width that pictures are made"
    yield "split", DataSection.model_fields["split"].default, "train : validation : test"


def _key(name: str, value: Any, note: str = "") -> str:
    return _line(f"{name} = {tomlkit.item(value).as_string()}", note)


def _default(name: str, value: Any, note: str = "") -> str:
    return f"# {_line(f'{name} = {tomlkit.item(value).as_string()}', note, NOTES_AT - 2)}"


def _line(text: str, note: str, at: int = NOTES_AT) -> str:
    return f"{text:<{at - 2}}  # {note}" if note else text


def _others(default: str, known: Iterable[Loss | Metric], task: str, most: int = 4) -> str:
    names = [own.name for own in known if own.task == task and own.name != default]
    return f"or {', '.join(names[:most])}{', ...' if len(names) > most else ''}"
