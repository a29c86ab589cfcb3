"""What a model allows: which way its gradient is had, found by trying it on a few samples."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tunecli.data import Samples
from tunecli.engine.device import is_out_of_memory
from tunecli.engine.forward import as_outputs, call, evaluating
from tunecli.engine.functions import Step
from tunecli.engine.gradients import Gradient, Layout, filters, sample_losses
from tunecli.engine.misfit import reads_along_samples
from tunecli.engine.norms import batch_norms, fixed_norms, running_statistics
from tunecli.engine.rowwise import Drawing, InCAlone, Recorded, Rowwise, Unrecordable, sample_keys
from tunecli.engine.rowwise.images import SMALL, SMALL_IN_C, unfolded_numbers
from tunecli.engine.rowwise.recurrent import MOST_STEPS, MOST_WEIGHTS, steps
from tunecli.errors import SourceError
from tunecli.metrics import Loss


@dataclass(frozen=True, slots=True)
class Traits:
    """What a model allows. `way` is the plan's or, where the model has not got it, "looped".

    `looped_because` is None where its rows can be computed at once; else it says what to change in the model, if
    anything can. `native`: C of our own computes it, one row after the other. `channels_last`: it convolves images
    and works with filters kept so, which a CPU is faster with. `numbers`: so many C keeps of each sample of a step.
    `remark` is what its user may not have meant.
    """

    way: str
    looped_because: str | None
    stochastic: bool = False
    mixes_samples: bool = False
    channels_last: bool = False
    native: bool = False
    numbers: int = 0
    remark: str | None = None

    def looped(self, because: str) -> Traits:
        """The same for a model that is looped all the same."""
        return replace(self, way="looped", looped_because=because, native=False)


def traits(
    module: nn.Module, twin: nn.Module, samples: Samples, loss: Loss, way: str, more: Samples | None = None
) -> Traits:
    """What a model does, tried on a few samples, an even number of them, for the way of a plan; and on `more` of them,
    as many as C of our own reads at once, where that may compute it.

    `twin` is the same model built from another seed: what neither trains must be the same in both to be shared.
    Raises ModelError where the model does not fit its data.
    """
    module.train()
    stochastic, mixes, changed, elsewhere = _behaviour(module, samples, loss)
    if elsewhere:
        return Traits(
            "looped", "its forward pass draws from Python's random or NumPy's: torch's is for all rows", True, mixes
        )
    if loss.per_batch:
        return Traits("looped", "train.per_batch: a loss of a whole batch", stochastic, True)
    normed = next(batch_norms(module), None) is not None
    mixed = _mixed_by(module, samples, None if mixes else changed) if normed or mixes or changed is not None else None
    if mixed is not None and (mixes or changed is not None or more is None):
        return Traits("looped", mixed, stochastic, True)
    alone = _faster_alone(module, samples, native=more is not None)
    if alone is not None:
        return Traits("looped", mixed or alone, stochastic, normed)
    if not _is_shared(module, twin):
        mixed = mixed if more is None else None  # C bears a norm
        return Traits("looped", mixed or "its frozen weights differ from trial to trial", stochastic, normed)
    with _moved(module):
        numbers = 0 if more is None else _numbers_in_c(module, more, loss, stochastic)
        because = None if numbers else mixed or _fault(module, samples, loss, stochastic)
    if not numbers and because is None:
        because = _faster_alone(module, samples, native=False)
    found = way if because is None else "looped"
    return Traits(found, because, stochastic, normed, native=numbers > 0, numbers=numbers)


def _mixed_by(module: nn.Module, samples: Samples, changed: str | None) -> str:
    """What makes the samples of a batch depend on each other, or on those before, and what to take instead; the buffer
    that is `changed`, if that alone does."""
    norm = next(batch_norms(module), None)
    if norm is None and changed is not None:
        return f"its forward pass writes to self.{changed}"
    if norm is None:
        return reads_along_samples(module, samples) or "samples of a batch depend on each other"
    # What is faster one by one would be no faster without it.
    faster = _faster_alone(module, samples, native=False) is None
    mixed = f"{type(norm[1]).__name__} (layer {norm[0]}) mixes the samples of a batch"
    return mixed + (": nn.GroupNorm does not" if faster else "")


def _is_shared(module: nn.Module, twin: nn.Module) -> bool:
    """Whether what a trial has for itself is trained, or runs on."""
    own, other = module.state_dict(), twin.state_dict()
    apart = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    running = {id(buffer) for buffer in running_statistics(module).values()}
    apart |= {name for name, buffer in module.named_buffers(remove_duplicate=False) if id(buffer) in running}
    return all(torch.equal(own[name], other[name]) for name in own.keys() - apart)


ALONE = "such convolutions are faster one by one"


def _faster_alone(module: nn.Module, samples: Samples, *, native: bool) -> str | None:
    """Which layers take less time one trial after another, None where none does: long sequences, and convolutions of
    which a sample's windows have many numbers; fewer of them where no C of our own may do it."""
    forward = lambda: call(module, samples.inputs)  # noqa: E731
    weights = sum(own.numel() for own in module.parameters())
    with _kept_buffers(module):
        longest, unfolded = steps(module, forward), unfolded_numbers(module, forward, in_c=native)
    if longest and not (native and longest <= MOST_STEPS and weights <= MOST_WEIGHTS):
        return "recurrent layers are faster one by one"
    if unfolded > (SMALL_IN_C if native else SMALL):
        return ALONE
    return None


def bears_channels_last(module: nn.Module, losses: Callable[[], Tensor]) -> bool:
    """Whether a model convolves images, and trains alike with channels last: `x.view(...)`, say, refuses them.

    `losses` are those of a few samples, compared in evaluation: what dropout draws depends on the layout.
    """
    convolving = filters(module)
    if not convolving:
        return False
    if not all(own.requires_grad for _, own in convolving) and any(
        isinstance(p, nn.GroupNorm) for p in module.modules()
    ):
        return False  # torch ends the process where what a GroupNorm reads is channels last and needs no gradient
    usual = [weight.data for _, weight in convolving]
    try:
        with _kept_buffers(module), torch.random.fork_rng():
            with torch.no_grad(), evaluating(module):
                expected = losses()
            for _, weight in convolving:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
            with torch.no_grad(), evaluating(module):
                found = losses()
            losses().sum().backward()  # type: ignore[no-untyped-call]  # torch's own
            return _agree(found[None], expected)
    except Exception as error:  # whatever a user's forward meets, it works with the usual layout
        if is_out_of_memory(error):
            raise
        return False
    finally:
        module.zero_grad()
        for (_, weight), data in zip(convolving, usual, strict=True):
            weight.data = data


def step_traits(module: nn.Module, samples: Samples, step: Step) -> Traits:
    """As `traits`, for a study whose step is the user's own. It may draw random numbers, as dropout does.

    Samples depend on each other unless the sums and the counts of two halves add up to those of the whole.
    """
    half = len(samples) // 2
    parts = samples, samples.take(slice(0, half)), samples.take(slice(half, None))
    module.train()
    loss, _ = step(module, samples.batch())
    if not loss.requires_grad:
        raise SourceError(
            f"{step.source} returned a loss sum without a gradient",
            hint="compute it with torch from the model's outputs",
        )
    with torch.no_grad(), evaluating(module):
        found = [torch.stack([own.double() for own in step(module, part.batch())]) for part in parts]
    adds_up = torch.allclose(found[0], found[1] + found[2], rtol=1e-3, atol=1e-4)
    mixes = step.per_batch or not adds_up or next(batch_norms(module), None) is not None
    return Traits("looped", "train.step is the user's own", True, mixes)


def _behaviour(module: nn.Module, samples: Samples, loss: Loss) -> tuple[bool, bool, str | None, bool]:
    """Whether a model in training draws random numbers, mixes the samples of a batch by more than their statistics; and
    which buffer it changes, but for those that run on; and whether it draws from other generators than torch's."""
    whole, half = samples.inputs, len(samples) // 2
    halves = samples.take(slice(0, half)).inputs, samples.take(slice(half, None)).inputs
    with _kept_buffers(module) as state, torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        # Asked of the generator, too: by chance a rare dropout leaves a few samples as they are.
        before, elsewhere = _generator_state(samples), _other_states()
        first = as_outputs(call(module, whole), len(samples))
        second = as_outputs(call(module, whole), len(samples))
        stochastic = not (torch.equal(before, _generator_state(samples)) and torch.equal(first, second))
        drawn_elsewhere = elsewhere != _other_states()
        # In evaluation nothing is drawn, unless it always is.
        with evaluating(module) if stochastic else fixed_norms(module):
            first, second = (as_outputs(call(module, whole), len(samples)) for _ in range(2))
            parts = torch.cat([as_outputs(call(module, part), half) for part in halves])
        mixes = torch.equal(first, second) and not torch.allclose(first, parts, rtol=1e-3, atol=1e-4)
        mixes = mixes or (loss.own and _loss_mixes(loss, first, samples.targets))
        running = running_statistics(module)
        others = ((name, buffer) for name, buffer in module.named_buffers() if name not in running)
        changed = next((name for name, buffer in others if not torch.equal(state[name], buffer)), None)
    return stochastic or drawn_elsewhere, mixes, changed, drawn_elsewhere


def _other_states() -> tuple[object, ...]:
    """Those of Python's generator and NumPy's."""
    name, numbers, *rest = cast(tuple[Any, ...], np.random.get_state())
    return random.getstate(), name, numbers.tobytes(), *rest


def _generator_state(samples: Samples) -> Tensor:
    """That of torch's generator where the samples are."""
    device = samples.targets.device
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The buffers of a module as they are, which they are again in the end."""
    state = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield state
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(state[name])


def _loss_mixes(loss: Loss, outputs: Tensor, targets: Tensor) -> bool:
    """Whether a user's own loss of a sample depends on the others of its batch."""
    whole, half = loss.per_sample(outputs, targets), len(targets) // 2
    parts = [loss.per_sample(outputs[own], targets[own]) for own in (slice(0, half), slice(half, None))]
    return not torch.allclose(whole, torch.cat(parts), rtol=1e-3, atol=1e-4)


@contextmanager
def _moved(module: nn.Module) -> Iterator[None]:
    """The module, its weights a little off where they begin: below a head of zeros nothing has a gradient, neither what
    learns nor what its forward pass keeps from learning."""
    weights = [own.data for own in module.parameters() if own.requires_grad]
    begun, generator = [own.clone() for own in weights], torch.Generator().manual_seed(0)
    for own in weights:
        read = own.numel() / len(own) if own.dim() > 1 else 1.0  # so many numbers make one of a layer's outputs
        own += 0.1 * read**-0.5 * torch.randn(own.shape, generator=generator).to(own)
    try:
        yield
    finally:
        for own, was in zip(weights, begun, strict=True):
            own.copy_(was)


def _fault(module: nn.Module, samples: Samples, loss: Loss, stochastic: bool) -> str | None:
    """Why two rows of a model computed at once do not have its own gradient and outputs, or None where they do."""
    try:
        same = _Two(module, samples, loss, stochastic, native=False).agree()
    except InCAlone:
        return ALONE
    except Unrecordable as error:
        return f"{_place(error)}{error}"
    except Exception as error:  # whatever a user's forward meets under vmap, the loop still works
        if is_out_of_memory(error):
            raise
        return f"{_place(error)}vmap cannot follow its forward pass ({type(error).__name__})"
    return None if same else "rows computed at once have another gradient"


def _numbers_in_c(module: nn.Module, samples: Samples, loss: Loss, stochastic: bool) -> int:
    """How many numbers C keeps of each sample, if it computes the model, and as that does itself; it reads so many
    samples at once."""
    try:
        two = _Two(module, samples, loss, stochastic, native=True)
        numbers = two.way.native_numbers(two.samples)
        return numbers if numbers and two.agree() else 0
    except Exception as error:  # a forward that refuses so many, say
        if is_out_of_memory(error):
            raise
        return 0


class _Two:
    """Two rows of a model, computed at once."""

    def __init__(self, module: nn.Module, samples: Samples, loss: Loss, stochastic: bool, *, native: bool) -> None:
        self._module, self._own, self._loss, self._count = module, samples, loss, len(samples)
        self._layout = Layout.of(module)
        self._row = row = self._layout.row(module)
        gradient = Gradient(self._layout, torch.zeros(2, self._layout.width).to(row))
        recorded = Recorded(module, self._layout, loss, compiled=native, native=native)
        self._statistics = recorded.statistics
        self._running = self._statistics.row(module).repeat(2, 1) if self._statistics.names else None
        self.way = Rowwise(recorded, row.repeat(2, 1), gradient, statistics=self._running)
        self.samples = samples.take(torch.arange(self._count).repeat(2, 1))
        index = torch.arange(2 * self._count).view(2, self._count)
        self._keys = sample_keys(torch.arange(2), index).to(row.device)
        self.way.draw_by(self._keys if stochastic else None)

    def agree(self) -> bool:
        """Whether they have the model's own gradient and outputs, and what runs on as it does."""
        self.way.add_gradient(self.samples, torch.ones(2, self._count).to(self._row))
        gradients = torch.stack([self.way.gradient.row(row) for row in range(2)])
        outputs = self.way.outputs(self._own.inputs, self._count)
        parts = 2 if self._running is None else 1  # without statistics of a batch none depends on the others
        for row, keys in enumerate(self._keys):
            with _kept_buffers(self._module):
                own = _gradient(self._module, self._layout, self._own, self._loss, keys, parts)
                ran_on = self._running is None or _agree(self._running[row], self._statistics.row(self._module))
                with torch.no_grad(), evaluating(self._module):
                    given = as_outputs(call(self._module, self._own.inputs), self._count)
            if not (ran_on and _agree(gradients[row], own)):
                return False
            if outputs.shape[1:] != given.shape or not _agree(outputs[row], given):
                return False
        return True


def _place(error: BaseException) -> str:
    """`model.py:12: `, the line of the user's module in which it was raised; nothing where it was in one of torch's."""
    found = ""
    for frame, line in traceback.walk_tb((error.__cause__ or error).__traceback__):
        own = frame.f_locals.get("self")
        if isinstance(own, nn.Module) and not type(own).__module__.startswith("torch."):
            found = f"{Path(frame.f_code.co_filename).name}:{line}: "
    return found


def _gradient(module: nn.Module, layout: Layout, samples: Samples, loss: Loss, keys: Tensor, parts: int) -> Tensor:
    """The row's gradient (P,) by plain autograd, so many parts of the samples one after the other.

    What dropout draws, it draws for the keys of the samples.
    """
    found, length = torch.zeros(1, layout.width).to(layout.row(module)), len(samples) // parts
    for part in (slice(low, low + length) for low in range(0, len(samples), length)):
        own = samples.take(part)
        with Drawing(keys[part]), sdpa_kernel(SDPBackend.MATH):  # whose dropout is seen
            outputs = as_outputs(call(module, own.inputs), len(own))
            losses = sample_losses(loss, outputs, own.targets).sum()
        addends = torch.autograd.grad(losses, [module.get_parameter(n) for n in layout.names], allow_unused=True)
        for view, addend in zip(layout.views(found).values(), addends, strict=True):
            view[0].add_(0 if addend is None else addend)
    return found[0]


def _agree(found: Tensor, expected: Tensor) -> bool:
    """To float32 rounding; infinite numbers agree with the same ones."""
    scale = float(expected.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(found, expected.expand_as(found), rtol=1e-3, atol=1e-4 * scale, equal_nan=True)
