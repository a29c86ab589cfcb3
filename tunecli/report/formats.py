"""A summary for programs and documents: JSON, CSV, Markdown."""

from __future__ import annotations

import json
import math
from typing import Any

from tunecli.output import csv_line
from tunecli.report.summary import Summary, as_document, short, short_hparams, short_seconds, trial_document


def as_json(summary: Summary) -> str:
    """The study as one JSON document."""
    return strict_json(as_document(summary))


def strict_json(document: dict[str, Any]) -> str:
    """One JSON document; a NaN or an infinity, which JSON has no word for, is null."""
    # JSON escapes what a terminal would obey, all but delete.
    return json.dumps(_plain(document), indent=2, allow_nan=False).replace("\x7f", "\\u007f")


def as_csv(summary: Summary) -> str:
    """All trials, a row each; a hparam that does not apply leaves its cell empty."""
    names = list(dict.fromkeys(name for trial in summary.trials for name in trial.hparams))
    lines = [csv_line(["number", "state", "value", "fidelity", "best_tick", "seconds", *names, "reason"])]
    for trial in summary.trials:
        document = trial_document(trial)
        cells = [document[key] for key in ("number", "state", "value", "fidelity", "best_tick", "seconds")]
        own = [document["hparams"].get(name, "") for name in names]
        own = [json.dumps(value) if isinstance(value, list) else value for value in own]
        lines.append(csv_line([*cells, *own, trial.reason or ""]))
    return "".join(lines)


def as_markdown(summary: Summary, top: int) -> str:
    """The best trials as a table, with a line about the study above it."""
    counts = ", ".join(f"{count} {state}" for state, count in summary.counts.items() if count)
    lines = [f"**{summary.study}**: {summary.what}, {summary.direction}d; {counts}.", ""]
    lines += [f"| trial | {summary.metric} | {summary.unit}s | seconds | hparams |", "|---:|---:|---:|---:|---|"]
    for trial in summary.ranked[:top]:
        lines.append(
            f"| {trial.number} | {short(trial.value)} | {trial.fidelity} | {short_seconds(trial.seconds)} "
            f"| {_in_a_cell(', '.join(short_hparams(trial.hparams)))} |"
        )
    return "\n".join(lines) + "\n"


def _in_a_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").splitlines())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
