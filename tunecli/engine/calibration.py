"""Plans measured on a study's own model and data, and what was measured kept for the next study of that shape."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunecli.data import Samples
from tunecli.engine.local import LocalEngine
from tunecli.engine.plan import Plan
from tunecli.engine.task import Task
from tunecli.errors import OutOfMemory, TunecliError
from tunecli.files import cache_folder, keep_in_cache
from tunecli.machine import cores, processor
from tunecli.trial import Run

BUDGET_SECONDS = 2.0
"""What measuring may take; the written rule's plan is measured whatever it takes."""

ROUNDS = 3
"""A first one, in which pages and caches are filled, and two that count."""

SAMPLES = 512
"""So many samples make a tick that is measured, and two batches of the largest default size."""

LEAST_GAIN = 0.05
"""The written rule's plan stays unless another takes less of its time by this share: below, a stopwatch decides."""

LOOPED_TRIALS = 4
"""Of trials computed one after another, a few tell what each of them costs."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What a plan costs: `seconds` for a sample of one trial, evaluation included; infinite where it was given up."""

    plan: Plan
    seconds: float


def best(timings: Sequence[Timing]) -> Plan:
    """The fastest plan, or the first one where that is hardly slower."""
    fastest = min(timings, key=lambda timing: timing.seconds)
    return fastest.plan if fastest.seconds < (1 - LEAST_GAIN) * timings[0].seconds else timings[0].plan


def measure(task: Task, plans: Sequence[Plan], runs: Sequence[Run], device: str) -> list[Timing]:
    """Train the runs for a short tick under each plan, in turns, and keep each one's shortest time.

    A plan that takes twice as long as the best so far is not tried again, one that takes four times as long is not
    waited for.
    """
    small = replace(task, train=_some(task.train, SAMPLES), validation=_some(task.validation, SAMPLES // 8))
    until = time.perf_counter() + BUDGET_SECONDS
    engines: dict[Plan, _Candidate] = {}
    shortest: dict[Plan, float] = {}
    for number in range(ROUNDS):
        for plan in plans if number == 0 else list(engines):
            now = time.perf_counter()
            first = number == 0 and plan == plans[0]
            if now >= until and not first:
                break
            if plan not in engines:
                own = runs[:LOOPED_TRIALS] if plan.way == "looped" else runs
                engines[plan] = _Candidate(small, plan, own, device)
            limit = 4 * min(shortest.values()) if shortest else float("inf")
            seconds = engines[plan].tick(float("inf") if first else min(limit, until - now))
            shortest[plan] = seconds if number == 1 else min(shortest.get(plan, float("inf")), seconds)
        best_so_far = min(shortest.values())
        for plan in [plan for plan in engines if shortest[plan] > 2 * best_so_far and plan != plans[0]]:
            del engines[plan]
    return [Timing(plan, shortest.get(plan, float("inf"))) for plan in plans]


class _Candidate:
    """An engine under one plan, with runs in flight."""

    def __init__(self, task: Task, plan: Plan, runs: Sequence[Run], device: str) -> None:
        self._engine, self._threads = LocalEngine(task, plan, device), plan.threads
        self._trials = sum(self._starts(run) for run in runs)
        self._samples = self._trials * len(task.train)

    def tick(self, limit_seconds: float) -> float:
        """Seconds that a sample of one trial took; infinite past `limit_seconds` a sample, and beyond use then."""
        if self._trials == 0:
            return float("inf")
        torch.set_num_threads(self._threads)
        began = time.perf_counter()
        try:
            measured = self._engine.advance(time.monotonic() + limit_seconds * self._samples)
        except OutOfMemory:
            return float("inf")
        if len(measured) < self._trials:
            return float("inf")
        return (time.perf_counter() - began) / self._samples

    def _starts(self, run: Run) -> bool:
        """Whether a run can begin: a point that the model refuses is a failed trial, and no reason to measure none."""
        try:
            self._engine.start(run)
        except TunecliError:
            return False
        return True


def _some(samples: Any, count: int) -> Any:
    return samples.take(slice(0, count)) if isinstance(samples, Samples) else samples


# What was measured before


def shape_of(task: Task, device: str, **more: Any) -> dict[str, Any]:
    """What a measurement holds for: the machine, the versions, the model's shape, and what else is given."""
    return {
        "processor": processor(),
        "cores": cores(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "torch": torch.__version__,
        "engine": _version(),
        "loss": task.loss.name if hasattr(task.loss, "name") else "",
        "samples": len(task.train).bit_length(),
        **more,
    }


def _version() -> str:
    """Of the engine: another one may be faster by other plans."""
    sources = sorted(own for own in Path(__file__).parent.rglob("*") if own.suffix in (".py", ".c", ".h"))
    return hashlib.sha256(b"".join(own.read_bytes() for own in sources)).hexdigest()[:16]


def recall(shape: Mapping[str, Any], plans: Iterable[Plan]) -> list[Timing] | None:
    """What was measured for this shape; None where nothing was, or other plans were compared."""
    try:
        document = json.loads(_path(shape).read_bytes())
        seconds = {Plan(**own["plan"]): float(own["seconds"]) for own in document["timings"]}
        return [Timing(plan, seconds[plan]) for plan in plans]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # a cache, which anybody may clear or spoil


def remember(shape: Mapping[str, Any], timings: Iterable[Timing]) -> None:
    """Keep what was measured for the next study of this shape, where it can be written."""
    own = [{"plan": timing.plan.as_dict(), "seconds": timing.seconds} for timing in timings]
    with suppress(OSError):
        keep_in_cache(_path(shape), json.dumps({"shape": shape, "timings": own}, indent=1).encode())


def _path(shape: Mapping[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder("plans") / f"{name}.json"
