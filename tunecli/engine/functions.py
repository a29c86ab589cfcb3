"""A user's own loss, metric and step: what each returns is checked, and what it raises is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunecli.data import Samples, Split
from tunecli.data.randomness import seeded
from tunecli.engine.forward import evaluating
from tunecli.errors import SourceError, TunecliError
from tunecli.metrics import Loss, Metric
from tunecli.source import describe, function_name, load_function, source_file
from tunecli.trial import derive_seed

_EVALUATION_SEED = derive_seed(0, 0, "evaluation")
"""A step that draws numbers draws the same ones in every evaluation: trials are compared on equal terms."""


def chunks(samples: Split, length: int) -> Iterator[Samples]:
    """The samples in order, so many at once."""
    lows = range(0, len(samples), length)
    return samples.stream(slice(low, low + length) for low in lows)


@dataclass(frozen=True, slots=True)
class Step:
    """`function(model, batch) -> (loss_sum, count)`: a sum over the batch, and by how much to divide it.

    `per_batch` says that it mixes the samples of a batch, so that a batch is never read in parts.
    """

    source: str
    function: Callable[..., Any]
    per_batch: bool = False

    def __call__(self, module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """The loss sum and the count, () each. Raises SourceError."""
        returned = self.function(module, batch)
        if not (isinstance(returned, tuple | list) and len(returned) == 2):
            raise SourceError(f"{self.source} returned {_kind(returned)}", hint=_STEP_HINT)
        total, count = returned
        if not isinstance(total, Tensor) or total.numel() != 1:
            raise SourceError(f"{self.source} returned {_kind(total)} for the loss sum", hint=_STEP_HINT)
        total = total.reshape(())
        count = torch.as_tensor(count, dtype=torch.float64, device=total.device) if _is_number(count) else None
        if count is None or not bool(count >= 0):
            raise SourceError(f"{self.source} returned {_kind(returned[1])} for the count", hint=_STEP_HINT)
        return total, count.detach().reshape(())

    def mean_loss(self, module: nn.Module, samples: Split, length: int) -> Tensor:
        """The loss over all samples, `length` at once, (): the sum of the sums over the sum of the counts, in
        evaluation mode."""
        with torch.no_grad(), evaluating(module), seeded(_EVALUATION_SEED):
            found = [self(module, part.batch()) for part in chunks(samples, length)]
        total, count = (torch.stack([own.double() for own in parts]).sum() for parts in zip(*found, strict=True))
        return total / count


_STEP_HINT = "return (loss_sum, count): a sum of losses, one number with a gradient, and how many it sums"


def load_step(source: str, base: Path, *, per_batch: bool) -> Step:
    """The step that `file.py:function` names. Raises SourceError."""
    return Step(source, _named(source, base), per_batch)


def load_loss(source: str, base: Path, *, one_output: bool, per_batch: bool) -> Loss:
    """The loss that `file.py:function` names: `loss(outputs, targets)`, one number a sample or, with `per_batch`, one
    for all. Raises SourceError."""
    function = _named(source, base)

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        found = function(outputs, targets)
        samples = len(targets)
        if not isinstance(found, Tensor):
            raise SourceError(f"{source} returned {_kind(found)}", hint=_LOSS_HINT)
        if per_batch:
            if found.numel() != 1:
                raise SourceError(
                    f"{source} returned {_kind(found)}, with train.per_batch it must be one number",
                    hint="leave train.per_batch out where each sample has a loss of its own",
                )
            # Its mean over the samples is the number itself, in the loss as in the gradient.
            return found.reshape(()).expand(samples)
        if found.dim() == 0:
            raise SourceError(f"{source} returned one number for {samples} samples", hint=_LOSS_HINT)
        if found.shape[0] != samples:
            raise SourceError(f"{source} returned {_kind(found)} for {samples} samples", hint=_LOSS_HINT)
        if outputs.shape == (samples, 1) and targets.shape == (samples,) and found.shape == (samples, samples):
            raise SourceError(
                f"{source} compares each output with every target: outputs {tuple(outputs.shape)}, "
                f"targets {tuple(targets.shape)}",
                hint="compare outputs[:, 0] with the targets",
            )
        return found if found.dim() == 1 else found.flatten(1).mean(1)

    return Loss(function_name(source), None, per_sample, one_output, own=True, per_batch=per_batch)


_LOSS_HINT = 'return one loss a sample, as reduction="none" gives it, or say train.per_batch = true'


def load_metric(source: str, base: Path, direction: str, *, scale: float, mean: float) -> Metric:
    """The metric that `file.py:function` names: `metric(outputs, targets)`, a number.

    Regression outputs and targets are restored to the target's own unit by `scale` and `mean`. Raises SourceError.
    """
    function = _named(source, base)

    def score(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
        if (scale, mean) != (1.0, 0.0):
            outputs, targets = outputs * scale + mean, targets * scale + mean
        values = [function(row, targets) for row in outputs]
        for value in values:
            if not _is_number(value):
                raise SourceError(f"{source} returned {_kind(value)}", hint="return a number")
        return torch.stack([torch.as_tensor(v, dtype=torch.float64, device=outputs.device).reshape(()) for v in values])

    return Metric(function_name(source), None, direction, score, own=True)


def _named(source: str, base: Path) -> Callable[..., Any]:
    """The function, its exceptions with the user's own file and line."""
    function, path = load_function(source, base), source_file(source, base)

    def called(*args: Any) -> Any:
        try:
            return function(*args)
        except TunecliError:
            raise
        except (Exception, SystemExit) as error:
            given = " and ".join(_kind(argument) for argument in args)
            raise SourceError(f"{source} raised {describe(error, path)}", hint=f"it was called with {given}") from error

    return called


def _is_number(value: Any) -> bool:
    """A number of Python's or NumPy's, or a tensor that holds one."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return not isinstance(value, str | bytes) and hasattr(value, "__float__") and getattr(value, "size", 1) == 1


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r}" if isinstance(value, int | float | str) else type(value).__name__
