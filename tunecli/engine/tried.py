"""A run's model, tried on a few samples before it has a lane: does it fit the data, and what does it allow?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from tunecli.data import Samples, Split, each
from tunecli.data.samples import tensors
from tunecli.engine.forward import as_matrix, as_outputs, call, evaluating
from tunecli.engine.functions import Step
from tunecli.engine.gradients import sample_losses
from tunecli.engine.misfit import are_probabilities, check_tables, check_unwritten, misfit
from tunecli.engine.plan import NATIVE_WEIGHTS, Plan
from tunecli.engine.rowwise.native import SHAPES
from tunecli.engine.rowwise.workspace import WHOLE
from tunecli.engine.task import Task
from tunecli.engine.traits import Traits, bears_channels_last, step_traits, traits
from tunecli.errors import ModelError, TunecliError
from tunecli.metrics import Loss
from tunecli.space import settings_of
from tunecli.trial import Run

_ITEMS_ARE_READ = "the items of its Dataset are read one by one, data.cache = true trains many trials at once"


EXACT = 1 << 24
"""Up to here float32 has every whole number."""


def _are_exact(samples: Split | None) -> bool:
    """Whether the whole numbers that a model reads, ids say, are the same ones in C, which has floats alone."""
    if not isinstance(samples, Samples):
        return True
    parts = [own for _, own in tensors(samples.inputs) if isinstance(own, Tensor) and own.numel()]
    wide = [own for own in parts if own.dtype in (torch.int32, torch.int64)]
    return all(int(low) >= -EXACT and int(high) <= EXACT for low, high in (own.aminmax() for own in wide))


def told(task: Task, run: Run) -> dict[str, float]:
    """What the loss of a run is told beside outputs and targets."""
    return {} if isinstance(task.loss, Step) else task.loss.shape(settings_of(run.settings, run.hparams))


def try_model(task: Task, run: Run, device: torch.device, plan: Plan) -> Traits:
    """What the model of a run allows, tried on a few of the samples. Raises ModelError where it does not fit them."""
    count = max(2, min(8, len(task.train)) // 2 * 2)
    samples = task.train.to(device).take(slice(0, count))
    inputs = each(lambda own: own.clone() if isinstance(own, Tensor) else own, samples.inputs)  # or texts
    module = task.build(run).to(device)
    twin = task.build(Run(run.trial, run.study_seed + 1, run.hparams, run.epochs)).to(device)
    remark = None
    try:
        found = step_traits(module, samples, task.loss) if isinstance(task.loss, Step) else None
        if found is None or task.metric.function is not None:
            with torch.no_grad(), evaluating(module):
                outputs = as_outputs(call(module, samples.inputs), count)
            _check_outputs(task, outputs, samples.targets)
            remark = _remark(task, module, outputs)
        if found is None:
            assert isinstance(task.loss, Loss)
            may = plan.compiled and isinstance(task.train, Samples) and len(task.train) >= WHOLE
            may = may and settings_of(run.settings, run.hparams)["precision"] != "bf16"  # which torch computes
            may = may and all(map(_are_exact, (task.train, task.validation)))
            weights = sum(own.numel() for own in module.parameters())
            may = may and told(task, run).keys() <= SHAPES and weights <= NATIVE_WEIGHTS
            more = task.train.take(slice(0, WHOLE)).to(device) if may else None
            found = traits(module, twin, samples, task.loss, plan.way, more)
        check_unwritten(samples, inputs)
        check_tables(module, samples, (task.train, task.validation))
        if not isinstance(task.train, Samples) and found.looped_because is None:
            found = found.looped(_ITEMS_ARE_READ)
        if found.way == "looped":
            losses = partial(_losses, task, module, samples)
            found = replace(found, channels_last=bears_channels_last(module, losses))
        return replace(found, remark=remark)
    except TunecliError:
        raise
    except (Exception, SystemExit) as error:
        raise misfit(module, samples, error) from error


def _losses(task: Task, module: nn.Module, samples: Samples) -> Tensor:
    """What a model's training sums up, (N,) or, by a step of the user's own, ()."""
    if isinstance(task.loss, Step):
        return task.loss(module, samples.batch())[0]
    return sample_losses(task.loss, as_outputs(call(module, samples.inputs), len(samples)), samples.targets)


def _remark(task: Task, module: nn.Module, outputs: Tensor) -> str | None:
    """What the user of a model that gives this may not have meant."""
    if not task.classes or isinstance(task.loss, Step) or task.loss.own or not are_probabilities(module, outputs):
        return None
    return f"the model gives probabilities, and {task.loss.name} takes logits: leave its last activation out"


def _check_outputs(task: Task, found: Tensor, targets: Tensor) -> None:
    if task.metric.own:
        task.metric_of(found[None], targets)
    if isinstance(task.loss, Step) or task.loss.own:
        return
    outputs, needed = as_matrix(found).shape[1], task.loss.outputs(task.classes)
    fits = outputs >= needed if not task.loss.one_output else outputs == 1
    if not fits:
        what = f"{task.classes} classes" if task.classes else "one target"
        raise ModelError(
            f"the model gives {outputs} output{'s' if outputs != 1 else ''} a sample, "
            f"the data have {what} and {task.loss.name} needs {needed}",
            hint='give it two, or one and train.loss = "binary_cross_entropy"'
            if task.classes == 2 and outputs == 1
            else "change the model's last layer",
        )
