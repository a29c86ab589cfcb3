"""What an engine trains: samples, a loss, a metric, and how a run's model is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.func import vmap

from tunecli import models
from tunecli.data import Data, Samples
from tunecli.engine.forward import as_matrix, call, evaluating
from tunecli.engine.own import OwnOptimizer, load_optimizer
from tunecli.errors import StudyFileError
from tunecli.metrics import DEFAULT_LOSS, DEFAULT_METRIC, LOSSES, METRICS, Loss, Metric
from tunecli.source import is_function
from tunecli.study import Study
from tunecli.trial import Hparams, Run

EVALUATION_SAMPLES = 1024
"""Samples evaluated at once. A multiple of what a block's micro-batches are filled up to, for the same reason."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """`build(run)` gives a run's model with its initial weights; what does not require a gradient is frozen.

    `validation` is None where there is nothing to choose by: a run's weights are then those after its last tick.
    A regression target in its own unit is a standardized one times `target_scale` plus `target_mean`. `decay_biases` as
    in a study file; `optimizers` are the user's own, by their names there.
    """

    train: Samples
    validation: Samples | None
    loss: Loss
    metric: Metric
    classes: int
    build: Callable[[Run], nn.Module]
    target_scale: float = 1.0
    target_mean: float = 0.0
    decay_biases: bool = True
    optimizers: Mapping[str, OwnOptimizer] = field(default_factory=dict)

    def of(self, run: Run) -> Task:
        """The task with the loss of a run, where its hparams name one."""
        name = run.hparams.get("loss")
        return self if name is None else replace(self, loss=LOSSES[str(name)])

    def score(
        self, outputs: Tensor, targets: Tensor, shape: Mapping[str, Tensor] = MappingProxyType({})
    ) -> tuple[Tensor, Tensor]:
        """The mean loss and the metric of each row: (K,) and (K,) from outputs (K, N, O) and targets (N,).

        `shape` (K,) is what shapes the loss of each row.
        """
        losses: Tensor = vmap(lambda row, own: self.loss.per_sample(row, targets, **own))(outputs, dict(shape))
        loss = losses.double().mean(1)
        function, power = self.metric.function, self.metric.target_power
        if function is None:
            return loss, loss
        if power is None:
            outputs, targets = (own.double() * self.target_scale + self.target_mean for own in (outputs, targets))
        return loss, function(outputs, targets, self.classes) * self.target_scale ** (power or 0)


def make_task(study: Study, data: Data) -> Task:
    """The task that a study states for its data. Raises StudyFileError where loss or metric do not fit the data."""
    loss = loss_of(study, data)
    metric = METRICS[study.train.metric or DEFAULT_METRIC[data.task]]
    losses = [LOSSES[str(name)] for name in study.space.values_of("loss")] or [loss]
    stated = [*(("loss", own.name, own.task) for own in losses), ("metric", metric.name, metric.task)]
    for kind, name, task in stated:
        if task not in (None, data.task):
            fitting = [own.name for own in (LOSSES if kind == "loss" else METRICS).values() if own.task == data.task]
            raise StudyFileError(
                f"{kind} {name!r} is for {task}, {data.name} is {data.task}", hint=f"use {' or '.join(fitting)}"
            )
    if any(own.name == "binary_cross_entropy" for own in losses) and len(data.classes) != 2:
        raise StudyFileError(
            f"binary_cross_entropy needs two classes, {data.name} has {len(data.classes)}", hint="use cross_entropy"
        )
    _check_settings(study, losses, metric)
    own = [str(value) for value in study.space.values_of("optimizer") if is_function(str(value))]
    check_metric(metric, data.validation, data, "validation")
    return Task(
        train=data.train,
        validation=data.validation,
        loss=loss,
        metric=metric,
        classes=len(data.classes),
        build=lambda run: build_model(study, data, run.hparams, run.seed("weights")),
        target_scale=data.target_scale,
        target_mean=data.target_mean,
        decay_biases=study.train.decay_biases,
        optimizers={source: load_optimizer(source, study.base) for source in own},
    )


def _check_settings(study: Study, losses: Sequence[Loss], metric: Metric) -> None:
    """Raises StudyFileError where a loss cannot be shaped as stated, or compares trials by other measures."""
    smoothing = study.space.values_of("label_smoothing") or (study.train.settings.get("label_smoothing", 0.0),)
    smoothed = any(smoothing) or "label_smoothing" in study.space.searched()
    for loss in losses:
        if smoothed and "label_smoothing" not in loss.shaped_by:
            able = [own.name for own in LOSSES.values() if "label_smoothing" in own.shaped_by]
            raise StudyFileError(f"the loss {loss.name} smooths no labels", hint=f"{', '.join(able)} do")
    searched = [name for name in ("loss", "focal_gamma", "huber_delta") if name in study.space.searched()]
    if metric.function is None and searched:
        raise StudyFileError(
            f"the metric 'loss' cannot compare trials of different losses: [space] searches {', '.join(searched)}",
            hint="choose another train.metric",
        )


def check_metric(metric: Metric, samples: Samples, data: Data, split: str) -> None:
    """Raises StudyFileError where the metric has no value on a split: training for it would be in vain."""
    reason = metric.undefined_because(samples.targets, data.classes)
    if reason is not None:
        raise StudyFileError(
            f"the metric has no value on the {split} split of {data.name}: {reason}",
            hint="choose another train.metric" + ("" if metric.binary else ", or make that split larger: data.split"),
        )


def loss_of(study: Study, data: Data, hparams: Hparams = MappingProxyType({})) -> Loss:
    """The loss that a trial has among its hparams, or its study states, or the usual one for its data."""
    if "loss" in hparams:
        return LOSSES[str(hparams["loss"])]
    return LOSSES[study.train.loss or DEFAULT_LOSS[data.task]]


def evaluate(task: Task, module: nn.Module, samples: Samples) -> float:
    """The task's metric of one model on some samples."""
    chunks = []
    with torch.no_grad(), evaluating(module):
        for low in range(0, len(samples), EVALUATION_SAMPLES):
            part = samples.take(slice(low, low + EVALUATION_SAMPLES))
            chunks.append(as_matrix(call(module, part.inputs), len(part)))
    _, metric = task.score(torch.cat(chunks)[None], samples.targets)
    return float(metric)


def build_model(study: Study, data: Data, hparams: Hparams, seed: int) -> nn.Module:
    """A new model of the study, with the keys that a trial sampled laid over the study file's."""
    return models.build(
        study.model.source,
        model_keys(study, hparams),
        base=study.base,
        features=data.features,
        outputs=loss_of(study, data, hparams).outputs(len(data.classes)),
        seed=seed,
        categories=data.categories,
    )


def model_keys(study: Study, hparams: Hparams) -> dict[str, object]:
    """The keys of the model function: those of [model], then a trial's `model.*`; a tuple becomes a list again."""
    searched = {name.removeprefix("model."): value for name, value in hparams.items() if name.startswith("model.")}
    return study.model.keys | {k: list(v) if isinstance(v, tuple) else v for k, v in searched.items()}
