"""A checkpoint, used: raw input -> predictions. Reads no test split, writes nothing into the study, takes no lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli import checkpoint
from tunecli.errors import CheckpointError, InputError, ModelError, TunecliError
from tunecli.home import checkpoint_folder, find_database
from tunecli.output import csv_line
from tunecli.storage import Database
from tunecli.store import Record, load_kept, read
from tunecli.study import model_code
from tunecli.study.code import MADE_NOW, changed_code
from tunecli.trial import best_trial

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunecli.data.inputs import NewInputs


_UNNAMED = (None, "target", "targets")
"""What targets are called that nobody gave a name."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A checkpoint and where it comes from. `words` say which one it is, `notices` what a user should know of it."""

    place: Path
    weights: Mapping[str, Tensor]
    manifest: Mapping[str, Any]
    words: str
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions of `samples` rows, made as they are read, by a `model` of `study`; `target` is what its table calls
    what is predicted, if it has a name.

    A row has a value for each of `columns`: the prediction, which is a label, then the probability of each class; of a
    regression, the prediction alone, in the target's own unit. A model of a user's own loss may give several numbers
    for a sample, which are `prediction_0`, `prediction_1` and so on. That of a picture begins with the file's name.
    """

    study: str
    target: str | None
    model: str
    columns: tuple[str, ...]
    samples: int
    notices: tuple[str, ...]
    rows: Iterator[tuple[str | float, ...]]


def predict(
    folder: Path,
    source: str,
    *,
    base: Path = Path(),
    trial: int | None = None,
    finetuned: int | None = None,
    device: str = "auto",
    database: Database | None = None,
) -> Predicted:
    """Predict each row of a table, or each input of a `file.py:function`, with a model of the study in `folder`.

    The model is the newest fine-tuned one that is in use, else the best trial's; with `trial` that trial's, with
    `finetuned` that one, in use or not. `source` is relative to `base`; the study's trials are in `database`, by
    default where `folder` says.

    Raises NoUsableTrial, CheckpointError, InputError.
    """
    chosen = choose(folder, trial, finetuned, database)
    manifest = chosen.manifest
    # torch is loaded after the checkpoint is chosen: what cannot begin says so at once.
    from tunecli.data import inputs
    from tunecli.data.samples import stored_features
    from tunecli.engine import resolve_device

    device, question = resolve_device(device), folder / "study.toml"
    features = stored_features(manifest["features"])
    target = manifest["preprocessing"].get("target", {}).get("name")
    found = inputs.read(source, base=base, preprocessing=manifest["preprocessing"], features=features)
    module = load_model(chosen, question).to(device)
    changed = changed_code(manifest, model_code(question)[1])
    outputs = _outputs(module, found, device)
    # The first of them now: a model that cannot read these samples says so before anything is printed.
    first = next(outputs, None)
    return Predicted(
        study=folder.name,
        target=None if target in _UNNAMED else target,
        model=chosen.words,
        columns=(
            *(("file",) if found.names else ()),
            *_columns(manifest["classes"], 1 if first is None else first.shape[1]),
        ),
        samples=found.rows,
        notices=(*chosen.notices, *([f"{changed}: {MADE_NOW}"] if changed else ()), *found.notices),
        rows=_named(found.names, _rows(outputs if first is None else chain((first,), outputs), manifest)),
    )


def takes(folder: Path, database: Database | None = None) -> str:
    """What the model of the study in `folder` reads, in words. Raises what `choose` does."""
    from tunecli.data import inputs

    return inputs.takes(choose(folder, database=database).manifest["preprocessing"])


def choose(
    folder: Path, trial: int | None = None, finetuned: int | None = None, database: Database | None = None
) -> Chosen:
    """The checkpoint to predict with; a damaged one is passed over for the next best, with a notice, unless `trial` or
    `finetuned` names it. Raises NoUsableTrial, InputError, CheckpointError."""
    record = read(database or find_database(folder))
    if finetuned is not None:
        place = folder / "finetuned" / str(finetuned)
        _check_there(place, folder)
        weights, manifest = checkpoint.load(place)
        return _of_finetuned(place, weights, manifest, _overtaken(record, manifest))
    passed_over: tuple[str, ...] = ()  # what a user should know of those
    for place in _finetuned(folder) if trial is None else ():
        try:
            weights, manifest = checkpoint.load(place)
        except CheckpointError as error:
            passed_over += (f"{error.message}; an older model stands in",)
            continue
        if manifest.get("used"):
            return _of_finetuned(place, weights, manifest, (*passed_over, *_overtaken(record, manifest)))
        if not passed_over:  # the older ones were told of in their time
            why = f"{_fell(manifest)}; --finetuned {place.name} takes it all the same"
            passed_over = (f"the fine-tuned model {place.name} is passed over: {why}",)
    kept = load_kept(folder, record, trial)
    place = checkpoint_folder(folder, kept.trial.number)
    _check_complete(kept.manifest, place)
    which = "trial" if trial is not None or kept.notices else "the best trial"
    words = f"{which} {kept.trial.number} ({_score(kept.manifest)})"
    return Chosen(place, kept.weights, kept.manifest, words, (*passed_over, *kept.notices))


def _check_there(place: Path, folder: Path) -> None:
    if not place.is_dir():
        there = ", ".join(own.name for own in reversed(_finetuned(folder)))
        raise InputError(
            f"{folder.name} has no fine-tuned model {place.name}",
            hint=f"it has {there}" if there else f"tunecli finetune {folder.name} --best makes one",
        )


def _of_finetuned(
    place: Path, weights: Mapping[str, Tensor], manifest: Mapping[str, Any], notices: tuple[str, ...]
) -> Chosen:
    _check_complete(manifest, place)
    on = f"{manifest['source']} trained on with {manifest.get('finetuned', {}).get('data')}"
    return Chosen(place, weights, manifest, f"the fine-tuned model {place.name}, {on} ({_score(manifest)})", notices)


def _check_complete(manifest: Mapping[str, Any], place: Path) -> None:
    needed = {"trial", "metric", "value", "split", "model", "features", "classes", "preprocessing"}
    missing = sorted(needed - manifest.keys())
    missing += [f"model.{key}" for key in ("source", "keys", "outputs") if key not in manifest.get("model", {})]
    if missing:
        raise CheckpointError(
            f"the checkpoint {place} does not say its {', '.join(missing)}: another version of tunecli wrote it",
            hint="run the search again with --fresh",
        )


def _finetuned(folder: Path) -> list[Path]:
    """The fine-tuned checkpoints, the newest first."""
    numbers = sorted((int(own.name) for own in (folder / "finetuned").glob("*") if own.name.isdigit()), reverse=True)
    return [folder / "finetuned" / str(number) for number in numbers]


def _overtaken(record: Record, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Whether another trial than the one that was fine-tuned is the best by now."""
    best = best_trial(list(record.trials), record.direction)
    if best is None or best.number == manifest["trial"]:
        return ()
    own = f"the fine-tuned model comes from trial {manifest['trial']}"
    return (f"the best trial is {best.number} by now, {own}; --trial {best.number} takes the best",)


def _fell(manifest: Mapping[str, Any]) -> str:
    """What fine-tuning did to a model that it made worse."""
    told = manifest["finetuned"]
    return f"{told['metric']} went from {told['before']:.4f} to {told['after']:.4f} on {told['split']}"


def _score(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['metric']} {manifest['value']:.4f} on {manifest['split']}"


def load_model(chosen: Chosen, question: Path) -> nn.Module:
    """The model of a checkpoint with its weights, in evaluation mode. Raises ModelError, SourceError, CheckpointError.

    A user's own function makes it with the head of the data that it was searched on; fine-tuning may have put in
    another. Which function that is, `question` says, the study.toml: a checkpoint is data, and names no code to run.
    """
    from tunecli import models
    from tunecli.data import categories
    from tunecli.data.samples import stored_features
    from tunecli.models.head import has_other_head, load_weights, replace_head

    model = chosen.manifest["model"]
    source, base = model_code(question)
    if model["source"] != source:
        raise CheckpointError(
            f"the checkpoint {chosen.place} is of the model {model['source']!r}, the study's is {source!r}",
            hint=f"{question} says which model is the study's",
        )
    module = models.build(
        source,
        model["keys"],
        base=base,
        features=stored_features(chosen.manifest["features"]),
        outputs=model["outputs"],
        seed=0,
        categories=categories(chosen.manifest["preprocessing"]),
    )
    if has_other_head(module, chosen.weights):
        replace_head(module, model["outputs"], seed=0)
    try:
        load_weights(module, chosen.weights, fresh=None, where=chosen.place)
    except CheckpointError as error:
        changed = changed_code(chosen.manifest, base)
        raise CheckpointError(error.message, hint=f"{changed}: undo that" if changed else error.hint) from error
    return module.eval()


def _outputs(module: nn.Module, found: NewInputs, device: str) -> Iterator[Tensor]:
    """(n, O) float64 on the CPU, part by part: a long table is never prepared as a whole. Raises ModelError."""
    import torch

    from tunecli.data.samples import Samples, each
    from tunecli.engine.device import is_out_of_memory, out_of_memory, release_memory
    from tunecli.engine.forward import as_matrix, as_outputs
    from tunecli.engine.misfit import called
    from tunecli.engine.plan import EVALUATION_SAMPLES

    low, length = 0, EVALUATION_SAMPLES
    while low < found.rows:
        count = min(length, found.rows - low)
        outputs, short = None, ""
        try:
            inputs = each(lambda part: part.to(device), found.batch(low, low + count))
            with torch.no_grad():
                outputs = as_matrix(as_outputs(called(module, Samples(inputs, torch.zeros(count))), count))
        except (MemoryError, RuntimeError, TunecliError) as error:
            if not is_out_of_memory(error):
                raise
            short = out_of_memory(error)
        if outputs is not None:
            yield outputs.double().cpu()
            low += count
            continue
        if count == 1:
            raise ModelError(f"one sample does not fit into memory: {short}", hint="--device cpu may have more")
        length = count // 2
        release_memory()


def _columns(classes: Sequence[str], outputs: int) -> tuple[str, ...]:
    if classes:
        return ("prediction", *(f"probability_{label}" for label in classes))
    return ("prediction",) if outputs == 1 else tuple(f"prediction_{number}" for number in range(outputs))


def _named(names: Sequence[str], rows: Iterator[tuple[str | float, ...]]) -> Iterator[tuple[str | float, ...]]:
    """Each row with its name before it, where they have names."""
    return ((name, *row) for name, row in zip(names, rows, strict=True)) if names else rows


def _rows(parts: Iterable[Tensor], manifest: Mapping[str, Any]) -> Iterator[tuple[str | float, ...]]:
    classes = tuple(manifest["classes"])
    unit = manifest["preprocessing"].get("target", {})
    for outputs in parts:
        if not classes:
            yield from map(tuple, (outputs * unit.get("scale", 1.0) + unit.get("mean", 0.0)).tolist())
            continue
        for shares in probabilities(outputs, len(classes)).tolist():
            yield classes[max(range(len(classes)), key=shares.__getitem__)], *shares


def probabilities(outputs: Tensor, classes: int) -> Tensor:
    """(N, C) from logits (N, C): their softmax; from the one logit of a binary model (N, 1): its sigmoid.

    Of float64 outputs, so that a row's sum is 1 in all the digits that are printed. A model may have more outputs than
    there are classes; no target ever asked for those.
    """
    import torch

    if outputs.shape[1] == 1:
        return torch.cat([torch.sigmoid(-outputs), torch.sigmoid(outputs)], dim=1)
    return outputs[:, :classes].softmax(1)


def as_csv(predicted: Predicted) -> Iterator[str]:
    """The predictions as CSV, line by line, the header first. A number is written as the shortest text that reads back
    as itself."""
    yield csv_line(predicted.columns)
    for row in predicted.rows:
        yield csv_line(row)
