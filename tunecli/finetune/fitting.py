"""What a study says, fitted to what is trained on: its data or others, a question that fits them, the hparams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunecli import data as data_room
from tunecli.data import Data
from tunecli.data.samples import stored_features
from tunecli.errors import InputError, SpaceError, UsageError, did_you_mean
from tunecli.finetune import Request
from tunecli.metrics import LOSSES, METRICS
from tunecli.space import OPTIMIZERS, Space, parse_value
from tunecli.store import Record
from tunecli.study import Study, load_data, targets_of
from tunecli.trial import Hparams, Trial, Value


def data_of(study: Study, record: Record, manifest: Mapping[str, Any], request: Request) -> Data:
    """The study's own samples, or the request's, prepared as the checkpoint knows them. Raises InputError."""
    if request.data is None:
        # As it was searched, whatever the memory here: where it was read from its file, study.toml says so.
        data = load_data(study.with_data(stream=bool(study.data.stream)))
        if data.fingerprint() != record.data_hash:
            raise InputError(
                f"{data.name} holds other samples than when the study was searched",
                hint="restore them, or name them as --data",
            )
        return data
    data = data_room.load(
        request.data,
        request.data_keys or {},
        base=Path.cwd(),
        seed=study.seed,
        split=tuple(study.data.split),
        target=request.target or study.data.target,
        fitted=manifest["preprocessing"],
        targets=targets_of(study),
        cache=study.data.cache,
        workers=study.data.workers,
        scale_bytes=manifest["preprocessing"]["kind"] == "bytes",
    )
    features = stored_features(manifest["features"])
    if data.features != features:
        raise InputError(
            f"{data.name} has samples of shape {data.features}, the checkpoint was trained on {features}",
            hint="a model can be trained on with samples of the same features only",
        )
    kinds = manifest["preprocessing"]["kind"], data.preprocessing["kind"]
    if kinds[0] not in ("none", "as_is") and kinds[1] == "none":
        told = f"the numbers of {data.name} are taken as they are, those of the study's own data were prepared"
        data = replace(data, notices=(*data.notices, told))
    return _weighed(data, study)


def _weighed(data: Data, study: Study) -> Data:
    """New data with their classes weighed as the study's are, where they are the same, or a notice that they are not;
    rows with weights are the study's own."""
    notices: list[str] = []
    class_weight = study.train.class_weight
    if class_weight is not None:
        named = class_weight if isinstance(class_weight, Mapping) else ()
        if data.task == "classification" and set(named) <= set(data.classes):
            data = data_room.weigh(data, class_weight)
        else:
            notices.append(f"class_weight is left out: {data.name} has other classes")
    if study.data.weight is not None:
        notices.append(f"each row of {data.name} counts alike: data.weight is for the study's own data")
    return replace(data, notices=(*data.notices, *notices))


def fit_study(study: Study, data: Data) -> Study:
    """The study with loss and metric left to their defaults where the new data are of another kind; the user's own
    functions stay."""
    train: dict[str, Any] = {}
    if study.train.loss is not None and not _loss_fits(study.train.loss, data):
        train["loss"] = None
    metric = METRICS.get(study.train.metric or "")
    if metric is not None and (metric.task not in (None, data.task) or (metric.binary and len(data.classes) != 2)):
        train["metric"] = None
    if data.task == "regression":
        train["label_smoothing"] = 0.0
    # What the trials searched of the loss is among the hparams, where it still fits.
    dimensions = tuple(own for own in study.space.dimensions if own.hparam not in ("loss", "label_smoothing"))
    return replace(study, train=study.train.model_copy(update=train), space=Space(dimensions))


def _loss_fits(loss: str, data: Data) -> bool:
    if loss not in LOSSES:
        return True  # a user's own
    return LOSSES[loss].task == data.task and (loss != "binary_cross_entropy" or len(data.classes) == 2)


def recipe_of(trial: Trial, data: Data) -> dict[str, Value]:
    """The trial's hparams but its schedule, as far as they fit the data."""
    hparams = {name: value for name, value in trial.hparams.items() if name != "schedule"}
    if "loss" in hparams and not _loss_fits(str(hparams["loss"]), data):
        del hparams["loss"]
    return hparams


def hparams_of(trial: Trial, request: Request, data: Data) -> Hparams:
    """The trial's hparams with the given ones laid over; a tenth of the learning rate on the study's own task.

    Raises UsageError.
    """
    hparams = recipe_of(trial, data)
    if not request.new_task:
        hparams["learning_rate"] = float(hparams["learning_rate"]) / 10  # type: ignore[arg-type]  # a number by the space
    for name, raw in (request.hparams or {}).items():
        if name.startswith("model."):
            raise UsageError(f"{name} cannot change: the checkpoint's model has the shape it has")
        try:
            hparams[name] = parse_value(name, raw)
        except SpaceError as error:
            raise UsageError(f"--set {name}: {error.message}", hint=error.hint or "--set learning_rate=0.01") from error
        if hparams.get("schedule") == "plateau":
            raise UsageError("plateau goes by validation, which fine-tuning trains on", hint="--set schedule=cosine")
        if name == "optimizer" and raw not in OPTIMIZERS:
            # Code is taken from the study file only, which named it when the study began.
            raise UsageError(f"{raw} is no optimizer of tunecli's own", hint=did_you_mean(str(raw), OPTIMIZERS))
    return hparams
