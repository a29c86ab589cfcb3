"""How a new study is planned: by the written rule, or by the fastest of some plans where it repays measuring them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from tunecli.data import Samples
from tunecli.engine import Plan, Task, Traits, choose_plan
from tunecli.engine.calibration import Timing, measure, recall, remember, shape_of
from tunecli.engine.compiler import can_compile
from tunecli.engine.device import gpu_memory
from tunecli.engine.forward import call, watch
from tunecli.engine.gradients import filters
from tunecli.engine.plan import choose_plan_for_gpu, rivals
from tunecli.machine import cores
from tunecli.points import at
from tunecli.space import Choice, Int, Range, Space
from tunecli.study import Study
from tunecli.trial import Run, Value, derive_seed

LONG_SECONDS = 60.0
"""A study that would train so long on one core without pruning repays two seconds of measuring."""

SECONDS_A_SAMPLE, OPERATIONS_A_SECOND = 1e-6, 5e10
"""What a sample of one trial costs at least, and what one core computes: rough, and the same on every machine, so that
the same study is always planned alike."""


def written_plan(study: Study, task: Task, example: nn.Module, found: Traits, device: str, blocks: int = 1) -> Plan:
    """The plan of a new study by the written rule, for models like the `example`, with so many blocks at least."""
    smallest = _batch_sizes(study.space, len(task.train))[0]
    weights = sum(p.numel() for p in example.parameters() if p.requires_grad)
    memory = gpu_memory(device)
    if memory is not None:
        return choose_plan_for_gpu(weights, study.window, smallest, memory)
    how = {"convolves": bool(filters(example)), "native": found.native}
    plan = choose_plan(weights, study.window, smallest, blocks, **how)
    return plan.with_compiled(can_compile(device))


def repays_measuring(study: Study, task: Task, example: Run, found: Traits) -> bool:
    """Whether a study is so long that it is worth measuring plans for; `example` is a run whose model works.

    What C of our own computes goes a row after the other, by whichever plan: of the nine that train a narrow mlp many
    trials at a time the three best differed by a fortieth, the written rule's among them.
    """
    return not found.native and _seconds(study, task, example) >= LONG_SECONDS


def measure_plans(study: Study, task: Task, example: Run, found: Traits, device: str) -> Sequence[Timing]:
    """What the plans of a long study cost, the written rule's first, as measured now, or before for one of its shape.

    Each of them leaves every core a block of its own.
    """
    batches, blocks = _batch_sizes(study.space, len(task.train)), cores()
    module = task.build(example)
    layout = [list(p.shape) for p in module.parameters() if p.requires_grad]
    written = written_plan(study, task, module, found, device, blocks)
    looped, compiled = found.looped_because is not None, can_compile(device)
    plans = rivals(written, study.window, batches[-1], blocks, looped=looped, compiled=compiled)
    shape = shape_of(task, device, way=found.way, layout=layout, batches=batches, window=study.window)
    timings = recall(shape, plans)
    if timings is None:
        timings = measure(task, plans, _runs(study), device)
        if any(math.isfinite(timing.seconds) for timing in timings):
            remember(shape, timings)
    return timings


def _seconds(study: Study, task: Task, example: Run) -> float:
    """Roughly how long the study would train on one core; 0 where that cannot be told from a forward pass."""
    if task.step is not None or not isinstance(task.train, Samples):
        return 0.0
    # The backward pass computes about twice what the forward pass does.
    operations = 3 * _operations(task.build(example), task.train.take(slice(0, min(8, len(task.train)))))
    each = SECONDS_A_SAMPLE + operations / OPERATIONS_A_SECOND
    epochs = study.search.trials * study.train.epochs
    return epochs * len(task.train) * each


def _operations(module: nn.Module, samples: Samples) -> float:
    """About how many operations a forward pass takes for a sample: two for each weight of a layer and each place that
    it is applied at. (torch's own FlopCounterMode loads its compiler, for more than a second.)
    """
    found = 0.0

    def count(layer: nn.Module, _: object, outputs: object) -> None:
        nonlocal found
        if isinstance(outputs, Tensor):
            weights = (p for p in layer.parameters(recurse=False) if p.dim() > 1)
            found += sum(2 * p.numel() * outputs.numel() / p.shape[0] for p in weights) / len(samples)

    layers = [part for part in module.modules() if not isinstance(part, nn.Embedding)]
    watch(layers, count, lambda: call(module.eval(), samples.inputs))
    return found


def _batch_sizes(space: Space, samples: int) -> list[int]:
    """Every batch size of the space, or the ends of its range, from the smallest on."""
    sizes = {own for own in space.values_of("batch_size") if isinstance(own, int)}
    ends = [d.range for d in space.dimensions if d.hparam == "batch_size" and isinstance(d.range, Int)]
    return sorted(sizes | {end for own in ends for end in (own.low, own.high)}) or [samples]


def _runs(study: Study) -> list[Run]:
    """A window of recipes spread over the space, always the same.

    They learn slowly: what diverges is slow to compute with.
    """
    hparam_of = {dimension.name: dimension.hparam for dimension in study.space.dimensions}

    def make(number: int) -> Run:
        def ask(name: str, range_: Range) -> Value:
            if hparam_of[name] == "learning_rate" and not isinstance(range_, Choice):
                return range_.low
            return at(range_, derive_seed(0, number, name) / 2**63)

        return Run(number, 0, study.space.suggest(ask), study.train.epochs, study.train.settings)

    return [make(number) for number in range(study.window)]
