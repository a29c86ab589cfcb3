"""Does the model fit the data, and how is it computed? Tried before a study begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tunecli.data import Data
from tunecli.engine import LocalEngine, Plan
from tunecli.engine.calibration import Timing, best
from tunecli.engine.compiler import can_compile
from tunecli.engine.own import load_optimizer
from tunecli.engine.plan import TRIED
from tunecli.engine.task import Task, make_task
from tunecli.errors import InputError, TunecliError
from tunecli.machine import cores
from tunecli.search.planning import measure_plans, repays_measuring, written_plan
from tunecli.source import is_function
from tunecli.space import Choice, Range
from tunecli.store import Record
from tunecli.study import Study
from tunecli.trial import Hparams, Run, State, Trial, Value


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What a study trains, and an engine for it, empty yet. `weights` are those that its first model trains, `timings`
    those of the plans that were measured, and `looped_because` says why its trials are computed one after another, None
    if they are not; `native`: C of our own computes its models; `remark` as `Traits` has it.
    """

    task: Task
    device: str
    engine: LocalEngine
    plan: Plan
    timings: Sequence[Timing]
    weights: int
    looped_because: str | None
    native: bool
    remark: str | None


def fit(study: Study, data: Data, device: str, record: Record | None) -> Fitted:
    """Try the model by the first point of the space that works; raises the first point's error where none does.

    A study that is gone on with keeps the plan that is recorded of it, but for what this machine cannot compile. Raises
    InputError where trials in flight could not go on to what they would have come to.
    """
    flight = [trial for trial in record.trials if trial.state is State.RUNNING] if record is not None else []
    task = _with_optimizers(make_task(study, data), study, flight)
    stored = Plan(**record.plan) if record is not None else None
    fitted = _try(study, task, device, stored)
    if stored is not None and flight:
        _check_plan(stored, fitted.plan)
    return fitted


def _try(study: Study, task: Task, device: str, stored: Plan | None) -> Fitted:
    faults: list[TunecliError] = []
    for hparams in _examples(study):
        run = Run(0, study.seed, hparams, study.train.epochs, study.train.settings)
        try:
            return _fit_by(run, study, task, device, stored)
        except TunecliError as error:
            faults.append(error)
    raise faults[0]


def _fit_by(run: Run, study: Study, task: Task, device: str, stored: Plan | None) -> Fitted:
    module = task.build(run)
    weights = sum(p.numel() for p in module.parameters() if p.requires_grad)
    plan = stored or TRIED.with_compiled(can_compile(device))
    if plan.compiled and device == "cpu" and not can_compile(device):
        plan = replace(plan, compiled=False)
    engine = LocalEngine(task, plan, device, threads=cores())
    traits = engine.traits(run)
    timings: Sequence[Timing] = ()
    if stored is None:
        plan = written_plan(study, task, module, traits, device)
        if repays_measuring(study, task, run, traits):
            timings = measure_plans(study, task, run, traits, device)
            plan = best(timings)
        engine.plan_by(plan)
    return Fitted(task, device, engine, plan, timings, weights, traits.looped_because, traits.native, traits.remark)


def _check_plan(stored: Plan, now: Plan) -> None:
    if stored.compiled and not now.compiled:
        raise InputError(
            "no C compiler (cc, or CC) works here, and the trials in flight were trained with one",
            hint="install gcc or clang, or set CC to one; without one they come to other values: --fresh begins anew",
        )


def _with_optimizers(task: Task, study: Study, flight: Iterable[Trial]) -> Task:
    """The task with the user's own optimizers of trials in flight, which today's space need not name any more."""
    own = {str(trial.hparams["optimizer"]) for trial in flight if is_function(str(trial.hparams["optimizer"]))}
    missing = {source: load_optimizer(source, study.base) for source in sorted(own - task.optimizers.keys())}
    return replace(task, optimizers={**task.optimizers, **missing}) if missing else task


def _examples(study: Study) -> Iterator[Hparams]:
    """Points of the space, always the same, by which the model is tried before the first trial.

    The first has the first value of every choice; the others are there because a model may refuse that one alone.
    """
    choices = [d.range.values for d in study.space.dimensions if isinstance(d.range, Choice)]
    for place in range(max((len(values) for values in choices), default=1)):

        def ask(name: str, range_: Range, place: int = place) -> Value:
            return range_.values[place % len(range_.values)] if isinstance(range_, Choice) else range_.low

        yield study.space.suggest(ask)
