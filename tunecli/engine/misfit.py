"""Why a model cannot be called with its data: the layer that could not, and the user's own line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunecli.data import Samples, Split
from tunecli.data.samples import Inputs, tensors
from tunecli.engine.device import is_out_of_memory
from tunecli.engine.forward import call, watch
from tunecli.errors import ModelError, TunecliError
from tunecli.models.head import parametrized
from tunecli.source import describe, loaded_line


def misfit(module: nn.Module, samples: Samples, error: BaseException) -> ModelError:
    """What to say of a forward that raised when the model was tried with these samples."""
    if not _is_about_shapes(error):
        return ModelError(
            f"the model's forward raised {describe(error, _own_file(module))}",
            hint=f"it was tried with {len(samples)} sample{'s' * (len(samples) > 1)} of shape {samples.features}",
        )
    name = _raised_in(module, error)
    layer = f" in layer {name}, {_kind(module.get_submodule(name))}" if name else ""
    line = loaded_line(error)
    place = f" ({line})" if line else ""
    text = " ".join(str(error).split())
    kinds = [part.dtype for _, part in tensors(samples.inputs)]
    if torch.float64 in kinds:
        hint = "tensors are taken as they are: return inputs.float(), or make the model double"
    elif "same dtype" in text and kinds == [torch.float32]:
        hint = "the data are float32: make the model so, by model.float()"
    elif (table := _table(module, name)) is not None and all(own.is_floating_point for own in kinds):
        hint = "a table is looked up by integers: a .npz file, or a function of your own, can give the model such"
    elif "'indices'" in str(error):
        hint = "look up inputs.long()"
    elif table is not None and isinstance(error, IndexError):
        hint = f"it has rows 0 to {table.num_embeddings - 1}: give it more, or the data other numbers"
    elif name and _comes_after(module, name):
        hint = f"check what layer {name} takes against what comes before it"
    else:
        hint = "check the model's first layer against the data's features"
    return ModelError(
        f"the model cannot read samples of shape {samples.features}: {type(error).__name__}: {text}{layer}{place}",
        hint=hint,
    )


def reads_along_samples(module: nn.Module, samples: Samples) -> str | None:
    """Which recurrent layer or attention of a model takes the samples of a batch for the steps of one sequence, and
    what to change; None where none does."""
    names = {part: name for name, part in module.named_modules()}
    parts = [own for own in names if isinstance(own, nn.RNNBase | nn.MultiheadAttention) and not own.batch_first]
    half = samples.take(slice(0, len(samples) // 2))  # sequences may be as long as there are samples
    for part in parts:
        shape, of_half = _read_by(part, module, samples), _read_by(part, module, half)
        if shape[:1] == (len(samples),) and of_half[:1] == (len(half),):
            mend = "batch_first=True" if len(shape) == 3 else "it takes (samples, steps, features)"
            return f"layer {names[part]}, {_kind(part)}, takes samples for steps of a sequence: {mend}"
    return None


def _read_by(part: nn.Module, module: nn.Module, samples: Samples) -> tuple[int, ...]:
    """The shape of what a part of a module is first given, () where it is given nothing by its place."""
    read: list[tuple[int, ...]] = []
    watch(
        [part],
        lambda _, given, __: read.append(tuple(given[0].shape) if given else ()),
        lambda: call(module, samples.inputs),
    )
    return read[0] if read else ()


def check_tables(module: nn.Module, samples: Samples, splits: Sequence[Split | None]) -> None:
    """Raises ModelError where the data hold a number for which a table that reads them, or a column of them, has no
    row; `samples` are a few of them."""
    reading: list[tuple[nn.Embedding, str, int | None]] = []

    def see(part: nn.Embedding, given: tuple[Tensor, ...], _: object) -> None:
        reading.extend((part, *own) for own, tokens in _whole_numbers(samples).items() if _are_same(given[0], tokens))

    watch([p for p in module.modules() if isinstance(p, nn.Embedding)], see, lambda: call(module, samples.inputs))
    for split in splits:
        if not reading or not isinstance(split, Samples):
            continue
        for own, tokens in _whole_numbers(split).items():
            rows = min((part.num_embeddings for part, *read in reading if tuple(read) == own), default=None)
            if rows is None:
                continue
            low, high = (int(one) for one in tokens.aminmax())
            if low < 0 or high >= rows:
                raise ModelError(
                    f"the data hold {low if low < 0 else high}, and a table of the model has {rows} rows",
                    hint=f"its rows are 0 to {rows - 1}: give nn.Embedding more, or the data other numbers",
                )


def _whole_numbers(samples: Samples) -> dict[tuple[str, int | None], Tensor]:
    """Those inputs that are, and each column where they have some, by their names and numbers."""
    whole = {name: own for name, own in tensors(samples.inputs) if isinstance(own, Tensor) and _is_whole(own)}
    found: dict[tuple[str, int | None], Tensor] = {(name, None): own for name, own in whole.items()}
    return found | {(n, k): own[:, k] for n, own in whole.items() if own.dim() == 2 for k in range(own.shape[1])}


def _is_whole(numbers: Tensor) -> bool:
    return not numbers.is_floating_point() and not numbers.is_complex() and numbers.dtype != torch.bool


def _are_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def check_unwritten(samples: Samples, inputs: Inputs) -> None:
    """Raises ModelError where samples are not the inputs that they were any more; then they are made so again."""
    written = False
    for (_, now), (_, before) in zip(tensors(samples.inputs), tensors(inputs), strict=True):
        if not isinstance(now, Tensor) or torch.equal(now, before):
            continue
        if bool((now == now).all()):  # what is no number differs from itself
            written = True
            now.copy_(before)
    if written:
        raise ModelError(
            "the model's forward writes into its inputs, which are the data that all trials read",
            hint="x = x + 1 in the place of x += 1, and no layer with inplace=True before another",
        )


def are_probabilities(module: nn.Module, outputs: Tensor) -> bool:
    """Whether outputs (N, O) of a model are its classes' probabilities, and no logits."""
    if outputs.dim() == 2 and outputs.shape[1] > 1:
        sums = outputs.sum(1)
        return bool((outputs >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
    return isinstance(list(module.modules())[-1], nn.Sigmoid)


def called(module: nn.Module, samples: Samples) -> Any:
    """What the module makes of samples that it was not tried with. Raises ModelError, or what tells of too little
    memory."""
    try:
        return call(module, samples.inputs)
    except TunecliError:
        raise
    except Exception as error:  # whatever a user's forward raises
        if is_out_of_memory(error):
            raise
        raise misfit(module, samples, error) from error


_ABOUT_SHAPES = ("shape", "size", "mat1", "expected", "dimension", "dtype", "channels", "out of range")
"""Words of torch where a model and its inputs do not fit together."""


def _is_about_shapes(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError | IndexError) and any(word in text for word in _ABOUT_SHAPES)


def _raised_in(module: nn.Module, error: BaseException) -> str:
    """The name of the innermost part of the model whose forward raised, empty for the model itself."""
    names = {id(part): name for name, part in module.named_modules()}
    frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((names[id(own)] for own in reversed(frames) if id(own) in names), "")


def _table(module: nn.Module, name: str) -> nn.Embedding | None:
    """The part of this name where it is a table of rows to be looked up."""
    part = module.get_submodule(name)
    return part if isinstance(part, nn.Embedding) else None


def _comes_after(module: nn.Module, name: str) -> bool:
    """Whether a part of the model stands behind its first layer, as far as their order tells."""
    names = [own for own, _ in module.named_modules()]
    return any(names.index(own) < names.index(name) for own in parametrized(module))


def _kind(layer: nn.Module) -> str:
    """A layer as it is written, or what it is where it holds others."""
    return type(layer).__name__ if any(layer.children()) else repr(layer)


def _own_file(module: nn.Module) -> Path | None:
    """The file of a user's own class; None for one of torch's."""
    kind = sys.modules.get(type(module).__module__)
    file = None if type(module).__module__.startswith("torch.") else getattr(kind, "__file__", None)
    return None if file is None else Path(file)
