"""What a model allows: which way its gradient is had, found by trying it on a few samples."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tunecli.data import Samples
from tunecli.engine.forward import as_outputs, call, evaluating
from tunecli.engine.functions import Step
from tunecli.engine.gradients import Layout, Vmapped, filters, sample_losses
from tunecli.engine.rowwise import Rowwise, find_chain
from tunecli.errors import SourceError
from tunecli.metrics import Loss


@dataclass(frozen=True, slots=True)
class Traits:
    """What a model allows. `way` is the plan's or, where the model has not got it, the next: rules, vmap, looped.

    `looped_because` is None where its rows can be computed at once. `channels_last`: it convolves images and works with
    filters kept so, which a CPU is faster with.
    """

    way: str
    looped_because: str | None
    stochastic: bool = False
    mixes_samples: bool = False
    channels_last: bool = False


def traits(module: nn.Module, twin: nn.Module, samples: Samples, loss: Loss, way: str) -> Traits:
    """What a model does, tried on a few samples, an even number of them, for the way of a plan.

    `twin` is the same model built from another seed: what neither trains must be the same in both to be shared.
    Raises ModelError where the model does not fit its data.
    """
    module.train()
    stochastic, mixes, stateful = _behaviour(module, samples, loss)
    if loss.per_batch:
        return Traits("looped", "train.per_batch: a loss of a whole batch", stochastic, True)
    if stochastic:
        quiet = _traits_without_dropout(module, twin, samples, loss) if way == "rules" else None
        if quiet is not None and quiet.way == "rules":
            return replace(quiet, stochastic=True)
        return Traits("looped", "dropout", True, mixes)
    if mixes or stateful:
        return Traits("looped", "samples of a batch depend on each other", mixes_samples=True)
    if any(isinstance(part, nn.RNNBase | nn.modules.conv._ConvNd) for part in module.modules()):
        return Traits("looped", "convolutions and recurrent layers are faster one by one")
    own, other = module.state_dict(), twin.state_dict()
    trained = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    if any(not torch.equal(own[name], other[name]) for name in own.keys() - trained):
        return Traits("looped", "its frozen weights differ from trial to trial")
    trial = _Trial(module, samples, loss)
    if way == "rules" and trial.fault(trial.rowwise) is None:
        return Traits("rules", None)
    because = trial.fault(trial.vmapped)
    return Traits("looped" if way == "looped" or because is not None else "vmap", because)


def bears_channels_last(module: nn.Module, losses: Callable[[], Tensor]) -> bool:
    """Whether a model convolves images, and trains alike with channels last: `x.view(...)`, say, refuses them.

    `losses` are those of a few samples, compared in evaluation: what dropout draws depends on the layout.
    """
    convolving = filters(module)
    if not convolving:
        return False
    usual = [weight.data for _, weight in convolving]
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.random.fork_rng():
            with torch.no_grad(), evaluating(module):
                expected = losses()
            for _, weight in convolving:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
            with torch.no_grad(), evaluating(module):
                found = losses()
            losses().sum().backward()  # type: ignore[no-untyped-call]  # torch's own
            return _agree(found[None], expected)
    except Exception:  # whatever a user's forward meets, it works with the usual layout
        return False
    finally:
        module.zero_grad()
        for (_, weight), data in zip(convolving, usual, strict=True):
            weight.data = data
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])


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
    mixes = step.per_batch or not adds_up or _has_batch_norm(module)
    return Traits("looped", "train.step is the user's own", True, mixes)


def _traits_without_dropout(module: nn.Module, twin: nn.Module, samples: Samples, loss: Loss) -> Traits:
    """Those of the model without its dropout layers: where they are all that it draws by, they have rules as well."""
    try:
        quiet = deepcopy(module)
    except Exception:  # a module need not be one that can be copied
        return Traits("looped", "dropout", True)
    for part in quiet.modules():
        if type(part) is nn.Dropout:
            part.p = 0.0
    if _behaviour(quiet, samples, loss)[0]:
        return Traits("looped", "dropout", True)
    return traits(quiet, twin, samples, loss, "rules")


def _behaviour(module: nn.Module, samples: Samples, loss: Loss) -> tuple[bool, bool, bool]:
    """Whether a model in training draws random numbers, mixes the samples of a batch, changes its buffers."""
    whole, half = samples.inputs, len(samples) // 2
    halves = samples.take(slice(0, half)).inputs, samples.take(slice(half, None)).inputs
    state = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        # Asked of the generator, too: by chance a rare dropout leaves a few samples as they are.
        before = _generator_state(samples)
        first = as_outputs(call(module, whole), len(samples))
        second = as_outputs(call(module, whole), len(samples))
        stochastic = not (torch.equal(before, _generator_state(samples)) and torch.equal(first, second))
        mixes = False
        if not stochastic:
            parts = torch.cat([as_outputs(call(module, part), half) for part in halves])
            mixes = not torch.allclose(first, parts, rtol=1e-3, atol=1e-4)
        mixes = mixes or (loss.own and _loss_mixes(loss, first, samples.targets))
        stateful = any(not torch.equal(state[name], buffer) for name, buffer in module.named_buffers())
    for name, buffer in module.named_buffers():
        buffer.copy_(state[name])
    return stochastic, mixes or _has_batch_norm(module), stateful


def _generator_state(samples: Samples) -> Tensor:
    """That of torch's generator where the samples are."""
    device = samples.targets.device
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def _loss_mixes(loss: Loss, outputs: Tensor, targets: Tensor) -> bool:
    """Whether a user's own loss of a sample depends on the others of its batch."""
    whole, half = loss.per_sample(outputs, targets), len(targets) // 2
    parts = [loss.per_sample(outputs[own], targets[own]) for own in (slice(0, half), slice(half, None))]
    return not torch.allclose(whole, torch.cat(parts), rtol=1e-3, atol=1e-4)


Way = Rowwise | Vmapped


class _Trial:
    """Two rows of one model, by which a way's gradient and outputs are compared with plain autograd's."""

    def __init__(self, module: nn.Module, samples: Samples, loss: Loss) -> None:
        self._module, self._samples, self._loss = module, samples, loss
        self._layout = Layout.of(module)
        self._row = self._layout.row(module)

    def rowwise(self, gradient: Tensor) -> Rowwise | None:
        chain = find_chain(self._module) if isinstance(self._samples.inputs, Tensor) else None
        rows = self._row.repeat(2, 1)
        return None if chain is None else Rowwise(chain, self._layout, rows, gradient, self._loss)

    def vmapped(self, gradient: Tensor) -> Vmapped | None:
        rows = self._row.repeat(2, 1)
        return Vmapped(self._module, self._layout, rows, gradient, self._loss)

    def fault(self, make: Callable[[Tensor], Way | None]) -> str | None:
        """Why a way does not give this model's gradient, or None where it does."""
        samples = self._samples
        gradient = torch.zeros(2, self._layout.width).to(self._row)
        present = torch.ones(2, len(samples)).to(self._row)
        twice = samples.take(torch.arange(len(samples)).repeat(2, 1))
        try:
            way = make(gradient)
            if way is None:
                return "its layers have no rules"
            way.add_gradient(twice, present)
            outputs = way.outputs(samples.inputs, len(samples))
        except Exception as error:  # whatever a user's forward meets under vmap, the loop still works
            return f"vmap cannot follow its forward pass ({type(error).__name__})"
        with torch.no_grad(), evaluating(self._module):
            given = as_outputs(call(self._module, samples.inputs), len(samples))
        if not self._loss.own:  # one number a sample may come as (N,), of which rules make (N, 1)
            given, outputs = given.reshape(len(samples), -1), outputs.reshape(*outputs.shape[:2], -1)
        same = _agree(gradient, self._expected()) and outputs.shape[1:] == given.shape and _agree(outputs, given)
        return None if same else "vmap gives another gradient"

    def _expected(self) -> Tensor:
        """The row's gradient (P,) by plain autograd."""
        samples, expected = self._samples, torch.zeros(1, self._layout.width).to(self._row)
        parameters = [p for p in self._module.parameters() if p.requires_grad]
        outputs = as_outputs(call(self._module, samples.inputs), len(samples))
        losses = sample_losses(self._loss, outputs, samples.targets).sum()
        found = torch.autograd.grad(losses, parameters, allow_unused=True)
        for view, addend in zip(self._layout.views(expected).values(), found, strict=True):
            if addend is not None:
                view[0].copy_(addend)
        return expected[0]


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Both rows, to float32 rounding; infinite numbers agree with the same ones."""
    scale = float(expected.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(found, expected.expand_as(found), rtol=1e-3, atol=1e-4 * scale, equal_nan=True)
