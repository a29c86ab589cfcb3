"""What an engine trains: samples, a loss, a metric, and how a run's model is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from tunecli import models
from tunecli.data import Data, Samples, Split
from tunecli.engine.device import is_out_of_memory, release_memory
from tunecli.engine.forward import as_matrix, as_outputs, evaluating
from tunecli.engine.functions import Step, chunks, load_loss, load_metric, load_step
from tunecli.engine.gradients import sample_losses
from tunecli.engine.misfit import called
from tunecli.engine.own import OwnOptimizer, load_optimizer
from tunecli.engine.plan import EVALUATION_SAMPLES
from tunecli.errors import StudyFileError, TunecliError
from tunecli.metrics import DEFAULT_LOSS, DEFAULT_METRIC, LOSSES, METRICS, Loss, Metric, own_direction
from tunecli.source import function_name, is_function
from tunecli.space import DEFAULT_SETTINGS
from tunecli.study import Study
from tunecli.trial import Hparams, Run, Value

SCORED_AT_ONCE = 1 << 24
"""Numbers of outputs whose losses are computed in one call: 64 MiB, of which it makes a few copies."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """`build(run)` gives a run's model with its initial weights; what does not require a gradient is frozen.

    `validation` is None where there is nothing to choose by: a run's weights are then those after its last tick.
    A regression target in its own unit is a standardized one times `target_scale` plus `target_mean`. `decay_biases` as
    in a study file; `optimizers` are the user's own, by their names there. A step of the user's own takes the place of
    the loss. A run that takes more than `trial_seconds` of its own has failed.
    """

    train: Split
    validation: Split | None
    loss: Loss | Step
    metric: Metric
    classes: int
    build: Callable[[Run], nn.Module]
    target_scale: float = 1.0
    target_mean: float = 0.0
    decay_biases: bool = True
    optimizers: Mapping[str, OwnOptimizer] = field(default_factory=dict)
    trial_seconds: float | None = None

    def of(self, run: Run) -> Task:
        """The task with the loss of a run, where its hparams name one."""
        name = run.hparams.get("loss")
        return self if name is None else replace(self, loss=LOSSES[str(name)])

    @property
    def step(self) -> Step | None:
        return self.loss if isinstance(self.loss, Step) else None

    def score(
        self, outputs: Tensor, targets: Tensor, shape: Mapping[str, Tensor] = MappingProxyType({})
    ) -> tuple[Tensor, Tensor]:
        """The mean loss and the metric of each row: (K,) and (K,) from outputs (K, N, ...) and targets (N,).

        `shape` (K,) is what shapes the loss of each row.
        """
        loss = self._losses(outputs, targets, dict(shape)).double().mean(1)
        return loss, loss if self.metric.function is None else self.metric_of(outputs, targets)

    def _losses(self, outputs: Tensor, targets: Tensor, shape: dict[str, Tensor]) -> Tensor:
        """(K, N)"""
        loss = self.loss
        assert isinstance(loss, Loss)
        if loss.of_rows is not None and not shape and outputs.dim() == 3 and len(outputs) > 1:
            some = outputs.split(max(1, SCORED_AT_ONCE // outputs[0].numel()))  # type: ignore[no-untyped-call]  # torch's own
            return torch.cat([loss.of_rows(own, targets) for own in some])
        # A row at a time: vmap would save nothing here, and load sympy, for half a second of every search.
        rows = [{name: column[row] for name, column in shape.items()} for row in range(len(outputs))]
        return torch.stack([sample_losses(loss, own, targets, told) for own, told in zip(outputs, rows, strict=True)])

    def metric_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The metric of each row: (K,) from outputs (K, N, ...) and targets (N,)."""
        function, power = self.metric.function, self.metric.target_power
        assert function is not None
        if not self.metric.own:
            outputs = outputs[..., None] if outputs.dim() == 2 else outputs  # (K, N, O)
            as_matrix(outputs[0])
            targets = targets[:, 0] if targets.dim() == 2 and targets.shape[1] == 1 else targets
        if power is None:
            outputs, targets = (own.double() * self.target_scale + self.target_mean for own in (outputs, targets))
        return function(outputs, targets, self.classes) * self.target_scale ** (power or 0)


def make_task(study: Study, data: Data) -> Task:
    """The task that a study states for its data. Raises StudyFileError where loss or metric do not fit the data."""
    loss = loss_of(study, data)
    metric = metric_of_study(study, data)
    losses = [LOSSES[str(name)] for name in study.space.values_of("loss")] or ([] if isinstance(loss, Step) else [loss])
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
    if data.train.weights is not None and (isinstance(loss, Step) or loss.per_batch):
        raise StudyFileError(
            f"{study.train.step or study.train.loss} cannot count samples by weights: it computes one loss for a batch",
            hint="leave out class_weight and data.weight",
        )
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
        trial_seconds=study.search.trial_seconds,
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


def check_metric(metric: Metric, samples: Split, data: Data, split: str) -> None:
    """Raises StudyFileError where the metric has no value on a split: training for it would be in vain."""
    if isinstance(samples, Samples):
        targets = samples.targets
    elif metric.every_class:
        return  # the targets of a Dataset are seen when they are read
    else:
        targets = torch.empty(0)
    reason = metric.undefined_because(targets.flatten(), data.classes)
    if reason is not None:
        raise StudyFileError(
            f"the metric has no value on the {split} split of {data.name}: {reason}",
            hint="choose another train.metric" + ("" if metric.binary else ", or make that split larger: data.split"),
        )


def loss_of(study: Study, data: Data, hparams: Hparams = MappingProxyType({})) -> Loss | Step:
    """The loss that a trial has among its hparams, or its study states, or its step, or the usual one for its data."""
    train, one_output = study.train, data.task != "classification"
    if train.step is not None:
        return load_step(train.step, study.base, per_batch=train.per_batch)
    if "loss" in hparams:
        return LOSSES[str(hparams["loss"])]
    if train.loss is not None and is_function(train.loss):
        return load_loss(train.loss, study.base, one_output=one_output, per_batch=train.per_batch)
    return LOSSES[train.loss or DEFAULT_LOSS[data.task]]


def metric_of_study(study: Study, data: Data) -> Metric:
    """The metric that a study states, or the usual one for its data; where its step is the user's own, the loss."""
    train = study.train
    if train.metric is not None and is_function(train.metric):
        direction = train.direction or own_direction(function_name(train.metric))
        return load_metric(train.metric, study.base, direction, scale=data.target_scale, mean=data.target_mean)
    if train.step is not None or data.task not in DEFAULT_METRIC:
        return METRICS[train.metric or "loss"]
    return METRICS[train.metric or DEFAULT_METRIC[data.task]]


def outputs_of(study: Study, data: Data, hparams: Hparams = MappingProxyType({})) -> int:
    """How many outputs a trial's model should have: one a class, unless the loss takes one alone."""
    loss = loss_of(study, data, hparams)
    return max(1, len(data.classes)) if isinstance(loss, Step) else loss.outputs(len(data.classes))


def evaluate(task: Task, module: nn.Module, samples: Split, settings: Mapping[str, Value] = DEFAULT_SETTINGS) -> float:
    """The task's metric of one model on some samples; a loss is shaped by the settings, its labels are not smoothed."""
    length = EVALUATION_SAMPLES
    while True:
        try:
            return _evaluate(task, module, samples, settings, length)
        except (MemoryError, RuntimeError, TunecliError) as error:
            if length == 1 or not is_out_of_memory(error):
                raise
        length //= 2
        release_memory()


def _evaluate(task: Task, module: nn.Module, samples: Split, settings: Mapping[str, Value], length: int) -> float:
    if task.step is not None and task.metric.function is None:
        return float(task.step.mean_loss(module, samples, length))
    found: list[Tensor] = []
    targets: list[Tensor] = []
    with torch.no_grad(), evaluating(module):
        for part in chunks(samples, length):
            found.append(as_outputs(called(module, part), len(part)))
            targets.append(part.targets)
    outputs, known = torch.cat(found)[None], torch.cat(targets)
    if task.metric.function is not None:
        return float(task.metric_of(outputs, known))
    assert isinstance(task.loss, Loss)
    shape = task.loss.shape({**settings, "label_smoothing": 0.0})
    return float(task.score(outputs, known, {name: torch.tensor([own]).to(outputs) for name, own in shape.items()})[0])


def build_model(study: Study, data: Data, hparams: Hparams, seed: int) -> nn.Module:
    """A new model of the study, with the keys that a trial sampled laid over the study file's."""
    return models.build(
        study.model.source,
        model_keys(study, hparams),
        base=study.base,
        features=data.features,
        outputs=outputs_of(study, data, hparams),
        seed=seed,
        categories=data.categories,
    )


def model_keys(study: Study, hparams: Hparams) -> dict[str, object]:
    """The keys of the model function: those of [model], then a trial's `model.*`; a tuple becomes a list again."""
    searched = {name.removeprefix("model."): value for name, value in hparams.items() if name.startswith("model.")}
    return study.model.keys | {k: list(v) if isinstance(v, tuple) else v for k, v in searched.items()}
